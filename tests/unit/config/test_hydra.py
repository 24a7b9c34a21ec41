# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.configs import REQUIRED, load, refusal
from verl.config import PPOTrainerConfig, PRMTrainerConfig, SFTTrainerConfig
from verl.config.hydra import load_config, parse_command_line
from verl.utils.errors import UserError


def test_defaults_come_from_the_dataclasses() -> None:
    loaded = load()
    assert loaded.config.trainer == PPOTrainerConfig().trainer
    assert loaded.config.reward_model == PPOTrainerConfig().reward_model
    assert loaded.notices == ()


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("actor_rollout_ref.actor.optim.lr=1e-6", 1e-6),
        ("actor_rollout_ref.actor.optim.lr=1", 1.0),
        ("+actor_rollout_ref.actor.optim.lr=2e-6", 2e-6),
        ("++actor_rollout_ref.actor.optim.lr=.5", 0.5),
    ],
)
def test_numbers(override: str, value: float) -> None:
    assert load(override).config.actor_rollout_ref.actor.optim.lr == value


def test_last_override_wins() -> None:
    assert load("trainer.seed=1", "trainer.seed=2").config.trainer.seed == 2


def test_lists_one_text_and_interpolation() -> None:
    loaded = load("trainer.logger=['console','wandb']", "data.val_files=${data.train_files}")
    assert loaded.config.trainer.logger == ("console", "wandb")
    assert loaded.config.data.val_files == ("train.parquet",)
    assert loaded.resolved["trainer"]["logger"] == ["console", "wandb"]


@pytest.mark.parametrize("path", ["~/x/y=3.parquet", "/data/a b (1).parquet", "/data/a=b/c,d.py", "C:/x:y"])
def test_texts_that_hydra_cannot_read_bare_are_quoted_for_the_user(path: str) -> None:
    expected = path.replace("~", str(Path.home()))
    assert load(f"actor_rollout_ref.model.path={path}").config.actor_rollout_ref.model.path == expected


def test_lists_of_such_texts_too() -> None:
    loaded = load("data.train_files=[~/a=1.parquet, /b (2).parquet]")
    assert loaded.config.data.train_files == (str(Path.home() / "a=1.parquet"), "/b (2).parquet")


@pytest.mark.parametrize("prefix", ["", "+", "++", "~"])
def test_unknown_key_is_refused_with_the_nearest_name(prefix: str) -> None:
    assert "trainer.sav_freq='5': unknown key. Did you mean trainer.save_freq?" in refusal(
        f"{prefix}trainer.sav_freq=5"
    )


def test_unknown_key_that_is_near_none_of_its_section() -> None:
    message = refusal("actor_rollout_ref.actor.optim.nesterov=True")
    assert message.endswith("unknown key. See section actor_rollout_ref.actor.optim in docs/configuration.md.")


def test_unknown_section_and_key_of_another_section() -> None:
    message = refusal("traner.seed=3", "data.lr=1")
    assert "Did you mean trainer.seed?" in message
    assert "Did you mean actor_rollout_ref.actor.optim.lr?" in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("actor_rollout_ref.actor.optim.lr=1e-6x", "lr='1e-6x': must be a finite number"),
        ("trainer.n_gpus_per_node=True", "must be a whole number"),
        ("data.shuffle=yes please", "must be True or False"),
        ("data.train_batch_size=1e3", "Write 1000"),
        ("trainer.seed", "is not KEY=VALUE"),
        ("=", "is not KEY=VALUE"),
        ("data.train_files=a,b", "Write a list as data.train_files=[a,b]"),
        ("trainer.seed=1,2", "would be several runs"),
        ("trainer.seed=range(1,4)", "would be several runs"),
        ("data.train_files=[a,b", "Hydra cannot read this value"),
        ("trainer=3", "is a section, not a value"),
        ("trainer.total_epochs=${trainer.nope}", "cannot be resolved"),
        ("trainer.total_epochs=???", "trainer.total_epochs"),
        ("actor_rollout_ref.rollout.engine_kwargs=3", "must be a mapping"),
    ],
)
def test_mistakes_in_overrides(override: str, said: str) -> None:
    message = refusal(override)
    assert said in message
    assert "Traceback" not in message


