"""Train the bundled model: questions, tokenizer and 450 000 parameters from one seed, no downloads.

    python train.py OUT              # the recipe of the bundled model, about 5 minutes on one core
    python train.py OUT --steps 20   # a smoke run: right files, useless model
    python train.py OUT --data-only  # the question files alone

Writes a Hugging Face model directory that transformers and vLLM load, ``test.jsonl`` and ``fewshot.jsonl`` in
GSM8K's published format, and ``training.json``. One thread and one seed repeat exactly on one machine.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# fmt: off
NAMES = ["Tom", "Anna", "Ben", "Mia", "Sam", "Lily", "Jack", "Emma",
         "Leo", "Ruby", "Max", "Zoe", "Dan", "Eva", "Kai", "Nora"]
# fmt: on
ITEMS = ["apples", "books", "coins", "cards", "pens", "shells", "stamps", "marbles", "eggs", "cups", "keys", "balls"]
GAINS = ["buys {b} more", "finds {b} more", "gets {b} more from a friend", "wins {b} more"]
LOSSES = ["gives away {b}", "loses {b}", "sells {b}", "breaks {b}"]
KINDS = ["add", "sub", "addsub", "mul", "two"]
LOW, HIGH = 2, 50
TEST_SEED, TEST_QUESTIONS, FEWSHOT_QUESTIONS = 999, 500, 16
TOKENIZER_EXAMPLES = 20_000
PAD, EOS = 0, 2
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Problem = Mapping[str, str]
Row = tuple[list[int], list[int]]
"""Token ids, and for each the id to predict (IGNORED where nothing is learnt)."""
IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything the result depends on; the defaults made the bundled model.

    ``drills`` rows of each batch are bare equations, during the first ``drill_share`` of the steps:
    without them the arithmetic is learnt several times slower.
    """

    seed: int = 0
    steps: int = 3200
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    ffn: int = 384
    vocabulary: int = 512
    batch: int = 12
    drills: int = 8
    drill_share: float = 0.6
    learning_rate: float = 2e-3
    warm_up_steps: int = 60
    threads: int = 1


def make_problem(rng: random.Random) -> Problem:
    """One word problem with worked answer. The order of draws decides every file: never change it."""
    name, item = rng.choice(NAMES), rng.choice(ITEMS)
    kind = rng.choice(KINDS)
    question, steps, result = _MAKERS[kind](rng, name, item)
    answer = f"{' '.join(steps)} The answer is {result}.\n#### {result}"
    return {"question": question, "answer": answer, "kind": kind}


def _add(rng: random.Random, name: str, item: str) -> tuple[str, list[str], int]:
    a, b = rng.randint(LOW, HIGH), rng.randint(LOW, HIGH)
    question = f"{name} has {a} {item}. {name} {rng.choice(GAINS).format(b=b)}. How many {item} now?"
    return question, [f"{a} + {b} = {a + b}."], a + b


def _sub(rng: random.Random, name: str, item: str) -> tuple[str, list[str], int]:
    a = rng.randint(LOW + 8, HIGH)
    b = rng.randint(LOW, a - 1)
    question = f"{name} has {a} {item}. {name} {rng.choice(LOSSES).format(b=b)}. How many {item} are left?"
    return question, [f"{a} - {b} = {a - b}."], a - b


def _addsub(rng: random.Random, name: str, item: str) -> tuple[str, list[str], int]:
    a, b = rng.randint(LOW, HIGH), rng.randint(LOW, HIGH)
    c = rng.randint(LOW, min(HIGH, a + b - 1))
    gain, loss = rng.choice(GAINS).format(b=b), rng.choice(LOSSES).format(b=c)
    question = f"{name} has {a} {item}. {name} {gain}, then {name} {loss}. How many {item} now?"
    return question, [f"{a} + {b} = {a + b}.", f"{a + b} - {c} = {a + b - c}."], a + b - c


def _mul(rng: random.Random, name: str, item: str) -> tuple[str, list[str], int]:
    a, b = rng.randint(2, 12), rng.randint(2, 12)
    question = f"{name} has {a} boxes with {b} {item} in each box. How many {item}?"
    return question, [f"{a} * {b} = {a * b}."], a * b


def _two(rng: random.Random, name: str, item: str) -> tuple[str, list[str], int]:
    other = rng.choice([n for n in NAMES if n != name])
    a, b = rng.randint(LOW, HIGH), rng.randint(LOW, HIGH)
    question = f"{name} has {a} {item} and {other} has {b} {item}. How many {item} together?"
    return question, [f"{a} + {b} = {a + b}."], a + b


