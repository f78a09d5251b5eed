"""What an engine's log tells: why it failed, what to do about it, how far it has come, cold or warm."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.hints import HINTS, find_hint
from pytest_vllmperf.domain.log_lines import Line, log_lines, plain_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = [
    "Cause",
    "LogFollower",
    "compile_cache_is_broken",
    "compiled_cold",
    "describe_exit_code",
    "describe_failure",
    "find_cause",
    "phase",
    "port_was_taken",
    "read_log",
    "tail",
    "warnings_in",
]

_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|Warning)?(: |$)")
_ARGPARSE = re.compile(r"\S+: error: .+")
_LAST_WORDS = re.compile(r"\S*: No module named .+|.*(Segmentation fault|Bus error|Killed|Illegal instruction)\b.*")
_POINTERS = re.compile(
    r"See root cause above|check the stack trace above|EngineCore encountered an issue|EngineDeadError"
    r"|died unexpectedly|output_handler failed|EngineCore failed to start"
    r"|WorkerProc (hit an exception|initialization failed)|^Traceback|^\s"
)
"""Lines that only say that something failed (or lead up to what did): no root cause while there is another."""
_ENGINE_ROLES = ("EngineCore", "Worker", "VllmWorker")
_NOISE = re.compile(
    r"nanobind: |See https://nanobind| - leaked (instance|type|function) | - \.\.\. skipped remainder"
    r"|\S+resource_tracker\.py:\d+: UserWarning|  warnings\.warn\('resource_tracker"
)
"""What a vLLM process prints on its way out whatever happened; it would fill the tail."""
_TAKEN = re.compile(r"Errno 98\b|EADDRINUSE|[Aa]ddress already in use")
_READ_AT_MOST = 16 * 1024 * 1024
_BLOCK_LINES = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """The line of the log that says why the engine failed, and what to do about it where that is known.

    ``block`` is the traceback that ends in the line; empty where the line stands alone.
    """

    line: str
    hint: str | None
    block: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    role: str
    level: str
    text: str
    block: tuple[str, ...]

    @property
    def is_pointer(self) -> bool:
        return bool(_POINTERS.search(self.text))

    @property
    def of_engine(self) -> bool:
        return self.role.startswith(_ENGINE_ROLES)


def find_cause(text: str) -> Cause | None:
    """The root cause in an engine's log, None when it names none.

    The first exception of an engine core or worker comes before anything the API server says about it;
    among API servers' own exceptions the last one ended the process.
    """
    lines = list(log_lines(text))
    candidates = list(_exceptions(lines))
    serious = [c for c in candidates if not c.is_pointer and c.level not in ("DEBUG", "INFO", "WARNING")]
    of_engine = [c for c in serious if c.of_engine]
    usage = [line.text for line in lines if _ARGPARSE.fullmatch(line.text)]
    known = [h for c in serious if (h := find_hint(c.text))]
    if of_engine or (serious and not usage):
        root = of_engine[0] if of_engine else serious[-1]
        return Cause(line=root.text, hint=find_hint(root.text) or next(iter(known), None), block=root.block)
    found = usage[-1] if usage else _last_resort(lines, candidates)
    return None if found is None else Cause(line=found, hint=find_hint(found) or next(iter(known), None))


def _last_resort(lines: Iterable[Line], candidates: Iterable[_Candidate]) -> str | None:
    """Where no traceback tells: an interpreter's last words, an error line, at last whatever points at the cause."""
    words = [line.text for line in lines if _LAST_WORDS.fullmatch(line.text)]
    errors = [line.text for line in lines if line.level in ("ERROR", "CRITICAL")]
    plain_errors = [error for error in errors if not _POINTERS.search(error)]
    return next(iter(words or plain_errors or [c.text for c in candidates] or errors), None)


def warnings_in(text: str) -> tuple[str, ...]:
    """What a running engine's log warns of that changes what is measured, with advice; each advice once."""
    hints = [hint for hint in HINTS if hint.warns]
    warned = {find_hint(line.text, hints=hints): line.text for line in log_lines(text) if line.level == "WARNING"}
    return tuple(f"{_shortened(line, 200)}: {advice}" for advice, line in warned.items() if advice)


def port_was_taken(text: str) -> bool:
    """Whether an engine failed because another process took its port. Warnings that quote other errors do not count."""
    lines = list(log_lines(text))
    errors = [line.text for line in lines if line.level == "ERROR"]
    return any(_TAKEN.search(line) for line in (*errors, *(c.text for c in _exceptions(lines))))


def compile_cache_is_broken(text: str) -> bool:
    """Whether an engine failed because compiled code it found is damaged: two engines had written it at once."""
    broken = [hint for hint in HINTS if hint.id == "compile-cache"]
    return any(find_hint(candidate.text, hints=broken) for candidate in _exceptions(log_lines(text)))


