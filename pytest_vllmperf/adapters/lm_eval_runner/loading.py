"""Build a task of lm-eval's from rows at hand or from the hub; refuse early what it would stumble over later."""

from __future__ import annotations

import bisect
import contextlib
import difflib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_vllmperf.adapters.lm_eval_runner.instruction_data import (
    needs_sentence_data,
    sentence_data_missing,
    without_downloads,
)
from pytest_vllmperf.adapters.lm_eval_runner.quiet import quiet
from pytest_vllmperf.domain.quality import QualityTask
from pytest_vllmperf.errors import TaskError, TaskUnavailable

__all__ = ["LoadedTask", "Rows", "gold", "load_task", "template"]

Rows = Mapping[str, list[dict[str, object]]]

_FLEXIBLE = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"
"""lm-eval's own second reading of GSM8K: the last number of the answer, wherever it stands."""
_LEAST_GEN_TOKS = 1024
"""lm-eval's default of 256 cuts worked answers short."""


class LoadedTask:
    """A task of lm-eval's (or a group of them) with its questions, numbered through, ready to be asked.

    Args:
        task: What was asked for; its ``max_gen_toks`` is filled in.
        parts: lm-eval's tasks by name; one, but for a group.
    """

    def __init__(self, task: QualityTask, parts: Mapping[str, Any]) -> None:
        self.parts = dict(parts)
        self.inner = next(iter(self.parts.values()))
        self.compares = self.inner.OUTPUT_TYPE == "multiple_choice"
        self.task = replace(task, max_gen_toks=self._gen_toks(task))
        sizes = [len(inner.eval_docs) for inner in self.parts.values()]
        self._starts = [0, *itertools.accumulate(sizes)]
        self.size = self._starts[-1]
        self.own_shots = self.inner.config.num_fewshot
        self.filters = tuple(f.name for f in self.inner._filters)
        self.warnings: tuple[str, ...] = ()
        self.askable: Sequence[int] = range(self.size)

    def _gen_toks(self, task: QualityTask) -> int | None:
        if self.compares or task.max_gen_toks is not None:
            return task.max_gen_toks
        own = (self.inner.config.generation_kwargs or {}).get("max_gen_toks") or 0
        return max(_LEAST_GEN_TOKS, int(own))

    @property
    def shots(self) -> int:
        """Worked examples before each question."""
        return int(self.own_shots or 0) if self.task.shots is None else self.task.shots

    def document(self, doc_id: int) -> tuple[Any, Mapping[str, Any]]:
        """The question ``doc_id``, and the task of lm-eval's it belongs to."""
        place = bisect.bisect_right(self._starts, doc_id) - 1
        inner = list(self.parts.values())[place]
        return inner, inner.eval_docs[doc_id - self._starts[place]]

    def doc_id(self, part: str, place: int) -> int:
        """The number of the question at ``place`` in the task ``part``."""
        return self._starts[list(self.parts).index(part)] + place

    def places(self, doc_ids: Sequence[int]) -> dict[str, list[int]]:
        """Where the questions ``doc_ids``, ascending, stand in each part; parts without any are left out."""
        found: dict[str, list[int]] = {}
        names = list(self.parts)
        for doc_id in doc_ids:
            part = bisect.bisect_right(self._starts, doc_id) - 1
            found.setdefault(names[part], []).append(doc_id - self._starts[part])
        return found

    def numbering(self, doc_ids: Sequence[int]) -> Callable[[str, int], int]:
        """From (part, how many-th of its questions asked), as lm-eval counts, to the number of a question."""
        asked = {name: [self.doc_id(name, place) for place in places] for name, places in self.places(doc_ids).items()}
        return lambda part, count: asked[part][count]


def load_task(task: QualityTask, rows: Rows | Mapping[str, Rows] | None) -> LoadedTask:
    """Build the task.

    Args:
        task: What is asked.
        rows: Its questions by split, or for a group by task and split; None takes them from the hub.

    Raises:
        TaskError: lm-eval does not know the task, its kind cannot be asked, or it has no such filter, metric or
            worked examples.
        TaskUnavailable: Its data cannot be had here.
    """
    checkers = without_downloads() if _needs_checkers(task) else contextlib.nullcontext()
    with quiet(seed=task.seed), checkers:
        parts = dict(_parts(task, rows))
        for inner in parts.values():
            _process_once(inner)
        loaded = LoadedTask(task, parts)
        _check(loaded)
        if not loaded.compares:
            options = {"max_gen_toks": loaded.task.max_gen_toks, "do_sample": False, "temperature": 0.0}
            for inner in loaded.parts.values():
                inner.set_config("generation_kwargs", options, update=True)
        if _needs_checkers(task) and sentence_data_missing():
            _leave_out_sentence_checks(loaded)
    return loaded


