"""How the data sets of known tasks are published: folders, files, which split is asked, and rows of other shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

__all__ = ["PublishedData", "published_data"]

Row = dict[str, object]


def _as_it_is(row: Row) -> Row:
    return row


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedData:
    """Where a task's questions are found below a directory of data sets.

    Args:
        folders: Names its folder may have: the task's, or that of the repository it is published in.
        config: The part of the data set the task is about; a folder within, in a snapshot of the hub.
        asked: Splits that may hold the questions, the preferred one first.
        files: Names of other files than ``SPLIT.jsonl`` (``.csv``, ``.parquet``), with the split each holds.
        columns: Of CSV files that have no line of headings.
        row: Makes of a published row the one lm-eval's task expects.
        parts: What the names of its parts begin with, where the task is a group.
    """

    folders: tuple[str, ...]
    config: str | None = None
    asked: tuple[str, ...] = ("test", "validation")
    files: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] | None = None
    row: Callable[[Row], Row] = _as_it_is
    parts: str | None = None


def published_data(task: str) -> PublishedData:
    """What is known of the data of lm-eval's ``task``; its own name as folder where nothing is."""
    if task in _KNOWN:
        return _KNOWN[task]
    subject = task.removeprefix("mmlu_")
    return _subject(subject) if subject != task else PublishedData(folders=(task,))


def _arc_row(row: Row) -> Row:
    """The archive nests question and choices; the hub does not."""
    stem = row.get("question")
    if not isinstance(stem, dict):
        return row
    choices = stem.get("choices") or []
    listed = {key: [choice.get(key) for choice in choices] for key in ("text", "label")}
    return {"id": row.get("id"), "question": stem.get("stem"), "choices": listed, "answerKey": row.get("answerKey")}


_LETTERS = "ABCD"


def _mmlu_row(row: Row) -> Row:
    """The archive gives one column for each choice and a letter; the hub a list and its place."""
    if not set(_LETTERS) <= row.keys():
        return row
    choices = [row[letter] for letter in _LETTERS]
    return {"question": row["question"], "choices": choices, "answer": _LETTERS.index(str(row["answer"]).strip())}


def _hellaswag_row(row: Row) -> Row:
    """The file writes the right ending as a number; the hub as text."""
    return {**row, "label": str(row.get("label"))}


def _arc(config: str, task: str) -> PublishedData:
    return PublishedData(
        folders=(task, "ai2_arc", "ARC-V1-Feb2018-2"),
        config=config,
        files={f"{config}-Test.jsonl": "test", f"{config}-Dev.jsonl": "validation", f"{config}-Train.jsonl": "train"},
        row=_arc_row,
    )


def _subject(name: str) -> PublishedData:
    return PublishedData(
        folders=(f"mmlu_{name}", "mmlu"),
        config=name,
        files={f"{name}_test.csv": "test", f"{name}_dev.csv": "dev", f"{name}_val.csv": "validation"},
        columns=("question", *_LETTERS, "answer"),
        row=_mmlu_row,
    )


_GSM8K = PublishedData(folders=("gsm8k",), config="main")
_GPQA = PublishedData(
    folders=("gpqa_main_cot_zeroshot", "gpqa"),
    config="gpqa_main",
    asked=("test", "train"),
    files={"gpqa_main.csv": "train"},
)
_KNOWN: Mapping[str, PublishedData] = {
    **dict.fromkeys(("gsm8k", "gsm8k_cot", "gsm8k_cot_zeroshot", "gsm8k_cot_llama"), _GSM8K),
    "gsm8k_platinum": replace(_GSM8K, folders=("gsm8k_platinum", "gsm8k-platinum")),
    "ifeval": PublishedData(
        folders=("ifeval", "IFEval", "instruction_following_eval"),
        asked=("test", "train"),
        files={"input_data.jsonl": "train", "ifeval_input_data.jsonl": "train"},
    ),
    "gpqa_main_cot_zeroshot": _GPQA,
    "hellaswag": PublishedData(
        folders=("hellaswag",),
        asked=("validation", "test"),  # the answers of the published test set are kept back
        files={"hellaswag_val.jsonl": "validation", "hellaswag_train.jsonl": "train"},
        row=_hellaswag_row,
    ),
    "winogrande": PublishedData(
        folders=("winogrande", "winogrande_1.1"),
        config="winogrande_xl",
        asked=("validation", "test"),  # likewise
        files={"dev.jsonl": "validation", "train_xl.jsonl": "train"},
    ),
    "arc_easy": _arc("ARC-Easy", "arc_easy"),
    "arc_challenge": _arc("ARC-Challenge", "arc_challenge"),
    "mmlu": PublishedData(folders=("mmlu",), parts="mmlu_"),
}
