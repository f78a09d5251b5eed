"""What requests ask, and that it arrives: shared prefixes, conversations, prompts of a file."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from serving import TOKENS, FakeServer, small

from pytest_vllmperf.domain.prompts import (
    Conversations,
    FillContext,
    PromptLines,
    PromptSource,
    RandomPrompts,
    SharedPrefix,
    ShareGPT,
)
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.errors import WorkloadError
from pytest_vllmperf.load.plan import Plan, decode_plan, encode_frame
from pytest_vllmperf.load.prompt_files import FilePrompt
from pytest_vllmperf.load.questions import Question, questions

Serve = Callable[..., FakeServer]


def asked(workload: Workload, seed: int = 1) -> list[Question]:
    return list(questions(workload, token_range=TOKENS, seed=seed))


def test_exactly_the_share_opens_with_a_prefix_of_its_group() -> None:
    workload = small(requests=20, input_tokens=40, prompts=SharedPrefix(tokens=32, share=0.75, groups=3))
    openings = Counter(question.turns[0][:32] for question in asked(workload))
    assert sorted(openings.values()) == [1] * 5 + [5] * 3
    assert {len(question.turns[0]) for question in asked(workload)} == {40}
    assert len({question.turns for question in asked(workload)}) == 20


def test_another_seed_keeps_the_prefixes_and_changes_everything_else() -> None:
    workload = small(requests=6, input_tokens=40, prompts=SharedPrefix(tokens=32, groups=2))
    first, second = ({q.turns[0] for q in asked(workload, seed)} for seed in (1, 2))
    assert not first & second
    assert {prompt[:32] for prompt in first} == {prompt[:32] for prompt in second}


def test_another_workload_shares_no_prefix() -> None:
    source = SharedPrefix(tokens=32)
    first, second = (
        asked(small(name=name, input_tokens=40, prompts=source))[0].turns[0][:32] for name in ("one", "two")
    )
    assert first != second


def test_a_turn_repeats_all_that_was_said_and_follows_the_turn_before() -> None:
    talk = asked(small(requests=5, input_tokens=8, output_tokens=3, prompts=Conversations(turns=3)))
    assert [question.follows for question in talk] == [None, 0, 1, None, 3]
    assert [[len(part) for part in question.turns] for question in talk[:3]] == [[8], [8, 3, 8], [8, 3, 8, 3, 8]]
    assert talk[2].turns[:3] == talk[1].turns
    assert talk[3].turns[0] != talk[0].turns[0]


def test_a_context_must_be_known_before_prompts_are_drawn() -> None:
    with pytest.raises(WorkloadError, match="cannot be drawn: the engine must be known first"):
        asked(small(input_tokens=0, prompts=FillContext()))


@pytest.mark.parametrize(
    ("source", "length"),
    [
        (RandomPrompts(), 8),
        (SharedPrefix(tokens=4, share=0.5, groups=2), 8),
        (Conversations(turns=3), 8),
        (ShareGPT(path="x"), 0),
        (PromptLines(path="x"), 0),
    ],
)
def test_a_plan_reaches_the_load_process_with_its_source(source: PromptSource, length: int) -> None:
    plan = Plan(
        workload=small(prompts=source, input_tokens=length),
        base_url="http://127.0.0.1:1",
        model="m",
        api_key=None,
        token_range=TOKENS,
        seed=1,
        deadline_s=1.0,
        lines=(FilePrompt(prompt="text"), FilePrompt(prompt=(1, 2), output_tokens=3)),
    )
    assert decode_plan(encode_frame(plan)[8:]) == plan


def test_turns_are_sent_one_after_the_other_and_conversations_side_by_side(serve: Serve) -> None:
    server = serve("--fake-ttft-ms", "40")
    workload = small(requests=12, input_tokens=8, output_tokens=4, prompts=Conversations(turns=3), max_concurrency=2)
    records = server.load(workload).records
    assert all(record.succeeded for record in records)
    assert [record.input_tokens for record in records] == [8, 20, 32] * 4
    for place in (0, 3, 6, 9):
        first, second, third = records[place : place + 3]
        assert first.ended_ns <= second.dispatched_ns
        assert second.ended_ns <= third.dispatched_ns
    assert records[3].dispatched_ns < records[0].ended_ns, "two conversations are held at once"
    assert records[6].dispatched_ns >= min(records[2].ended_ns, records[5].ended_ns)


def test_a_conversation_by_chat_alternates_its_roles(serve: Serve) -> None:
    server = serve()
    server.load(small(requests=2, input_tokens=5, prompts=Conversations(turns=2), max_concurrency=1, api="chat"))
    first, second = (body["messages"] for body in server.bodies())
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert second[0] == first[0]


def test_prompts_of_a_file_are_sent_as_they_stand_and_salted(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "one two three"}\n{"prompt": [7, 8], "output_tokens": 5}\n')
    server = serve()
    workload = small(input_tokens=0, prompts=PromptLines(path=str(path)), requests=2, max_concurrency=1)
    records = server.load(workload, seed=41).records
    assert [(r.succeeded, r.input_tokens, r.output_tokens) for r in records] == [(True, 3, 12), (True, 2, 5)]
    assert [body["prompt"] for body in server.bodies()] == ["one two three", [7, 8]]
    assert {body["cache_salt"] for body in server.bodies()} == {"41"}


def test_a_wrong_file_is_told_before_any_process_starts(tmp_path: Path) -> None:
    workload = small(input_tokens=0, prompts=ShareGPT(path=str(tmp_path / "absent.json")))
    with pytest.raises(WorkloadError, match=r"absent\.json cannot be read"):
        FakeServer("http://127.0.0.1:9", None).load(workload)
