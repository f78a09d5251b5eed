"""Engines that would fill one compile cache at the same time start one after the other.

vLLM keeps compiled code by a hash that is known only after it has started. Several that start on an empty cache compile
the same twice, and some versions of vLLM and torch then read what another has half written. So the first start of a
configuration is alone among starts of its model on that cache; once it was ready, nobody waits any more.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.leases import HostLeases
    from pytest_vllmperf.domain.engine import EngineConfig

__all__ = ["first_start_alone"]

_COMPILED = "torch_compile_cache"


@contextlib.contextmanager
def first_start_alone(
    config: EngineConfig,
    *,
    env: Mapping[str, str],
    fingerprint: str,
    leases: HostLeases,
    tell: Callable[[str], None],
) -> Iterator[None]:
    """For ``with``: around a start, until it is ready.

    Args:
        config: What is launched. Only a vLLM that compiles has to wait for others.
        env: Its environment, which says where its cache is.
        fingerprint: Equal for launches that find each other's compiled code.
        leases: Keeps this process apart from others of its host.
        tell: Called with a line that names the engine waited for.

    Raises:
        EngineError: The lock cannot be opened.
    """
    root = _root(env)
    if not config.serves_vllm or config.args.get("enforce-eager") or _is_filled(root, fingerprint):
        yield
        return
    lock = f"compile-{hashlib.sha256(f'{root}{config.python}{config.model}'.encode()).hexdigest()[:16]}"
    with leases.alone(
        config.name,
        lock=lock,
        what=f"the compile cache {root}",
        over=lambda: _is_filled(root, fingerprint),
        waiting=tell,
    ):
        yield
        _note_filled(root, fingerprint)


def _root(env: Mapping[str, str]) -> Path:
    """Where vLLM keeps its caches, by its own rules."""
    if root := env.get("VLLM_CACHE_ROOT"):
        return Path(root).expanduser()
    return Path(env.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vllm"


def _notes(root: Path, fingerprint: str) -> tuple[Path, ...]:
    """Where it is noted that a start was ready: with the compiled code, so that whoever empties the one loses both."""
    return tuple(folder / f".vllmperf-{fingerprint}" for folder in (root / _COMPILED, root))


def _is_filled(root: Path, fingerprint: str) -> bool:
    return any(note.exists() for note in _notes(root, fingerprint))


def _note_filled(root: Path, fingerprint: str) -> None:
    """A note that cannot be written costs later starts time, nothing else."""
    note = next((note for note in _notes(root, fingerprint) if note.parent.is_dir()), None)
    if note is not None:
        with contextlib.suppress(OSError):
            note.touch()
