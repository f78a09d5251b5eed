"""Compiled templates, kept where Python keeps the compiled modules of this package.

Compiling them takes longer than all the rest of the page.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

if TYPE_CHECKING:
    from jinja2.bccache import Bucket

__all__ = ["CompiledBeside"]


class CompiledBeside(jinja2.BytecodeCache):
    """Keeps a template's code in ``__pycache__``, by the same rules as Python keeps a module's.

    Whoever can write there can change the package itself, so what is read back needs no more trust. The code is used
    only for the same source, options, Jinja2 and Python; where it cannot be written, or Python is told not to
    (``PYTHONDONTWRITEBYTECODE``), templates are compiled in each run.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(__file__).with_name("__pycache__")

    def load_bytecode(self, bucket: Bucket) -> None:
        """Fill ``bucket`` if what is kept was made of its source."""
        with contextlib.suppress(OSError, ValueError, EOFError, TypeError):
            told, _, code = self._path(bucket).read_bytes().partition(b"\n")
            if told == self._made_of(bucket):
                bucket.code = marshal.loads(code)  # noqa: S302 - as trustworthy as the modules beside it

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep the code of ``bucket``, whole or not at all."""
        if sys.dont_write_bytecode or bucket.code is None:
            return
        path = self._path(bucket)
        draft = path.with_suffix(f".{os.getpid()}")
        try:
            self._folder.mkdir(exist_ok=True)
            draft.write_bytes(self._made_of(bucket) + b"\n" + marshal.dumps(bucket.code))
            draft.replace(path)
        except OSError:  # somebody else's installation
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)

    def _path(self, bucket: Bucket) -> Path:
        return self._folder / f"template-{bucket.key}.{sys.implementation.cache_tag}.bin"

    def _made_of(self, bucket: Bucket) -> bytes:
        environment = bucket.environment
        options = (environment.trim_blocks, environment.lstrip_blocks, environment.autoescape, environment.finalize)
        names = [getattr(option, "__qualname__", option) for option in (*options, environment.undefined)]
        return f"{sys.version} {jinja2.__version__} {names} {bucket.checksum}".replace("\n", " ").encode()
