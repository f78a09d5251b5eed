"""The page: self-contained, nothing in it can run or hide, every trouble is told, and curves are where they belong."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import jinja2
import numpy as np
import pytest
import report_samples as sample
from hypothesis import assume, given
from hypothesis import strategies as st

from pytest_vllmperf.adapters.html_report import write_html
from pytest_vllmperf.adapters.html_report.axes import Axis, axis_ticks
from pytest_vllmperf.adapters.html_report.compiled import CompiledBeside
from pytest_vllmperf.adapters.html_report.estimates import scatter_figure
from pytest_vllmperf.adapters.html_report.pareto import pareto_section
from pytest_vllmperf.adapters.html_report.plots import HEIGHT, WIDTH, ecdf_plot, sparkline
from pytest_vllmperf.domain.section import Point, Scatter
from pytest_vllmperf.errors import UnknownMetric

VOID = {"meta", "link", "input", "br", "img"}
EVIL = (
    "</script><script>alert(1)</script></style></title>--><img src=x onerror=alert(1)> \" onload='alert(1)' "
    "{{ 7*7 }} {% raw %} javascript:alert(1) &lt; &#x41; "
)


class Parsed(HTMLParser):
    """Tags with their attributes in order, and the text, as a browser would read them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.raw = text
        self.tags, self.texts, self.inside = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.inside.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts.append((self.inside[-1] if self.inside else "", data))

    def attributes(self, tag, name):
        return [attributes[name] for found, attributes in self.tags if found == tag and name in attributes]

    def text_of(self, tag):
        return "".join(text for inside, text in self.texts if inside == tag)

    def compared(self, metric):
        """The texts of one row of the comparison."""
        row = re.search(rf'<tr><th scope="row">{metric}</th>(.*?)</tr>', self.raw)
        return row and [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td.*?</td>", row[1])]

    @property
    def words(self):
        return " ".join(" ".join(text for inside, text in self.texts if inside not in ("script", "style")).split())


@pytest.fixture
def page(tmp_path):
    """Writes a report as a page and parses it."""

    def write(report=None, **options):
        path = tmp_path / "index.html"
        write_html(sample.troubled() if report is None else report, path, **options)
        return Parsed(path.read_text(encoding="utf-8"))

    return write


def test_the_page_refers_to_nothing_outside_of_itself(page):
    parsed = page()
    targets = parsed.attributes("a", "href")
    assert [t for t in targets if not t.startswith(("#", "./"))] == []
    assert parsed.attributes("link", "href") == ["data:,"]
    assert [(tag, a) for tag, a in parsed.tags if {"src", "srcset", "data", "poster", "xlink:href"} & set(a)] == []
    assert not re.search(r"url\(|@import|https?:", parsed.text_of("style"))
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|https?:", parsed.text_of("script"))


def test_every_link_inside_of_the_page_has_a_target(page):
    parsed = page()
    ids = {attributes["id"] for _, attributes in parsed.tags if "id" in attributes}
    assert {t[1:] for t in parsed.attributes("a", "href") if t.startswith("#")} <= ids


def test_the_policy_allows_the_one_script_and_the_one_style_sheet_and_nothing_else(page):
    parsed = page()
    (policy,) = [a["content"] for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for kind, directive in (("script", "script-src"), ("style", "style-src")):
        digest = base64.b64encode(hashlib.sha256(parsed.text_of(kind).encode()).digest()).decode()
        assert rules[directive] == f"'sha256-{digest}'"
        assert [tag for tag, _ in parsed.tags].count(kind) == 1
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in policy


def test_no_element_carries_a_style_or_a_handler(page):
    for tag, attributes in page().tags:
        assert [name for name in attributes if name == "style" or name.startswith("on")] == [], tag


def test_hostile_texts_change_nothing_but_text(page):
    """X03."""
    tame = page(sample.with_text(sample.troubled(), lambda text: "word " + text))
    hostile = page(sample.with_text(sample.troubled(), lambda text: EVIL + text))
    assert [(tag, sorted(a)) for tag, a in hostile.tags] == [(tag, sorted(a)) for tag, a in tame.tags]
    assert hostile.text_of("script") == tame.text_of("script")
    assert EVIL.split(maxsplit=1)[0] in hostile.words


def test_a_hostile_log_path_stays_a_path_below_the_page(page, tmp_path):
    report = sample.troubled()
    path = str(tmp_path / "javascript:alert(1)" / "?a#b" / '"x".log')
    parsed = page(replace(report, engines=(sample.engine("baseline", log_path=path),)))
    (url,) = [t for t in parsed.attributes("a", "href") if not t.startswith("#")]
    assert url == "./javascript%3Aalert%281%29/%3Fa%23b/%22x%22.log"


def test_terminal_colours_go_and_hidden_characters_show(page):
    reason = "\x1b[31mred\x1b[0m a\u202eb\x00c\udc80d\r\nnext"
    parsed = page(replace(sample.troubled(), engines=(sample.engine("broken", "failed", reason),)))
    assert "red a�b�c�d\nnext" in parsed.text_of("pre")


def test_a_failed_engine_a_skipped_one_and_a_broken_measurement_say_why(page):
    words = page().words
    assert "broken : exit code 1: unrecognized arguments: --no-such-flag second line" in words
    assert "requires a GPU with 40 GiB" in words
    assert "INVALID 0 of 50 requests completed" in words
    assert "max-perf × heavy ttft_mean, tpot_mean: 0 of 50 requests completed" in words
    assert "limit[4].accuracy applies here, but accuracy was never judged" in words
    assert "Engine broken failed; 1 FAIL; 2 INVALID; 1 INCONCLUSIVE; 1 problem" in words


def test_a_failed_engine_leads_with_cause_and_hint_and_keeps_its_log_to_its_card(page):
    reason = "engine 'broken' ended with code 1\n  cause: out of memory\n  hint:  lower it\n  log:   x.log:\n    a line"
    parsed = page(replace(sample.troubled(), engines=(sample.engine("broken", "failed", reason),)))
    above, _, below = parsed.words.partition("Results Search")
    assert "engine 'broken' ended with code 1 cause: out of memory hint: lower it" in above
    assert "a line" not in above
    assert "a line" in below


def test_counts_say_how_many_of_each_outcome_there_are(page):
    words = page().words
    assert "1 FAIL 2 INVALID 1 INCONCLUSIVE 4 PASS" in words


def test_built_in_limits_are_counted_apart(page):
    report = sample.troubled()
    built_in = replace(report.verdicts[1], metric="error_rate", built_in=True)
    assert "5 PASS 1 built in" in page(replace(report, verdicts=(*report.verdicts, built_in))).words


def test_failures_stand_by_class_and_what_is_missing_says_why(page):
    words = page().words
    assert "timeout 3 3.57 % http_error 1 1.19 %" in words
    assert "device_memory_peak not measured: no GPU" in words
    assert "nan" not in words.casefold().split()
    assert "None" not in words.split()


def test_long_facts_are_cut_and_nested_ones_are_named_whole(page):
    words = page().words
    assert "(500 in all)" in words
    assert "rates.empty_rate 25 %" in words


def test_quality_shows_score_filters_and_rates(page):
    assert "gsm8k 75 % [19.4 … 99.4 %] 4 of 4 strict-match 75 % empty 25 % stopped by a stop string –" in page().words


def test_each_row_of_the_table_leads_to_its_measurement(page):
    parsed = page()
    table = [
        a["href"] for tag, a in parsed.tags if tag == "a" and a["href"].startswith("#m") and a["href"][2:].isdigit()
    ]
    assert set(table) == {"#m1", "#m2", "#m3", "#m4"}


def test_a_run_without_engines_says_that_nothing_was_measured(page):
    empty = replace(sample.troubled(), engines=(), summaries=(), verdicts=(), problems=(), exit_code=12)
    words = page(empty).words
    assert "Nothing was judged" in words
    assert "Nothing was measured." in words


def test_an_engine_shows_what_its_log_warned_of_and_what_was_proven_active(page):
    words = page().words
    assert "the engine's log warns of something" in words
    assert "prefix caching on confirmed on a line of the log" in words
    assert "KV cache dtype fp8 refuted, not as asked auto the cache is in bfloat16" in words
    assert "sleep mode" not in words


def test_a_log_beside_the_page_is_linked_and_one_elsewhere_is_named(page, tmp_path):
    parsed = page(sample.troubled(log_folder=str(tmp_path / "logs")))
    assert [t for t in parsed.attributes("a", "href") if t.startswith("./")] == ["./logs/baseline.log"]
    assert "/elsewhere/max-perf.log" in parsed.words


def test_curves_show_limits_and_name_those_beyond_the_axis(page):
    words = page().words
    assert "mean ≤ 100 ms" in words
    assert "p90 ≤ 60 s →" in words


def test_engines_are_compared_with_the_first_one_by_ratio_and_direction(page):
    parsed = page()
    assert "One launch each: not a verdict." in parsed.words
    assert parsed.compared("output_throughput") == ["900 tok/s", "1 286 tok/s", "×1.43 better"]
    assert re.fullmatch(r"×0\.\d+ better", parsed.compared("e2el_mean")[-1])


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (100.0, 104.0, "×1.04"),
        (100.0, 90.0, "×0.9 worse"),
        (0.0, 5.0, "from 0 better"),
        (5.0, 0.0, "to 0 worse"),
    ],
)
def test_a_change_within_tolerance_has_no_direction_and_a_zero_has_no_ratio(page, before, now, said):
    def only(engine, value):
        return sample.load(engine, "burst", n=0, output_throughput=value)

    report = replace(sample.troubled(), summaries=(only("baseline", before), only("max-perf", now)), verdicts=())
    assert page(report).compared("output_throughput")[-1] == said


