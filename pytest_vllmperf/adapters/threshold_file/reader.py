"""Read ``thresholds.toml``: checked whole, and every mistake in it is told at once."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeGuard

from pytest_vllmperf.adapters.threshold_file.choices import choices, sweep
from pytest_vllmperf.adapters.threshold_file.wording import as_text, nearest, right_key
from pytest_vllmperf.domain.metrics import Better, Metric, judgeable_metric
from pytest_vllmperf.domain.quality import QualityTask
from pytest_vllmperf.domain.quality_tasks import BUILT_IN_TASKS, task_with_options
from pytest_vllmperf.domain.thresholds import MATCH_KEYS, Limit, LimitTable, Match, Thresholds, is_glob
from pytest_vllmperf.domain.units import parse_quantity
from pytest_vllmperf.errors import TaskError, ThresholdFileError, UnitError, UnknownMetric

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DEFAULTS", "INCONCLUSIVE", "LIMIT", "TOP_LEVEL", "Reader", "check_thresholds", "read_thresholds"]

_VERSION = 1
TOP_LEVEL = ("version", "defaults", "limit", "choice", "sweep", "quality")
DEFAULTS = ("launches", "rounds", "inconclusive")
INCONCLUSIVE = ("warn", "fail")
LIMIT = ("max", "min", "tolerance", "required")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def read_thresholds(
    path: Path,
    *,
    engines: Collection[str],
    workloads: Collection[str],
    tasks: Mapping[str, QualityTask] | None = None,
) -> Thresholds:
    """Read and check a thresholds file.

    Args:
        path: The file.
        engines: Names of the engine matrix; a ``match`` may name no other.
        workloads: What a ``match`` may name as workload, beside the tasks of ``[quality.tasks]``.
        tasks: Declared quality tasks, whose options ``[quality.tasks]`` may replace.

    Raises:
        ThresholdFileError: With every problem of the file. TOML syntax errors and duplicate keys stop
            the parser, so of those only the first is told.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ThresholdFileError(str(path), [_MISSING_FILE.format(file=path.name)]) from None
    except OSError as error:
        why = f"{path.name}: cannot be read: {error.strerror}; give the path of a readable TOML file"
        raise ThresholdFileError(str(path), [why]) from None
    except UnicodeDecodeError as error:
        why = f"{path.name}: is not UTF-8 text (byte {error.start}); save it as UTF-8"
        raise ThresholdFileError(str(path), [why]) from None
    document = _parsed(text, path)
    return check_thresholds(document, path=str(path), engines=engines, workloads=workloads, tasks=tasks)


