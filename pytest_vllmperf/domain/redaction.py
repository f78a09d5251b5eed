"""Secrets in text: known by value, in the forms they travel in, and by the look of the common ones."""

from __future__ import annotations

import base64
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["REDACTED", "Redactor", "secrets_in"]

REDACTED = "[redacted]"
_NAME = re.compile(r"(?:^|[_-])(?:api[_-]?key|key|token|secret|password|passwd|auth|credentials?)$", re.IGNORECASE)
_LOOKS = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bglpat-[A-Za-z0-9_-]{20,}"
    r"|\bAKIA[0-9A-Z]{16}\b|(?<=Bearer )[A-Za-z0-9._~+/-]{8,}=*|(?<=://)[^/@\s]+(?=@)"
)
_SHORTEST = 6
"""Anything shorter is replaced only where it is the whole text: it would turn up inside ordinary words."""


def secrets_in(env: Mapping[str, str], command: Sequence[str] = ()) -> frozenset[str]:
    """Values that must not be shown: of variables, and of flags, whose name says that they hold a secret."""
    found = {value for name, value in env.items() if _NAME.search(name)}
    for flag, following in zip(command, (*command, "")[1:], strict=True):
        name, equals, value = flag.partition("=")
        if name.startswith("-") and _NAME.search(name):
            found.add(value if equals else following)
    return frozenset(found - {"", REDACTED})


class Redactor:
    """Takes secrets out of whatever is written, shown or sent.

    Args:
        secrets: Values to look for; more may be added later.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._forms: tuple[str, ...] = ()
        self._secrets: set[str] = set()
        self.add(*secrets)

    def add(self, *secrets: str) -> None:
        """Look for these as well: as they are, percent-encoded, and in base64."""
        self._secrets.update(secret for secret in secrets if secret)
        forms = {form for secret in self._secrets if len(secret) >= _SHORTEST for form in _forms(secret)}
        self._forms = tuple(sorted(forms, key=len, reverse=True))  # longest first: none hides part of another

    def clean(self, text: str) -> str:
        """``text`` without them."""
        if text in self._secrets:
            return REDACTED
        for form in self._forms:
            if form in text:
                text = text.replace(form, REDACTED)
        return _LOOKS.sub(REDACTED, text)

    def clean_all(self, value: Any) -> Any:
        """``value``, plain JSON types, with every text in it cleaned."""
        if isinstance(value, str):
            return self.clean(value)
        if isinstance(value, dict):
            return {self.clean_all(key): self.clean_all(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.clean_all(item) for item in value]
        return value


def _forms(secret: str) -> set[str]:
    """A secret as it may stand in a log, a URL or a header."""
    encoded = base64.b64encode(secret.encode()).decode().rstrip("=")
    return {secret, urllib.parse.quote(secret, safe=""), urllib.parse.quote_plus(secret), encoded}
