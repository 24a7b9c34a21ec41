# SPDX-License-Identifier: Apache-2.0
"""Tiny Qwen2 models with random weights and batches of random token ids, for tests of the engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from verl.engines.packing import PaddedSequences

VOCAB_SIZE = 61


def tiny_config(tied: bool = True, **changes: object) -> Qwen2Config:
    """A two-layer Qwen2 with grouped-query attention; `changes` replaces single settings."""
    settings: dict = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": tied,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    return Qwen2Config(**(settings | changes))


def tiny_model(tied: bool = True, seed: int = 0, **changes: object) -> Qwen2ForCausalLM:
    """A float32 model whose weights follow from the seed alone."""
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(tiny_config(tied, **changes))
    # Biases start at zero otherwise, and a lost bias would go unseen.
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.float().eval()


def save_tiny_model(folder: Path, tied: bool = True, seed: int = 0) -> str:
    """Write the model as transformers does; returns the folder."""
    tiny_model(tied, seed).save_pretrained(folder)
    return str(folder)


def random_padded(
    prompt_lengths: Sequence[int], response_lengths: Sequence[int], seed: int = 0, vocab_size: int = VOCAB_SIZE
) -> PaddedSequences:
    """Random prompts (left padded) and responses (right padded) of the given lengths."""
    generator = torch.Generator().manual_seed(seed)
    num_rows, width, length = len(prompt_lengths), max(prompt_lengths), max(response_lengths)
    prompt_mask = torch.arange(width)[None, :] >= width - torch.tensor(prompt_lengths)[:, None]
    response_mask = torch.arange(length)[None, :] < torch.tensor(response_lengths)[:, None]
    prompts = torch.randint(2, vocab_size, (num_rows, width), generator=generator) * prompt_mask
    responses = torch.randint(2, vocab_size, (num_rows, length), generator=generator) * response_mask
    return PaddedSequences(prompts, prompt_mask.long(), responses, response_mask.long())
