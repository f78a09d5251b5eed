"""Make a shape twin: a model's public shape without its weights.

vLLM serves it with random weights (`--load-format dummy`, which is set by itself): speed and memory are those of the
real model, answers mean nothing and are not evaluated. A GPU runner that reaches no model hub can so gate both.

MODEL is a built-in shape (Qwen2.5-7B-Instruct, Qwen3-4B, Llama-3.1-8B) or the path of any text model's config.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_vllmperf.commands import Answer

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    from pytest_vllmperf.domain.shape_twin import QUANTIZATIONS

    parser.add_argument("model", metavar="MODEL", help="a built-in shape, or the path of a config.json")
    parser.add_argument("target", metavar="DIR", type=Path, help="the directory to make, new or empty")
    parser.add_argument(
        "--quantization",
        choices=sorted(QUANTIZATIONS),
        help="how the dummy weights are stored (default: as the shape says)",
    )


def run(options: argparse.Namespace) -> Answer:
    """Write the twin."""
    from pytest_vllmperf.adapters.shape_twins import write_twin
    from pytest_vllmperf.load.payload import CHAT_WORDS

    target = options.directory / options.target.expanduser()
    name = write_twin(options.model, target, quantization=options.quantization, words=CHAT_WORDS)
    text = f"{target}: the shape of {name}, with dummy weights. Serve it as EngineConfig(model={str(target)!r})."
    return Answer(text=text, data={"directory": str(target), "of": name, "quantization": options.quantization})
