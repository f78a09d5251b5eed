"""One measurement: warm the engine up, drive the load, watch memory and counters, summarize."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.engine import EngineHandle
from pytest_vllmperf.domain.prompts import FillContext
from pytest_vllmperf.domain.records import LoadRun, ServerCounters
from pytest_vllmperf.domain.summary import Summary, summarize
from pytest_vllmperf.domain.timeline import timeline
from pytest_vllmperf.domain.workload import Workload

if TYPE_CHECKING:
    from pytest_vllmperf.watch import Watch

__all__ = [
    "measure",
    "prompt_seed",
    "quick_form",
    "resolved",
    "sleep_summary",
    "start_up_summary",
    "token_range",
]

Progress = Callable[[str], None]

_COOLING_S = 120.0
_COOLING_POLL_S = 1.0
_CERTAINLY_EASY = 8_000
"""Token events a second that one load process reads with a fraction of a slow core."""
_FIRST_WORD_TOKEN = 259
"""In byte-level vocabularies the first ids are specials and single bytes; text of those may be invisible."""
_ENOUGH_WORDS = 64
_LARGE_VOCABULARY = 5_000
_UNKNOWN_VOCABULARY = 10_000
_CLOSES = "the server closes its connections after each answer: every request had a new one"


def measure(
    engine: EngineHandle,
    workload: Workload,
    *,
    gpu_uuids: Sequence[str] = (),
    progress: Progress | None = None,
    keep: Callable[[LoadRun], None] | None = None,
) -> Summary:
    """Measure ``workload`` on a live engine.

    The warm-up has the workload's own prompt length and concurrency with other prompts, and counts for
    nothing: the first burst after a start is the slowest by far. ``keep`` is handed the measured run's raw records.

    Raises:
        WorkloadError: The workload does not fit this engine, or its file cannot be read.
        LoadProcessError: The load process died; nothing was measured.
    """
    tell = progress or (lambda _line: None)
    gpus = tuple(gpu_uuids) or engine.gpu_uuids
    summary, throttled = _measure_once(engine, workload, gpus=gpus, tell=tell, keep=keep)
    if not throttled:
        return summary
    waited_s = _cool_down(gpus, tell=lambda line: tell(f"{engine.name}: {workload.name}: {line}"))
    again, _ = _measure_once(engine, workload, gpus=gpus, tell=tell, keep=keep)
    note = f"measured a second time, {waited_s:.0f} s after a first one whose GPUs were throttled"
    return replace(again, warnings=(*again.warnings, note))


def _measure_once(
    engine: EngineHandle,
    workload: Workload,
    *,
    gpus: tuple[str, ...],
    tell: Progress,
    keep: Callable[[LoadRun], None] | None,
) -> tuple[Summary, bool]:
    """The measurement, and whether GPUs too hot to be believed are what is wrong with it."""
    from pytest_vllmperf.adapters.control_client import ControlClient
    from pytest_vllmperf.adapters.gpu import total_memory_bytes
    from pytest_vllmperf.load.driver import run_load
    from pytest_vllmperf.warm_up import warm_up, warm_up_of
    from pytest_vllmperf.watch import Life, Watch

    asked = resolved(workload, engine)
    words = _words(engine)

    def drive(what: Workload, part: str, *, workers: int = 1) -> LoadRun:
        return run_load(
            what,
            base_url=engine.base_url,
            model=engine.model_name,
            api_key=engine.api_key,
            token_range=words,
            seed=prompt_seed(asked, part),
            workers=workers,
            called_off=life.verdict,
            keep_alive=keep_alive,
        )

    with Life(engine) as life, ControlClient(engine.base_url, engine.api_key) as control:
        keep_alive = engine.version is not None or control.keeps_connections(engine.model_name)  # vLLM does
        tell(f"{engine.name}: {asked.name}: warm-up, {warm_up_of(asked).describe()}")
        opening = warm_up(asked, drive)
        workers, capacity = _workers(asked, opening.events_per_s)
        tell(f"{engine.name}: {asked.name}: {asked.describe()}")
        before = control.counters()
        counters = _shown(control.counters, before, asked, tell=tell, what=f"{engine.name}: {asked.name}")
        with Watch(pid=engine.pid, gpu_uuids=gpus, counters=counters) as watch:
            run = drive(asked, "measured", workers=workers)
        after = control.counters()
    summary = summarize(
        run,
        engine=engine.name,
        model=engine.model_name,
        workload=asked,
        memory=watch.memory,
        before=before,
        during=watch.scrapes,
        after=after,
        shared_endpoint=engine.config.url is not None,
    )
    if keep is not None:
        keep(run)
    tell(f"{engine.name}: {asked.name}: {summary.completed}/{summary.requests} requests in {summary.duration_s:.1f} s")
    over_time = timeline(
        run,
        memory=watch.memory,
        counters=(before, *watch.scrapes, after),
        device_memory_bytes=total_memory_bytes(gpus),
        steady_ns=_steady_ns(run, asked),
        sampled={
            "device_power": ("W", [(s.at_ns, s.power_w) for s in watch.devices]),
            "device_clock": ("ratio", [(s.at_ns, s.sm_clock_ratio) for s in watch.devices]),
            "device_temperature": ("°C", [(s.at_ns, s.temperature_c) for s in watch.devices]),
        },
    )
    summary = replace(
        summary,
        invalid=(*summary.invalid, *_said(life.verdict())),
        warnings=(*summary.warnings, *([] if keep_alive else [_CLOSES]), *_said(opening.doubt), *watch.failures),
        facts={**summary.facts, "warm_up_rounds": opening.rounds, "client_events_per_s": capacity},
        timeline=over_time,
    )
    return _with_devices(summary, watch, gpus=gpus, baseline_bytes=engine.device_baseline_bytes)


def _steady_ns(run: LoadRun, workload: Workload) -> tuple[int, int] | None:
    from pytest_vllmperf.domain.steady import steady_window

    window = steady_window(run, workload, [r for r in run.records if r.succeeded])
    return None if window is None else (window.start_ns, window.end_ns)


def _shown(
    counters: Callable[[], ServerCounters], before: ServerCounters, workload: Workload, *, tell: Progress, what: str
) -> Callable[[], ServerCounters]:
    """``counters`` that also show how far the load is: what is scraped anyway costs the load nothing."""
    from pytest_vllmperf.domain.status import load_status, show

    seen = [before]

    def scrape() -> ServerCounters:
        seen.append(counters())
        show(tell, load_status(what, tuple(seen), planned=workload.requests))
        return seen[-1]

    return scrape


def _said(doubt: str | None) -> tuple[str, ...]:
    return () if doubt is None else (doubt,)


def _workers(workload: Workload, warm_up_events_per_s: float) -> tuple[int, int | None]:
    """How many load processes ``workload`` gets, and events per second one can read, where that was found out.

    A client that is sure to have time to spare is not calibrated.
    """
    if isinstance(workload.workers, int):
        return workload.workers, None
    expected = max(warm_up_events_per_s, (workload.request_rate or 0.0) * workload.output_tokens)
    if expected < _CERTAINLY_EASY:
        return 1, None
    from pytest_vllmperf.load.calibration import calibrate, workers_for

    calibration = calibrate()
    return workers_for(expected, calibration), round(calibration.events_per_s)


def _with_devices(
    summary: Summary, watch: Watch, *, gpus: tuple[str, ...], baseline_bytes: int | None
) -> tuple[Summary, bool]:
    """``summary`` with what the GPUs did, and whether they were throttled."""
    from pytest_vllmperf.adapters.gpu import why_not
    from pytest_vllmperf.domain.device import device_use
    from pytest_vllmperf.domain.summary import metric_values
    from pytest_vllmperf.watch import steady_bytes

    tokens = summary.facts.get("output_tokens")
    use = device_use(
        watch.devices,
        baseline_bytes=baseline_bytes,
        output_tokens=tokens if isinstance(tokens, int) else None,
        unavailable=why_not() if gpus else "no GPU",
    )
    metrics = metric_values(
        distributions={},
        scalars={**use.values, "host_memory_steady": steady_bytes(watch.memory)},
        missing={**use.missing, "host_memory_steady": "the process tree could not be read"},
    )
    whole = replace(
        summary,
        metrics={**summary.metrics, **metrics},
        invalid=(*summary.invalid, *use.invalid),
        warnings=(*summary.warnings, *use.warnings),
        facts={**summary.facts, **(use.facts if gpus else {})},
    )
    return whole, use.throttled


def _cool_down(gpus: Sequence[str], *, tell: Progress) -> float:
    """Wait until the GPUs are held back by heat no more; how long that took, 120 s at most."""
    from pytest_vllmperf.adapters.gpu import device_sample
    from pytest_vllmperf.domain.device import is_hot

    tell(f"GPUs are throttled; waiting up to {_COOLING_S:g} s for them to cool before one more try")
    started = time.monotonic()
    while is_hot(device_sample(gpus, ())) and time.monotonic() - started < _COOLING_S:
        time.sleep(_COOLING_POLL_S)
    return time.monotonic() - started


def resolved(workload: Workload, engine: EngineHandle) -> Workload:
    """The workload as run on ``engine``: counts for its device, prompts for its context.

    The context is what the server says, else the flag ``max-model-len``, else what the model was made for.

    Raises:
        WorkloadError: The context is needed and unknown, or too small.
    """
    from pytest_vllmperf.adapters.control_client import ControlClient
    from pytest_vllmperf.adapters.model_files import context_size

    asked = workload.on(engine.device)
    if not isinstance(asked.prompts, FillContext):
        return asked
    with ControlClient(engine.base_url, engine.api_key) as control:
        context = control.context_tokens(engine.model_name)
    flag = engine.config.args.get("max-model-len")
    if context is None and isinstance(flag, int) and flag > 0:
        context = flag
    return asked.in_context(context or context_size(engine.config.model))


_QUICK_SHARE = 5


def quick_form(workload: Workload) -> Workload:
    """``workload`` with a fifth of its requests, but at least one for each slot: the load keeps its shape."""
    fewer = max(-(-workload.requests // _QUICK_SHARE), workload.max_concurrency or 1)
    return replace(workload, requests=min(workload.requests, fewer))


def prompt_seed(workload: Workload, part: str) -> int:
    """The seed of one part of a measurement, such as ``warm-up``.

    Every workload and part has its own: two workloads of one seed would otherwise open their prompts
    with the same tokens, and the second would be served from the prefix cache of the first.
    """
    return zlib.crc32(f"{workload.name}/{part}/{workload.seed}".encode())


def _words(engine: EngineHandle) -> tuple[int, int]:
    """Ids prompts for ``engine`` are drawn from; the server is asked where the model's files do not tell (GGUF)."""
    from pytest_vllmperf.adapters.control_client import ControlClient
    from pytest_vllmperf.adapters.model_files import vocabulary_size

    if vocabulary_size(engine.config.model) is not None:
        return token_range(engine.config.model)
    with ControlClient(engine.base_url, engine.api_key) as control:
        return token_range(engine.config.model, told=control.vocabulary_tokens(engine.model_name))


