# SPDX-License-Identifier: Apache-2.0
"""Rows of the supervised data sets as one `DataProto`, cut evenly over ranks. Knows neither loss nor model.

Rows are padded to the longest of the batch only; the engines take the padding off again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from verl.protocol import DataProto


def sft_batch(rows: Mapping[str, Sequence[Any]], num_ranks: int) -> DataProto:
    """Encode demonstrations.

    Args:
        rows: Columns `prompt_token_ids` and `response_token_ids`: lists of token ids.
        num_ranks: The number of rows is filled up to a multiple of it, by rows that count nowhere.

    Returns:
        prompts [S, P] left padded, prompt_mask, responses [S, R] right padded, response_mask.
    """
    prompts, prompt_mask = _padded(rows["prompt_token_ids"], side="left")
    responses, response_mask = _padded(rows["response_token_ids"], side="right")
    columns = {"prompts": prompts, "prompt_mask": prompt_mask, "responses": responses, "response_mask": response_mask}
    return DataProto.from_dict(tensors=_filled_up(columns, "response_mask", num_ranks))


def prm_batch(rows: Mapping[str, Sequence[Any]], num_ranks: int) -> DataProto:
    """Encode labelled solutions.

    Args:
        rows: Columns `input_ids`, `label_positions` and `labels`: lists.
        num_ranks: The number of rows is filled up to a multiple of it, by rows that count nowhere.

    Returns:
        input_ids [S, L] right padded, attention_mask, positions [S, K], labels [S, K] float32, label_mask.
    """
    input_ids, attention_mask = _padded(rows["input_ids"], side="right")
    positions, label_mask = _padded(rows["label_positions"], side="right")
    labels = pad_sequence([torch.tensor(row, dtype=torch.float32) for row in rows["labels"]], batch_first=True)
    columns = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "positions": positions,
        "labels": labels,
        "label_mask": label_mask,
    }
    return DataProto.from_dict(tensors=_filled_up(columns, "label_mask", num_ranks))


def _padded(rows: Sequence[Sequence[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    values = [torch.tensor(row, dtype=torch.int64) for row in rows]
    mask = pad_sequence([torch.ones_like(row) for row in values], batch_first=True, padding_side=side)
    return pad_sequence(values, batch_first=True, padding_side=side), mask


def _filled_up(columns: dict[str, torch.Tensor], mask_name: str, num_ranks: int) -> dict[str, torch.Tensor]:
    """Repeat the first row, its mask emptied, until the ranks get equally many rows."""
    missing = -len(columns[mask_name]) % num_ranks
    if missing == 0:
        return columns
    filler = {name: column[:1].repeat_interleave(missing, dim=0) for name, column in columns.items()}
    filler[mask_name] = torch.zeros_like(filler[mask_name])
    return {name: torch.cat([column, filler[name]]) for name, column in columns.items()}
