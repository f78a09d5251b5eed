"""lm-eval kept to itself: its progress bars, logs, warnings and random draws reach nobody."""

from __future__ import annotations

import contextlib
import logging
import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = ["quiet"]

_LOGGERS = ("lm_eval", "datasets", "huggingface_hub", "fsspec", "filelock", "httpx", "httpcore")


@contextlib.contextmanager
def quiet(*, seed: int | None = None) -> Iterator[None]:
    """Keep lm-eval's and its libraries' logging, warnings and progress bars to themselves, for this long only.

    It makes up names by ``random.choices`` and some tasks shuffle their choices while they load, so the global
    generator is put back, too; ``seed`` makes what is drawn meanwhile repeatable.
    """
    drawn = random.getstate()
    if seed is not None:
        random.seed(seed)
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        try:
            stack.enter_context(_no_bars())
            yield
        finally:
            random.setstate(drawn)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Silence progress bars: the switches of the libraries, and lm-eval's, which has none."""
    import datasets
    import lm_eval.api.task
    from huggingface_hub import utils as hub

    def bare(items: Iterable[Any], **_: object) -> Iterable[Any]:
        return items

    original: Callable[..., Any] = lm_eval.api.task.tqdm
    shown = [library for library in (datasets, hub) if not library.are_progress_bars_disabled()]
    lm_eval.api.task.tqdm = bare
    for library in shown:
        library.disable_progress_bars()
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = original
        for library in shown:
            library.enable_progress_bars()