def test_a_broken_measurement_is_never_compared(page):
    broken = sample.load("max-perf", "burst", invalid=("usage is missing",))
    report = replace(sample.troubled(), summaries=(sample.load("baseline", "burst"), broken), verdicts=(), sections=())
    assert page(report).compared("output_throughput") is None

    assert "Nothing to compare: baseline was measured, max-perf INVALID ." in page(report).words


def test_a_comparison_folds_what_is_seldom_asked_for(page):
    parsed = page()
    folded = parsed.raw.partition("3 more metrics</summary>")[2].partition("</details>")[0]
    assert re.findall(r'<th scope="row">(\w+)</th>', folded) == ["e2el_p90", "service_ttft_mean", "service_e2el_mean"]


def test_a_glance_has_headlines_the_worst_verdict_and_the_nearest_limit(page):
    words = page().words
    assert "Workload baseline max-perf broken offload burst FAIL 900 tok/s TTFT 226 ms TPOT 20.5 ms" in words
    assert "heavy – INVALID 900 tok/s failed skipped gsm8k accuracy 75 %" in words
    assert "TTFT mean takes 226 % of its limit, the most of 4" in words


def test_many_engines_are_the_rows_of_the_glance(page):
    words = page(sample.large(engines=5, workloads=2, requests=5)).words
    assert "Engine workload-0 workload-1 engine-0 900 tok/s TTFT" in words


