# SPDX-License-Identifier: Apache-2.0
"""Stage 1: rows of the data loader become the batch's first columns and the requests for the rollout servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from verl.data.rl_dataset import EXPECTED_TOKENS
from verl.protocol import DataProto
from verl.rewards.types import RewardInput
from verl.rollout.base import SamplingSettings
from verl.rollout.to_batch import RolloutOutput
from verl.workers.rollout_server import GroupRequest

_OBJECT_COLUMNS = ("raw_prompt", "data_source", "ground_truth", "extra_info")


def prompt_batch(rows: Mapping[str, Sequence[Any]], step_name: str, pad_token_id: int) -> DataProto:
    """Lay prompts out in columns and name the groups.

    Args:
        rows: Field to values, from the data loader: `prompt_token_ids`, `raw_prompt`, `data_source`, `ground_truth`,
            `extra_info`, `index`.
        step_name: First part of every uid, unique per batch in the run.
        pad_token_id: Fills the left of `prompts`.

    Returns:
        [B] rows with the columns of stage 1.
    """
    ids: Sequence[list[int]] = rows["prompt_token_ids"]
    width = max(len(row) for row in ids)
    prompts = torch.full((len(ids), width), pad_token_id, dtype=torch.int64)
    mask = torch.zeros((len(ids), width), dtype=torch.int64)
    for place, row in enumerate(ids):
        prompts[place, width - len(row) :] = torch.tensor(row, dtype=torch.int64)
        mask[place, width - len(row) :] = 1
    objects = {name: as_objects(rows[name]) for name in _OBJECT_COLUMNS}
    # the same row may come twice in a batch (small data sets): its place makes the name unique
    objects["uid"] = as_objects([f"{step_name}-{place}-{index}" for place, index in enumerate(rows["index"])])
    return DataProto.from_dict(tensors={"prompts": prompts, "prompt_mask": mask}, non_tensors=objects)


def group_requests(prompts: DataProto, num_responses: int, sampling: SamplingSettings) -> list[GroupRequest]:
    """Ask for the responses to a batch of prompts.

    Args:
        prompts: [B] rows with the columns of stage 1.
        num_responses: G.
        sampling: How to sample; a seed is the first group's, each further group gets the next G.

    Returns:
        One request per prompt, in order.
    """
    masks, extra_info = prompts.batch["prompt_mask"].bool(), prompts.non_tensor_batch["extra_info"]
    requests = []
    for place, uid in enumerate(prompts.non_tensor_batch["uid"]):
        seed = None if sampling.seed is None else sampling.seed + place * num_responses
        ids = prompts.batch["prompts"][place][masks[place]].tolist()
        settings = replace(sampling, seed=seed)
        requests.append(
            GroupRequest(
                uid=str(uid),
                prompt_token_ids=ids,
                num_responses=num_responses,
                sampling=settings,
                expected_tokens=(extra_info[place] or {}).get(EXPECTED_TOKENS),
            )
        )
    return requests


def reward_inputs_of(prompts: DataProto) -> dict[str, Mapping[str, Any]]:
    """What a scorer needs of each prompt, by uid.

    Args:
        prompts: [B] rows with the columns of stage 1.

    Returns:
        uid to the prompt's object columns.
    """
    objects = prompts.non_tensor_batch
    return {
        str(uid): {name: objects[name][place] for name in _OBJECT_COLUMNS} for place, uid in enumerate(objects["uid"])
    }


def reward_input(output: RolloutOutput, prompt: Mapping[str, Any]) -> RewardInput:
    """Join a response with its prompt's row.

    Args:
        output: A finished response.
        prompt: The prompt's object columns.

    Returns:
        The scorers' input.
    """
    return RewardInput(
        uid=output.uid,
        index=output.index,
        data_source=prompt["data_source"],
        prompt=list(prompt["raw_prompt"]),
        response=output.text,
        token_starts=output.token_starts,
        num_tokens=len(output.generation.token_ids),
        truncated=output.generation.finish_reason == "length",
        ground_truth=prompt["ground_truth"],
        extra_info=prompt["extra_info"] or {},
    )


def as_objects(values: Sequence[Any]) -> np.ndarray:
    """One Python object per row (numpy would make a matrix of equally long lists).

    Args:
        values: Any objects.

    Returns:
        [len(values)] object array.
    """
    array = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        array[place] = value
    return array
