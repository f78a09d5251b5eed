"""Known failures of vLLM and what to do about each; the rows are listed in ``docs/hints.md``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pytest_vllmperf.domain.hints.configuration import CONFIGURATION, FLAGS
from pytest_vllmperf.domain.hints.hint import Hint
from pytest_vllmperf.domain.hints.machine import DEVICE_MEMORY, MACHINE
from pytest_vllmperf.domain.hints.serving import MODEL, PROCESSES, REQUESTS

__all__ = ["HINTS", "Hint", "find_hint"]

HINTS: tuple[Hint, ...] = (*FLAGS, *DEVICE_MEMORY, *CONFIGURATION, *MACHINE, *MODEL, *REQUESTS, *PROCESSES)
"""First match wins, so a special case stands above the general one."""


def find_hint(text: str, *, hints: Iterable[Hint] = HINTS) -> str | None:
    """Advice for a known failure named in ``text``: that of the first hint that matches, with its id."""
    for hint in hints:
        match = re.search(hint.pattern, text)
        if match:
            return f"{hint.advice.format(**match.groupdict())} [{hint.id}]"
    return None
