"""One measurement: warm the engine up, drive the load, watch memory and counters, summarize."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from pytest_vllmperf.domain.engine import EngineHandle
from pytest_vllmperf.domain.prompts import Conversations, FillContext, RandomPrompts, SharedPrefix
from pytest_vllmperf.domain.records import LoadRun, MemorySample, ServerCounters
from pytest_vllmperf.domain.summary import Summary, summarize
from pytest_vllmperf.domain.timeline import timeline
from pytest_vllmperf.domain.workload import Workload

__all__ = ["Watch", "measure", "prompt_seed", "quick_form", "resolved", "start_up_summary", "token_range", "warm_up_of"]

Progress = Callable[[str], None]

_HOST_PERIOD_S = 1.0
"""Reading a proportional set size walks page tables (milliseconds for a few GiB): once a second will do."""
_COUNTER_PERIOD_S = 0.5
_DEVICE_PERIOD_S = 0.05
_WARM_UP_TOKENS = 64
_FIRST_WORD_TOKEN = 259
"""In byte-level vocabularies the first ids are specials and single bytes; text of those may be invisible."""
_ENOUGH_WORDS = 64
_LARGE_VOCABULARY = 5_000
_UNKNOWN_VOCABULARY = 10_000


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
    from pytest_vllmperf.adapters.control_client import ControlClient
    from pytest_vllmperf.adapters.gpu import total_memory_bytes
    from pytest_vllmperf.load.driver import run_load

    asked = resolved(workload, engine)
    tell = progress or (lambda _line: None)
    words = token_range(engine.config.model)

    def drive(what: Workload, part: str) -> LoadRun:
        return run_load(
            what,
            base_url=engine.base_url,
            model=engine.model_name,
            api_key=engine.api_key,
            token_range=words,
            seed=prompt_seed(asked, part),
        )

    warm_up = warm_up_of(asked)
    tell(f"{engine.name}: {asked.name}: warm-up, {warm_up.describe()}")
    drive(warm_up, "warm-up")
    tell(f"{engine.name}: {asked.name}: {asked.describe()}")
    with ControlClient(engine.base_url, engine.api_key) as control:
        watch = Watch(pid=engine.pid, gpu_uuids=tuple(gpu_uuids), counters=control.counters)
        before = control.counters()
        with watch:
            run = drive(asked, "measured")
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
        device_memory_missing="no GPU" if not gpu_uuids else "the driver did not tell",
    )
    if keep is not None:
        keep(run)
    tell(f"{engine.name}: {asked.name}: {summary.completed}/{summary.requests} requests in {summary.duration_s:.1f} s")
    over_time = timeline(
        run,
        memory=watch.memory,
        counters=(before, *watch.scrapes, after),
        device_memory_bytes=total_memory_bytes(gpu_uuids),
    )
    return replace(summary, warnings=(*summary.warnings, *watch.failures), timeline=over_time)


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


def warm_up_of(workload: Workload) -> Workload:
    """The unmeasured opening of ``workload``: its prompts' length, one request for each slot, all at once.

    Every shared prefix is among the prompts, so that the measured requests find it in the cache. Answers are cut
    at 64 tokens: that reaches every batch size the workload will, at a fraction of its time.
    """
    slots = workload.max_concurrency or 2
    source, input_tokens, count = workload.prompts, workload.input_tokens, min(workload.requests, slots)
    if isinstance(source, SharedPrefix):
        source, count = replace(source, share=1.0), max(count, source.groups)
    elif isinstance(source, Conversations):  # the last turn's length, and as many at once as there are conversations
        input_tokens = source.prompt_tokens(
            source.turns - 1, input_tokens=input_tokens, output_tokens=workload.output_tokens
        )
        source = RandomPrompts()
    return replace(
        workload,
        prompts=source,
        input_tokens=input_tokens,
        requests=count,
        request_rate=None,
        max_concurrency=slots,
        output_tokens=min(workload.output_tokens, _WARM_UP_TOKENS),
    )


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


def token_range(model: str) -> tuple[int, int]:
    """Ids prompts are drawn from, as ``[low, high)``: ordinary words, neither specials nor single bytes.

    Large vocabularies keep their specials at the end, so the last tenth is left out there.
    """
    from pytest_vllmperf.adapters.model_files import vocabulary_size

    size = vocabulary_size(model) or _UNKNOWN_VOCABULARY
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


@dataclass(slots=True, kw_only=True)
class Watch:
    """Samples memory and server counters in a thread while the body of ``with`` runs.

    A sample that cannot be taken is None in its record; an exception ends that kind of sampling and is
    told in ``failures``, never raised into the measurement.
    """

    pid: int | None
    gpu_uuids: tuple[str, ...]
    counters: Callable[[], ServerCounters]
    memory: list[MemorySample] = field(default_factory=list)
    scrapes: list[ServerCounters] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Watch:
        jobs = [("counters", self._scrape, _COUNTER_PERIOD_S)]
        if self.pid is not None:  # a server that runs elsewhere has no memory here
            jobs.append(("host memory", self._sample_host, _HOST_PERIOD_S))
        if self.gpu_uuids:
            jobs.append(("device memory", self._sample_device, _DEVICE_PERIOD_S))
        for name, job, period_s in jobs:
            thread = threading.Thread(
                target=self._repeat, args=(name, job, period_s), name=f"watch {name}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, name: str, job: Callable[[], None], period_s: float) -> None:
        """Run ``job`` at once, then every period, and once more at the end: short runs get two samples."""
        try:
            job()
            while not self._stop.wait(period_s):
                job()
            job()
        except Exception as error:  # noqa: BLE001 - doubt is data: a broken sampler must not end the measurement
            self.failures.append(f"{name} was not sampled to the end: {type(error).__name__}: {error}")

    def _sample_host(self) -> None:
        from pytest_vllmperf.adapters.host_memory import process_tree_pss_bytes

        host = None if self.pid is None else process_tree_pss_bytes(self.pid)
        self.memory.append(MemorySample(at_ns=time.monotonic_ns(), host_bytes=host, device_bytes=None))

    def _sample_device(self) -> None:
        from pytest_vllmperf.adapters.gpu import device_memory_bytes

        device = device_memory_bytes(self.gpu_uuids)
        self.memory.append(MemorySample(at_ns=time.monotonic_ns(), host_bytes=None, device_bytes=device))

    def _scrape(self) -> None:
        self.scrapes.append(self.counters())