_MAKERS: dict[str, Callable[[random.Random, str, str], tuple[str, list[str], int]]] = {
    "add": _add,
    "sub": _sub,
    "addsub": _addsub,
    "mul": _mul,
    "two": _two,
}


def spoken_answer(problem: Problem) -> str:
    """What the model learns to say: the worked answer without GSM8K's ``####`` line."""
    return problem["answer"].split("\n####")[0]


def gold(problem: Problem) -> str:
    """The result alone."""
    return problem["answer"].split("#### ")[-1]


def chat_prompt(question: str) -> str:
    """The question as CHAT_TEMPLATE renders it."""
    return f"<|im_start|>user\nQ: {question}\nA:<|im_end|>\n<|im_start|>assistant\n"


def plain_prompt(question: str) -> str:
    """The question as a text to be continued."""
    return f"Q: {question}\nA:"


def write_questions(out: Path) -> list[Problem]:
    """Write ``test.jsonl`` and ``fewshot.jsonl``; returns the test questions, which training must never see."""
    rng = random.Random(TEST_SEED)
    test = [make_problem(rng) for _ in range(TEST_QUESTIONS)]
    fewshot = [make_problem(rng) for _ in range(FEWSHOT_QUESTIONS)]
    for name, problems in (("test", test), ("fewshot", fewshot)):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(p) + "\n" for p in problems))
    return test


def train_tokenizer(recipe: Recipe, rng: random.Random) -> Any:
    """A byte-level BPE in which every digit is a token of its own: arithmetic needs that."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    problems = (make_problem(rng) for _ in range(TOKENIZER_EXAMPLES))
    corpus = (f"{plain_prompt(p['question'])} {spoken_answer(p)}" for p in problems)
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def build_model(recipe: Recipe, vocabulary: int) -> Any:
    """A Qwen2 of the recipe's size, randomly initialised."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=recipe.hidden,
            intermediate_size=recipe.ffn,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=max(1, recipe.heads // 2),
            max_position_embeddings=2048,
            eos_token_id=EOS,
            bos_token_id=PAD,
            pad_token_id=PAD,
            tie_word_embeddings=True,
        )
    )


class Batches:
    """Draws training rows: half by chat, half as plain text, and drills of bare equations early on."""

    def __init__(self, recipe: Recipe, tokenizer: Any, rng: random.Random, held_out: Sequence[Problem]) -> None:
        self._recipe, self._tokenizer, self._rng = recipe, tokenizer, rng
        self._held_out = {p["question"] for p in held_out}

    def draw(self, progress: float) -> list[list[Row]]:
        """Two groups of rows of similar length; ``progress`` is the share of steps done."""
        rows = [self._example() for _ in range(self._recipe.batch)]
        if progress < self._recipe.drill_share:
            rows += [self._drill() for _ in range(self._recipe.drills)]
        rows.sort(key=lambda row: len(row[0]))
        half = len(rows) // 2
        return [rows[:half], rows[half:]]

    def _example(self) -> Row:
        problem = make_problem(self._rng)
        while problem["question"] in self._held_out:
            problem = make_problem(self._rng)
        self._rng.random()  # a draw that once decided about worked examples; the seed's sequence counts on it
        if self._rng.random() < 0.5:
            prompt, target = chat_prompt(problem["question"]), spoken_answer(problem)
        else:
            prompt, target = plain_prompt(problem["question"]), f" {spoken_answer(problem)}"
        given = self._tokenizer.encode(prompt).ids
        learnt = [*self._tokenizer.encode(target).ids, EOS]
        return given + learnt, [IGNORED] * len(given) + learnt

    def _drill(self) -> Row:
        equations: list[str] = []
        while len(equations) < 7:
            worked = spoken_answer(make_problem(self._rng)).split(". The answer")[0]
            equations += worked.split(". ")
        ids = self._tokenizer.encode(" ".join(f"{e}." for e in equations[:8])).ids
        return ids, ids


