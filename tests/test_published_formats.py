"""Every known task end to end, from files in the formats its data is published in: questions of our own, no network."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

import pytest
from answering import engine
from chat_server import Reply, chat_server, tokens_of

from pytest_vllmperf.adapters.question_files import read_published
from pytest_vllmperf.domain.quality_tasks import BUILT_IN_TASKS
from pytest_vllmperf.errors import TaskError, TaskUnavailable
from pytest_vllmperf.evaluation import check_task, evaluate

COUNT = 6
SUMS = [{"question": f"What is {i} + 1?", "answer": f"{i} + 1 = {i + 1}.\n#### {i + 1}"} for i in range(12)]
WRONG = ["the wrong thing", "a wrong one", "some wrong part"]
GPQA = [
    {
        "Question": f"Which of these is meant by {i}?",
        "Correct Answer": "the right thing",
        **{f"Incorrect Answer {k}": text for k, text in enumerate(WRONG, start=1)},
    }
    for i in range(COUNT)
]
ENDINGS = ["goes the wrong way.", "goes the right way.", "takes a wrong turn.", "meets a wrong man."]
HELLASWAG = [
    {"ind": i, "activity_label": "Walking", "ctx_a": f"Man {i} walks.", "ctx_b": "he", "endings": ENDINGS, "label": 1}
    for i in range(COUNT)
]
WINOGRANDE = [
    {
        "sentence": f"Box {i} fits no bag because the _ is too big.",
        "option1": "wrong",
        "option2": "right",
        "answer": "2",
    }
    for i in range(COUNT)
]
LETTERS = "ABCD"
ARC = [
    {
        "id": f"q{i}",
        "question": {
            "stem": f"Which thing is it in case {i}?",
            "choices": [
                {"text": text, "label": letter}
                for text, letter in zip(["wrong one", "right one", "wrong two", "wrong six"], LETTERS, strict=True)
            ],
        },
        "answerKey": "B",
    }
    for i in range(COUNT)
]
ARC_ON_THE_HUB = [
    {
        **row,
        "question": row["question"]["stem"],
        "choices": {key: [choice[key] for choice in row["question"]["choices"]] for key in ("text", "label")},
    }
    for row in ARC
]
MMLU = [
    {"question": f"Which letter has number {i}?", "choices": ["red", "green", "blue", "grey"], "answer": i % 4}
    for i in range(COUNT)
]
MMLU_LINES = [[row["question"], *row["choices"], LETTERS[row["answer"]]] for row in MMLU]


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def parquet(path, rows):
    import pyarrow as pa
    from pyarrow import parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def table(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(lines)


def sums_on_the_hub(folder):
    def write(data):
        parquet(data / folder / "main" / "test-00000-of-00001.parquet", SUMS)
        parquet(data / folder / "main" / "train-00000-of-00001.parquet", SUMS)
        parquet(data / folder / "socratic" / "test-00000-of-00001.parquet", SUMS[:1])

    return write


def mmlu_archive(data):
    for split in ("test", "dev"):
        for subject in ("anatomy", "virology"):
            table(data / "mmlu" / "data" / split / f"{subject}_{split}.csv", MMLU_LINES)


def mmlu_on_the_hub(data):
    for subject in ("anatomy", "virology", "all"):
        for split in ("test", "dev"):
            parquet(data / "mmlu" / subject / f"{split}-00000-of-00001.parquet", MMLU)


PUBLISHED = [
    ("gsm8k", "hub", sums_on_the_hub("gsm8k")),
    ("gsm8k_platinum", "hub", sums_on_the_hub("gsm8k-platinum")),
    (
        "gpqa_main_cot_zeroshot",
        "archive",
        lambda data: table(data / "gpqa" / "dataset" / "gpqa_main.csv", [GPQA[0], *(row.values() for row in GPQA)]),
    ),
    ("mmlu", "archive", mmlu_archive),
    ("mmlu", "hub", mmlu_on_the_hub),
    ("hellaswag", "archive", lambda data: jsonl(data / "hellaswag" / "data" / "hellaswag_val.jsonl", HELLASWAG)),
    (
        "hellaswag",
        "hub",
        lambda data: [
            parquet(
                data / "hellaswag" / "data" / f"{split}-00000-of-00001.parquet",
                [{**row, "label": label} for row in HELLASWAG],
            )
            for split, label in (("validation", "1"), ("test", ""))
        ],
    ),
    ("winogrande", "archive", lambda data: jsonl(data / "winogrande_1.1" / "dev.jsonl", WINOGRANDE)),
    (
        "winogrande",
        "hub",
        lambda data: parquet(
            data / "winogrande" / "winogrande_xl" / "validation-00000-of-00001.parquet",
            WINOGRANDE,
        ),
    ),
    (
        "arc_easy",
        "archive",
        lambda data: jsonl(data / "ARC-V1-Feb2018-2" / "ARC-Easy" / "ARC-Easy-Test.jsonl", ARC),
    ),
    (
        "arc_challenge",
        "hub",
        lambda data: parquet(data / "ai2_arc" / "ARC-Challenge" / "test-00000-of-00001.parquet", ARC_ON_THE_HUB),
    ),
]


def reply(prompt):
    """A model that knows: sums, and which choice is the right one."""
    choice = re.search(r"\((\w)\) the right thing", prompt)
    if choice:
        return Reply(content=f"One of them is right. The answer is ({choice[1]}).")
    return Reply(content=f"So it is.\n#### {int(re.findall(r'What is ([0-9]+)', prompt)[-1]) + 1}")


RIGHT = {tokens_of(" right")[0], tokens_of("right")[0]}
NUMBERS = {tokens_of(f" {i}")[0]: i for i in range(COUNT)}
CHOICES = {tokens_of(f" {letter}")[0]: i for i, letter in enumerate(LETTERS)}


def knows(ids, place):
    """High where "right" stands before, or for the letter that belongs to the last number."""
    if ids[place] in CHOICES:
        number = next((NUMBERS[token] for token in reversed(ids[:place]) if token in NUMBERS), 0)
        return -0.1 if number % 4 == CHOICES[ids[place]] else -5.0
    return -0.1 if RIGHT & set(ids[: place + 1]) else -5.0


@pytest.mark.parametrize(("name", "form", "write"), PUBLISHED, ids=[f"{name}-{form}" for name, form, _ in PUBLISHED])
def test_a_task_runs_on_its_published_files(tmp_path, name, form, write):
    write(tmp_path)
    task = replace(BUILT_IN_TASKS[name], questions=COUNT, canaries=False, kl_texts=0)
    with chat_server(reply, tokenizes=task.filter == "none", likelihood=knows) as server:
        summary = evaluate(engine(server.url), task, data=tmp_path)
    assert summary.invalid == ()
    assert (summary.metrics["accuracy"].value, summary.metrics["accuracy"].n) == (1.0, COUNT)
    whole = {"mmlu": 2 * COUNT, "gsm8k": 12, "gsm8k_platinum": 12}
    assert summary.facts["questions_available"] == whole.get(name, COUNT)


def test_one_subject_of_mmlu_is_a_task_of_its_own(tmp_path):
    mmlu_archive(tmp_path)
    task = replace(BUILT_IN_TASKS["mmlu"], name="virology", lm_eval_task="mmlu_virology", questions=COUNT)
    check_task(engine("").config, task, tmp_path)
    assert {split: len(rows) for split, rows in read_published(tmp_path, "mmlu_virology").items()} == {
        "test": COUNT,
        "dev": COUNT,
    }


def test_a_file_named_like_the_task_will_do(tmp_path):
    jsonl(tmp_path / "gsm8k.jsonl", SUMS)
    assert len(read_published(tmp_path, "gsm8k")["test"]) == 12


@pytest.mark.parametrize(
    ("name", "path", "content", "told"),
    [
        ("mmlu", "mmlu/data/test/anatomy_test.csv", "q,a,b,c\n", r"anatomy_test\.csv:1: a row must have one value for"),
        (
            "gsm8k",
            "gsm8k/main/test-00000-of-00001.parquet",
            "version https://git-lfs.github.com/spec/v1\n",
            r"cannot be read as Parquet .* pointer of Git LFS",
        ),
        ("gsm8k", "gsm8k/test.csv", "question,answer\nWhat?,18\n", r"test\.csv: question 1: answer '18' must end in"),
        ("gsm8k", "gsm8k/test.csv", "question,answer\n", r"test\.csv: holds no question"),
    ],
)
def test_a_damaged_file_is_told_with_its_place(tmp_path, name, path, content, told):
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(content)
    with pytest.raises(TaskError, match=told):
        check_task(engine("").config, BUILT_IN_TASKS[name], tmp_path)


def test_data_that_is_not_there_names_every_place_it_may_have(tmp_path):
    jsonl(tmp_path / "ai2_arc" / "ARC-Challenge" / "other.jsonl", ARC)
    with pytest.raises(TaskUnavailable) as told:
        read_published(tmp_path, "arc_easy")
    for part in ("it holds ai2_arc", "arc_easy or ai2_arc or ARC-V1-Feb2018-2", "ARC-Easy-Test.jsonl", "Parquet"):
        assert part in str(told.value)


def test_choices_that_are_shuffled_stand_alike_for_every_engine(tmp_path):
    """lm-eval shuffles GPQA's choices whenever the questions are looked at; paired answers need the same question."""
    PUBLISHED[2][2](tmp_path)
    task = replace(BUILT_IN_TASKS["gpqa_main_cot_zeroshot"], questions=COUNT, canaries=False, kl_texts=0)
    asked = []
    for _ in range(2):
        with chat_server(reply) as server:
            evaluate(engine(server.url), task, data=tmp_path)
        asked.append(sorted(request["messages"][-1]["content"] for request in server.requests))
    assert asked[0] == asked[1]
    assert len({re.search(r"\((\w)\) the right thing", text)[1] for text in asked[0]}) > 1