def token_range(model: str, *, told: int | None = None) -> tuple[int, int]:
    """Ids prompts are drawn from, as ``[low, high)``: ordinary words, neither specials nor single bytes.

    Large vocabularies keep their specials at the end, so the last tenth is left out there. ``told`` is the size
    of the vocabulary by the server, for a model whose files do not tell.
    """
    from pytest_vllmperf.adapters.model_files import vocabulary_size

    size = vocabulary_size(model) or told or _UNKNOWN_VOCABULARY
    low = _FIRST_WORD_TOKEN if size >= _FIRST_WORD_TOKEN + _ENOUGH_WORDS else size // 2
    return low, size - size // 10 if size >= _LARGE_VOCABULARY else size


def start_up_summary(engine: EngineHandle) -> Summary:
    """How the launch went, as a Summary that limits can judge (workload ``startup``)."""
    from pytest_vllmperf.domain.summary import metric_values

    start = engine.start_up
    cold = {True: "cold: compile cache built", False: "warm: compile cache found", None: "nothing compiled"}[start.cold]
    ready_s = None if start.time_to_ready_ns is None else start.time_to_ready_ns * 1e-9
    first_s = None if start.first_request_ttft_ns is None else start.first_request_ttft_ns * 1e-9
    return Summary(
        engine=engine.name,
        workload="startup",
        kind="startup",
        model=engine.model_name,
        description=f"launch until the first token ({cold})",
        requests=1,
        completed=1,
        failures={},
        duration_s=ready_s or 0.0,
        metrics=metric_values(
            distributions={},
            scalars={"time_to_ready": ready_s, "first_request_ttft": first_s},
            missing=dict.fromkeys(("time_to_ready", "first_request_ttft"), "the server ran already"),
        ),
        invalid=(),
        warnings=(),
        facts={"cold": start.cold, "version": engine.version},
    )