def train(recipe: Recipe, model: Any, batches: Batches) -> float:
    """Train in place; returns the smoothed loss at the end."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    smoothed: float | None = None
    for step in range(recipe.steps):
        progress = step / recipe.steps
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        loss = _backward(model, batches.draw(progress))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        smoothed = loss if smoothed is None else 0.95 * smoothed + 0.05 * loss
    return smoothed or 0.0


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    swing = 1 + math.cos(math.pi * (step / recipe.steps))
    return recipe.learning_rate * min(1.0, (step + 1) / recipe.warm_up_steps) * (0.05 + 0.95 * 0.5 * swing)


def _backward(model: Any, groups: Sequence[Sequence[Row]]) -> float:
    import torch

    tensors = [_padded(rows) for rows in groups]
    learnt = sum(int((labels != IGNORED).sum()) for _, labels in tensors)
    total = 0.0
    for ids, labels in tensors:
        logits = model(input_ids=ids).logits[:, :-1].float()
        wanted = labels[:, 1:].reshape(-1)
        loss = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), wanted, ignore_index=IGNORED, reduction="sum"
        )
        (loss / learnt).backward()
        total += loss.item() / learnt
    return total


def _padded(rows: Sequence[Row]) -> tuple[Any, Any]:
    import torch

    length = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), length), PAD, dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED, dtype=torch.long)
    for index, (row_ids, row_labels) in enumerate(rows):
        ids[index, : len(row_ids)] = torch.tensor(row_ids)
        labels[index, : len(row_labels)] = torch.tensor(row_labels)
    return ids, labels


def accuracy(
    model: Any, tokenizer: Any, problems: Sequence[Problem], prompt: Callable[[str], str]
) -> tuple[float, dict[str, str]]:
    """Share of ``problems`` whose greedy answer is right, and ``right/asked`` for each kind."""
    import torch

    by_length: dict[int, list[tuple[list[int], Problem]]] = {}
    for problem in problems:
        ids = tokenizer.encode(prompt(problem["question"])).ids
        by_length.setdefault(len(ids), []).append((ids, problem))
    right: dict[str, list[bool]] = {}
    model.eval()
    for length, group in by_length.items():
        ids = torch.tensor([found for found, _ in group])
        with torch.no_grad():
            generated = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=40,
                do_sample=False,
                eos_token_id=EOS,
                pad_token_id=PAD,
            )
        for row, (_, problem) in zip(generated, group, strict=True):
            text = tokenizer.decode(row[length:].tolist(), skip_special_tokens=True)
            stated = re.search(r"The answer is (-?\d+)", text)
            right.setdefault(problem["kind"], []).append(stated is not None and stated[1] == gold(problem))
    model.train()
    share = sum(sum(found) for found in right.values()) / len(problems)
    return share, {kind: f"{sum(found)}/{len(found)}" for kind, found in right.items()}


def save(out: Path, model: Any, tokenizer: Any) -> None:
    """Write the model directory, so that transformers 4 and 5 load it."""
    from transformers import PreTrainedTokenizerFast

    model.generation_config.eos_token_id = EOS
    model.generation_config.pad_token_id = PAD
    model.save_pretrained(out)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=2048
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(out)
    _let_transformers_4_load(out)


def _let_transformers_4_load(out: Path) -> None:
    """Repeat under their former names what transformers 5 renamed; each version ignores the other's."""
    path = out / "config.json"
    config = json.loads(path.read_text())
    if "rope_parameters" in config:
        for new in ("layer_types", "sliding_window"):
            config.pop(new, None)
        config["torch_dtype"] = config["dtype"]
        config["rope_theta"] = config["rope_parameters"]["rope_theta"]
        path.write_text(json.dumps(config, indent=1))
    path = out / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=1))


def main() -> None:
    """Make everything in the order the seed counts on: questions, tokenizer, model, training."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--data-only", action="store_true", help="write the question files and stop")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    test = write_questions(arguments.out)
    if arguments.data_only:
        return
    import torch

    recipe = Recipe(steps=arguments.steps)
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    tokenizer = train_tokenizer(recipe, rng)
    model = build_model(recipe, tokenizer.get_vocab_size())
    began = time.monotonic()
    loss = train(recipe, model, Batches(recipe, tokenizer, rng, test))
    trained_s = round(time.monotonic() - began, 1)
    by_chat, kinds = accuracy(model, tokenizer, test, chat_prompt)
    as_text, _ = accuracy(model, tokenizer, test, plain_prompt)
    save(arguments.out, model, tokenizer)
    result = {
        "accuracy_chat": by_chat,
        "accuracy_plain": as_text,
        "right_by_kind": kinds,
        "loss": round(loss, 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_s": trained_s,
    }
    text = json.dumps({"recipe": asdict(recipe), "result": result}, indent=1)
    (arguments.out / "training.json").write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
