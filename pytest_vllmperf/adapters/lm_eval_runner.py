"""lm-eval behind three functions: load a task, score right answers (the oracle), score a model.

lm-eval draws progress bars, logs, warns and (in ``simple_evaluate``) seeds global random generators; none of
that reaches the caller. Importing it takes about two seconds, indexing its 14 000 task names about twenty: both
happen inside functions, the second only for a name that cannot be found otherwise.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_vllmperf.domain.quality import QualityTask, Score
from pytest_vllmperf.errors import TaskError

__all__ = ["LoadedTask", "load_task", "right_answers", "score", "score_texts"]

Rows = Mapping[str, list[dict[str, object]]]

_LOGGERS = ("lm_eval", "datasets", "huggingface_hub", "fsspec", "filelock", "httpx", "httpcore")
_FLEXIBLE = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"
"""lm-eval's own second reading of GSM8K: the last number of the answer, wherever it stands."""


class LoadedTask:
    """A task of lm-eval's with its questions, ready to be asked."""

    def __init__(self, task: QualityTask, inner: Any) -> None:
        self.task = task
        self.inner = inner
        self.size = len(inner.eval_docs)
        self.own_shots = int(inner.config.num_fewshot or 0)
        self.filters = tuple(f.name for f in inner._filters)

    @property
    def shots(self) -> int:
        """Worked examples before each question."""
        return self.own_shots if self.task.shots is None else self.task.shots


def load_task(task: QualityTask, rows: Rows | None) -> LoadedTask:
    """Build the task; ``rows`` are its questions by split, None takes them from the hub.

    Raises:
        TaskError: lm-eval does not know the task, it cannot be asked by chat, its data cannot be had, or
            it has no such filter, metric or worked examples.
    """
    with _quiet():
        if task.lm_eval_task is None:
            definition = _gsm8k_format(task)
            inner = _build({**definition, **_in_memory(rows or {}), **_splits(definition, rows or {})}, task)
        elif rows is None:
            inner = _from_hub(task)
        else:
            definition = _definition(task)
            inner = _build({**definition, **_in_memory(rows), **_splits(definition, rows)}, task)
        loaded = LoadedTask(task, inner)
        _check(loaded)
        options = {"max_gen_toks": task.max_gen_toks, "do_sample": False, "temperature": 0.0}
        inner.set_config("generation_kwargs", options, update=True)
    return loaded


def right_answers(loaded: LoadedTask, doc_ids: Sequence[int], template: str) -> dict[int, str]:
    """What a right answer to each question looks like, by the task's ``oracle`` template."""
    render = _template(template)
    texts: dict[int, str] = {}
    docs = loaded.inner.eval_docs
    for doc_id in doc_ids:
        doc = docs[doc_id]
        target = str(loaded.inner.doc_to_target(doc))
        fields = {**doc, "target": target, "gold": _gold({"answer": target, **doc})}
        try:
            texts[doc_id] = render(fields)
        except Exception as error:
            raise TaskError(
                f"quality task {loaded.task.name!r}: oracle={template!r} cannot be filled in ({error}); "
                f"fields: {', '.join(fields)}"
            ) from error
    return texts


def score_texts(loaded: LoadedTask, texts: Mapping[int, str]) -> tuple[Score, ...]:
    """Score given answers through the task's own filters, without any model."""
    ids = sorted(texts)
    return _evaluate(loaded, _given_answers([texts[i] for i in ids]), ids, shots=0)


def score(loaded: LoadedTask, model: Any, doc_ids: Sequence[int]) -> tuple[Score, ...]:
    """Let ``model`` (an ``lm_eval.api.model.LM``) answer the questions ``doc_ids``, ascending, and score them."""
    return _evaluate(loaded, model, list(doc_ids), shots=loaded.shots)


def _evaluate(loaded: LoadedTask, model: Any, doc_ids: list[int], *, shots: int) -> tuple[Score, ...]:
    """Run ``lm_eval.evaluator.evaluate``.

    Not ``simple_evaluate``: that also seeds the global random generators and describes the machine, which imports
    torch. ``fewshot_as_multiturn`` is what it would pass.
    """
    inner, task = loaded.inner, loaded.task
    with _quiet():
        from lm_eval.evaluator import evaluate

        name = inner.task_name
        inner.set_config("num_fewshot", shots)
        inner.set_fewshot_seed(seed=task.seed)
        results = evaluate(
            lm=model,
            task_dict={"tasks": {name: inner}},
            samples={name: doc_ids},
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
        )
    return tuple(_score(sample, task) for sample in results["samples"][name])