def _parsed(text: str, path: Path) -> Mapping[str, object]:
    """The file as plain values. Python's own parser takes a fifth of tomlkit's time, which says where a mistake is.

    Raises:
        ThresholdFileError: It is not TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib

        with contextlib.suppress(ValueError, RecursionError):
            return tomllib.loads(text)
    from tomlkit import parse
    from tomlkit.exceptions import ParseError, TOMLKitError

    try:
        return parse(text).unwrap()
    except ParseError as error:
        raise ThresholdFileError(str(path), [_not_toml(path.name, error.line, error.col, str(error))]) from None
    except (TOMLKitError, ValueError, RecursionError) as error:
        why = f"{path.name}: is not TOML: {str(error) or type(error).__name__}"
        raise ThresholdFileError(str(path), [why]) from None


_MISSING_FILE = (
    "{file}: there is no such file; make one that starts with `version = 1` and holds limits such as "
    '`[[limit]]`, `match = {{ engine = "baseline" }}`, `ttft_mean = {{ max = "600 ms" }}`'
)


def _not_toml(file: str, line: int, column: int, message: str) -> str:
    what = message.removesuffix(f" at line {line} col {column}")
    if what == "Unexpected character: '\\x00'":
        what = "the file ends in the middle of a value"
    return f"{file}: is not TOML: line {line}, column {column + 1}: {what}"


def check_thresholds(
    document: Mapping[str, object],
    *,
    path: str,
    engines: Collection[str],
    workloads: Collection[str],
    tasks: Mapping[str, QualityTask] | None = None,
) -> Thresholds:
    """Turn a parsed file into :class:`Thresholds`; arguments and errors are those of :func:`read_thresholds`."""
    reader = Reader(path, engines, workloads, {**BUILT_IN_TASKS, **(tasks or {})})
    thresholds = reader.document(document)
    if reader.problems:
        raise ThresholdFileError(path, reader.problems)
    return thresholds


class Reader:
    """Walks one document, keeps going after a mistake, and collects the problems."""

    def __init__(
        self, path: str, engines: Collection[str], workloads: Collection[str], tasks: Mapping[str, QualityTask]
    ) -> None:
        self.path = path
        self.file = path.replace("\\", "/").rsplit("/", 1)[-1]
        self.names = {"engine": list(engines), "workload": list(workloads)}
        self.tasks = tasks
        self.problems: list[str] = []

    def problem(self, where: str, value: object, why: str) -> None:
        """Note what is wrong with the value at a dotted path."""
        number = re.match(r"(limit|choice)\[(\d+)\]", where)
        table = f" (in [[{number[1]}]] no. {number[2]})" if number else ""
        self.problems.append(f"{self.file}: {where} = {_shown(value)}{table}: {why}")

    def unknown_keys(self, where: str, table: Mapping[str, object], allowed: Collection[str]) -> None:
        """A problem for each key that nothing reads."""
        for key, value in table.items():
            if key not in allowed:
                self.problem(_join(where, key), value, f"key {key!r} is unknown; {nearest(key, allowed)}")

    def table(self, where: str, value: object, example: str) -> Mapping[str, object]:
        """``value`` where it is a table; otherwise a problem, and an empty table to go on with."""
        if _is_table(value):
            return value
        self.problem(where, value, f"must be a table such as {example}")
        return {}

    def document(self, document: Mapping[str, object]) -> Thresholds:
        """The whole file."""
        self.unknown_keys("", document, TOP_LEVEL)
        version = document.get("version")
        if "version" not in document:
            self.problems.append(f"{self.file}: version is missing; write `version = {_VERSION}` as the first line")
        elif not _is_int(version) or version != _VERSION:
            self.problem("version", version, f"must be {_VERSION}, the version of the format read here")
        launches, rounds, inconclusive = self.defaults(document.get("defaults", {}))
        quality_tasks = self.quality(document.get("quality", {}))
        self.names["workload"] += [name for name in quality_tasks if name not in self.names["workload"]]
        tables = self.limit_tables(document.get("limit", []))
        return Thresholds(
            tables=tables,
            rules=choices(self, document.get("choice", [])),
            sweep=sweep(self, document.get("sweep", [])),
            launches=launches,
            rounds=rounds,
            inconclusive=inconclusive,
            quality_tasks=quality_tasks,
            path=self.path,
        )

    def defaults(self, value: object) -> tuple[int, int | None, str]:
        """Launches, rounds and what INCONCLUSIVE means, of ``[defaults]``."""
        table = self.table("defaults", value, "[defaults] with launches = 1")
        self.unknown_keys("defaults", table, DEFAULTS)
        inconclusive = table.get("inconclusive", "warn")
        launches, rounds = (self.repetitions(name, table) for name in ("launches", "rounds"))
        if not isinstance(inconclusive, str) or inconclusive not in INCONCLUSIVE:
            self.problem("defaults.inconclusive", inconclusive, f"must be {_either(INCONCLUSIVE)}")
            inconclusive = "warn"
        return launches or 1, rounds, inconclusive

    def repetitions(self, name: str, table: Mapping[str, object]) -> int | None:
        """A whole number of launches or rounds; None where the file gives none."""
        value = table.get(name)
        if value is None or (_is_int(value) and value >= 1):
            return value
        self.problem(f"defaults.{name}", value, "must be a whole number, 1 or more")
        return None

    def quality(self, value: object) -> dict[str, Mapping[str, object]]:
        """Options by task, of ``[quality.tasks.*]``."""
        table = self.table("quality", value, "[quality.tasks.gsm8k] with shots = 5")
        self.unknown_keys("quality", table, ("tasks",))
        named = self.table("quality.tasks", table.get("tasks", {}), "[quality.tasks.gsm8k] with shots = 5")
        found: dict[str, Mapping[str, object]] = {}
        for name, options in named.items():
            where = _join("quality.tasks", name)
            found[name] = self.table(where, options, "{ shots = 5 }")
            try:
                task_with_options(name, found[name], known=self.tasks)
            except TaskError as error:
                self.problem(where, options, str(error).removeprefix(f"{where}: "))
            except TypeError as error:
                self.problem(where, options, f"a value has the wrong type: {error}")
        return found

    def limit_tables(self, value: object) -> tuple[LimitTable, ...]:
        """Every ``[[limit]]``."""
        if not isinstance(value, list):
            self.problem("limit", value, "limits are an array of tables; write [[limit]] with two brackets")
            return ()
        tables: list[LimitTable] = []
        sound: list[LimitTable] = []
        for number, given in enumerate(value, start=1):
            where = f"limit[{number}]"
            table = self.table(where, given, '[[limit]] with ttft_mean = { max = "600 ms" }')
            before = len(self.problems)
            match = self.match(f"{where}.match", table.get("match", {}))
            match_is_sound = len(self.problems) == before
            limits = {name: self.limit(where, name, options) for name, options in table.items() if name != "match"}
            if _is_table(given) and not limits:
                self.problem(where, given, 'holds no limit; add one, such as ttft_mean = { max = "600 ms" }')
            tables.append(
                LimitTable(
                    match=match,
                    limits={name: limit for name, limit in limits.items() if limit is not None},
                    where=f"{self.file}: {where}",
                )
            )
            sound += tables[-1:] if match_is_sound else []
        self.duplicates(sound)
        return tuple(tables)

    def match(self, where: str, value: object) -> Match:
        """What a ``[[limit]]`` is for."""
        table = self.table(where, value, '{ engine = "baseline" }')
        self.unknown_keys(where, table, MATCH_KEYS)
        keys: dict[str, str] = {}
        for key in MATCH_KEYS:
            given = table.get(key)
            if key not in table:
                continue
            if not isinstance(given, str) or not given:
                why = f"must be a string that is not empty, such as {_EXAMPLE_KEYS[key]} (globs are allowed)"
                self.problem(_join(where, key), given, why)
            elif key in self.names and not _names_any(given, self.names[key]):
                what = f"{key} glob matches nothing declared" if is_glob(given) else f"{key} is not declared"
                self.problem(_join(where, key), given, f"{what}; {nearest(given, self.names[key])}")
            else:
                keys[key] = given
        return Match(**keys)

    def limit(self, table: str, name: str, value: object) -> Limit | None:
        """One metric of a ``[[limit]]``; None where it holds a mistake."""
        where = _join(table, name)
        try:
            metric = judgeable_metric(name)
        except UnknownMetric as error:
            self.problem(where, value, str(error))
            return None
        before = len(self.problems)
        options = self.table(where, value, f"{{ {right_key(metric)} = … }}")
        self.unknown_keys(where, options, LIMIT)
        maximum = self.bound(where, "max", options, metric)
        minimum = self.bound(where, "min", options, metric)
        tolerance = (
            self.quantity(f"{where}.tolerance", options["tolerance"], "ratio") if "tolerance" in options else None
        )
        required = options.get("required", False)
        if not isinstance(required, bool):
            self.problem(f"{where}.required", required, "must be true or false")
        if _is_table(value) and not {"max", "min", "tolerance"} & set(options):
            self.problem(where, value, f"limits nothing; give {right_key(metric)} or tolerance")
        if maximum is not None and minimum is not None and minimum > maximum:
            self.problem(where, value, "no value can be both: min is larger than max; swap them")
        if len(self.problems) > before:
            return None
        return Limit(
            metric=name,
            maximum=maximum,
            minimum=minimum,
            tolerance=tolerance,
            required=required is True,
            where=f"{self.file}: {where}",
            text=as_text(options, metric),
        )

    def bound(self, where: str, key: str, options: Mapping[str, object], metric: Metric) -> float | None:
        """``max`` or ``min`` in the base unit; None where it is not given, or wrong."""
        if key not in options:
            return None
        wrong = {"max": Better.HIGHER, "min": Better.LOWER}[key]
        if metric.better is wrong:
            why = f"is the wrong direction: {metric.better.value} {metric.label} is better; write {right_key(metric)}"
            self.problem(f"{where}.{key}", options[key], why)
        return self.quantity(f"{where}.{key}", options[key], metric.unit)

    def quantity(self, where: str, value: object, unit: str) -> float | None:
        """A value with its unit, in the base unit; None where it cannot be read."""
        try:
            return parse_quantity(value, unit=unit)  # type: ignore[arg-type]  # anything else is a UnitError
        except UnitError as error:
            self.problem(where, value, str(error))
            return None

    def duplicates(self, tables: Collection[LimitTable]) -> None:
        """A problem for each limit that two tables of one match give."""
        first: dict[tuple[Match, str], Limit] = {}
        for table in tables:
            for name, limit in table.limits.items():
                other = first.setdefault((table.match, name), limit)
                if other is not limit:
                    self.problems.append(
                        f"{limit.where} ({limit.text}) repeats {other.where.rsplit(': ', 1)[-1]} ({other.text}): both "
                        f"tables have the same match; keep one of the two, or give one another match"
                    )


_EXAMPLE_KEYS = {
    "hardware": '"NVIDIA H200"',
    "model": '"Qwen/Qwen2.5-7B-Instruct*"',
    "engine": '"max-perf"',
    "workload": '"burst"',
}


def _is_table(value: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(value, Mapping)


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _names_any(given: str, names: Collection[str]) -> bool:
    return given in names or (is_glob(given) and any(fnmatchcase(name, given) for name in names))


def _join(where: str, key: str) -> str:
    part = key if _BARE_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False)
    return f"{where}.{part}" if where else part


_LONGEST_SHOWN = 100


def _shown(value: object) -> str:
    """The offending value on one line, cut where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):  # an integer too long to print, tables too deep to walk
        return "…"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _either(names: Collection[str]) -> str:
    return " or ".join(f'"{name}"' for name in names)
