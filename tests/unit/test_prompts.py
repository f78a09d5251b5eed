from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.domain.prompts import (
    PROMPT_SOURCES,
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


def workload(prompts: PromptSource, **changes: Any) -> Workload:
    values = {"name": "w", "input_tokens": 64, "output_tokens": 4, "requests": 8, "max_concurrency": 2}
    return Workload(**{**values, "prompts": prompts, **changes})


@pytest.mark.parametrize(
    ("source", "values", "message"),
    [
        (SharedPrefix, {"tokens": 0}, "SharedPrefix: tokens=0 must be a whole number, 1 or more"),
        (SharedPrefix, {"tokens": 8, "share": 0}, "SharedPrefix: share=0 must be above 0 and at most 1"),
        (SharedPrefix, {"tokens": 8, "share": 1.5}, "SharedPrefix: share=1.5 must be above 0 and at most 1"),
        (SharedPrefix, {"tokens": 8, "groups": 0}, "SharedPrefix: groups=0 must be a whole number, 1 or more"),
        (Conversations, {"turns": 1}, "Conversations: turns=1 must be a whole number, 2 or more"),
        (FillContext, {"share": 1.1}, "FillContext: share=1.1 must be above 0"),
        (ShareGPT, {"path": ""}, "ShareGPT: path='' must be the path of a file"),
        (PromptLines, {"path": 3}, "PromptLines: path=3 must be the path of a file"),
    ],
)
def test_an_impossible_source_is_refused(source: type[PromptSource], values: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        source(**values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": "random"}, "prompts='random' must be a source such as SharedPrefix"),
        ({"prompts": SharedPrefix(tokens=64)}, "tokens=64, which must be fewer than input_tokens=64"),
        ({"prompts": FillContext()}, "input_tokens=64 must be left out: FillContext decides it"),
        ({"prompts": ShareGPT(path="x.json")}, "input_tokens=64 must be left out: ShareGPT decides it"),
        ({"input_tokens": 0}, "input_tokens=0 must be a whole number, 1 or more"),
        ({"prompts": Conversations(turns=2), "request_rate": 1.0}, "conversations need a closed loop"),
        (
            {"prompts": Conversations(turns=2), "request_rate": 1.0, "max_concurrency": None},
            r"no request_rate \(here 1.0",
        ),
    ],
)
def test_a_workload_and_its_prompts_must_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        workload(**{"prompts": RandomPrompts(), **changes})


def test_a_workload_without_prompts_has_random_ones() -> None:
    plain = Workload(name="w", input_tokens=8, output_tokens=4, requests=2, max_concurrency=1)
    assert plain.prompts == RandomPrompts()


def test_every_source_is_known_by_its_kind() -> None:
    made = (RandomPrompts(), SharedPrefix(tokens=1), Conversations(turns=2), FillContext())
    files = (ShareGPT(path="x"), PromptLines(path="x"))
    assert {source.kind: type(source) for source in (*made, *files)}.items() <= PROMPT_SOURCES.items()


@given(
    tokens=st.integers(1, 500), share=st.floats(0.01, 1), requests=st.integers(1, 300), block=st.sampled_from((1, 16))
)
def test_a_shared_prefix_plans_whole_blocks_for_each_sharing_request(
    tokens: int, share: float, requests: int, block: int
) -> None:
    source = SharedPrefix(tokens=tokens, share=share)
    planned = source.reusable_tokens(requests=requests, input_tokens=tokens + 1, output_tokens=1, block=block)
    sharing = source.sharing(requests)
    assert abs(sharing - share * requests) <= 0.5
    assert planned == sharing * (tokens - tokens % block)


def test_a_turn_may_reuse_the_prompt_before_it_and_not_the_answer() -> None:
    source = Conversations(turns=3)
    shape = {"input_tokens": 10, "output_tokens": 4}
    assert [source.prompt_tokens(turn, **shape) for turn in range(3)] == [10, 24, 38]
    assert source.reusable_tokens(requests=3, block=1, **shape) == 10 + 24
    assert source.reusable_tokens(requests=5, block=1, **shape) == 10 + 24 + 10, "a second conversation has begun"
    assert source.reusable_tokens(requests=3, block=16, **shape) == 0 + 16


def test_random_prompts_plan_no_reuse_and_files_tell_nothing() -> None:
    shape = {"requests": 8, "input_tokens": 64, "output_tokens": 4, "block": 16}
    assert RandomPrompts().reusable_tokens(**shape) == 0
    assert PromptLines(path="x").reusable_tokens(**shape) is None


def test_a_context_is_filled_to_its_share() -> None:
    filled = workload(FillContext(share=0.9), input_tokens=0).in_context(2048)
    assert (filled.input_tokens, filled.prompts) == (1843, RandomPrompts())
    untouched = workload(RandomPrompts())
    assert untouched.in_context(None) is untouched


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (None, "workload 'w' fills 90% of the context, and nothing tells its size here: give the engine args="),
        (20, "90% of a context of 20 tokens are 18, which leave no room for output_tokens=4"),
        (1, "are 0, which leave no room"),
    ],
)
def test_a_context_that_is_unknown_or_too_small_is_told(context: int | None, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        workload(FillContext(share=0.9), input_tokens=0).in_context(context)


@pytest.mark.parametrize(
    ("prompts", "length", "said"),
    [
        (SharedPrefix(tokens=48, share=0.75), 64, "8 × 64 (48 shared by 75%)/4 tokens, 2 at once"),
        (Conversations(turns=4), 64, "8 × 64 in each of 4 turns/4 tokens, 2 at once"),
        (FillContext(), 0, "8 × 90% of the context/4 tokens, 2 at once"),
        (ShareGPT(path="data/talks.json"), 0, "8 × talks.json/4 tokens, 2 at once"),
    ],
)
def test_a_workload_tells_what_it_asks(prompts: PromptSource, length: int, said: str) -> None:
    assert workload(prompts, input_tokens=length).describe() == said