def test_all_mistakes_at_once_and_no_follow_up_of_a_mistake() -> None:
    # train_batch_size is wrong and stands at its default; nothing may be said about what that default does not fit.
    message = refusal(
        "data.train_batch_size=x", "actor_rollout_ref.actor.ppo_mini_batch_size=3000", "trainer.sav_freq=5"
    )
    assert message.startswith("2 mistakes")
    assert "ppo_mini_batch_size" not in message


def test_whole_mapping_and_single_entries() -> None:
    key = "custom_reward_function.reward_kwargs"
    loaded = load("custom_reward_function.path=f.py", f"{key}={{a:1}}", f"{key}.b.c=2", f"+{key}.d=[1,2]")
    assert loaded.config.custom_reward_function.reward_kwargs == {"a": 1, "b": {"c": 2}, "d": [1, 2]}


def test_deleted_key_takes_its_default() -> None:
    assert load("trainer.seed=7", "~trainer.seed").config.trainer.seed == PPOTrainerConfig().trainer.seed


def test_separator_may_be_typed_with_backslashes() -> None:
    loaded = load(r"reward_model.process_reward.step_separator='\n\n'", "reward_model.enable=False")
    assert loaded.config.reward_model.process_reward.step_separator == "\n\n"


def test_own_yaml_builds_on_the_shipped_one(tmp_path: Path) -> None:
    own = "defaults: [ppo_trainer, _self_]\ndata: {train_files: a.parquet, val_files: b.parquet}\n"
    own += "actor_rollout_ref: {model: {path: org/m}, rollout: {n: 4}, actor: {optim: {warmup_style: cosine}}}\n"
    (tmp_path / "mine.yaml").write_text(own)
    loaded = load_config("mine", ["trainer.seed=3"], PPOTrainerConfig, config_dir=str(tmp_path))
    assert loaded.config.actor_rollout_ref.rollout.n == 4
    assert loaded.config.actor_rollout_ref.actor.optim.lr_scheduler_type == "cosine"
    assert loaded.config.trainer.seed == 3


def test_own_yaml_alone_takes_the_dataclass_defaults(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "data: {train_files: a, val_files: b}\nactor_rollout_ref: {model: {path: a/b}}\n"
    )
    loaded = load_config("mine", ["actor_rollout_ref.rollout.n=2"], PPOTrainerConfig, config_dir=str(tmp_path))
    assert loaded.config.trainer == PPOTrainerConfig().trainer


def test_typo_in_own_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [ppo_trainer, _self_]\ntrainer: {sed: 3}\n")
    with pytest.raises(UserError, match=r"trainer\.sed=3: unknown key\. Did you mean trainer\.seed"):
        load_config("mine", list(REQUIRED), PPOTrainerConfig, config_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "folder", "said"),
    [
        ("ppo_trainr", None, "Did you mean ppo_trainer?"),
        ("mine", "/nowhere/at/all", "is not a folder"),
    ],
)
def test_missing_configuration(name: str, folder: str | None, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(name, [], PPOTrainerConfig, config_dir=folder)
    assert said in str(caught.value)


@pytest.mark.parametrize(("name", "root"), [("sft_trainer", SFTTrainerConfig), ("prm_trainer", PRMTrainerConfig)])
def test_supervised_roots(name: str, root: type) -> None:
    loaded = load_config(name, ["data.train_files=a.parquet", "model.path=org/m"], root)
    assert loaded.config == loaded.config.__class__(data=loaded.config.data, model=loaded.config.model)
    assert loaded.config.data.train_files == ("a.parquet",)


def test_command_line() -> None:
    line = parse_command_line(["--config-name", "x.yaml", "a=1", "--config-path=conf", "+b=2"], "ppo_trainer")
    assert (line.config_name, line.config_dir, line.overrides) == ("x", "conf", ("a=1", "+b=2"))
    assert not line.wants_help
    assert parse_command_line(["-h"], "ppo_trainer").wants_help
    assert parse_command_line([], "ppo_trainer").config_name == "ppo_trainer"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--trainer.seed=3", "Write trainer.seed=3, without dashes"),
        ("--config-name", "needs a value"),
        ("-m", "option"),
    ],
)
def test_command_line_mistakes(argument: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_command_line([argument], "ppo_trainer")
