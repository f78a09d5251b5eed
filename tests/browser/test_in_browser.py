"""The page in a real Chromium: it complains of nothing, asks for nothing, runs nothing hostile, sorts and filters."""

import json
from dataclasses import replace

import pytest
import report_samples as sample

from pytest_vllmperf.adapters.html_report import write_html

ROWS = "Array.from(document.querySelectorAll('table.results tbody tr')).filter(row => !row.hidden)"
PAYLOADS = (
    '</script><script>window.hit = 1</script><img src=x onerror="window.hit = 1"><svg onload="window.hit '
    '= 1">\n'
    '"onmouseover="window.hit = 1" \'--></style></title><iframe srcdoc="<script>parent.hit = 1</script>"><'
    "/iframe>\n"
    '<a href="javascript:window.hit=1">x</a>\n'
    '<link rel=stylesheet href="//127.0.0.1:9/x.css">\n'
    "<meta http-equiv=refresh content=0>"
)


@pytest.fixture
def page(tmp_path, open_page):
    """Writes a report and opens it."""

    def show(report=None, *, history=(), **options):
        path = tmp_path / "index.html"
        write_html(report or sample.troubled(), path, history=history)
        return open_page(path, **options)

    return show


def column(tab, number):
    """The texts of one column of the visible rows."""
    return tab.evaluate(f"{ROWS}.map(row => row.cells[{number}].textContent)")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_opens_without_complaint_or_request_and_fits_its_window(page, tmp_path, width, dark):
    report = sample.troubled()
    tab = page(report, history=[sample.past_run(report)], width=width, dark=dark)
    assert tab.complaints() == []
    assert tab.requests() == [(tmp_path / "index.html").as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_the_browser_enforces_the_policy(page):
    tab = page()
    tab.evaluate("new Image().src = 'http://127.0.0.1:9/x.png'")
    tab.evaluate("document.body.setAttribute('style', 'color: red')")
    said = json.dumps(tab.complaints())
    assert "img-src" in said
    assert "style-src" in said
    assert not [url for url in tab.requests() if url.startswith("http") and "9/x.png" not in url]


def test_plots_are_drawn_and_marks_lie_inside(page):
    tab = page()
    boxes = tab.evaluate(
        "Array.from(document.querySelectorAll('svg.ecdf')).map(svg => { svg.scrollIntoView();"
        "const whole = svg.getBoundingClientRect(), curve = svg.querySelector('.curve').getBoundingClientRect();"
        "return [whole.width, curve.width / whole.width, curve.height / whole.height] })"
    )
    assert len(boxes) == 9
    assert all(width > 250 and across > 0.8 and up > 0.5 for width, across, up in boxes)


def test_hostile_texts_do_not_run(page):
    report = sample.with_text(sample.troubled(), lambda text: PAYLOADS + text)
    tab = page(report, history=[sample.past_run(report)])
    tab.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
    tab.evaluate("document.querySelectorAll('*').forEach(e => e.dispatchEvent(new MouseEvent('mouseover')))")
    assert tab.evaluate("window.hit") is None
    assert tab.dialogs() == []
    assert tab.complaints() == []
    assert len(tab.requests()) == 1
    assert tab.evaluate("document.querySelectorAll('script').length") == 1
    assert tab.evaluate("document.querySelectorAll('iframe, img, object, embed').length") == 0


def test_a_click_on_a_head_sorts_and_another_turns_it_around(page):
    tab = page()
    tab.click("table.results th:nth-child(4) button")
    values = tab.evaluate(f"{ROWS}.map(row => row.cells[3].dataset.v ?? null)")
    known = [float(value) for value in values if value is not None]
    assert known == sorted(known)
    assert values[len(known) :] == [None] * (len(values) - len(known))
    assert None in values
    tab.click("table.results th:nth-child(4) button")
    values = tab.evaluate(f"{ROWS}.map(row => row.cells[3].dataset.v ?? null)")
    assert values[: len(known)] == [v for v in values if v is not None]
    assert [float(value) for value in values[: len(known)]] == known[::-1]
    assert tab.evaluate("document.querySelectorAll('th[aria-sort=descending]').length") == 1


def test_verdicts_sort_worst_first(page):
    tab = page()
    tab.click("table.results th:last-child button")
    order = [verdict.split(":")[0] for verdict in column(tab, 6)]
    assert list(dict.fromkeys(order)) == ["FAIL", "INVALID", "INCONCLUSIVE", "PASS", "shown"]


def test_typing_filters_by_every_word_and_says_how_many_are_left(page):
    tab = page()
    whole = len(column(tab, 0))
    tab.write("input[name=text]", "BURST ttft_mean")
    assert column(tab, 2) == ["ttft_mean", "ttft_mean"]
    assert tab.evaluate("document.querySelector('output').value") == f"2 of {whole} rows"
    tab.click("form.filters button[type=reset]")
    tab.evaluate("new Promise(resolve => setTimeout(resolve))")
    assert len(column(tab, 0)) == whole


def test_a_count_at_the_top_shows_its_rows(page):
    tab = page()
    tab.click("a[data-verdict=INVALID]")
    assert column(tab, 6) == ["INVALID", "INVALID"]
    tab.click("a[data-verdict=shown]")
    assert {verdict.split(":")[0] for verdict in column(tab, 6)} == {"shown"}


def test_a_filter_survives_sorting(page):
    tab = page()
    tab.write("input[name=text]", "max-perf")
    tab.click("table.results th:nth-child(3) button")
    assert set(column(tab, 0)) == {"max-perf"}


def test_a_metric_leads_to_its_measurement(page):
    tab = page()
    tab.click("table.results tbody tr td.m a")
    target = tab.evaluate("location.hash")
    assert tab.evaluate(f"document.querySelector('{target} h3').textContent") == "baseline × burst"
    assert tab.evaluate(f"document.querySelector('{target}').getBoundingClientRect().top") < 900


def test_printing_opens_what_is_folded_and_closes_it_again(page):
    tab = page()
    folded = "document.querySelectorAll('details:not([open])').length"
    before = tab.evaluate(folded)
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate(folded) == 0
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.evaluate(folded) == before > 0
    assert len(tab.send("Page.printToPDF")["data"]) > 10_000


def test_an_empty_run_opens_without_complaint(page):
    tab = page(replace(sample.troubled(), engines=(), summaries=(), verdicts=(), problems=()))
    assert tab.complaints() == []
