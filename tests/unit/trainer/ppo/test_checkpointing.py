# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from verl.config import TrainerConfig
from verl.trainer.ppo.checkpointing import CheckpointFolders, read_trainer_state, write_trainer_state
from verl.utils.errors import UserError


def folders_in(folder: Path, **settings: object) -> CheckpointFolders:
    return CheckpointFolders(TrainerConfig(default_local_dir=str(folder), **settings))


def save(folders: CheckpointFolders, step: int) -> Path:
    write_trainer_state(folders.begin(step), {"global_steps": step}, {})
    return folders.commit(step)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("global_step_*")}


def test_a_checkpoint_exists_only_once_it_is_committed(tmp_path: Path) -> None:
    folders = folders_in(tmp_path)
    temporary = folders.begin(20)
    (temporary / "half.pt").write_text("half")
    assert folders.to_resume() is None
    assert not (tmp_path / "latest_checkpointed_iteration.txt").exists()

    final = folders.commit(20)
    assert final == tmp_path / "global_step_20"
    assert (final / "half.pt").read_text() == "half"
    assert names(tmp_path) == {"global_step_20"}
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "20"
    assert folders.to_resume() == final


def test_a_broken_run_is_told_where_it_would_go_on(tmp_path: Path) -> None:
    folders = folders_in(tmp_path)
    assert "the run begins anew" in folders.restart_hint()
    for step in (9, 10):
        save(folders, step)
    folders.begin(11)
    assert folders.restart_hint().endswith(f"the run goes on from {tmp_path / 'global_step_10'}.")


def test_begin_forgets_what_an_interrupted_save_left(tmp_path: Path) -> None:
    (folders_in(tmp_path).begin(5) / "old.pt").write_text("old")
    assert list(folders_in(tmp_path).begin(5).iterdir()) == []


def test_commit_replaces_a_checkpoint_of_the_same_step(tmp_path: Path) -> None:
    folders = folders_in(tmp_path)
    (folders.begin(5) / "first").touch()
    folders.commit(5)
    (folders.begin(5) / "second").touch()
    assert {path.name for path in folders.commit(5).iterdir()} == {"second"}


def test_the_newest_is_the_largest_number_not_the_last_name(tmp_path: Path) -> None:
    folders = folders_in(tmp_path)
    for step in (9, 10, 100):
        save(folders, step)
    folders.begin(200)
    (tmp_path / "global_step_best").mkdir()
    assert folders.to_resume() == tmp_path / "global_step_100"


def test_a_missing_folder_and_resume_mode_disable_start_afresh(tmp_path: Path) -> None:
    assert folders_in(tmp_path / "none").to_resume() is None
    save(folders_in(tmp_path), 5)
    assert folders_in(tmp_path, resume_mode="disable").to_resume() is None


def test_resume_path_wins_over_newer_checkpoints(tmp_path: Path) -> None:
    for step in (5, 6):
        save(folders_in(tmp_path), step)
    chosen = folders_in(tmp_path / "other", resume_mode="resume_path", resume_from_path=str(tmp_path / "global_step_5"))
    assert chosen.to_resume() == tmp_path / "global_step_5"


@pytest.mark.parametrize("path", ["global_step_7", ".", None])
def test_resume_path_that_is_no_checkpoint_is_refused(tmp_path: Path, path: str | None) -> None:
    save(folders_in(tmp_path), 5)
    value = None if path is None else str(tmp_path / path)
    with pytest.raises(UserError, match=r"trainer\.resume_from_path.*resume_mode=auto"):
        folders_in(tmp_path, resume_mode="resume_path", resume_from_path=value).to_resume()


@pytest.mark.parametrize(
    ("keep", "left"), [(None, {1, 2, 3, 11}), (1, {11}), (2, {3, 11}), (9, {1, 2, 3, 11})], ids=str
)
def test_only_the_newest_are_kept(tmp_path: Path, keep: int | None, left: set[int]) -> None:
    folders = folders_in(tmp_path, max_actor_ckpt_to_keep=keep)
    for step in (1, 2, 3, 11):
        save(folders, step)
    assert names(tmp_path) == {f"global_step_{step}" for step in left}


def test_the_checkpoint_just_written_is_kept_when_a_run_went_back(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(folders_in(tmp_path), step)
    written = save(folders_in(tmp_path, max_actor_ckpt_to_keep=2), 15)
    assert (written / "trainer_state.json").is_file()
    assert names(tmp_path) == {"global_step_15", "global_step_30"}


def test_trainer_state_comes_back_with_tensors_and_random_states(tmp_path: Path) -> None:
    state = {"global_steps": 7, "policy_version": 8, "kl_coef": 0.1}
    data = {"sampler": {"rng": random.Random(3).getstate(), "order": torch.arange(4)}, "epoch": 2}
    write_trainer_state(tmp_path, state, data)
    read_state, read_data = read_trainer_state(tmp_path)
    assert read_state == state
    assert read_data["sampler"]["rng"] == data["sampler"]["rng"]
    assert read_data["sampler"]["order"].tolist() == [0, 1, 2, 3]
    assert read_data["epoch"] == 2


def test_a_run_that_went_back_resumes_from_what_it_wrote_last(tmp_path: Path) -> None:
    folders = folders_in(tmp_path)
    for step in (10, 30, 20):
        save(folders, step)
    resumed = folders.to_resume()
    assert resumed is not None and resumed.name == "global_step_20"
