# SPDX-License-Identifier: Apache-2.0
"""The controller benchmark: its steps are real ones, batches survive their way, and growth is told from times."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.data_plane import growth_exponent, measure, parse, show, step_config
from benchmarks.instant import RepeatedRows, instant_runtime, prompt_rows, shipped
from verl.protocol import DataProto
from verl.trainer.ppo.ray_trainer import RayPPOTrainer
from verl.utils.async_loop import BackgroundLoop

SMALL = ["--samples", "2", "--ranks", "2", "--response", "16", "--prompt", "4", "--repeats", "1"]


def test_growth() -> None:
    sizes = [192, 768, 3072]
    assert growth_exponent(sizes, [0.1 * size for size in sizes]) == pytest.approx(1.0)
    assert growth_exponent(sizes, [1e-6 * size**2 for size in sizes]) == pytest.approx(2.0)


def test_a_step_is_a_real_one() -> None:
    config = step_config(8, parse([*SMALL, "--sizes", "8", "16"]))
    loop = BackgroundLoop("test")
    try:
        rows = RepeatedRows(prompt_rows(4, 4))
        trainer = RayPPOTrainer(config, instant_runtime(config, loop), rows, None, None)
        metrics = trainer.train_step()
    finally:
        loop.close()
    assert metrics["reward/accuracy/mean"] == 0.5
    assert metrics["advantage/abs/mean"] > 0  # rewards differ inside a group
    assert metrics["actor/optimizer_steps"] == 1.0 and metrics["response/length/max"] <= 16


def test_a_shipped_batch_is_the_same_in_other_memory() -> None:
    column = torch.arange(6).reshape(3, 2)
    batch = DataProto.from_dict(tensors={"responses": column}, non_tensors={"uid": np.array(["a", "b", "c"], object)})
    arrived = shipped(batch)
    column[0, 0] = 9
    assert arrived.batch["responses"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert list(arrived.non_tensor_batch["uid"]) == ["a", "b", "c"]


def test_a_whole_run_with_the_share_of_a_step(tmp_path: Path) -> None:
    result = measure(parse([*SMALL, "--sizes", "8", "16", "--step_s", "100", "--step_sequences", "8"]))
    assert [each["sequences"] for each in result["results"]] == [8, 16]
    assert result["share_of_step"]["share"] == result["share_of_step"]["controller"]["step_s"] / 100
    assert "time grows as sequences^" in show(result) and json.dumps(result)


def test_sizes_that_ranks_cannot_share_are_refused() -> None:
    for sizes in (["8", "9"], ["8", "8"]):
        with pytest.raises(SystemExit):
            parse([*SMALL, "--sizes", *sizes])