def test_equal_answers_and_memory_leave_nothing_to_choose():
    def measured(engine, memory):
        load = sample.load(engine, "burst", scale=1.0 if engine == "a" else 0.5, host_memory_peak=memory)
        return load, replace(sample.quality(engine))

    def drawn(other_memory):
        summaries = (*measured("a", 2.0**33), *measured("b", other_memory))
        section = pareto_section(replace(sample.troubled(), summaries=summaries))
        return [scatter.y_label for scatter in section.scatters]

    assert drawn(2.0**33) == ["TTFT mean"]
    assert drawn(2.0**34) == ["TTFT mean", "host memory peak"]


def test_a_share_of_a_whole_ends_at_the_whole_and_ticks_differ():
    points = tuple(Point(label=name, x=x, y=y) for name, x, y in (("a", 1.0, 0.97), ("b", 1.001, 0.99)))
    figure = scatter_figure(Scatter(x_label="x", y_label="y", x_unit="tok/s", y_unit="ratio", points=points, title="t"))
    for ticks in (figure.x_ticks, figure.y_ticks):
        texts = [tick.text for tick in ticks]
        assert len(set(texts)) == len(texts) > 1
    assert max(float(tick.text) for tick in figure.y_ticks) <= 100


def test_memory_is_labelled_in_decimal_steps_of_its_unit():
    ticks = axis_ticks(Axis(low=2.9 * 2**30, high=3.15 * 2**30), "B")
    assert [round(tick / 2**30, 3) for tick in ticks] == [2.9, 2.95, 3.0, 3.05, 3.1, 3.15]


