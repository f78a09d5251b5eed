"""Shape twins: a model's public shape with no weights, so that speed and memory can be gated without them.

A twin has the real ``config.json`` (layers, heads, widths, vocabulary, quantization) and a synthetic tokenizer of the
full vocabulary. vLLM fills the weights with random numbers (``--load-format dummy``): every matrix has its true size
and every token costs what it costs, while the answers mean nothing.
"""

from __future__ import annotations

import itertools
import json
import string
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal, cast

from pytest_vllmperf.errors import TwinError

__all__ = ["MARKER", "QUANTIZATIONS", "SHAPES", "Quantization", "quantized", "twin_files"]

MARKER = "shape_twin.json"
"""The file that makes a model directory a twin, and tells of which model."""

Quantization = Literal["awq", "fp8"]

QUANTIZATIONS: Mapping[Quantization, Mapping[str, object]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
}
"""What ``config.json`` says of the weights: four bits in groups of 128, or eight-bit floats scaled per tensor."""

_QWEN = {
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
}

SHAPES: Mapping[str, Mapping[str, object]] = {
    "Qwen2.5-7B-Instruct": {
        **_QWEN,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "vocab_size": 152064,
    },
    "Qwen3-4B": {
        **_QWEN,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": 128,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "max_position_embeddings": 40960,
        "max_window_layers": 36,
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
    },
    "Llama-3.1-8B": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 128256,
    },
}
"""Built-in shapes: the ``config.json`` that each model is published with."""

_BYTES = 256
_FILLER_LETTERS = 5
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def quantized(config: Mapping[str, object], method: Quantization | None) -> dict[str, object]:
    """``config`` with its weights stored by ``method``; as it is for None."""
    if method is None:
        return dict(config)
    return {**config, "quantization_config": dict(QUANTIZATIONS[method])}


def twin_files(config: Mapping[str, object], *, of: str, words: Sequence[str] = ()) -> dict[str, str]:
    """Every file of a twin, by name, for the model whose ``config.json`` is ``config``.

    Args:
        config: As published. Code of the model's own (``auto_map``) is left out: a twin never runs it.
        of: Which model this is a twin of, for reports.
        words: Words that shall be one token each, as they are in most vocabularies.

    Raises:
        TwinError: It is no text model with a vocabulary of its own, or its vocabulary is too small to be told in bytes.
    """
    shape = {key: value for key, value in deepcopy(dict(config)).items() if key != "auto_map"}
    size = shape.get("vocab_size")
    if not isinstance(shape.get("architectures"), list) or not isinstance(shape.get("model_type"), str):
        raise TwinError(f"{of}: no config.json of a model: it needs architectures (a list) and model_type (a string)")
    if isinstance(size, bool) or not isinstance(size, int):
        raise TwinError(
            f"{of}: vocab_size={size!r} must be a whole number: only text models have twins, not those that keep their "
            "language model in a part of the configuration"
        )
    ends = _end_ids(shape, size, of)
    specials = dict(zip(ends, _end_names(), strict=False))
    if size < _BYTES + len(specials) + 2:
        raise TwinError(f"{of}: vocab_size={size} is too small: a twin's tokenizer needs {_BYTES} bytes and some words")
    vocabulary = _vocabulary(size, specials, words)
    end, start = specials[ends[0]], "<|im_start|>"
    return {
        "config.json": _json(shape),
        "generation_config.json": _json({"eos_token_id": ends, "pad_token_id": ends[0]}),
        "tokenizer.json": json.dumps(_tokenizer(vocabulary, specials, start), ensure_ascii=False),
        "tokenizer_config.json": _json(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": end,
                "pad_token": end,
                "clean_up_tokenization_spaces": False,
                "model_max_length": shape.get("max_position_embeddings", size),
                "chat_template": _CHAT_TEMPLATE,
            }
        ),
        MARKER: _json({"of": of, "weights": "dummy", "tokenizer": "synthetic"}),
    }


def _json(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def _end_ids(shape: Mapping[str, object], size: int, of: str) -> list[int]:
    """The ids that end an answer, at their own places; the last one of the vocabulary where none is told."""
    told = shape.get("eos_token_id")
    ids = told if isinstance(told, list) else [size - 1 if told is None else told]
    for place in ids:
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < size:
            raise TwinError(f"{of}: eos_token_id={told!r} must be ids within vocab_size={size}")
    return list(dict.fromkeys(cast("list[int]", ids))) or [size - 1]


def _end_names() -> Iterator[str]:
    return itertools.chain(["<|im_end|>"], (f"<|end_{n}|>" for n in itertools.count(1)))


def _byte_letters() -> list[str]:
    """One printable letter for each byte, as byte-level BPE writes them (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = itertools.count(_BYTES)
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(_BYTES)]


def _vocabulary(size: int, specials: Mapping[int, str], words: Sequence[str]) -> dict[str, int]:
    """Bytes, the given words (alone and after a space), then made-up words, with the specials at their places."""
    space = _byte_letters()[ord(" ")]
    made_up = (
        f"{space}q{''.join(letters)}"
        for letters in itertools.product(string.ascii_lowercase, repeat=_FILLER_LETTERS - 1)
    )
    named = itertools.chain.from_iterable((word, space + word) for word in words)
    real = dict.fromkeys(itertools.chain(_byte_letters(), ["<|im_start|>"], named))
    texts = itertools.chain(real, (word for word in made_up if word not in real))
    names = (specials.get(place) or next(texts) for place in range(size))
    return {name: place for place, name in enumerate(names)}


def _tokenizer(vocabulary: Mapping[str, int], specials: Mapping[int, str], start: str) -> dict[str, Any]:
    """Byte-level BPE in the format of Hugging Face's tokenizers; whole words are looked up, so no merges are needed.

    Every token is told as visible text, single bytes too: random weights repeat whatever they hit on, and a server
    holds back a byte that is no character yet. (Ends of an answer stay special; ``min_tokens`` keeps them away.)
    """
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": vocabulary[start], "content": start, "special": False, **flags},
        *({"id": place, "content": text, "special": True, **flags} for place, text in specials.items()),
    ]
    space = {"type": "Replace", "pattern": {"String": _byte_letters()[ord(" ")]}, "content": " "}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [space, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": dict(vocabulary),
            "merges": [],
        },
    }
