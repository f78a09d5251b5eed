import math
from dataclasses import replace
from typing import Any

import pytest

from pytest_vllmperf.domain.prompts import TraceReplay
from pytest_vllmperf.domain.workload import BUILT_IN_WORKLOADS, Precision, ServiceLevel, Workload
from pytest_vllmperf.errors import WorkloadError


def workload(**changes: Any) -> Workload:
    return Workload(
        **{"name": "w", "input_tokens": 8, "output_tokens": 4, "requests": 2, "max_concurrency": 1, **changes}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "workload name ''"),
        ({"name": "a b"}, "use letters, digits"),
        ({"name": 3}, "workload name 3"),
        ({"input_tokens": 0}, "input_tokens=0 must be a whole number, 1 or more"),
        ({"output_tokens": 2.5}, "output_tokens=2.5 must be a whole number"),
        ({"requests": "10"}, "requests='10' must be a whole number"),
        ({"requests": True}, "requests=True must be a whole number"),
        ({"requests_on_cpu": 0}, "requests_on_cpu=0 must be a whole number, 1 or more, or None"),
        ({"max_concurrency": -1}, "max_concurrency=-1 must be"),
        ({"max_concurrency": None}, "give request_rate .open loop., max_concurrency .closed loop. or both"),
        ({"request_rate": 0}, "request_rate=0 must be above 0, or None for closed loop"),
        ({"request_rate": math.inf}, "request_rate=inf must be above 0"),
        ({"request_rate": math.nan}, "request_rate=nan must be above 0"),
        ({"request_rate": "1"}, "request_rate='1' must be above 0"),
        ({"burstiness": 0}, "burstiness=0 must be above 0"),
        ({"burstiness": math.nan}, "burstiness=nan must be above 0"),
        ({"timeout_s": 0}, "timeout_s=0 must be above 0"),
        ({"seed": -1}, "seed=-1 must be a whole number, 0 or more"),
        ({"seed": 0.5}, "seed=0.5 must be a whole number"),
        ({"api": "embeddings"}, "api='embeddings' must be one of completions, chat"),
        ({"service_level": {"ttft_s": 1}}, "service_level=.* must be a ServiceLevel"),
    ],
)
def test_an_impossible_workload_is_refused_with_what_is_allowed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        workload(**changes)


@pytest.mark.parametrize("level", [{"ttft_s": 0}, {"tpot_s": -1.0}, {"e2el_s": "1 s"}, {"ttft_s": math.nan}])
def test_a_service_level_is_seconds_above_zero(level: dict[str, Any]) -> None:
    with pytest.raises(WorkloadError, match="must be seconds above 0, or None"):
        ServiceLevel(**level)


def test_constant_arrivals_are_an_infinite_burstiness() -> None:
    assert workload(request_rate=2.0, burstiness=math.inf).burstiness == math.inf


def test_a_request_rate_makes_an_open_loop() -> None:
    assert workload(request_rate=2.0).open_loop
    assert not workload().open_loop


def test_the_count_for_a_cpu_holds_on_a_cpu_only() -> None:
    scaled = workload(requests=60, requests_on_cpu=20)
    assert scaled.on("cpu").requests == 20
    assert scaled.on("gpu").requests == 60
    assert workload(requests=60).on("cpu").requests == 60
    assert scaled.on("cpu") == scaled.on("cpu").on("gpu")


def test_a_workload_describes_itself_in_one_line() -> None:
    assert workload(requests=50, input_tokens=128, output_tokens=256, max_concurrency=50).describe() == (
        "50 × 128/256 tokens, 50 at once"
    )
    assert workload(request_rate=1.5, max_concurrency=None).describe() == "2 × 8/4 tokens, 1.5 req/s"
    assert workload(request_rate=1.5).describe() == "2 × 8/4 tokens, 1.5 req/s, 1 at once"


def test_the_built_in_workloads_have_these_shapes() -> None:
    shapes = {w.name: (w.input_tokens, w.output_tokens, w.request_rate, w.max_concurrency) for w in BUILT_IN_WORKLOADS}
    assert shapes == {
        "single-user": (256, 256, 1.0, None),
        "ten-users": (128, 300, None, 10),
        "burst": (128, 256, None, 50),
        "heavy": (512, 512, None, 100),
        "shared-prefix": (1152, 32, None, 8),
        "multi-turn": (128, 64, None, 4),
        "long-context": (0, 32, None, 4),
    }
    scaled = [w.name for w in BUILT_IN_WORKLOADS if w.on("cpu") != replace(w, requests_on_cpu=None)]
    assert scaled == ["single-user", "shared-prefix", "multi-turn", "long-context"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampling": {"max_tokens": 3}}, r"sampling=\{'max_tokens': 3\} sets 'max_tokens', which the load generator"),
        ({"sampling": [1]}, r'sampling=\[1\] must be a mapping of names to values, such as \{"top_p": 0.9\}'),
        ({"chat_template_kwargs": {"a": 1}}, r'chat_template_kwargs needs the chat API: give api="chat"'),
        ({"reasoning_budget": 5}, r'reasoning_budget needs the chat API: give api="chat"'),
        ({"reasoning_budget": 0, "api": "chat"}, "reasoning_budget=0 must be a whole number, 1 or more, or None"),
        ({"burst_size": 3}, "burst_size=3 must be left out: a closed loop has no arrivals of its own"),
        ({"ramp_s": -1.0}, r"ramp_s=-1.0 must be seconds, 0 or more"),
        ({"max_seconds": 0}, "max_seconds=0 must be above 0, or None"),
        ({"max_error_rate": 1.5}, "max_error_rate=1.5 must be a share, from 0 to 1"),
        ({"until": "tpot"}, "until='tpot' must be a Precision, or None"),
        ({"workers": 0}, 'workers=0 must be a whole number, 1 or more, or "auto"'),
        ({"ignore_eos": 1}, "ignore_eos=1 must be True or False"),
    ],
)
def test_what_a_load_generator_cannot_do_is_refused_with_what_it_can(changes: dict[str, object], said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        workload(**changes)


def test_a_workload_says_how_it_arrives_and_when_it_ends() -> None:
    described = workload(
        request_rate=8.0, burst_size=4, ramp_s=10.0, max_seconds=60.0, until=Precision(metric="tpot_mean", within=0.02)
    ).describe()
    assert described == (
        "2 × 8/4 tokens, 8 req/s in bursts of 4, 1 at once, ramp of 10 s, at most 60 s, "
        "until tpot_mean is known within 2.0%"
    )
    trace = Workload(name="t", prompts=TraceReplay(path="logs/day.jsonl"), requests=9)
    assert trace.open_loop
    assert trace.describe() == "9 × day.jsonl tokens, as in the trace"
