from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.adapters.threshold_file import check_thresholds, read_thresholds
from pytest_vllmperf.domain.metrics import METRICS, Better
from pytest_vllmperf.domain.quality import QualityTask
from pytest_vllmperf.domain.thresholds import Match, Subject, Thresholds, resolve
from pytest_vllmperf.errors import ThresholdFileError

ENGINES = ("baseline", "max-perf")
WORKLOADS = ("single-user", "burst", "heavy", "startup")

GOOD = """
version = 1

[defaults]
launches = 3
inconclusive = "fail"

[[limit]]
match = { hardware = "NVIDIA H200", model = "Qwen/Qwen2.5-7B-Instruct*", engine = "max-perf", workload = "burst" }
ttft_mean          = { max = "600 ms" }
output_throughput  = { min = "6000 tok/s", tolerance = "3 %" }
device_memory_peak = { max = "124 GiB", required = true }

[[limit]]
match = { model = "tinymath", workload = "gsm8k" }
accuracy = { min = 0.8 }

[[limit]]
kv_cache_usage_peak = { min = "10 %", max = "90 %" }
preemptions = { max = 0 }
tpot_mean = { tolerance = "5 %" }

[quality.tasks.gsm8k]
shots = 5
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "thresholds.toml"


def read(path: Path, text: str, **given: object) -> Thresholds:
    path.write_text(text, encoding="utf-8")
    return read_thresholds(path, engines=ENGINES, workloads=WORKLOADS, **given)  # type: ignore[arg-type]


def problems(path: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(ThresholdFileError) as caught:
        read(path, text)
    assert str(path) in str(caught.value)
    for problem in caught.value.problems:
        assert problem in str(caught.value)
        assert problem.startswith("thresholds.toml: ")
    return caught.value.problems


def problem_of(path: Path, body: str) -> str:
    """The only problem of a file that holds ``body``."""
    (only,) = problems(path, f"version = 1\n{body}")
    return only


def test_a_good_file_is_read_into_base_units(path: Path) -> None:
    thresholds = read(path, GOOD)
    assert (thresholds.launches, thresholds.inconclusive, thresholds.path) == (3, "fail", str(path))
    assert thresholds.quality_tasks == {"gsm8k": {"shots": 5}}
    first, second, third = thresholds.tables
    assert first.match == Match(
        hardware="NVIDIA H200", model="Qwen/Qwen2.5-7B-Instruct*", engine="max-perf", workload="burst"
    )
    assert third.match == Match()
    bounds = {limit.metric: (limit.minimum, limit.maximum, limit.tolerance) for limit in first.limits.values()}
    assert bounds == {
        "ttft_mean": (None, 0.6, None),
        "output_throughput": (6000.0, None, 0.03),
        "device_memory_peak": (None, 124 * 2**30, None),
    }
    assert [limit.required for limit in first.limits.values()] == [False, False, True]
    assert second.limits["accuracy"].minimum == 0.8
    assert not third.limits["tpot_mean"].absolute


def test_a_limit_says_where_it_stands_and_what_was_written(path: Path) -> None:
    first, second, third = read(path, GOOD).tables
    assert (first.where, first.limits["ttft_mean"].where) == (
        "thresholds.toml: limit[1]",
        "thresholds.toml: limit[1].ttft_mean",
    )
    texts = [limit.text for table in (first, second, third) for limit in table.limits.values()]
    assert texts == ["≤ 600 ms", "≥ 6000 tok/s", "≤ 124 GiB", "≥ 80 %", "≥ 10 % and ≤ 90 %", "≤ 0", "tolerance 5 %"]


def test_a_bare_number_is_never_shown_rounded(path: Path) -> None:
    (table,) = read(path, "version = 1\n[[limit]]\naccuracy = { min = 0.81234 }").tables
    assert table.limits["accuracy"].text == "≥ 0.81234"


def test_what_was_read_resolves(path: Path) -> None:
    subject = Subject(hardware="NVIDIA H200", model="Qwen/Qwen2.5-7B-Instruct-AWQ", engine="max-perf", workload="burst")
    limit = resolve(read(path, GOOD), subject, "ttft_mean")
    assert limit is not None
    assert limit.maximum == 0.6


def test_an_almost_empty_file_has_defaults_and_no_limits(path: Path) -> None:
    thresholds = read(path, "\N{BYTE ORDER MARK}version = 1\r\n")
    assert (thresholds.tables, thresholds.launches, thresholds.inconclusive) == ((), 1, "warn")
    assert thresholds.quality_tasks == {}


ONE_MISTAKE = [
    ("foo = 1", ["foo = 1: key 'foo' is unknown", "allowed: version, defaults, limit, choice, sweep, quality"]),
    ("[default]\nlaunches = 1", ["default = ", "did you mean 'defaults'?"]),
    ("defaults = 3", ["defaults = 3: must be a table"]),
    ("[defaults]\nlaunch = 1", ["defaults.launch = 1: key 'launch' is unknown; did you mean 'launches'?"]),
    ("[defaults]\nlaunches = 0", ["defaults.launches = 0: must be a whole number, 1 or more"]),
    ("[defaults]\nlaunches = true", ["defaults.launches = true"]),
    ("[defaults]\nlaunches = 1.5", ["defaults.launches = 1.5"]),
    ('[defaults]\ninconclusive = "no"', ['defaults.inconclusive = "no": must be "warn" or "fail"']),
    ("[defaults]\ninconclusive = ['warn']", ["defaults.inconclusive"]),
    ("[limit]\nttft_mean = { max = '1 s' }", ["limit = ", "write [[limit]] with two brackets"]),
    ("limit = ['x']", ['limit[1] = "x"', "must be a table"]),
    ("[[limit]]", ["limit[1] = {}", "[[limit]] no. 1", "holds no limit"]),
    ("[[limit]]\nmatch = { engine = 'baseline' }", ["limit[1] = ", "holds no limit"]),
    ("[[limit]]\nmatch = 'burst'\nttft_mean = { max = '1 s' }", ['limit[1].match = "burst"', "must be a table"]),
    (
        "[[limit]]\nmatch = { hardwar = 'x' }\nttft_mean = { max = '1 s' }",
        ["limit[1].match.hardwar", "did you mean 'hardware'?", "allowed: hardware, model, engine, workload"],
    ),
    (
        "[[limit]]\nmatch = { engine = 'max-pref' }\nttft_mean = { max = '1 s' }",
        ['limit[1].match.engine = "max-pref"', "engine is not declared", "allowed: max-perf, baseline"],
    ),
    (
        "[[limit]]\nmatch = { engine = 'nope*' }\nttft_mean = { max = '1 s' }",
        ["limit[1].match.engine", "engine glob matches nothing declared", "allowed: baseline, max-perf"],
    ),
    (
        "[[limit]]\nmatch = { workload = 'bursts' }\nttft_mean = { max = '1 s' }",
        ["limit[1].match.workload", "workload is not declared; did you mean 'burst'?"],
    ),
    ("[[limit]]\nmatch = { model = true }\nttft_mean = { max = '1 s' }", ["limit[1].match.model = true", "string"]),
    ("[[limit]]\nmatch = { hardware = ['a'] }\nttft_mean = { max = '1 s' }", ["limit[1].match.hardware", "string"]),
    ("[[limit]]\nmatch = { hardware = '' }\nttft_mean = { max = '1 s' }", ["limit[1].match.hardware", "not empty"]),
    (
        "[[limit]]\nttft_maen = { max = '1 s' }",
        ["limit[1].ttft_maen", "metric 'ttft_maen' is unknown; did you mean ttft_mean"],
    ),
    ("[[limit]]\nttft = { max = '1 s' }", ["limit[1].ttft = ", "ttft_mean, ttft_p50, ttft_p90, ttft_p95, ttft_p99"]),
    ("[[limit]]\n'a b' = { max = '1 s' }", ['limit[1]."a b"']),
    ("[[limit]]\nttft_mean = '600 ms'", ['limit[1].ttft_mean = "600 ms"', "must be a table such as { max = … }"]),
    ("[[limit]]\nttft_mean = {}", ["limit[1].ttft_mean = {}", "limits nothing; give max or tolerance"]),
    ("[[limit]]\nttft_mean = { required = true }", ["limits nothing"]),
    (
        "[[limit]]\nttft_mean = { max = '1 s', requird = true }",
        ["limit[1].ttft_mean.requird = true", "did you mean 'required'?"],
    ),
    ("[[limit]]\nttft_mean = { max = '1 s', required = 'yes' }", ['ttft_mean.required = "yes"', "true or false"]),
    ("[[limit]]\nttft_mean = { max = '600' }", ['limit[1].ttft_mean.max = "600"', "has no unit", '"600 ms"']),
    ("[[limit]]\nttft_mean = { max = 600 }", ["limit[1].ttft_mean.max = 600", "has no unit", "ns, µs, ms, s, min"]),
    ("[[limit]]\nttft_mean = { max = '6 GiB' }", ['ttft_mean.max = "6 GiB"', "'GiB' does not fit"]),
    ("[[limit]]\nttft_mean = { max = true }", ["limit[1].ttft_mean.max = true"]),
    ("[[limit]]\nttft_mean = { max = ['1 s'] }", ['limit[1].ttft_mean.max = ["1 s"]']),
    ("[[limit]]\naccuracy = { min = nan }", ["limit[1].accuracy.min = NaN", "not finite"]),
    ("[[limit]]\naccuracy = { min = 1979-05-27 }", ['limit[1].accuracy.min = "1979-05-27"']),
    ("[[limit]]\nttft_mean = { tolerance = '5 ms' }", ["limit[1].ttft_mean.tolerance", "'ms' does not fit"]),
    (
        "[[limit]]\noutput_throughput = { max = '6000 tok/s' }",
        [
            'limit[1].output_throughput.max = "6000 tok/s"',
            "wrong direction",
            "higher output throughput is better",
            "min",
        ],
    ),
    (
        "[[limit]]\nttft_mean = { min = '1 s' }",
        ["limit[1].ttft_mean.min", "wrong direction: lower TTFT mean is better; write max"],
    ),
    (
        "[[limit]]\nkv_cache_usage_peak = { min = '90 %', max = '10 %' }",
        ["limit[1].kv_cache_usage_peak", "min is larger than max"],
    ),
    (
        "[[limit]]\nttft_p50 = { max = '1 s' }\n[[limit]]\nttft_mean = { max = '1' }",
        ["limit[2].ttft_mean.max", "[[limit]] no. 2"],
    ),
    ("quality = 1", ["quality = 1: must be a table"]),
    ("[quality.task.gsm8k]\nshots = 5", ["quality.task = ", "did you mean 'tasks'?"]),
    ("[quality.tasks]\ngsm8k = 5", ["quality.tasks.gsm8k = 5", "must be a table"]),
    ("[quality.tasks.gsm8k]\nshotz = 5", ["quality.tasks.gsm8k = ", "option 'shotz' is unknown; allowed: ", "shots"]),
    ("[quality.tasks.gsm8k]\nshots = -1", ["quality.tasks.gsm8k", "shots=-1 must be a whole number"]),
    ("[quality.tasks.gsm8k]\nrequest_timeout_s = 'x'", ["quality.tasks.gsm8k", "wrong type"]),
]


@pytest.mark.parametrize(("body", "parts"), ONE_MISTAKE, ids=[body.replace("\n", " ") for body, _ in ONE_MISTAKE])
def test_a_mistake_is_told_with_its_path_its_value_and_what_is_allowed(path: Path, body: str, parts: list[str]) -> None:
    problem = problem_of(path, body)
    for part in parts:
        assert part in problem


def test_every_mistake_is_told_at_once(path: Path) -> None:
    bodies = [body for body, _ in ONE_MISTAKE if body.startswith("[[limit]]\n") and body.count("[[limit]]") == 1]
    found = problems(path, "\n".join(["foo = 1", *bodies]))
    assert any("foo = 1" in p for p in found)
    assert any("version is missing" in p for p in found)
    for number in range(1, len(bodies) + 1):
        assert any(f"[[limit]] no. {number})" in p for p in found), bodies[number - 1]


@pytest.mark.parametrize("version", ["2", "true", "1.0", '"1"'])
def test_another_version_is_refused(path: Path, version: str) -> None:
    (problem,) = problems(path, f"version = {version}")
    assert f"version = {version}: must be 1" in problem


@pytest.mark.parametrize(("name", "metric"), [(n, m) for n, m in METRICS.items() if not m.distribution])
def test_every_metric_takes_a_limit_in_its_own_direction_only(name: str, metric: object) -> None:
    unit, better = METRICS[name].unit, METRICS[name].better
    value: object = {"ratio": 0.5, "count": 1, "number": 1.5}.get(unit, f"1 {unit}")

    def accepted(key: str) -> bool:
        document = {"version": 1, "limit": [{name: {key: value}}]}
        try:
            check_thresholds(document, path="thresholds.toml", engines=ENGINES, workloads=WORKLOADS)
        except ThresholdFileError:
            return False
        return True

    assert accepted("max") is (better is not Better.HIGHER)
    assert accepted("min") is (better is not Better.LOWER)


def test_the_same_limit_twice_names_both_tables(path: Path) -> None:
    table = '[[limit]]\nmatch = {{ engine = "baseline" }}\nttft_mean = {{ max = "{}" }}\ntpot_{} = {{ max = "1 s" }}'
    problem = problem_of(path, "\n".join([table.format("1 s", "mean"), table.format("2 s", "p50")]))
    for part in ("limit[2].ttft_mean (≤ 2 s)", "limit[1].ttft_mean (≤ 1 s)", "keep one"):
        assert part in problem


def test_tables_whose_match_is_wrong_are_not_called_duplicates(path: Path) -> None:
    table = '[[limit]]\nmatch = {{ engine = "{}" }}\nttft_mean = {{ max = "1 s" }}'
    found = problems(path, "\n".join(["version = 1", table.format("foo"), table.format("bar")]))
    assert ["is not declared" in p for p in found] == [True, True]


def test_a_task_of_the_file_may_be_named_by_a_limit(path: Path) -> None:
    body = (
        '\n[quality.tasks.arc_easy]\nshots = 0\n[[limit]]\nmatch = { workload = "arc_easy" }\naccuracy = { min = 0.5 }'
    )
    assert read(path, f"version = 1{body}").tables[0].match.workload == "arc_easy"


def test_options_of_a_declared_task_are_checked_against_that_task(path: Path) -> None:
    mine = QualityTask(name="mine", data="q.jsonl", answer_pattern="(x)")
    text = 'version = 1\n[quality.tasks.mine]\nanswer_pattern = "A: (.)"'
    assert read(path, text, tasks={"mine": mine}).quality_tasks == {"mine": {"answer_pattern": "A: (.)"}}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("version = 1\nlimit = [1,\n", ["is not TOML: line ", "ends in the middle"]),
        ("version = 1\nx = = 2\n", ["line 2, column "]),
        ("version = 1\nversion = 1\n", ["line ", 'Key "version" already exists']),
        ("version = 1\n[[limit]]\nttft_mean = { max = '1 s', max = '2 s' }\n", ["is not TOML", '"max"']),
        ("x = 1" + "0" * 5000, ["is not TOML"]),
        ("x = " + "[" * 5000, ["is not TOML"]),
    ],
    ids=[
        "open array",
        "two equals signs",
        "duplicate key",
        "duplicate inline key",
        "endless number",
        "endless nesting",
    ],
)
def test_what_is_not_toml_is_told_with_its_place(path: Path, text: str, parts: list[str]) -> None:
    (problem,) = problems(path, text)
    for part in parts:
        assert part in problem


def test_a_missing_file_says_how_to_make_one(path: Path) -> None:
    with pytest.raises(ThresholdFileError, match=r"there is no such file; make one that starts with `version = 1`"):
        read_thresholds(path, engines=ENGINES, workloads=WORKLOADS)


def test_a_directory_and_bytes_that_are_no_text_are_told(path: Path) -> None:
    with pytest.raises(ThresholdFileError, match="cannot be read"):
        read_thresholds(path.parent, engines=ENGINES, workloads=WORKLOADS)
    path.write_bytes(b"version = 1\n# \xff")
    with pytest.raises(ThresholdFileError, match=r"is not UTF-8 text \(byte 14\)"):
        read_thresholds(path, engines=ENGINES, workloads=WORKLOADS)


SCALARS = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(),
    st.dates(),
    st.text(max_size=6),
    st.sampled_from(["600 ms", "80 %", "1 tok/s", "burst", "baseline", "*", "[", "warn", 10**400]),
)
WORDS = st.sampled_from(
    [
        "version",
        "defaults",
        "limit",
        "quality",
        "tasks",
        "match",
        "engine",
        "workload",
        "hardware",
        "max",
        "min",
        "tolerance",
        "required",
        "launches",
        "inconclusive",
        "ttft_mean",
        "ttft",
        "accuracy",
        "kv_cache_usage_peak",
        "preemptions",
        "gsm8k",
        "shots",
        "validity",
        "filter",
        "data",
        "request_timeout_s",
    ]
)
TREES = st.recursive(
    SCALARS,
    lambda child: st.lists(child, max_size=3) | st.dictionaries(WORDS | st.text(max_size=3), child, max_size=4),
    max_leaves=12,
)
LIMITS = st.dictionaries(
    WORDS, st.dictionaries(st.sampled_from(["max", "min", "tolerance", "required"]), SCALARS) | TREES
)
DOCUMENTS = st.fixed_dictionaries(
    {}, optional={"version": st.just(1) | TREES, "limit": st.lists(LIMITS, max_size=3) | TREES, "defaults": TREES}
) | st.dictionaries(WORDS, TREES, max_size=4)


@given(DOCUMENTS)
def test_any_tree_is_read_or_is_a_threshold_file_error(document: dict[str, object]) -> None:
    try:
        thresholds = check_thresholds(document, path="thresholds.toml", engines=ENGINES, workloads=WORKLOADS)
    except ThresholdFileError as error:
        problems = error.problems
    else:
        assert document["version"] == 1
        assert all(table.limits for table in thresholds.tables)
        return
    assert problems
    assert all(len(problem) < 3000 for problem in problems)


@given(st.text(alphabet=st.sampled_from("vlx=[]{}\"'\n.,#1- \t\\"), max_size=40))
def test_any_text_is_read_or_is_a_threshold_file_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "thresholds.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ThresholdFileError):  # none of these letters spell "version"
        read_thresholds(path, engines=ENGINES, workloads=WORKLOADS)


# ---------------------------------------------------------------------- [[choice]]

RULES = """
version = 1

