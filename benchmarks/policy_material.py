# SPDX-License-Identifier: Apache-2.0
"""What policies are measured on: random weights in Qwen2's layout, arithmetic prompts, lengths of training sequences.

Weights do not change how long a pass takes. They do decide when a response ends: embeddings are untied and small, so an
untrained policy draws nearly evenly from its V tokens, and responses end at random after V tokens on the average.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from transformers.generation import GenerationConfig

from benchmarks.material import Shape

DATA_SOURCE = "digits"
LENGTH_KINDS = ("equal", "uniform", "tail")


def qwen2_config(shape: Shape, tokenizer: Any, dtype: torch.dtype = torch.float32) -> Qwen2Config:
    """Translate a shape.

    Args:
        shape: Size.
        tokenizer: Gives vocabulary and special tokens.
        dtype: Written into the config.

    Returns:
        The config of an untied Qwen2.
    """
    return Qwen2Config(
        vocab_size=max(shape.vocabulary, len(tokenizer)),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=dtype,
    )


def build_policy(shape: Shape, tokenizer: Any, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """Make a policy with random weights.

    Args:
        shape: Size.
        tokenizer: Gives vocabulary and special tokens.
        device: Where the weights are drawn.
        dtype: Of the weights.

    Returns:
        A transformers model.
    """
    torch.manual_seed(0)
    with torch.device(device), default_dtype(dtype):
        policy: PreTrainedModel = Qwen2ForCausalLM(qwen2_config(shape, tokenizer, dtype))
    policy.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    return policy


def save_policy(folder: Path, shape: Shape, tokenizer: Any, device: str = "cpu", dtype: str = "float32") -> Path:
    """Write a policy with random weights and its tokenizer.

    Args:
        folder: Where.
        shape: Size.
        tokenizer: Written beside it.
        device: Where the weights are drawn.
        dtype: In which they are written.

    Returns:
        The folder.
    """
    build_policy(shape, tokenizer, device, getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_prompts(path: Path, count: int, chars: int, seed: int = 0) -> Path:
    """Write sums to be worked out, in the DAPO row schema; with one token a character, half to all of `chars` tokens.

    Args:
        path: JSONL file.
        count: Rows.
        chars: Length of the longest prompt.
        seed: Of their contents.

    Returns:
        The file.
    """
    rng = random.Random(seed)
    lines = []
    for number in range(count):
        length = rng.randint(max(4, chars // 2), max(4, chars - 1))
        text = "+".join(str(rng.randint(1, 99)) for _ in range(length))[:length]
        row = {
            "data_source": DATA_SOURCE,
            "prompt": [{"role": "user", "content": text}],
            "reward_model": {"style": "rule", "ground_truth": "0"},
            "extra_info": {"index": number},
        }
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def draw_lengths(kind: str, count: int, longest: int, seed: int = 0) -> list[int]:
    """Draw lengths of sequences.

    Args:
        kind: `equal` (all the longest), `uniform`, or `tail` (evenly spread on a logarithmic scale: most are short).
        count: How many.
        longest: Tokens of the longest; the shortest has a sixteenth of it.
        seed: Of the draw.

    Returns:
        Tokens of each sequence.
    """
    generator = np.random.default_rng(seed)
    shortest = max(2, longest // 16)
    drawn = {
        "equal": lambda: np.full(count, longest),
        "uniform": lambda: generator.integers(shortest, longest + 1, count),
        "tail": lambda: np.exp(generator.uniform(np.log(shortest), np.log(longest), count)),
    }[kind]()
    return [int(length) for length in drawn]


def train_flops(shape: Shape, vocabulary: int, lengths: Sequence[int], num_targets: int) -> float:
    """Count the floating-point operations that a forward and backward pass needs, recomputation left out.

    Args:
        shape: Of the model.
        vocabulary: Rows of its output weight.
        lengths: Tokens of each sequence.
        num_targets: Tokens whose log-probs are wanted.

    Returns:
        Three times those of the forward pass: layers at all tokens, head at the targets.
    """
    return 3.0 * (shape.forward_flops(lengths) + 2.0 * shape.hidden * vocabulary * num_targets)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new floating-point tensors of a dtype.

    Args:
        dtype: The dtype.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
