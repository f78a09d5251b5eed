"""What a model's own files tell, without loading it and without network."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vllmperf.domain.shape_twin import MARKER

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["context_size", "generation_defaults", "twin_of", "vocabulary_size"]


def vocabulary_size(model: str) -> int | None:
    """Size of the vocabulary by ``config.json`` of a model directory, or of the local hub cache for a hub id.

    None where there is no readable configuration, or it does not tell.
    """
    return _told(model, "vocab_size")


def context_size(model: str) -> int | None:
    """Most tokens the model was made for (``max_position_embeddings``); None as for :func:`vocabulary_size`."""
    return _told(model, "max_position_embeddings")


def generation_defaults(model: str) -> dict[str, float]:
    """Numbers of the model's ``generation_config.json``, such as ``repetition_penalty``; empty where there is none.

    vLLM applies them to every request that does not say otherwise, unless told ``--generation-config vllm``.
    """
    for path in _config_files(model, "generation_config.json"):
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(told, dict):
            numbers = {k: v for k, v in told.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
            return {str(name): float(value) for name, value in numbers.items()}
    return {}


def twin_of(model: str) -> str | None:
    """The model that ``model`` is a shape twin of; None for a model with weights of its own."""
    try:
        told = json.loads((Path(model).expanduser() / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(told.get("of", "an unnamed model")) if isinstance(told, dict) else None


def _told(model: str, key: str) -> int | None:
    for path in _config_files(model):
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if (size := _size(config, key)) is not None:
            return size
    return None


def _size(config: Any, key: str) -> int | None:
    """The whole number under ``key``, which multimodal models keep in the part for their language model."""
    if not isinstance(config, dict):
        return None
    size = config.get(key)
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    parts = (config.get(name) for name in ("text_config", "llm_config", "language_config"))
    return next((found for part in parts if (found := _size(part, key)) is not None), None)


def _config_files(model: str, name: str = "config.json") -> Iterator[Path]:
    yield Path(model).expanduser() / name
    cached = _hub_cache() / f"models--{model.replace('/', '--')}"
    try:
        revision = (cached / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        pass
    else:
        yield cached / "snapshots" / revision / name
    yield from sorted(cached.glob(f"snapshots/*/{name}"))


def _hub_cache() -> Path:
    """Where huggingface_hub keeps models, by its own rules."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"
