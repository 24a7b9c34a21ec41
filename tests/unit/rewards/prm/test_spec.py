# SPDX-License-Identifier: Apache-2.0
"""Lengths and adapter of a PRM as configured."""

from __future__ import annotations

import pytest

from tests.helpers.prm import save_tiny_prm
from verl.rewards.prm.spec import PRMSpec, input_limits, load_adapter
from verl.rewards.prm.types import ScoreRequest
from verl.utils.errors import UserError


def test_limits():
    config = {"max_position_embeddings": 4096}
    assert input_limits(PRMSpec(path="p"), config) == (4096, 4096)
    assert input_limits(PRMSpec(path="p", max_length=1000), config) == (4096, 1000)
    assert input_limits(PRMSpec(path="p", overlong="extend", longest_input=9000), config) == (4096, 9000)
    assert input_limits(PRMSpec(path="p", overlong="extend", longest_input=900), config) == (4096, 4096)
    with pytest.raises(UserError, match="must not exceed the PRM's context of 4096"):
        input_limits(PRMSpec(path="p", max_length=5000), config)
    with pytest.raises(UserError, match="max_position_embeddings"):
        input_limits(PRMSpec(path="p"), {})


def test_the_adapter_follows_folder_and_settings(tmp_path):
    folder = str(save_tiny_prm(tmp_path))
    loaded = load_adapter(PRMSpec(path=folder, mode="legacy", max_length=500))
    assert (loaded.name, loaded.context_tokens, loaded.max_tokens) == ("reasonflux_prm", 1024, 500)
    (item,) = loaded.adapter.plan(ScoreRequest("r", "1+1?", ("2",))).inputs
    assert item.score_positions.tolist() == [len(item.token_ids) - 1]
    assert load_adapter(PRMSpec(path=folder, adapter="qwen_math_prm")).reason == "as configured"
    with pytest.raises(UserError, match="adapter='nope'"):
        load_adapter(PRMSpec(path=folder, adapter="nope"))