[[choice]]
use = "many users"
workload = "heavy"
best = "output_throughput"
tolerance = "3 %"
require = [
    { metric = "ttft_mean", workload = "heavy", max = "2 s" },
    { metric = "device_memory_peak", max = "12 GiB" },
]
"""


def test_rules_of_choice_are_read_with_their_requirements(path: Path) -> None:
    (rule,) = read(path, RULES).rules
    assert (rule.use, rule.workload, rule.best, rule.tolerance) == ("many users", "heavy", "output_throughput", 0.03)
    assert rule.where == "thresholds.toml: choice[1]"
    first, second = rule.requires
    assert (first.metric, first.workload, first.maximum, first.text) == ("ttft_mean", "heavy", 2.0, "≤ 2 s")
    assert (second.workload, second.maximum) == (None, 12 * 2**30)


@pytest.mark.parametrize(
    ("given", "wrong", "told"),
    [
        ('use = "many users"', "", "(in [[choice]] no. 1): must be a string that is not empty, such as"),
        ('workload = "heavy"\nbest', 'workload = "hevy"\nbest', "workload is not declared; did you mean 'heavy'"),
        ('"output_throughput"', '"ttft"', "metric 'ttft' is a distribution; judge one of its statistics"),
        ('"3 %"', '"3 s"', 'choice[1].tolerance = "3 s"'),
        ('max = "2 s"', 'min = "2 s"', "is the wrong direction: lower TTFT mean is better"),
        (', max = "12 GiB"', "", "requires nothing; give max"),
        ("[[choice]]", "[choice]", "rules are an array of tables; write [[choice]] with two brackets"),
        ("tolerance =", "within =", "key 'within' is unknown"),
    ],
)
def test_what_is_wrong_in_a_rule_is_told(path: Path, given: str, wrong: str, told: str) -> None:
    assert given in RULES
    assert any(told in problem for problem in problems(path, RULES.replace(given, wrong, 1)))


def test_a_sweep_lists_pairs_once_and_its_mistakes_are_told(path: Path) -> None:
    first, second = (
        '[[sweep]]\nworkloads = ["heavy"]\n',
        '[[sweep]]\nengines = ["baseline"]\nworkloads = ["heavy", "burst"]\n',
    )
    assert read(path, "version = 1\n" + first + second).sweep == (
        ("baseline", "heavy"),
        ("max-perf", "heavy"),
        ("baseline", "burst"),
    )
    (unlisted,) = problems(path, "version = 1\n[[sweep]]\nengines = ['baseline']\n")
    assert "sweep[1].workloads = null: must be a list of names" in unlisted
    (unknown,) = problems(path, "version = 1\n" + second.replace("baseline", "basline"))
    assert "engine is not declared; did you mean 'baseline'" in unknown