def describe_failure(headline: str, *, log_path: Path, secret: str | None = None) -> str:
    """A full error message: what happened, cause and hint from the log, where the log is, its last lines.

    A cause without a hint shows the traceback it ends instead of the last lines, which are the API server's.
    """
    text = read_log(log_path)
    cause = find_cause(text)
    parts = [headline]
    if cause:
        parts.append(f"  cause: {_shortened(cause.line, 500)}")
        if cause.hint:
            parts.append(f"  hint:  {cause.hint}")
    else:
        parts.append("  cause: the log names none")
    shown, lines = "its last lines", tail(text)
    if cause and cause.block and not cause.hint:  # nobody knows this one: show where it comes from
        shown, lines = "the traceback", tuple(_shortened(line, 300) for line in cause.block[-_BLOCK_LINES:])
    parts.append(f"  log:   {log_path}" + (f", {shown}:" if lines else " (empty)"))
    parts += [f"    {line}" for line in lines]
    message = "\n".join(parts)
    return message.replace(secret, "***") if secret else message


def describe_exit_code(code: int) -> str:
    """An exit code in words, such as ``code 2`` or ``SIGKILL (…)``."""
    if code >= 0:
        return f"code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{name} (often the kernel, out of memory)" if -code == signal.SIGKILL else name


def tail(text: str, lines: int = 15) -> tuple[str, ...]:
    """The last lines that say something, without colours; of a progress bar only its last state."""
    shown = [_shortened(line.rstrip(), 300) for line in plain_lines(text) if not _NOISE.match(line)]
    return tuple([line for line in shown if line][-lines:])


_PHASES: tuple[tuple[str, str], ...] = (
    ("starting the engine core", r"Initializing a V1 LLM engine"),
    ("loading weights", r"Starting to load model|Loading safetensors checkpoint shards"),
    ("compiling", r"torch_compile_cache|Dynamo bytecode transform|Compiling a graph"),
    ("profiling memory", r"Initial profiling/warmup run|Memory profiling takes"),
    ("capturing graphs", r"Capturing (CUDA|CPU) ?graphs"),
    ("warming up", r"Graph capturing finished|KV cache size"),
    ("starting the API server", r"Waiting for application startup|Starting vLLM (API )?server"),
)


def phase(text: str) -> str | None:
    """The latest phase of start-up that ``text`` shows, None when it shows none."""
    latest = max(((_last_match(pattern, text), name) for name, pattern in _PHASES), default=(-1, ""))
    return latest[1] if latest[0] >= 0 else None


def compiled_cold(text: str) -> bool | None:
    """True when graphs were compiled during this start, False when all came from the cache, None when neither."""
    if re.search(r"Compiling a graph for|saved AOT compiled function", text):
        return True
    if re.search(r"Directly load (the compiled graph|AOT compilation)", text):
        return False
    return None


def read_log(path: Path) -> str:
    """The log as text: whole up to 16 MiB, beyond that its beginning and its end."""
    try:
        with path.open("rb") as log:
            size = log.seek(0, 2)
            log.seek(0)
            if size <= _READ_AT_MOST:
                return log.read().decode(errors="replace")
            head = log.read(_READ_AT_MOST // 2)
            log.seek(-(_READ_AT_MOST // 2), 2)
            return (head + b"\n" + log.read()).replace(b"\0", b"").decode(errors="replace")
    except OSError:
        return ""


class LogFollower:
    """Reads what was added to a log since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new_text(self) -> str:
        """What was added since the last call; empty when nothing was."""
        try:
            with self._path.open("rb") as log:
                size = log.seek(0, 2)
                if size < self._offset:  # its middle was cut out meanwhile
                    self._offset = size
                log.seek(self._offset)
                data = log.read(_READ_AT_MOST)
        except OSError:
            return ""
        self._offset += len(data)
        return data.replace(b"\0", b"").decode(errors="replace")


def _exceptions(lines: Iterable[Line]) -> Iterator[_Candidate]:
    """The last line of each traceback, with the indented lines that belong to its message.

    Processes write into the log at the same time, so each one's lines are followed apart.
    """
    inside: dict[str, _Candidate | None] = {}
    frames: dict[str, list[str]] = {}
    for line in lines:
        if line.text.startswith("Traceback (most recent call last):"):
            if done := inside.get(line.stream):
                yield done
            inside[line.stream], frames[line.stream] = None, [line.text]
        elif line.stream in inside:
            message = inside[line.stream]
            indented = line.text.startswith((" ", "\t"))
            frames[line.stream].append(line.text)
            if message is None:
                if line.text and not indented and _EXCEPTION.match(line.text):
                    inside[line.stream] = _candidate(line, line.text, frames[line.stream])
            elif indented and not line.text.strip().startswith("For further information"):
                inside[line.stream] = _candidate(line, f"{message.text} {line.text.strip()}", frames[line.stream])
            else:
                del inside[line.stream]
                yield message
    yield from (message for message in inside.values() if message)


def _candidate(line: Line, text: str, frames: Iterable[str]) -> _Candidate:
    return _Candidate(role=line.role, level=line.level, text=text, block=tuple(frames))


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _last_match(pattern: str, text: str) -> int:
    return max((match.start() for match in re.finditer(pattern, text)), default=-1)
