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
    assert target == "#m1-ttft", "the curve of its distribution"
    assert tab.evaluate(f"document.querySelector('{target}').closest('article').querySelector('h3').textContent") == (
        "baseline × burst"
    )
    assert tab.evaluate(f"document.querySelector('{target}').getBoundingClientRect().top") < 900


def test_every_cell_of_a_row_leads_to_its_evidence(page):
    tab = page()
    tab.click("table.results tbody tr:nth-child(2) td.v")
    assert tab.evaluate("location.hash") == "#m1-ttft"
    tab.click("table.results tbody tr:nth-child(3) td.o")
    assert tab.evaluate("location.hash") == "#m1"
    tab.evaluate("new Promise(resolve => setTimeout(resolve))")  # until the page has scrolled there
    tab.click("table.results tbody td.e a")
    assert tab.evaluate("location.hash") == "#e1"


def test_what_happened_over_time_is_drawn_with_its_steady_window_and_ceiling(page):
    tab = page(history=[sample.past_run(sample.troubled(), day=day) for day in range(1, 8)])
    figures = tab.evaluate(
        """Array.from(document.querySelectorAll('#m1 svg.plot')).map(svg => {
            svg.scrollIntoView();
            const whole = svg.getBoundingClientRect();
            const curve = svg.querySelector('.curve, .phase.p2').getBoundingClientRect();
            return [svg.querySelector('.name').textContent, whole.width, curve.width / whole.width,
                    svg.querySelectorAll('.band').length, svg.querySelectorAll('path.limit').length];
        })"""
    )
    named = {name: rest for name, *rest in figures}
    assert list(named) == [
        "output tokens per second",
        "requests in flight",
        "KV cache in use",
        "device memory",
        "host memory",
        "the 20 slowest requests over time",
    ]
    assert all(width > 250 and share > 0.6 for width, share, _, _ in named.values())
    assert named["output tokens per second"][2] == 1
    assert named["device memory"][3] == 1
    for place in (
        "#s-gate table.forest svg",
        "#s-gate svg .front",
        "#s-pareto svg circle.front",
        "#s-trend svg .curve",
    ):
        assert tab.evaluate(f"document.querySelectorAll('{place}').length") > 0, place
    assert tab.complaints() == []


def test_evidence_of_a_large_run_is_shown_when_it_is_looked_at(page):
    report = sample.large(engines=10, workloads=5, requests=30)
    tab = page(report)
    held = "document.querySelectorAll('article.measurement > noscript').length"
    before = tab.evaluate(held)
    assert before > 40
    assert tab.evaluate("document.querySelectorAll('#m50 svg').length") == 0
    tab.evaluate("location.hash = '#m50-ttft'")
    tab.evaluate("new Promise(resolve => setTimeout(resolve, 50))")
    assert tab.evaluate("document.querySelectorAll('#m50 svg').length") >= 8
    top = tab.evaluate("document.querySelector('#m50-ttft').getBoundingClientRect().top")
    assert 0 <= top < 900
    assert tab.evaluate(held) < before
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate(held) == 0
    assert tab.complaints() == []


def test_hostile_evidence_that_is_shown_late_does_not_run(page):
    report = sample.with_text(sample.large(engines=9, workloads=5, requests=5), lambda text: PAYLOADS + text)
    tab = page(report)
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    tab.evaluate("document.querySelectorAll('*').forEach(e => e.dispatchEvent(new MouseEvent('mouseover')))")
    assert tab.evaluate("window.hit") is None
    assert tab.evaluate("document.querySelectorAll('iframe, img, object, embed').length") == 0
    assert tab.evaluate("document.querySelectorAll('script').length") == 1
    assert tab.complaints() == []


@pytest.mark.parametrize("runs", [0, 1, 500])
def test_any_length_of_history_draws(page, runs):
    report = sample.troubled()
    tab = page(
        report, history=[sample.past_run(report, day=1 + day % 28, factor=1 + day % 7 / 50) for day in range(runs)]
    )
    assert tab.evaluate("document.querySelectorAll('#s-trend svg').length") == (6 if runs >= 5 else 0)
    assert tab.evaluate("document.querySelectorAll('table.results svg.spark').length > 0") == (runs > 0)
    assert tab.complaints() == []


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
