# SPDX-License-Identifier: Apache-2.0
"""A tiny random PRM on disk, laid out like the published ones, and scorers made of arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config

from tests.helpers.tokenizers import byte_tokenizer
from verl.rewards.prm.model import Qwen2ForProcessRewardModel
from verl.rewards.prm.types import ScoreRequest, StepLogits


def tiny_config(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> Qwen2Config:
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 1024,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
    }
    return Qwen2Config(**(settings | changes))


def save_tiny_prm(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write model and byte tokenizer; the head is wide enough that probabilities spread over (0, 1)."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    model = Qwen2ForProcessRewardModel(tiny_config(tokenizer, **changes))
    width = model.config.hidden_size
    torch.nn.init.normal_(model.score[0].weight, std=1.4 / width**0.5)
    torch.nn.init.normal_(model.score[2].weight, std=1.5 / width**0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class TableScorer:
    """Scores each step by a function of its text; logits are (-x, x), so p = sigmoid(2 x)."""

    def __init__(self, table: dict[str, float], default: float = 0.0) -> None:
        self.table = table
        self.default = default
        self.requests: list[ScoreRequest] = []

    async def __call__(self, request: ScoreRequest) -> StepLogits:
        self.requests.append(request)
        values = [self.table.get(step.strip(), self.default) for step in request.steps]
        return StepLogits(np.array([[-v, v] for v in values], dtype=np.float32).reshape(-1, 2))
