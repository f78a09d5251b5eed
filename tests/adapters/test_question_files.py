import json

import pytest

from pytest_vllmperf.adapters.question_files import read_questions
from pytest_vllmperf.errors import TaskError

ROW = {"question": "1 + 1?", "answer": "1 + 1 = 2.\n#### 2"}
FIELDS = ("question", "answer")


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return str(path)


def test_a_file_gives_the_questions_asked(tmp_path):
    assert read_questions(write(tmp_path / "q.jsonl", ROW, "", ROW), fields=FIELDS) == {"test": [ROW, ROW]}


def test_a_directory_gives_questions_and_worked_examples(tmp_path):
    write(tmp_path / "test.jsonl", ROW)
    assert list(read_questions(str(tmp_path))) == ["test"]
    write(tmp_path / "train.jsonl", ROW, ROW)
    assert {split: len(rows) for split, rows in read_questions(str(tmp_path)).items()} == {"test": 1, "train": 2}


def test_a_line_separator_inside_a_question_does_not_end_the_row(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": "a\u2028b", "answer": "#### 1"}, ensure_ascii=False), encoding="utf-8")
    assert len(read_questions(str(path), fields=FIELDS)["test"]) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"q\.jsonl:2: not JSON"),
        ("[1]", r"q\.jsonl:2: '\[1\]' must be a JSON object"),
        ({"question": "q"}, r"q\.jsonl:2: field 'answer' is None, it must be a string"),
        ({"question": 3, "answer": "#### 1"}, r"q\.jsonl:2: field 'question' is 3"),
        ({"question": "q", "answer": "18"}, r"q\.jsonl:2: answer '18' must end in '#### ' and the result"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path, line, message):
    with pytest.raises(TaskError, match=message):
        read_questions(write(tmp_path / "q.jsonl", ROW, line), fields=FIELDS)


def test_a_missing_file_says_what_was_looked_for(tmp_path):
    with pytest.raises(TaskError, match=r"nothing\.jsonl: no such file or directory; data must be"):
        read_questions(str(tmp_path / "nothing.jsonl"))


def test_a_directory_without_questions_says_which_file_is_missing(tmp_path):
    with pytest.raises(TaskError, match=r"there is no test\.jsonl"):
        read_questions(str(tmp_path))


def test_an_empty_file_holds_no_question(tmp_path):
    with pytest.raises(TaskError, match=r"holds no question"):
        read_questions(write(tmp_path / "q.jsonl", ""))


def test_bytes_that_are_not_text_cannot_be_read(tmp_path):
    (tmp_path / "q.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaskError, match=r"cannot be read"):
        read_questions(str(tmp_path / "q.jsonl"))
