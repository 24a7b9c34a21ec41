# SPDX-License-Identifier: Apache-2.0
"""What is measured on: a PRM with random weights in a published layout, and answers of mixed length.

Weights do not change how long a forward pass takes, so no checkpoint has to be downloaded.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config

from recipe.miniature.tokenizer import build_tokenizer
from verl.rewards.prm.adapters import QWEN_STEP_TOKEN
from verl.rewards.prm.model import Qwen2ForProcessRewardModel
from verl.rewards.prm.steps import SplitRule, split_text
from verl.rewards.prm.types import ScoreRequest
from verl.utils.tokenizer import load_tokenizer

PROBLEM_FIELDS = ("problem", "question", "prompt")
RESPONSE_FIELDS = ("response", "responses", "completion", "output", "code")


@dataclass(frozen=True)
class Shape:
    """Size of a Qwen2 PRM.

    Args:
        hidden: Width.
        intermediate: Width of the MLP.
        layers: Number of layers.
        heads: Query heads.
        kv_heads: Key and value heads.
        context: Longest input, tokens.
        vocabulary: Rows of the embedding at least; the tokenizer may need more.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    context: int
    vocabulary: int = 0

    @property
    def layer_parameters(self) -> int:
        """Weights of all layers that every token is multiplied with; embedding and head left out."""
        keys_and_values = 2 * self.hidden * self.hidden * self.kv_heads // self.heads
        return self.layers * (2 * self.hidden**2 + keys_and_values + 3 * self.hidden * self.intermediate)

    def forward_flops(self, lengths: Sequence[int]) -> float:
        """Count the floating-point operations that one forward pass over whole inputs needs.

        Args:
            lengths: Tokens of each input.

        Returns:
            Two for each weight and token, and causal attention: two products of width `hidden` with each key seen.
        """
        dense = 2.0 * self.layer_parameters * sum(lengths)
        keys_seen = sum(length * (length + 1) / 2 for length in lengths)
        return dense + 4.0 * self.layers * self.hidden * keys_seen


SHAPES = {
    "tiny": Shape(hidden=64, intermediate=96, layers=2, heads=2, kv_heads=1, context=4096),
    "4m": Shape(hidden=256, intermediate=768, layers=5, heads=4, kv_heads=2, context=4096),
    "1.5b": Shape(1536, 8960, 28, 12, 2, 32768, 151936),
    "7b": Shape(3584, 18944, 28, 28, 4, 32768, 152064),
}
"""`7b` is the shape of ReasonFlux-PRM-7B, `1.5b` that of Qwen2.5-1.5B."""


@dataclass(frozen=True)
class Answer:
    """A problem and one response to it."""

    problem: str
    response: str


def prm_tokenizer(folder: str | None, context: int) -> Any:
    """Load a tokenizer and give it the PRM's step token where it lacks one.

    Args:
        folder: Of a real tokenizer with a chat template; None for the miniature's, one token a character.
        context: Of the model, tokens.
    """
    if folder is None:
        return build_tokenizer(context)
    tokenizer = load_tokenizer(folder, key="--tokenizer")
    if QWEN_STEP_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [QWEN_STEP_TOKEN]})
    return tokenizer


def save_prm(folder: Path, shape: Shape, tokenizer: Any, device: str, dtype: torch.dtype, seed: int = 0) -> Path:
    """Write a PRM with random weights whose scores spread over (0, 1), or agreement would prove nothing.

    Args:
        folder: Where.
        shape: Its size.
        tokenizer: Written beside it.
        device: Where the weights are drawn.
        dtype: In which they are written.
        seed: Of the weights.

    Returns:
        The folder.
    """
    config = Qwen2Config(
        vocab_size=max(shape.vocabulary, len(tokenizer)),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        initializer_range=shape.hidden**-0.5,
        tie_word_embeddings=False,
        dtype=dtype,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        model = Qwen2ForProcessRewardModel(config)
        for layer in (model.score[0], model.score[2]):
            torch.nn.init.normal_(layer.weight, std=1.4 * shape.hidden**-0.5)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def read_answers(path: str) -> list[Answer]:
    """Read problems and responses.

    Args:
        path: JSONL; a row has one of the fields `PROBLEM_FIELDS` and one of `RESPONSE_FIELDS`, the latter a text or a
            list of texts.

    Raises:
        ValueError: A row lacks them.
    """
    answers = []
    for number, line in enumerate(Path(path).expanduser().read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        problem = next((row[name] for name in PROBLEM_FIELDS if row.get(name)), None)
        responses = next((row[name] for name in RESPONSE_FIELDS if row.get(name)), None)
        if not isinstance(problem, str) or not responses:
            raise ValueError(f"{path}, line {number}: needs one of {PROBLEM_FIELDS} and one of {RESPONSE_FIELDS}")
        answers += [Answer(problem, text) for text in ([responses] if isinstance(responses, str) else responses)]
    return answers


def make_answers(count: int, longest_chars: int, seed: int = 0) -> list[Answer]:
    """Write answers whose lengths spread evenly on a logarithmic scale, as those of a reasoning policy do.

    Args:
        count: How many.
        longest_chars: Length of the longest; the shortest has a thirtieth of it.
        seed: Of their contents.

    Returns:
        Answers in steps separated by blank lines, in mixed order.
    """
    rng = random.Random(seed)
    lengths = [int(longest_chars * 30 ** (-place / max(count - 1, 1))) for place in range(count)]
    rng.shuffle(lengths)
    return [Answer(f"What is {rng.randint(10, 999)} times 7, in steps?", _steps(length, rng)) for length in lengths]


def pick(answers: Sequence[Answer], count: int, seed: int = 0) -> list[Answer]:
    """Draw answers without replacement.

    Args:
        answers: To draw from.
        count: How many.
        seed: Of the draw.

    Raises:
        ValueError: There are fewer.
    """
    if len(answers) < count:
        raise ValueError(f"{count} answers are wanted, but there are only {len(answers)}")
    return random.Random(seed).sample(list(answers), count)


def to_requests(answers: Sequence[Answer]) -> list[ScoreRequest]:
    """Cut responses at blank lines, as the trainer does by default.

    Args:
        answers: To be scored.
    """
    requests = []
    for number, answer in enumerate(answers):
        pieces = tuple(answer.response[begin:end] for begin, end in split_text(answer.response, SplitRule()))
        requests.append(ScoreRequest(f"answer-{number}", answer.problem, pieces))
    return requests


def _steps(num_chars: int, rng: random.Random) -> str:
    """Sentences of arithmetic; between two of them a blank line every now and then."""
    text = ""
    while len(text) < num_chars:
        left, right = rng.randint(2, 99), rng.randint(2, 99)
        text += f"We have {left} + {right} = {left + right}."
        text += "\n\n" if rng.random() < 0.3 else " "
    return text[:num_chars].rstrip() + "."