def test_a_crowd_far_from_zero_gets_an_axis_that_begins_near_it():
    values = np.linspace(4.7e-3, 6e-3, 50).tolist()
    plot = ecdf_plot("TPOT", [("one", values)], unit="s")
    assert plot.curves[0].path.startswith(f"M0 {HEIGHT}h")
    assert [tick.text for tick in plot.ticks] == ["5 ms", "5.5 ms", "6 ms"]
    assert plot.ticks[0].x < WIDTH / 3
    assert ecdf_plot("TTFT", [("one", [0.1, 1.0])], unit="s").ticks[0].text == "0 s"


def test_a_trend_marks_every_change_of_level(page):
    report = sample.troubled()
    factors = [0.5] * 14 + [0.8] * 13 + [1.02] * 13
    history = [sample.past_run(report, day=1 + i % 28, factor=f * (1 + i % 5 / 500)) for i, f in enumerate(factors)]
    words = page(report, history=history).words
    assert "+60 % since 12-15" in words
    assert "since 12-28" in words
    assert "6 of 6" not in words


def test_without_history_there_is_no_history_column(page):
    assert "History" not in page().words


@pytest.mark.parametrize("count", [1, 500])
def test_earlier_runs_become_sparklines_that_end_with_this_run(page, count):
    report = sample.troubled()
    past = [sample.past_run(report, day=1 + i % 28, factor=0.5) for i in range(min(count, 2))]
    parsed = page(report, history=(past * count)[:count])
    runs = f"{count} earlier run{'s' if count > 1 else ''} since 2025-12-01T00:00"
    labels = [a["aria-label"] for tag, a in parsed.tags if tag == "svg" and a.get("class") == "spark"]
    assert any(label.startswith(f"{runs}: 450 tok/s to 450 tok/s, then 900 tok/s") for label in labels)
    assert "+100.0 %" in parsed.words


@pytest.mark.parametrize("other", [{"hardware": "NVIDIA A10"}, {"model": "another"}, {"invalid": ("broken",)}])
def test_runs_that_cannot_be_compared_are_left_out(page, other):
    report = sample.troubled()
    assert "History:" not in page(report, history=[sample.past_run(report, **other)]).words


def test_notes_about_the_page_are_shown(page):
    assert "history file x was skipped" in page(notes=["history file x was skipped"]).words


def test_a_page_that_cannot_be_written_leaves_the_earlier_one(tmp_path):
    path = tmp_path / "index.html"
    path.write_text("earlier")
    with pytest.raises(UnknownMetric, match="warp"):
        write_html(replace(sample.troubled(), verdicts=(replace(sample.troubled().verdicts[0], metric="warp"),)), path)
    assert path.read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]


def test_fifty_engines_with_ten_workloads_of_a_thousand_requests_fit_in_fifteen_megabytes(tmp_path):
    path = tmp_path / "index.html"
    write_html(sample.large(), path)
    assert path.stat().st_size <= 15_000_000


latencies = st.floats(min_value=0, max_value=1e6, allow_nan=False)


@given(st.lists(latencies, min_size=1, max_size=200))
def test_a_curve_passes_every_sample_at_its_share_within_a_unit(values):
    plot = ecdf_plot("TTFT", [("one", values)], unit="s")
    points = walked(plot.curves[0].path)
    ordered = np.sort(values)
    low, high = axis(values)
    assume(not plot.log)
    for i, value in enumerate(ordered):
        if i + 1 < len(ordered) and ordered[i + 1] == value:
            continue
        x = WIDTH * (value - low) / (high - low)
        share = HEIGHT * (i + 1) / len(ordered)
        before = max((y for at, y in points if at <= x - 1), default=0)
        after = max(y for at, y in points if at <= x + 1)
        assert before - 1 <= share <= after + 1


def walked(path):
    """Points of a staircase as (x, height above the axis)."""
    start, rest = re.fullmatch(rf"(M0 {HEIGHT})((?:h\d+|v-\d+)*)H{WIDTH}", path).groups()
    assert start
    x = y = 0
    points = [(0, 0)]
    for kind, amount in re.findall(r"([hv])(-?\d+)", rest):
        x, y = (x + int(amount), y) if kind == "h" else (x, y - int(amount))
        points.append((x, y))
    assert x <= WIDTH
    assert y == HEIGHT
    return points


def axis(values):
    """The linear axis a plot without limits has."""
    high = max(values) * 1.04
    if min(values) >= 1e-9 and min(values) > 0.4 * high:
        span = max(high / 1.04 - min(values), 1e-9)
        return min(values) - 0.08 * span, high / 1.04 + 0.04 * span
    return 0.0, high if high > 1e-9 else 1.0