def sleep_summary(engine: EngineHandle, *, level: int = 1) -> Summary:
    """Let a live engine sleep and wake it up again, as a Summary that limits can judge (workload ``sleep``).

    Raises:
        EngineError: It cannot sleep, or does not come back.
    """
    from pytest_vllmperf.domain.summary import metric_values

    asleep, awake = engine.sleep(level), engine.wake()
    device = asleep.device_bytes_after
    return Summary(
        engine=engine.name,
        workload="sleep",
        kind="startup",  # one value of one launch, no load
        model=engine.model_name,
        description=f"sleep at level {level}, and wake up until the first token",
        requests=1,
        completed=1,
        failures={},
        duration_s=(asleep.duration_ns + awake.duration_ns) * 1e-9,
        metrics=metric_values(
            distributions={},
            scalars={
                "time_to_sleep": asleep.duration_ns * 1e-9,
                "time_to_wake": awake.duration_ns * 1e-9,
                "device_memory_asleep": None if device is None else float(device),
            },
            missing={"device_memory_asleep": "the driver did not tell"},
        ),
        invalid=(),
        warnings=(),
        facts={
            "level": level,
            "device_bytes_before": asleep.device_bytes_before,
            "host_bytes_before": asleep.host_bytes_before,
            "host_bytes_asleep": asleep.host_bytes_after,
            "version": engine.version,
        },
    )
