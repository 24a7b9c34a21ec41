# SPDX-License-Identifier: Apache-2.0
"""From finished responses to the columns of stage 2. Knows no engine and no reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from verl.protocol import DataProto
from verl.rollout.base import Generation


@dataclass(frozen=True, slots=True)
class RolloutOutput:
    """One response, decoded once.

    Attributes:
        uid: Identity of the group.
        index: Place within the group, 0 to G - 1.
        generation: What the engine sampled.
        text: The response without special tokens.
        token_starts: [T] int64, character index in `text` at which each response token begins.
    """

    uid: str
    index: int
    generation: Generation
    text: str
    token_starts: np.ndarray


def to_batch(prompts: DataProto, outputs: Sequence[Sequence[RolloutOutput]], pad_token_id: int) -> DataProto:
    """Repeat every prompt for its responses and lay the responses out in columns.

    Args:
        prompts: [B] rows with the columns of stage 1.
        outputs: [B][G] responses, in the order of the prompts and of their place in the group.
        pad_token_id: Fills the right of `responses`.

    Returns:
        [S = B * G] rows with the columns of stages 1 and 2, padded to the longest response of this batch.

    Raises:
        ValueError: Groups differ in size, so that responses would stand beside other groups' prompts.
    """
    flat = [output for group in outputs for output in group]
    group_size = len(outputs[0])
    if any(len(group) != group_size for group in outputs):
        raise ValueError(f"groups of different size: {[len(group) for group in outputs]} responses")
    width = max(1, max(len(output.generation.token_ids) for output in flat))
    shape = (len(flat), width)
    responses = torch.full(shape, pad_token_id, dtype=torch.int64)
    response_mask = torch.zeros(shape, dtype=torch.int64)
    log_probs = torch.zeros(shape, dtype=torch.float32)
    for row, output in enumerate(flat):
        length = len(output.generation.token_ids)
        responses[row, :length] = torch.tensor(output.generation.token_ids, dtype=torch.int64)
        response_mask[row, :length] = 1
        log_probs[row, :length] = torch.tensor(output.generation.log_probs, dtype=torch.float32)
    versions = torch.tensor([output.generation.policy_version for output in flat], dtype=torch.int64)
    rollout = DataProto.from_dict(
        tensors={
            "responses": responses,
            "response_mask": response_mask,
            "rollout_log_probs": log_probs,
            "policy_version": versions,
        },
        non_tensors={
            "response_text": _objects([output.text for output in flat]),
            "finish_reason": _objects([output.generation.finish_reason for output in flat]),
        },
    )
    return prompts.repeat(group_size, interleave=True).union(rollout)


def _objects(values: list[str]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
