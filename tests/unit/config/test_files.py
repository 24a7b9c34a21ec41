# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.configs import WITH_PRM, build
from tests.unit.config.test_model_shape import write_config
from verl.config import PPOTrainerConfig, SFTTrainerConfig
from verl.config.files import check_files, is_hub_id
from verl.config.hydra import load_config
from verl.utils.errors import UserError


@pytest.fixture
def data(tmp_path: Path) -> tuple[str, ...]:
    for name in ("train.parquet", "test.jsonl", "notes.txt"):
        (tmp_path / name).touch()
    return (f"data.train_files={tmp_path / 'train.parquet'}", f"data.val_files={tmp_path / 'test.jsonl'}")


def configured(data: tuple[str, ...], *overrides: str) -> PPOTrainerConfig:
    return build(*data, *overrides)


def test_files_that_are_there_and_hub_ids_pass(data: tuple[str, ...]) -> None:
    check_files(configured(data, *WITH_PRM))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.train_files={dir}/trian.parquet"], "Did you mean {dir}/train.parquet?"),
        (["data.train_files={dir}/nowhere/deep/x.parquet"], "The path exists up to {dir} only"),
        (
            ["data.val_files=[{dir}/train.parquet,{dir}/zzz.parquet]"],
            "data.val_files='{dir}/zzz.parquet': there is no such",
        ),
        (["data.train_files={dir}"], "is a folder. Name a file in it, e.g. {dir}/test.jsonl"),
        (["data.train_files={dir}/notes.txt"], "allowed: .parquet | .jsonl | .json"),
        (["data.train_files=s3://bucket/x.parquet"], "only local files are read"),
        (["actor_rollout_ref.model.path={dir}/policy"], "there is no such model folder (nor a hub id org/name)"),
        (["actor_rollout_ref.model.path={dir}"], "holds no config.json, so it is not a model in HF format"),
        (["actor_rollout_ref.model.path=/nowhere"], "there is no such model folder"),
        (["actor_rollout_ref.model.tokenizer_path={dir}/tokens"], "there is no such tokenizer folder"),
        ([*WITH_PRM, "reward_model.model.path={dir}/prm"], "reward_model.model.path"),
        (["trainer.output_dir={dir}/notes.txt/run"], "{dir}/notes.txt is a file, so no folder can be made there"),
        (["trainer.rollout_data_dir={dir}/notes.txt"], "trainer.rollout_data_dir='{dir}/notes.txt'"),
        (["custom_reward_function.path={dir}/f.py"], "there is no such Python file"),
        (
            ["trainer.resume_mode=resume_path", "trainer.resume_from_path={dir}/global_step_9"],
            "there is no such checkpoint folder",
        ),
    ],
)
def test_what_is_not_there(data: tuple[str, ...], tmp_path: Path, overrides: list[str], said: str) -> None:
    config = configured(data, *(override.format(dir=tmp_path) for override in overrides))
    with pytest.raises(UserError) as caught:
        check_files(config)
    assert said.format(dir=tmp_path) in str(caught.value)


def test_a_prm_that_is_off_is_not_looked_for(data: tuple[str, ...]) -> None:
    check_files(configured(data, "reward_model.model.path=/nowhere"))


def test_all_missing_files_at_once() -> None:
    with pytest.raises(UserError) as caught:
        check_files(configured(("data.train_files=/a/b.parquet", "data.val_files=/a/c.parquet")))
    assert str(caught.value).startswith("2 mistakes")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.max_response_length=32768"], "exceeds the model's context of 32768 tokens. Set it to 32256 or less"),
        (["actor_rollout_ref.rollout.tensor_model_parallel_size=8"], "must divide the model's 28 attention heads"),
    ],
)
def test_sizes_against_the_model(data: tuple[str, ...], tmp_path: Path, overrides: list[str], said: str) -> None:
    model = f"actor_rollout_ref.model.path={write_config(tmp_path / 'policy')}"
    check_files(configured(data, model, "data.max_response_length=32256"))
    with pytest.raises(UserError) as caught:
        check_files(configured(data, model, *overrides))
    assert said in str(caught.value)


def test_devices_of_a_replica_against_the_heads_of_the_prm(data: tuple[str, ...], tmp_path: Path) -> None:
    prm = (
        "reward_model.enable=True",
        f"reward_model.model.path={write_config(tmp_path / 'prm')}",
        "reward_model.enable_resource_pool=True",
        "reward_model.n_gpus_per_node=8",
    )
    check_files(configured(data, *prm, "reward_model.tensor_model_parallel_size=4"))
    with pytest.raises(UserError, match=r"reward_model\.tensor_model_parallel_size=8: must divide the model's 28 att"):
        check_files(configured(data, *prm, "reward_model.tensor_model_parallel_size=8"))


def test_supervised_runs(data: tuple[str, ...], tmp_path: Path) -> None:
    check_files(load_config("sft_trainer", [*data, "model.path=org/m"], SFTTrainerConfig).config)
    with pytest.raises(UserError, match="model folder"):
        check_files(load_config("sft_trainer", [*data, "model.path=/nowhere"], SFTTrainerConfig).config)


def test_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_hub_id("Qwen/Qwen2.5-7B-Instruct")
    for path in ("model", "/abs/model", "./here/model", "a/b/c", "org/", "~/x"):
        assert not is_hub_id(path), path
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("org/name")
