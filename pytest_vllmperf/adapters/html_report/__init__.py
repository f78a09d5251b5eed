"""A Report as one HTML file that needs nothing else: no network, no font, no library.

The page is a Jinja2 template; its plots are SVG computed here. Plotting libraries were measured against it and passed
over (docs/plots.md): the page's content security policy allows exactly one script and one style sheet, by their
hashes, and no style attribute. SVG also prints sharply, takes light and dark from the same style sheet as the text,
and draws before any script runs.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from pytest_vllmperf.adapters.html_report.trends import PastRun

if TYPE_CHECKING:
    from pathlib import Path

    import jinja2

    from pytest_vllmperf.domain.report import Report

__all__ = ["PastRun", "write_html"]


def write_html(report: Report, path: Path, *, history: Sequence[PastRun] = (), notes: Sequence[str] = ()) -> None:
    """Write the report as one self-contained page.

    Whatever came from an engine, a model, a file or a user is escaped, and characters that could hide or
    reorder text are made visible. The file appears whole or not at all; an earlier one stays until then.

    Args:
        report: The run.
        path: The page. Logs of engines inside its folder are linked, relative to it.
        history: Earlier runs, oldest first, for the sparklines; of them only what was measured on the same
            hardware with the same engine, workload and model is shown.
        notes: Sentences about the page itself, such as history files that could not be read.

    Raises:
        OSError: ``path`` cannot be written.
        UnknownMetric: A metric is not in the catalogue.
    """
    from pytest_vllmperf.adapters.html_report.page import arrange

    style, script = _part("report.css"), _part("report.js")
    page = arrange(report, folder=path.parent, history=history)
    text = _template().render(page=page, notes=notes, style=style, script=script, policy=_policy(style, script))
    _write(path, text)


def _part(name: str) -> str:
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Nothing may be loaded and nothing may run but this one style sheet and this one script."""
    allowed = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "img-src": "data:",  # the empty icon, without which a browser asks the server for one
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "vllmperf",
    }
    return "; ".join(f"{name} {value}" for name, value in allowed.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@functools.cache
def _template() -> jinja2.Template:
    import jinja2

    from pytest_vllmperf.adapters.html_report.compiled import CompiledBeside

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "templates"),
        bytecode_cache=CompiledBeside(),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    return environment.get_template("report.html.j2")


_ESCAPE_SEQUENCE = re.compile(
    r"\x1b (?: \[ [0-?]* [ -/]* [@-~] | \] [^\x07\x1b]* (?:\x07|\x1b\\)? | [@-Z\\-_] )", re.VERBOSE
)


def _visible(value: Any) -> Any:
    """Every value on its way into the page: terminal colours are dropped, hidden characters are shown as �.

    Hidden are control characters, halves of surrogate pairs and format characters, of which some reverse
    the direction of the text around them.
    """
    import markupsafe

    if not isinstance(value, str) or isinstance(value, markupsafe.Markup) or value.isprintable():
        return value
    plain = _ESCAPE_SEQUENCE.sub("", value).replace("\r\n", "\n")
    return "".join("\ufffd" if _hidden(c) else c for c in plain)


def _hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs") and character not in "\n\t"


def _write(path: Path, text: str) -> None:
    """Replace ``path`` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
