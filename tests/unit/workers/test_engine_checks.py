# SPDX-License-Identifier: Apache-2.0
"""The driver asks about the engine that the ranks will build (which models: tests of `engines.preflight`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoConfig

from tests.helpers.configs import build
from verl.config import PRMTrainerConfig, SFTTrainerConfig
from verl.config.hydra import load_config
from verl.utils.errors import UserError
from verl.workers.engine_checks import check_policy, check_supervised

MODEL = "actor_rollout_ref.model"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("llama")
    AutoConfig.for_model("llama", num_hidden_layers=1).save_pretrained(folder)
    return str(folder)


def test_the_engine_and_the_adapters_of_the_configuration_are_asked_about(llama: str) -> None:
    check_policy(build(f"{MODEL}.path={llama}"))
    with pytest.raises(UserError, match="strategy=megatron trains Qwen2"):
        check_policy(build(f"{MODEL}.path={llama}", "actor_rollout_ref.actor.strategy=megatron"))
    with pytest.raises(UserError, match="nowhere"):
        check_policy(build(f"{MODEL}.path={llama}", f"{MODEL}.lora_rank=2", f"{MODEL}.target_modules=[nowhere]"))


def test_prm_training_needs_its_own_family(llama: str) -> None:
    settings = [f"model.path={llama}", "data.train_files=rows.jsonl"]
    check_supervised(load_config("sft_trainer", settings, SFTTrainerConfig).config)
    with pytest.raises(UserError, match="'llama' model, which Qwen2ForProcessRewardModel does not know"):
        check_supervised(load_config("prm_trainer", settings, PRMTrainerConfig).config)


def test_a_module_of_the_user_is_loaded_first(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_families.py").write_text("raise RuntimeError('I was loaded')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="I was loaded"):
        check_policy(build(f"{MODEL}.path={llama}", f"{MODEL}.external_lib=own_families"))


def test_a_module_of_the_user_that_is_not_there(llama: str) -> None:
    with pytest.raises(UserError, match=r"external_lib='own_familys': cannot be imported .*own_familys"):
        check_policy(build(f"{MODEL}.path={llama}", f"{MODEL}.external_lib=own_familys"))
