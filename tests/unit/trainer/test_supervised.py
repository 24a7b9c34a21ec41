# SPDX-License-Identifier: Apache-2.0
"""The supervised loop over a group that only writes down what it was asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from verl.config.sft import SupervisedTrainerConfig
from verl.protocol import DataProto
from verl.trainer.supervised import SupervisedData, SupervisedTrainer
from verl.trainer.supervised_batches import sft_batch
from verl.utils.errors import UserError


class RecordingGroup:
    """Two ranks; the loss of a batch is its first response token."""

    dp_size = 2

    def __init__(self) -> None:
        self.calls: list[str] = []

    def update(self, batch: DataProto) -> list[dict[str, float]]:
        self.calls.append("update")
        return [{"train/loss": self._first(batch), "train/num_tokens": 8.0}] * 2

    def evaluate(self, batch: DataProto) -> list[dict[str, float]]:
        self.calls.append("evaluate")
        num_targets = float(batch.batch["response_mask"].sum())
        return [{"loss": self._first(batch), "num_targets": num_targets} for _ in range(2)]

    def save_checkpoint(self, folder: str) -> None:
        self.calls.append(f"save {Path(folder).name}")
        Path(folder).mkdir(parents=True)

    def export_hf(self, folder: str) -> None:
        self.calls.append(f"export {Path(folder).name}")

    @staticmethod
    def _first(batch: DataProto) -> float:
        return float(batch.batch["responses"][0, 0])


class RecordingTracker:
    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows[step] = dict(metrics)

    def close(self) -> None:
        pass


def _rows(*responses: list[int]) -> dict[str, list]:
    return {"prompt_token_ids": [[1]] * len(responses), "response_token_ids": list(responses)}


@pytest.fixture
def run(tmp_path: Path) -> tuple[RecordingGroup, RecordingTracker]:
    config = SupervisedTrainerConfig(default_local_dir=str(tmp_path), test_freq=2, save_freq=3)
    data = SupervisedData(
        train=[_rows([10], [11]), _rows([20], [21])],
        val=[_rows([2, 2, 2], [2]), _rows([4, 4])],
        encode=sft_batch,
    )
    group, tracker = RecordingGroup(), RecordingTracker()
    SupervisedTrainer(config, group, data, tracker, total_steps=5).fit()
    return group, tracker


def test_order_of_work_over_more_than_one_epoch(run: tuple[RecordingGroup, RecordingTracker]) -> None:
    evaluation = ["evaluate", "evaluate"]
    assert run[0].calls == [
        "update",
        *("update", *evaluation),
        *("update", "save global_step_3.tmp"),
        *("update", *evaluation),
        *("update", *evaluation, "save global_step_5.tmp"),
        "export hf",
    ]
    assert [run[1].rows[step]["train/loss"] for step in range(1, 6)] == [10.0, 20.0, 10.0, 20.0, 10.0]


def test_validation_is_a_mean_over_targets_and_fillers_do_not_count(
    run: tuple[RecordingGroup, RecordingTracker],
) -> None:
    # 4 targets of loss 2 and, in a batch filled up from one row to two, 2 targets of loss 4.
    assert run[1].rows[2]["val/loss"] == pytest.approx((4 * 2.0 + 2 * 4.0) / 6)
    assert "val/loss" not in run[1].rows[1]


def test_only_complete_checkpoints_have_their_final_name(run: object, tmp_path: Path) -> None:
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["global_step_3", "global_step_5"]


class StumblingGroup(RecordingGroup):
    """Skips the optimizer steps that it is told to."""

    def __init__(self, skips: str) -> None:
        super().__init__()
        self._skips = iter(skips)

    def update(self, batch: DataProto) -> list[dict[str, float]]:
        skipped = {"train/optimizer_steps": 1.0, "train/skipped_steps": float(next(self._skips) == "x")}
        return [super().update(batch)[0] | skipped] * 2


def _train(tmp_path: Path, skips: str, limit: int) -> tuple[RecordingGroup, RecordingTracker]:
    config = SupervisedTrainerConfig(default_local_dir=str(tmp_path), max_skipped_steps=limit)
    group, tracker = StumblingGroup(skips), RecordingTracker()
    data = SupervisedData(train=[_rows([10], [11])], val=None, encode=sft_batch)
    SupervisedTrainer(config, group, data, tracker, total_steps=len(skips)).fit()
    return group, tracker


def test_steps_without_a_finite_gradient_are_counted_and_single_ones_forgiven(tmp_path: Path) -> None:
    group, tracker = _train(tmp_path, "x.xx.", limit=3)
    assert [tracker.rows[step]["train/skipped_steps/in_a_row"] for step in range(1, 6)] == [1.0, 0.0, 1.0, 2.0, 0.0]
    assert tracker.rows[5]["train/skipped_steps/sum"] == 3.0
    assert group.calls[-1] == "export hf"


def test_too_many_in_a_row_stop_the_run_and_leave_the_model(tmp_path: Path) -> None:
    group = StumblingGroup("..xxx...")
    tracker = RecordingTracker()
    config = SupervisedTrainerConfig(default_local_dir=str(tmp_path), max_skipped_steps=3)
    data = SupervisedData(train=[_rows([10], [11])], val=None, encode=sft_batch)
    with pytest.raises(UserError, match=r"trainer.max_skipped_steps=3: .*smaller optim.lr"):
        SupervisedTrainer(config, group, data, tracker, total_steps=8).fit()
    assert group.calls == ["update"] * 5 + ["export hf_stopped"]
    assert sorted(tracker.rows) == [1, 2, 3, 4, 5]


def test_a_run_may_be_told_never_to_stop(tmp_path: Path) -> None:
    group, _ = _train(tmp_path, "xxxxxx", limit=0)
    assert group.calls[-1] == "export hf"