def _process_once(inner: Any) -> None:
    """Let a task prepare each split once, and seeded.

    lm-eval prepares it anew whenever its questions are looked at, and GPQA's choices are shuffled by that: the right
    letter would change between the question as it is asked and the answer as it is scored.
    """
    prepare, prepared = inner.config.process_docs, {}
    if prepare is None:
        return

    def once(split: Any) -> Any:
        if id(split) not in prepared:
            prepared[id(split)] = (split, prepare(split))  # the split is kept, so that its id stays its own
        return prepared[id(split)][1]

    inner.set_config("process_docs", once)
    _ = inner.eval_docs


def _needs_checkers(task: QualityTask) -> bool:
    return "ifeval" in (task.lm_eval_task or "")


def _leave_out_sentence_checks(loaded: LoadedTask) -> None:
    kept = [i for i in range(loaded.size) if not needs_sentence_data(loaded.document(i)[1])]
    if len(kept) < loaded.size:
        told = (
            f"{loaded.size - len(kept)} of {loaded.size} questions count sentences or words by NLTK's punkt_tab, "
            "which is not here: they are left out (python -m nltk.downloader punkt_tab, or NLTK_DATA=… to have them)"
        )
        loaded.warnings = (told,)
        loaded.askable = kept


def _parts(task: QualityTask, rows: Rows | Mapping[str, Rows] | None) -> Iterator[tuple[str, Any]]:
    if task.lm_eval_task is None:
        given: Any = rows or {}
        definition = _gsm8k_format(task)
        inner = _build({**definition, **_in_memory(given), **_splits(definition, given)}, task)
        yield inner.task_name, inner
    elif rows is None:
        yield from _from_hub(task).items()
    else:
        group: Any = rows if all(isinstance(part, Mapping) for part in rows.values()) else {task.lm_eval_task: rows}
        for name, part in group.items():
            definition = _definition(replace(task, lm_eval_task=name))
            inner = _build({**definition, **_in_memory(part), **_splits(definition, part)}, task)
            yield inner.task_name, inner


def _gsm8k_format(task: QualityTask) -> dict[str, Any]:
    """A task over rows of ``question`` and ``answer``, scored the way lm-eval scores GSM8K."""
    return {
        "task": task.name,
        "output_type": "generate_until",
        "test_split": "test",
        "fewshot_split": "train",
        "doc_to_text": template(task.prompt),
        "doc_to_target": gold,
        "fewshot_config": {"doc_to_target": "answer"},
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "ignore_case": True,
                "ignore_punctuation": False,
                "regexes_to_ignore": [",", r"\$", r"\.$"],
            }
        ],
        "generation_kwargs": {"until": [], "do_sample": False, "temperature": 0.0},
        "filter_list": [
            _filter("strict-match", regex_pattern=task.answer_pattern),
            _filter("flexible-extract", regex_pattern=_FLEXIBLE, group_select=-1),
        ],
        "num_fewshot": 0,
    }


def gold(doc: Mapping[str, object]) -> str:
    """The result alone: what follows the last ``####`` of a worked answer."""
    return str(doc["answer"]).rsplit("####", 1)[-1].strip()


def template(text: str) -> Callable[[Mapping[str, object]], str]:
    """A Jinja template, compiled once: lm-eval compiles a template again for each question (about 1 ms)."""
    from lm_eval.utils import env

    compiled = env.from_string(text)
    return lambda fields: str(compiled.render(**fields))


def _filter(name: str, **options: object) -> dict[str, object]:
    return {"name": name, "filter": [{"function": "regex", **options}, {"function": "take_first"}]}


def _in_memory(rows: Rows) -> dict[str, Any]:
    """Make lm-eval take ``rows`` instead of loading anything: no network, no cache directory."""

    def give(**_: object) -> Any:
        import datasets

        return datasets.DatasetDict({split: datasets.Dataset.from_list(found) for split, found in rows.items()})

    return {"custom_dataset": give, "dataset_kwargs": None}


