"""Reads prompts from files: ShareGPT-format JSON, and JSONL of one's own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from pytest_vllmperf.domain.prompts import PromptLines, ShareGPT
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.errors import WorkloadError

__all__ = ["FilePrompt", "read_prompts"]

_SPACE = re.compile(r"[ \t\r\n]*")
_EXCERPT = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePrompt:
    """One prompt of a file: text or token ids, and how long its answer is to be (None: as the workload says)."""

    prompt: Union[str, tuple[int, ...]]
    output_tokens: Union[int, None] = None


def read_prompts(workload: Workload) -> tuple[FilePrompt, ...] | None:
    """The first ``workload.requests`` prompts of its file; None where its prompts come from no file.

    Raises:
        WorkloadError: The file cannot be read, is not of its format, or holds fewer prompts; with file and line.
    """
    source = workload.prompts
    if isinstance(source, ShareGPT):
        found = _share_gpt(source.path, _text(workload, source.path))
    elif isinstance(source, PromptLines):
        found = _lines(source.path, _text(workload, source.path), chat=workload.api == "chat")
    else:
        return None
    prompts = tuple(prompt for prompt, _ in zip(found, range(workload.requests), strict=False))
    if len(prompts) < workload.requests:
        raise WorkloadError(
            f"workload {workload.name!r}: {source.path} holds {len(prompts)} prompts, and requests={workload.requests} "
            "asks for more: sent twice they would come from the prefix cache. Ask for fewer, or add prompts"
        )
    return prompts


def _text(workload: Workload, path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(f"workload {workload.name!r}: {path} cannot be read: {error}") from error


def _lines(path: str, text: str, *, chat: bool) -> Iterator[FilePrompt]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _own_prompt(f"{path}:{number}", _json(f"{path}:{number}", line), chat=chat)


def _json(where: str, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise WorkloadError(f"{where}: not JSON ({error}): {_short(line)}") from error
    if not isinstance(found, dict):
        raise WorkloadError(f"{where}: each line must be an object, not {_short(line)}")
    return found


def _own_prompt(where: str, entry: dict[str, Any], *, chat: bool) -> FilePrompt:
    prompt, asked = entry.get("prompt"), entry.get("output_tokens")
    if asked is not None and not _is_count(asked, 1):
        raise WorkloadError(f"{where}: output_tokens={asked!r} must be a whole number, 1 or more, or left out")
    if isinstance(prompt, str) and prompt:
        return FilePrompt(prompt=prompt, output_tokens=asked)
    if not isinstance(prompt, list) or not prompt or not all(_is_count(token, 0) for token in prompt):
        raise WorkloadError(f'{where}: "prompt" must be text or a list of token ids, not {_short(repr(prompt))}')
    if chat:
        raise WorkloadError(f'{where}: "prompt" is token ids, which the chat API does not take: use api="completions"')
    return FilePrompt(prompt=tuple(prompt), output_tokens=asked)


def _share_gpt(path: str, text: str) -> Iterator[FilePrompt]:
    """Entry by entry, because these files are large and only their beginning is wanted."""
    for place, entry in _entries(path, text):
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            where = f"{path}:{_line(text, place)}"
            raise WorkloadError(f'{where}: an entry must be {{"conversations": [{{"from": …, "value": …}}, …]}}')
        opening = turns[0] if turns else {}
        question = opening.get("value")
        if opening.get("from") in ("human", "user") and isinstance(question, str) and question.strip():
            yield FilePrompt(prompt=question.strip())


def _entries(path: str, text: str) -> Iterator[tuple[int, Any]]:
    """The entries of a JSON list with the places where they begin."""
    decoder = json.JSONDecoder()
    place = _skip_space(text, 0)
    if text[place : place + 1] != "[":
        raise WorkloadError(f"{path}:1: a ShareGPT file is a list, and begins with '[', not {_short(text[:_EXCERPT])}")
    place = _skip_space(text, place + 1)
    while text[place : place + 1] != "]":
        begin = place
        try:
            entry, place = decoder.raw_decode(text, begin)
        except RecursionError as error:
            raise WorkloadError(f"{path}:{_line(text, begin)}: nested too deeply") from error
        except json.JSONDecodeError as error:
            raise WorkloadError(f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from error
        yield begin, entry
        place = _skip_space(text, place)
        if text[place : place + 1] == ",":
            place = _skip_space(text, place + 1)
        elif text[place : place + 1] != "]":
            said = _short(text[place : place + _EXCERPT])
            raise WorkloadError(f"{path}:{_line(text, place)}: not JSON: ',' or ']' expected, not {said}")


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _skip_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return found.end() if found else place


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _short(text: str) -> str:
    cut = text.strip()[:_EXCERPT]
    return repr(cut) if cut else "nothing"
