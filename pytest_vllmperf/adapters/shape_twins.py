"""Shape twins on disk: from a built-in shape or a ``config.json`` to a directory that vLLM serves."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vllmperf.domain.shape_twin import QUANTIZATIONS, SHAPES, quantized, twin_files
from pytest_vllmperf.errors import TwinError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["write_twin"]


def write_twin(source: str, directory: Path, *, quantization: str | None = None, words: Sequence[str] = ()) -> str:
    """Write the twin of ``source`` into ``directory``, new or empty; returns the name of the model it copies.

    Args:
        source: A built-in shape (case does not matter, an organisation before a slash is ignored), or the path of a
            model's ``config.json``, or of the directory that holds it.
        directory: Where to; made where it does not exist.
        quantization: One of :data:`~pytest_vllmperf.domain.shape_twin.QUANTIZATIONS`; None keeps what the shape says.
        words: Words that shall be one token each.

    Raises:
        TwinError: The model is unknown, its configuration unreadable or none of a text model, the quantization
            unknown, or the directory holds something already.
    """
    name, config = _shape(source)
    method = next((known for known in QUANTIZATIONS if known == quantization), None)
    if quantization is not None and method is None:
        raise TwinError(f"quantization {quantization!r} is unknown; known: {', '.join(QUANTIZATIONS)}")
    files = twin_files(quantized(config, method), of=f"{name} ({method})" if method else name, words=words)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise TwinError(f"{directory}: a twin needs a directory that is new or empty")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (directory / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise TwinError(f"{directory}: the twin cannot be written: {error.strerror or error}") from error
    return name


def _shape(source: str) -> tuple[str, dict[str, object]]:
    path = Path(source).expanduser()
    file = path / "config.json" if path.is_dir() else path
    if file.is_file():
        return (path.name if path.is_dir() else file.parent.name or file.name), _read(file)
    wanted = source.rsplit("/", 1)[-1].lower()
    known = {name.lower(): name for name in SHAPES}
    if wanted in known:
        return known[wanted], dict(SHAPES[known[wanted]])
    near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
    hint = f"did you mean {known[near[0]]}? " if near else ""
    raise TwinError(
        f"{source!r} is neither a built-in shape nor a config.json; {hint}built in: {', '.join(SHAPES)}; for any other "
        "text model give the path of its config.json"
    )


def _read(file: Path) -> dict[str, object]:
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TwinError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise TwinError(f"{file} is no configuration of a model: it holds {type(config).__name__}, not an object")
    return config
