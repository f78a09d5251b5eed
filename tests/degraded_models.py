"""Variants of the bundled model for tests: served badly, or damaged so that a gate must tell."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np

SUITES = Path(__file__).parents[1] / "suites"
BUNDLED = SUITES / "models" / "tinymath"


def quantize() -> ModuleType:
    """The script that makes quantized variants."""
    spec = importlib.util.spec_from_file_location("quantize", SUITES / "models" / "quantize.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def three_bits(out: Path) -> Path:
    """Weights rounded to 3 bits: measurably worse, still fluent."""
    script = quantize()
    return script.write(out, script.rounded(3), None)


def awq_in_wrong_order(out: Path) -> Path:
    """A valid AWQ checkpoint whose 4-bit values stand in each other's places: fluent nonsense."""
    script = quantize()
    return script.write(out, lambda n, w: script.awq(n, w, order=range(8)), script.FORMATS["awq"][1])


def with_defaults(out: Path, **defaults: float) -> Path:
    """The bundled model with other sampling defaults in its generation_config.json."""
    script = quantize()
    script.write(out, lambda n, w: {f"{n}.weight": w}, None)
    path = out / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **defaults}))
    return out


def with_thinking_tokens(out: Path) -> Path:
    """The bundled model with <think> and </think> in its vocabulary, without which reasoning parsers do not load."""
    from safetensors.numpy import load_file, save_file

    with_defaults(out)
    tokenizer = json.loads((out / "tokenizer.json").read_text())
    size = json.loads((out / "config.json").read_text())["vocab_size"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"] += [
        {"id": size + i, "content": text, "special": False, **flags} for i, text in enumerate(("<think>", "</think>"))
    ]
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "vocab_size": size + 2}))
    tensors = load_file(out / "model.safetensors")
    for name, tensor in tensors.items():
        if "embed_tokens" in name or "lm_head" in name:
            tensors[name] = np.concatenate([tensor, np.repeat(tensor.mean(0, keepdims=True), 2, axis=0)])
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def broken_weights(out: Path, last_norm: float) -> Path:
    """The last layer's output times ``last_norm``: with 0 all tokens are alike, as broken kernels make them.

    Token 0 then is the likeliest. It is "!" here, as it is in the vocabularies of Qwen, GPT-2 and many others, whose
    broken models therefore write "!!!!".
    """
    from safetensors.numpy import load_file, save_file

    with_defaults(out)
    tokenizer = json.loads((out / "tokenizer.json").read_text())
    vocabulary, first = tokenizer["model"]["vocab"], tokenizer["added_tokens"][0]
    other = vocabulary["!"]
    vocabulary["!"], vocabulary[first["content"]], first["id"] = 0, other, other
    tokenizer["added_tokens"].sort(key=lambda token: token["id"])
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name in ("config.json", "generation_config.json"):
        config = json.loads((out / name).read_text())
        (out / name).write_text(json.dumps({**config, "bos_token_id": other, "pad_token_id": other}))
    tensors = load_file(out / "model.safetensors")
    for name, tensor in tensors.items():
        if "embed_tokens" in name or "lm_head" in name:
            tensors[name] = tensor[[other if i == 0 else 0 if i == other else i for i in range(len(tensor))]]
        if name == "model.norm.weight":
            tensors[name] = tensor * np.float32(last_norm)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out
