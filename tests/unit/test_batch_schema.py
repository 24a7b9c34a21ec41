# SPDX-License-Identifier: Apache-2.0
"""The column contract: what is missing is named with reader and writer, what is wrong with what would be right."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from verl.batch_schema import COLUMNS, SchemaError, Stage, check, require
from verl.protocol import DataProto


def full_batch(**changes: object) -> DataProto:
    tensors = {
        "responses": torch.zeros(2, 3, dtype=torch.int64),
        "response_mask": torch.ones(2, 3, dtype=torch.int64),
        "token_level_rewards": torch.zeros(2, 3),
        "is_correct": torch.zeros(2, dtype=torch.bool),
    }
    others = {
        "uid": ["a", "a"],
        "step_scores": [np.zeros(2, np.float32), np.zeros(0, np.float32)],
        "step_ends": [np.zeros(2, np.int64), np.zeros(0, np.int64)],
    }
    for name, value in changes.items():
        home = tensors if isinstance(value, torch.Tensor) else others
        (others if home is tensors else tensors).pop(name, None)
        home[name] = value
    return DataProto.from_dict(tensors, others)


def test_the_schema_loads_no_torch():
    code = "import sys, verl.batch_schema; sys.exit(1 if 'torch' in sys.modules else 0)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_stage_that_has_all_its_columns_passes():
    require(full_batch(), Stage.ADVANTAGE)
    require(full_batch(), Stage.ADVANTAGE, also=("step_scores", "step_ends"))


def test_a_missing_column_is_named_with_reader_and_writer():
    batch = full_batch().select(["uid", "response_mask"])
    with pytest.raises(SchemaError) as caught:
        require(batch, Stage.ADVANTAGE)
    message = str(caught.value)
    assert "'advantage' reads missing" in message and "'token_level_rewards' (written by stage 'reward')" in message
    assert "response_mask, uid" in message


def test_a_conditional_column_is_asked_for_by_name():
    with pytest.raises(SchemaError, match="'rule_scores' \\(written by stage 'rule_score'\\)"):
        require(full_batch(), Stage.ADVANTAGE, also=("rule_scores",))
    with pytest.raises(KeyError, match="not read by stage"):
        require(full_batch(), Stage.ADVANTAGE, also=("prompts",))
    with pytest.raises(KeyError):
        require(full_batch(), Stage.ADVANTAGE, also=("no_such_column",))


def test_a_sound_batch_passes_the_check_and_own_columns_are_left_alone():
    check(full_batch())
    check(full_batch(my_column=torch.zeros(2, 7, 7, dtype=torch.float64)))
    check(full_batch(response_mask=torch.ones(2, 3, dtype=torch.bool)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"responses": torch.zeros(2, 3)}, "'responses' is float32, expected int64"),
        ({"token_level_rewards": torch.zeros(2, 3, dtype=torch.bfloat16)}, "is bfloat16, expected float32"),
        ({"token_level_rewards": torch.zeros(2, 4)}, "'token_level_rewards' has R=4, but responses has R=3"),
        ({"token_level_rewards": torch.zeros(2)}, r"shape \(2,\), expected \['S', 'R'\]"),
        ({"is_correct": torch.zeros(2)}, "'is_correct' is float32, expected bool"),
        ({"is_correct": [True, False]}, "'is_correct' belongs into batch"),
        ({"uid": torch.zeros(2)}, "'uid' belongs into non_tensor_batch"),
        ({"step_scores": [np.zeros(2), np.zeros(0)]}, r"'step_scores', row 0: float64\[2\], expected float32"),
        ({"step_scores": [[0.5, 0.5], []]}, "'step_scores', row 0: list, expected float32"),
        ({"step_scores": [np.zeros((2, 1), np.float32), np.zeros(0, np.float32)]}, r"float32\[2, 1\]"),
        ({"step_ends": [np.zeros(1, np.int64), np.zeros(0, np.int64)]}, "row 0: 2 step_scores but 1 step_ends"),
    ],
)
def test_a_wrong_column_is_named_with_what_is_right(changes, message):
    with pytest.raises(SchemaError, match=message):
        check(full_batch(**changes))


def test_nobody_reads_a_column_before_it_is_written():
    order = list(Stage)
    scores = (Stage.RULE_SCORE, Stage.PROCESS_SCORE, Stage.LOG_PROBS)  # these run side by side
    for column in COLUMNS.values():
        for reader in column.readers + column.sometimes:
            assert order.index(column.writer) < order.index(reader), column.name
            assert not (column.writer in scores and reader in scores), column.name