def _splits(definition: Mapping[str, Any], rows: Rows) -> dict[str, Any]:
    """Point the definition's splits at the local ones; worked examples come from ``train`` where there is one."""
    local: dict[str, Any] = {"test_split": "test", "validation_split": None, "training_split": None}
    wanted = definition.get("fewshot_split")
    if wanted is not None:
        local["fewshot_split"] = next(split for split in (wanted, "train", "test") if split in rows)
    return local


def _definition(task: QualityTask) -> dict[str, Any]:
    # The public loader has no way to hand rows over, so the definition is read with the loader's own reader.
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = _manager(task).task_index[task.lm_eval_task]
    if entry.yaml_path is None:
        raise TaskError(
            f"quality task {task.name!r}: lm-eval defines {task.lm_eval_task!r} in code; data cannot be given"
        )
    definition: dict[str, Any] = load_yaml(entry.yaml_path, resolve_func=True)
    for key in ("tag", "group", "task_list"):
        definition.pop(key, None)
    return definition


def _manager(task: QualityTask) -> Any:
    """An index holding the task: of its own folder where the name tells it, of everything otherwise."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    name = str(task.lm_eval_task)
    root = Path(str(lm_eval.tasks.__file__)).parent
    words = name.split("_")
    for count in range(len(words), 0, -1):
        folder = root / "_".join(words[:count])
        if folder.is_dir():
            manager = TaskManager(include_path=str(folder), include_defaults=False)
            if name in manager.task_index:
                return manager
    manager = TaskManager()
    if name not in manager.task_index:
        near = difflib.get_close_matches(name, manager.all_tasks, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`lm_eval ls tasks` lists them"
        raise TaskError(f"quality task {task.name!r}: lm-eval has no task {name!r}; {hint}")
    return manager


def _build(config: dict[str, Any], task: QualityTask) -> Any:
    from lm_eval.api.task import ConfigurableTask

    try:
        return ConfigurableTask(config=config)
    except Exception as error:
        raise TaskError(
            f"quality task {task.name!r}: lm-eval cannot use data={task.data!r} ({type(error).__name__}: {error}); "
            "its rows need the fields the task's prompt names"
        ) from error


def _from_hub(task: QualityTask) -> dict[str, Any]:
    name = str(task.lm_eval_task)
    manager = _manager(task)
    try:
        found: dict[str, Any] = manager.load([name])["tasks"]
    except Exception as error:
        raise TaskUnavailable(
            f"quality task {task.name!r}: the questions of {name!r} cannot be had from the hub "
            f"({type(error).__name__}: {str(error)[:200]}); without network give data=, a directory with test.jsonl "
            "and train.jsonl in the published format, or --vllmperf-data, a directory of such directories"
        ) from error
    return found


def _check(loaded: LoadedTask) -> None:
    """Refuse, before the first request, what lm-eval would only stumble over later."""
    inner, task = loaded.inner, loaded.task
    where = f"quality task {task.name!r}"
    kinds = {part.OUTPUT_TYPE for part in loaded.parts.values()}
    if len(kinds) > 1 or not kinds <= {"generate_until", "multiple_choice"}:
        raise TaskError(
            f"{where}: lm-eval's {task.lm_eval_task!r} is of the kind {', '.join(sorted(kinds))}; only tasks that "
            "generate text, or that choose one of several given answers, can be asked"
        )
    if task.filter not in loaded.filters:
        raise TaskError(f"{where}: filter {task.filter!r} is unknown; this task has {', '.join(loaded.filters)}")
    metrics = [str(entry["metric"]) for entry in inner.config.metric_list or ()]
    if metrics and task.metric not in metrics:
        raise TaskError(f"{where}: metric {task.metric!r} is not one of this task's: {', '.join(metrics)}")
    if loaded.shots and loaded.own_shots == 0 and task.lm_eval_task is not None:
        raise TaskError(f"{where}: shots={loaded.shots}, but lm-eval defines {task.lm_eval_task!r} without any; use 0")
    pool = list(inner.fewshot_docs() or ()) if loaded.shots else []
    own = bool(getattr(inner.config.fewshot_config, "samples", None)) or inner.config.fewshot_split not in (
        None,
        "test",
    )
    if loaded.shots and len(pool) < loaded.shots + (not own):  # a question is no example of itself
        raise TaskError(f"{where}: shots={loaded.shots} needs more worked examples than the {len(pool)} there are")
