# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers.rollouts import rollout_output
from verl.batch_schema import check
from verl.rollout.base import SamplingSettings
from verl.trainer.ppo.prompts import as_objects, group_requests, prompt_batch, reward_input, reward_inputs_of


def rows(**changes: Any) -> dict[str, Any]:
    """Three rows of a data loader; the same data row twice. Token id 0 is both a real token and the padding."""
    return {
        "prompt_token_ids": [[5, 0, 7], [9], [9]],
        "raw_prompt": [[{"role": "user", "content": text}] for text in ("1+1?", "2+2?", "2+2?")],
        "data_source": ["math_dapo", "gsm8k", "gsm8k"],
        "ground_truth": ["2", "4", "4"],
        "extra_info": [{"level": 1}, None, {}],
        "index": [17, 4, 4],
    } | changes


def test_prompts_are_padded_on_the_left_and_masked() -> None:
    batch = prompt_batch(rows(), "step1", pad_token_id=0)
    assert batch.batch["prompts"].tolist() == [[5, 0, 7], [0, 0, 9], [0, 0, 9]]
    assert batch.batch["prompt_mask"].tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 1]]
    check(batch)
    assert batch.non_tensor_batch["raw_prompt"][1] == [{"role": "user", "content": "2+2?"}]
    assert batch.non_tensor_batch["extra_info"].tolist() == [{"level": 1}, None, {}]


def test_uids_name_groups_apart_even_when_a_row_comes_twice() -> None:
    uids = prompt_batch(rows(), "step1", 0).non_tensor_batch["uid"].tolist()
    assert len(set(uids)) == 3
    assert not set(uids) & set(prompt_batch(rows(), "step2", 0).non_tensor_batch["uid"])


def test_requests_hold_the_prompt_without_padding_and_keep_the_order() -> None:
    batch = prompt_batch(rows(), "step1", pad_token_id=0)
    requests = group_requests(batch, 6, SamplingSettings(max_new_tokens=8, temperature=0.7))
    assert [request.prompt_token_ids for request in requests] == [[5, 0, 7], [9], [9]]
    assert [request.uid for request in requests] == batch.non_tensor_batch["uid"].tolist()
    assert {request.num_responses for request in requests} == {6}


def test_every_response_of_a_batch_gets_its_own_seed() -> None:
    # the server adds the response's place in its group
    requests = group_requests(prompt_batch(rows(), "s", 0), 6, SamplingSettings(max_new_tokens=8, seed=100))
    assert [request.sampling.seed for request in requests] == [100, 106, 112]


def test_a_length_that_the_row_states_goes_with_the_request() -> None:
    stated = rows(extra_info=[{"expected_response_tokens": 900}, None, {"level": 2}])
    requests = group_requests(prompt_batch(stated, "s", 0), 2, SamplingSettings(max_new_tokens=8))
    assert [request.expected_tokens for request in requests] == [900, None, None]


def test_all_other_sampling_settings_arrive_unchanged() -> None:
    sampling = SamplingSettings(
        temperature=0.3, top_p=0.9, top_k=7, max_new_tokens=5, stop_token_ids=(3, 4), ignore_eos=True
    )
    requests = group_requests(prompt_batch(rows(), "s", 0), 2, sampling)
    assert [request.sampling for request in requests] == [sampling] * 3


def test_a_response_meets_the_row_of_its_own_prompt() -> None:
    batch = prompt_batch(rows(), "step1", 0)
    first, second, _ = batch.non_tensor_batch["uid"]
    by_uid = reward_inputs_of(batch)
    item = reward_input(rollout_output(first, 3, "two", finish_reason="length"), by_uid[first])
    assert (item.uid, item.index, item.response, item.num_tokens, item.truncated) == (first, 3, "two", 4, True)
    assert (item.data_source, item.ground_truth, item.extra_info) == ("math_dapo", "2", {"level": 1})
    assert item.prompt == [{"role": "user", "content": "1+1?"}]
    assert item.token_starts.tolist() == [0, 1, 2, 3]

    other = reward_input(rollout_output(second, 0, "four"), by_uid[second])
    assert (other.data_source, other.ground_truth, other.extra_info) == ("gsm8k", "4", {})
    assert not other.truncated


@pytest.mark.parametrize("values", [[[1, 2], [3, 4]], [np.zeros(2), np.zeros(2)], [None, "a"], []], ids=str)
def test_objects_stay_whole(values: list[Any]) -> None:
    array = as_objects(values)
    assert array.dtype == object
    assert array.shape == (len(values),)
    assert all(found is given for found, given in zip(array, values, strict=True))
