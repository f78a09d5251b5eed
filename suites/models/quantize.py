"""Make really quantized variants of the bundled model: ``python suites/models/quantize.py awq|w4a16|w8a8|fp8 OUT``.

Weights are rounded to nearest, in groups of 32 along the input (4 bits) or for each output (8 bits), and stored
in the formats vLLM's kernels load, on CPUs as well: AWQ, and compressed-tensors. No calibration data takes part, so
this says how well the formats are read, not how well a quantizer chooses.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BUNDLED = Path(__file__).parent / "tinymath"
GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring values stands in which four bits of a word, as AWQ's kernels expect."""

LARGEST_FP8 = 448.0
"""Of the 8-bit floats with four bits of exponent and three of mantissa."""

Array = np.ndarray[Any, Any]
Tensors = dict[str, Any]
"""Arrays by name; 8-bit floats, which numpy does not know, as tensors of torch."""


def pack(values: Array, order: Sequence[int] = range(8)) -> Array:
    """Eight values of 0 to 15 along the last axis into one 32-bit word."""
    grouped = values.reshape(values.shape[0], -1, 8).astype(np.uint32)
    word = np.zeros(grouped.shape[:2], dtype=np.uint32)
    for place, which in enumerate(order):
        word |= grouped[:, :, which] << np.uint32(4 * place)
    return word.view(np.int32)


def awq(name: str, weight: Array, *, order: Sequence[int] = AWQ_ORDER) -> Tensors:
    """4 bits with a zero point for each group of inputs, transposed and packed along the outputs."""
    outputs, inputs = weight.shape
    groups = weight.reshape(outputs, inputs // GROUP, GROUP)
    low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    scale = np.maximum((high - low) / 15, 1e-6).astype(np.float16).astype(np.float32)
    zero = np.clip(np.rint(-low / scale), 0, 15)
    codes = np.clip(np.rint(groups / scale) + zero, 0, 15).reshape(outputs, inputs)
    return {
        f"{name}.qweight": pack(np.ascontiguousarray(codes.T), order),
        f"{name}.qzeros": pack(np.ascontiguousarray(zero[..., 0].T), order),
        f"{name}.scales": np.ascontiguousarray(scale[..., 0].T).astype(np.float16),
    }


def w4a16(name: str, weight: Array) -> Tensors:
    """4 bits, symmetric, for each group of inputs; activations stay as they are."""
    outputs, inputs = weight.shape
    groups = weight.reshape(outputs, inputs // GROUP, GROUP)
    scale = np.maximum(np.abs(groups).max(-1, keepdims=True) / 7, 1e-9)
    codes = (np.clip(np.rint(groups / scale), -8, 7) + 8).reshape(outputs, inputs)
    return {
        f"{name}.weight_packed": pack(codes),
        f"{name}.weight_scale": scale[..., 0].astype(np.float32),
        f"{name}.weight_shape": np.array([outputs, inputs]),
    }


def w8a8(name: str, weight: Array) -> Tensors:
    """8 bits, symmetric, for each output; activations are rounded for each token while the model runs."""
    scale = np.abs(weight).max(1, keepdims=True) / 127
    return {
        f"{name}.weight": np.clip(np.rint(weight / scale), -128, 127).astype(np.int8),
        f"{name}.weight_scale": scale.astype(np.float32),
    }


def fp8(name: str, weight: Array) -> Tensors:
    """8-bit floats, with a scale for each output; activations are rounded for each token while the model runs."""
    import torch

    scale = np.maximum(np.abs(weight).max(1, keepdims=True) / LARGEST_FP8, 1e-9).astype(np.float32)
    return {
        f"{name}.weight": torch.from_numpy(weight / scale).to(torch.float8_e4m3fn),
        f"{name}.weight_scale": scale,
    }


def rounded(bits: int) -> Callable[[str, Array], Tensors]:
    """Weights rounded to ``bits`` in groups of 32, and stored unquantized: what that many bits would cost."""
    most = 2 ** (bits - 1) - 1

    def apply(name: str, weight: Array) -> Tensors:
        groups = weight.reshape(weight.shape[0], -1, GROUP)
        scale = np.maximum(np.abs(groups).max(-1, keepdims=True) / most, 1e-9)
        return {f"{name}.weight": (np.clip(np.rint(groups / scale), -most - 1, most) * scale).reshape(weight.shape)}

    return apply


def _compressed(weights: dict[str, object], activations: dict[str, object] | None, form: str) -> dict[str, object]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


_INT: dict[str, object] = {"type": "int", "symmetric": True}
_FLOAT: dict[str, object] = {"type": "float", "num_bits": 8, "symmetric": True}
FORMATS: dict[str, tuple[Callable[[str, Array], Tensors], dict[str, object] | None]] = {
    "awq": (
        awq,
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": GROUP,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": ["lm_head"],
        },
    ),
    "w4a16": (
        w4a16,
        _compressed(
            {**_INT, "num_bits": 4, "strategy": "group", "group_size": GROUP, "dynamic": False}, None, "pack-quantized"
        ),
    ),
    "w8a8": (
        w8a8,
        _compressed(
            {**_INT, "num_bits": 8, "strategy": "channel", "dynamic": False},
            {**_INT, "num_bits": 8, "strategy": "token", "dynamic": True},
            "int-quantized",
        ),
    ),
    "fp8": (
        fp8,
        _compressed(
            {**_FLOAT, "strategy": "channel", "dynamic": False},
            {**_FLOAT, "strategy": "token", "dynamic": True},
            "float-quantized",
        ),
    ),
}


def write(
    out: Path,
    convert: Callable[[str, Array], Tensors],
    config: dict[str, object] | None,
    source: Path = BUNDLED,
) -> Path:
    """Write a variant of ``source``: its linear layers by ``convert``, all else as it is."""
    from safetensors.numpy import load_file

    out.mkdir(parents=True, exist_ok=True)
    tensors: Tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        linear = tensor.ndim == 2 and "embed" not in name and "lm_head" not in name
        tensors |= convert(name.removesuffix(".weight"), tensor) if linear else {name: tensor}
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja", ".jsonl") and file.name != "config.json":
            shutil.copy(file, out)
    described = json.loads((source / "config.json").read_text())
    if config is not None:
        described["quantization_config"] = config
    (out / "config.json").write_text(json.dumps(described, indent=1))
    _save(tensors, out / "model.safetensors")
    return out


def _save(tensors: Tensors, path: Path) -> None:
    if all(isinstance(tensor, np.ndarray) for tensor in tensors.values()):
        from safetensors.numpy import save_file

        save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, path, {"format": "pt"})
        return
    import torch
    from safetensors.torch import save_file as save_tensors

    whole = {n: torch.from_numpy(t) if isinstance(t, np.ndarray) else t for n, t in tensors.items()}
    save_tensors({n: t.contiguous() for n, t in whole.items()}, path, {"format": "pt"})


def variant(kind: str, out: Path, source: Path = BUNDLED) -> Path:
    """The variant of one of :data:`FORMATS`, made where it is not there yet."""
    if not (out / "model.safetensors").is_file():
        write(out, *FORMATS[kind], source=source)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(FORMATS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", type=Path, default=BUNDLED)
    asked = parser.parse_args()
    variant(asked.kind, asked.out, asked.source)
