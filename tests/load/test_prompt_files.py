import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import small

from pytest_vllmperf.domain.prompts import PromptLines, ShareGPT
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.errors import WorkloadError
from pytest_vllmperf.load import prompt_files
from pytest_vllmperf.load.prompt_files import FilePrompt, read_prompts


def lines(path: Path, *, requests: int = 1, api: str = "completions") -> Workload:
    return small(input_tokens=0, prompts=PromptLines(path=str(path)), requests=requests, api=api)


def share_gpt(path: Path, *, requests: int = 1) -> Workload:
    return small(input_tokens=0, prompts=ShareGPT(path=str(path)), requests=requests)


def test_random_prompts_need_no_file() -> None:
    assert read_prompts(small()) is None


def test_own_lines_are_text_or_ids_with_a_length_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "é?"}\n\n{"prompt": [3, 0], "output_tokens": 7}\n{"prompt": "unread"}\n')
    assert read_prompts(lines(path, requests=2)) == (
        FilePrompt(prompt="é?"),
        FilePrompt(prompt=(3, 0), output_tokens=7),
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"own\.jsonl:2: not JSON \("),
        ("[1]", r"own\.jsonl:2: each line must be an object, not '\[1\]'"),
        ("{}", r'own\.jsonl:2: "prompt" must be text or a list of token ids, not \'None\''),
        ('{"prompt": []}', r'own\.jsonl:2: "prompt" must be text'),
        ('{"prompt": [1, -1]}', r'own\.jsonl:2: "prompt" must be text'),
        ('{"prompt": [true]}', r'own\.jsonl:2: "prompt" must be text'),
        ('{"prompt": "x", "output_tokens": 0}', r"own\.jsonl:2: output_tokens=0 must be a whole number, 1 or more"),
    ],
)
def test_a_wrong_line_is_named_with_its_file_and_number(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(WorkloadError, match=message):
        read_prompts(lines(path, requests=2))


def test_the_chat_api_takes_no_token_ids(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": [1, 2]}')
    with pytest.raises(WorkloadError, match=r'own\.jsonl:1: .* the chat API does not take: use api="completions"'):
        read_prompts(lines(path, api="chat"))


def test_too_few_prompts_are_told_rather_than_sent_twice(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "x"}\n')
    with pytest.raises(WorkloadError, match=r"own\.jsonl holds 1 prompts, and requests=3 asks for more"):
        read_prompts(lines(path, requests=3))


@pytest.mark.parametrize("content", [None, b"\xff\xfe\xff"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "own.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WorkloadError, match=r"workload 'small': .*own\.jsonl cannot be read: "):
        read_prompts(lines(path))


def test_share_gpt_gives_the_opening_questions_of_humans(tmp_path: Path) -> None:
    path = tmp_path / "talks.json"
    human, model = {"from": "human", "value": " Why? "}, {"from": "gpt", "value": "So."}
    talks = [
        {"id": "a", "conversations": []},
        {"id": "b", "conversations": [model, human]},
        {"id": "c", "conversations": [human, model]},
        {"id": "d", "conversations": [{"from": "user", "value": "Who?"}]},
    ]
    for indent in (None, 2):
        path.write_text(json.dumps(talks, indent=indent))
        assert read_prompts(share_gpt(path, requests=2)) == (FilePrompt(prompt="Why?"), FilePrompt(prompt="Who?"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "talks.json:1: a ShareGPT file is a list, and begins with '\\[', not nothing"),
        ('{"conversations": []}', "talks.json:1: a ShareGPT file is a list"),
        ('[\n{"conversations": []},\n{"turns": 1}]', 'talks.json:3: an entry must be {"conversations": '),
        ("[\n\n[]]", "talks.json:3: an entry must be"),
        ('[\n{"conversations": []}\n{"conversations": []}]', "talks.json:3: not JSON: ',' or '\\]' expected, not '{"),
        ('[{"conversations": []},\n{"conversations": [}]', "talks.json:2: not JSON: Expecting value"),
        ('[{"conversations": []}', "talks.json:1: not JSON: ',' or '\\]' expected, not nothing"),
    ],
)
def test_a_wrong_share_gpt_file_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "talks.json"
    path.write_text(text)
    with pytest.raises(WorkloadError, match=message):
        read_prompts(share_gpt(path))


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=6), st.sampled_from((None, 0, 3)))
def test_any_text_survives_the_format(values: list[str], indent: int | None) -> None:
    text = json.dumps([{"conversations": [{"from": "human", "value": value}]} for value in values], indent=indent)
    assert [found.prompt for found in prompt_files._share_gpt("x", text)] == [value.strip() for value in values]


@given(st.text(alphabet='[]{},:"\n conversations', max_size=60))
def test_any_other_text_is_refused_or_read_and_never_breaks(text: str) -> None:
    with contextlib.suppress(WorkloadError):  # anything else would be a bug
        list(prompt_files._share_gpt("x", text))
