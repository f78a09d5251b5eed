"""What the limits file says beside limits: engines and workloads to sweep, and which use wants what of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_vllmperf.adapters.threshold_file.wording import as_text, nearest, right_key
from pytest_vllmperf.domain.choice import Requirement, Rule
from pytest_vllmperf.domain.metrics import Metric, judgeable_metric
from pytest_vllmperf.errors import UnknownMetric

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.threshold_file.reader import Reader

__all__ = ["CHOICE", "REQUIREMENT", "SWEEP", "choices", "sweep"]

CHOICE = ("use", "workload", "best", "tolerance", "require")
SWEEP = ("engines", "workloads")
REQUIREMENT = ("metric", "workload", "max", "min")
_A_REQUIREMENT = '{ metric = "ttft_mean", workload = "heavy", max = "2 s" }'


def sweep(reader: Reader, value: object) -> tuple[tuple[str, str], ...]:
    """Every engine of each table with every workload of it, in order."""
    if not isinstance(value, list):
        reader.problem("sweep", value, "a sweep is an array of tables; write [[sweep]] with two brackets")
        return ()
    pairs: dict[tuple[str, str], None] = {}
    for number, given in enumerate(value, start=1):
        where = f"sweep[{number}]"
        table = reader.table(where, given, '[[sweep]] with workloads = ["burst"]')
        reader.unknown_keys(where, table, SWEEP)
        engines = _listed(reader, f"{where}.engines", table.get("engines", reader.names["engine"]), "engine")
        workloads = _listed(reader, f"{where}.workloads", table.get("workloads"), "workload")
        pairs |= {(engine, workload): None for engine in engines for workload in workloads}
    return tuple(pairs)


def _listed(reader: Reader, where: str, value: object, kind: str) -> list[str]:
    """Names of declared engines or workloads."""
    if not isinstance(value, list) or not value:
        reader.problem(where, value, f"must be a list of names; {nearest('', reader.names[kind])}")
        return []
    for name in value:
        if name not in reader.names[kind]:
            reader.problem(where, name, f"{kind} is not declared; {nearest(str(name), reader.names[kind])}")
    return [str(name) for name in value]


def choices(reader: Reader, value: object) -> tuple[Rule, ...]:
    """The rules that say which use wants what."""
    if not isinstance(value, list):
        reader.problem("choice", value, "rules are an array of tables; write [[choice]] with two brackets")
        return ()
    rules = (_rule(reader, f"choice[{number}]", given) for number, given in enumerate(value, start=1))
    return tuple(rule for rule in rules if rule is not None)


def _rule(reader: Reader, where: str, value: object) -> Rule | None:
    """What is wanted for one use, and what must hold besides."""
    before = len(reader.problems)
    table = reader.table(where, value, '[[choice]] with use = "many users"')
    reader.unknown_keys(where, table, CHOICE)
    use = _text(reader, f"{where}.use", table.get("use"), '"many users"')
    workload = _name(reader, f"{where}.workload", table.get("workload"))
    best = _metric(reader, f"{where}.best", table.get("best"))
    tolerance = reader.quantity(f"{where}.tolerance", table["tolerance"], "ratio") if "tolerance" in table else None
    given = table.get("require", [])
    if not isinstance(given, list):
        reader.problem(f"{where}.require", given, f"must be a list of tables such as [{_A_REQUIREMENT}]")
        given = []
    needs = [_requirement(reader, f"{where}.require[{n}]", one) for n, one in enumerate(given, start=1)]
    if len(reader.problems) > before or best is None:
        return None
    return Rule(
        use=use,
        workload=workload,
        best=best.name,
        tolerance=tolerance,
        requires=tuple(need for need in needs if need is not None),
        where=f"{reader.file}: {where}",
    )


def _requirement(reader: Reader, where: str, value: object) -> Requirement | None:
    table = reader.table(where, value, _A_REQUIREMENT)
    reader.unknown_keys(where, table, REQUIREMENT)
    metric = _metric(reader, f"{where}.metric", table.get("metric"))
    if metric is None:
        return None
    if not {"max", "min"} & set(table):
        reader.problem(where, value, f"requires nothing; give {right_key(metric)}")
    return Requirement(
        metric=metric.name,
        workload=_name(reader, f"{where}.workload", table["workload"]) if "workload" in table else None,
        maximum=reader.bound(where, "max", table, metric),
        minimum=reader.bound(where, "min", table, metric),
        text=as_text(table, metric) if {"max", "min"} & set(table) else "",
    )


def _text(reader: Reader, where: str, value: object, example: str) -> str:
    if isinstance(value, str) and value:
        return value
    reader.problem(where, value, f"must be a string that is not empty, such as {example}")
    return ""


def _name(reader: Reader, where: str, value: object) -> str:
    """A workload or quality task by its exact name."""
    known = reader.names["workload"]
    if isinstance(value, str) and value in known:
        return value
    reader.problem(where, value, f"workload is not declared; {nearest(str(value), known)}")
    return ""


def _metric(reader: Reader, where: str, value: object) -> Metric | None:
    try:
        return judgeable_metric(_text(reader, where, value, '"output_throughput"') or "output_throughput")
    except UnknownMetric as error:
        reader.problem(where, value, str(error))
        return None