@given(st.lists(latencies, min_size=1, max_size=50))
def test_a_curve_ends_at_its_whole_however_far_its_tail_reaches(values):
    for curve in ecdf_plot("E2EL", [("one", values)], unit="s").curves:
        walked(curve.path)


def test_a_long_tail_gets_a_logarithmic_axis_that_says_so():
    plot = ecdf_plot("TTFT", [("one", [0.01] * 50 + [10.0])], unit="s")
    assert plot.log
    assert [tick.text for tick in plot.ticks] == ["10 ms", "100 ms", "1 s", "10 s"]


def test_a_curve_of_many_samples_stays_small():
    assert len(ecdf_plot("TTFT", [("one", sample.samples(100_000, 1.0))], unit="s").curves[0].path) < 6 * (
        WIDTH + HEIGHT
    )


def test_samples_that_are_not_finite_are_left_out_of_the_curve():
    plot = ecdf_plot("TTFT", [("one", [1.0, float("nan"), float("inf")])], unit="s")
    assert "one: 1 samples" in plot.spoken
    walked(plot.curves[0].path)


@pytest.mark.parametrize("limit", [0.9, 1.4])
def test_a_limit_nearby_stretches_the_axis(limit):
    plot = ecdf_plot("TTFT", [("one", [0.5, 1.0])], unit="s", limits=[("mean", limit, "PASS")])
    (mark,) = plot.limits
    assert not mark.beyond
    assert 0 < mark.x < WIDTH


@given(st.lists(st.floats(min_value=-1e9, max_value=1e9), min_size=1, max_size=30))
def test_a_sparkline_stays_in_its_box_and_ends_at_the_right(values):
    points, x, y = sparkline(values)
    pairs = [tuple(map(int, pair.split(","))) for pair in points.split()]
    assert pairs[-1] == (x, y)
    assert all(0 <= px <= 96 and 0 <= py <= 20 for px, py in pairs)
    assert len(pairs) == len(values)
    assert len(values) == 1 or x == 93


# ---------------------------------------------------------------------- compiled templates


@pytest.fixture
def rendered(tmp_path):
    """Render a template through a cache in a folder of the test's own; ``compiled`` counts what was compiled."""

    def render(source="{{ 6 * 7 }}", **options):
        environment = jinja2.Environment(
            loader=jinja2.DictLoader({"page": source}), bytecode_cache=CompiledBeside(tmp_path / "kept"), **options
        )
        compiled = []
        compile_it = environment.compile
        environment.compile = lambda *arguments: (compiled.append(1), compile_it(*arguments))[1]
        return environment.get_template("page").render(text="<b>"), len(compiled)

    return render


@pytest.fixture
def writing_bytecode(monkeypatch):
    monkeypatch.setattr("sys.dont_write_bytecode", False)


@pytest.mark.usefixtures("writing_bytecode")
def test_templates_are_compiled_once(rendered):
    assert rendered() == ("42", 1)
    assert rendered() == ("42", 0)


@pytest.mark.usefixtures("writing_bytecode")
def test_a_changed_template_or_option_is_compiled_anew(rendered):
    assert rendered("{{ text }}") == ("<b>", 1)
    assert rendered("{{ text }}!") == ("<b>!", 1)
    assert rendered("{{ text }}!", autoescape=True) == ("&lt;b&gt;!", 1)
    assert rendered("{{ text }}!", autoescape=True) == ("&lt;b&gt;!", 0)


@pytest.mark.usefixtures("writing_bytecode")
@pytest.mark.parametrize("keep", [0, 30, -1])
def test_a_broken_file_is_compiled_anew(rendered, tmp_path, keep):
    rendered()
    (file,) = (tmp_path / "kept").iterdir()
    file.write_bytes(file.read_bytes()[:keep])
    assert rendered() == ("42", 1)
    assert rendered() == ("42", 0)


@pytest.mark.usefixtures("writing_bytecode")
def test_where_nothing_can_be_kept_the_page_is_written_all_the_same(rendered, tmp_path):
    (tmp_path / "kept").write_text("not a folder")
    assert rendered() == ("42", 1)
    assert rendered() == ("42", 1)


def test_nothing_is_kept_where_python_keeps_nothing(rendered, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    assert rendered() == ("42", 1)
    assert not (tmp_path / "kept").exists()
