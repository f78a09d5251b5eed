import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.domain.shape_twin import MARKER, QUANTIZATIONS, SHAPES, quantized, twin_files
from pytest_vllmperf.errors import TwinError

SMALL = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 400, "eos_token_id": 17}


@pytest.mark.parametrize("name", SHAPES)
def test_a_twin_keeps_the_published_shape_and_fills_the_vocabulary(name: str) -> None:
    files = twin_files(SHAPES[name], of=name)
    assert json.loads(files["config.json"]) == SHAPES[name]
    vocabulary = json.loads(files["tokenizer.json"])["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(SHAPES[name]["vocab_size"]))
    assert json.loads(files[MARKER])["of"] == name


def test_the_end_of_an_answer_keeps_its_ids() -> None:
    files = twin_files({**SMALL, "eos_token_id": [5, 399]}, of="small")
    vocabulary = json.loads(files["tokenizer.json"])["model"]["vocab"]
    assert vocabulary["<|im_end|>"] == 5
    assert vocabulary["<|end_1|>"] == 399
    assert json.loads(files["generation_config.json"]) == {"eos_token_id": [5, 399], "pad_token_id": 5}


@given(size=st.integers(260, 3000), end=st.integers(0, 259))
def test_every_id_has_one_text(size: int, end: int) -> None:
    files = twin_files({**SMALL, "vocab_size": size, "eos_token_id": end}, of="any", words=("time", "people"))
    vocabulary = json.loads(files["tokenizer.json"])["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(size))


def test_code_of_the_model_is_left_out() -> None:
    files = twin_files({**SMALL, "auto_map": {"AutoModel": "evil.Model"}}, of="small")
    assert "auto_map" not in json.loads(files["config.json"])


@pytest.mark.parametrize("method", QUANTIZATIONS)
def test_quantization_is_told_in_the_configuration(method: str) -> None:
    config = json.loads(twin_files(quantized(SMALL, method), of="small")["config.json"])
    assert config["quantization_config"]["quant_method"] == method


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"vocab_size": None}, "vocab_size=None must be a whole number"),
        ({"vocab_size": 200}, "too small"),
        ({"eos_token_id": 400}, "must be ids within vocab_size=400"),
        ({"architectures": "Qwen2ForCausalLM"}, "architectures (a list)"),
        ({"model_type": None}, "model_type (a string)"),
    ],
)
def test_what_has_no_twin_says_why(change: dict[str, object], told: str) -> None:
    with pytest.raises(TwinError, match=r"small: ") as caught:
        twin_files({**SMALL, **change}, of="small")
    assert told in str(caught.value)
