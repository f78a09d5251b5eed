"""What a flag's value may be."""

from __future__ import annotations

from typing import Union

__all__ = ["ArgValue"]

ArgValue = Union[str, int, float, bool, None, list[object], tuple[object, ...], dict[str, object]]
