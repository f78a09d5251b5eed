import json
from pathlib import Path

import pytest

from pytest_vllmperf.adapters.model_files import context_size, twin_of, vocabulary_size
from pytest_vllmperf.adapters.shape_twins import write_twin
from pytest_vllmperf.errors import TwinError

MODEL = Path(__file__).parents[2] / "suites" / "models" / "tinymath"


def test_a_built_in_shape_becomes_a_model_directory(tmp_path: Path) -> None:
    directory = tmp_path / "twin"
    assert write_twin("qwen/qwen3-4b", directory) == "Qwen3-4B"
    assert twin_of(str(directory)) == "Qwen3-4B"
    assert vocabulary_size(str(directory)) == 151936
    assert context_size(str(directory)) == 40960


def test_a_model_with_weights_is_no_twin() -> None:
    assert twin_of(str(MODEL)) is None


def test_any_configuration_becomes_a_twin(tmp_path: Path) -> None:
    assert write_twin(str(MODEL), tmp_path / "twin", quantization="fp8") == "tinymath"
    config = json.loads((tmp_path / "twin" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "fp8"
    assert twin_of(str(tmp_path / "twin")) == "tinymath (fp8)"


def test_its_tokenizer_reads_and_writes(tmp_path: Path) -> None:
    """By the library that vLLM uses: known words are a token each, other text is bytes, every id has a text."""
    tokenizers = pytest.importorskip("tokenizers")
    write_twin("Llama-3.1-8B", tmp_path / "twin", words=("time", "people"))
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "twin" / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 128256
    assert len(tokenizer.encode("time people time").ids) == 3
    ids = [*range(300, 128000, 997)]
    text = tokenizer.decode(ids)
    assert tokenizer.encode(text).ids == ids
    assert len(tokenizer.encode("Grüße").ids) == len("Grüße".encode())


def test_every_token_but_the_end_of_an_answer_is_visible(tmp_path: Path) -> None:
    """Random weights repeat whatever they hit on: a request without any visible token would count as failed."""
    tokenizers = pytest.importorskip("tokenizers")
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["A"], "model_type": "a", "vocab_size": 600, "eos_token_id": [7, 599]})
    )
    write_twin(str(tmp_path / "config.json"), tmp_path / "twin")
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "twin" / "tokenizer.json"))
    texts = {place: tokenizer.decode([place], skip_special_tokens=True) for place in range(600)}
    assert [place for place, text in texts.items() if not text or "\ufffd" in text] == [7, 599]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("Qwen2.5-7B", "did you mean Qwen2.5-7B-Instruct?"),
        ("zzz", "built in: Qwen2.5-7B-Instruct, Qwen3-4B, Llama-3.1-8B"),
        ("broken.json", "cannot be read"),
        ("list.json", "holds list, not an object"),
    ],
)
def test_a_source_that_is_none_says_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("{")
    Path("list.json").write_text("[]")
    with pytest.raises(TwinError) as caught:
        write_twin(source, tmp_path / "twin")
    assert told in str(caught.value)
    assert not (tmp_path / "twin").exists()


def test_an_unknown_quantization_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(TwinError, match="quantization 'int3' is unknown; known: awq, fp8"):
        write_twin("Qwen3-4B", tmp_path / "twin", quantization="int3")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(TwinError, match="new or empty"):
        write_twin("Qwen3-4B", tmp_path)