def _score(sample: Mapping[str, Any], task: QualityTask) -> Score:
    if task.metric not in sample:
        known = ", ".join(sample["metrics"])
        raise TaskError(f"quality task {task.name!r}: metric {task.metric!r} is not one of this task's: {known}")
    extracted = sample["filtered_resps"][0]
    while isinstance(extracted, (list, tuple)):
        extracted = extracted[0] if extracted else ""
    return Score(
        doc_id=int(sample["doc_id"]),
        filter=str(sample["filter"]),
        extracted=str(extracted),
        value=float(sample[task.metric]),
    )


def _given_answers(texts: Sequence[str]) -> Any:
    from lm_eval.api.model import LM

    class GivenAnswers(LM):  # type: ignore[misc]  # lm-eval is not typed
        """A model that answers what it was given."""

        tokenizer_name = "given answers"

        def generate_until(self, requests: list[Any]) -> list[str]:
            return [texts[request.doc_id] for request in requests]

        def apply_chat_template(self, chat_history: object, add_generation_prompt: bool = True) -> str:
            return ""

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    return GivenAnswers()


def _gsm8k_format(task: QualityTask) -> dict[str, Any]:
    """A task over rows of ``question`` and ``answer``, scored the way lm-eval scores GSM8K."""
    return {
        "task": task.name,
        "output_type": "generate_until",
        "test_split": "test",
        "fewshot_split": "test",
        "doc_to_text": _template(task.prompt),
        "doc_to_target": _gold,
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


def _gold(doc: Mapping[str, object]) -> str:
    """The result alone: what follows the last ``####`` of a worked answer."""
    return str(doc["answer"]).rsplit("####", 1)[-1].strip()


def _template(text: str) -> Callable[[Mapping[str, object]], str]:
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
    if definition.get("fewshot_split") is not None:
        local["fewshot_split"] = "train" if "train" in rows else "test"
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


def _from_hub(task: QualityTask) -> Any:
    name = str(task.lm_eval_task)
    manager = _manager(task)
    try:
        loaded = manager.load([name])
    except Exception as error:
        raise TaskError(
            f"quality task {task.name!r}: the questions of {name!r} cannot be had from the hub "
            f"({type(error).__name__}: {str(error)[:200]}); without network give data=, a directory with test.jsonl "
            "and train.jsonl in the published format"
        ) from error
    if len(loaded["tasks"]) != 1:
        parts = ", ".join(list(loaded["tasks"])[:5])
        raise TaskError(
            f"quality task {task.name!r}: {name!r} is a group of {len(loaded['tasks'])} tasks ({parts}, …); name one"
        )
    return next(iter(loaded["tasks"].values()))


def _check(loaded: LoadedTask) -> None:
    """Refuse, before the first request, what lm-eval would only stumble over later."""
    inner, task = loaded.inner, loaded.task
    where = f"quality task {task.name!r}"
    if inner.OUTPUT_TYPE != "generate_until":
        raise TaskError(
            f"{where}: lm-eval's {task.lm_eval_task!r} needs log-likelihoods ({inner.OUTPUT_TYPE}), which a chat "
            "endpoint does not give; choose a task that generates text, such as gsm8k"
        )
    if task.filter not in loaded.filters:
        raise TaskError(f"{where}: filter {task.filter!r} is unknown; this task has {', '.join(loaded.filters)}")
    if loaded.shots and not loaded.own_shots and task.lm_eval_task is not None:
        raise TaskError(f"{where}: shots={loaded.shots}, but lm-eval defines {task.lm_eval_task!r} without any; use 0")
    pool = list(inner.fewshot_docs() or ()) if loaded.shots else []
    if len(pool) < loaded.shots + 1 and loaded.shots:
        raise TaskError(f"{where}: shots={loaded.shots} needs more worked examples than the {len(pool)} there are")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's and its libraries' logging, warnings and progress bars to themselves, for this long only.

    It makes up names by ``random.choices``, so the global generator is put back, too.
    """
    drawn = random.getstate()
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
