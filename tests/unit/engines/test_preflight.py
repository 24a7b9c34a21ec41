# SPDX-License-Identifier: Apache-2.0
"""Which models the engines refuse before a device is claimed, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from tests.helpers.tiny_models import save_tiny_model
from verl.engines.adapters import LoraSpec
from verl.engines.base import EngineSpec
from verl.engines.preflight import check_trainable
from verl.utils.errors import UserError

PRM = "verl.rewards.prm.model:Qwen2ForProcessRewardModel"


def write_family(folder: Path, family: str, **changes: Any) -> str:
    """A model of a family in its default size: a config and no weights."""
    AutoConfig.for_model(family, **changes).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral", "phi3", "olmo2"])
def test_families_that_can_be_trained_without_their_weights_at_hand(family: str, tmp_path: Path) -> None:
    check_trainable(EngineSpec(write_family(tmp_path, family)))


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("t5", "holds a 't5' model, which AutoModelForCausalLM does not know"),
        ("bloom", "'bloom' model, which lets no other attention be put in"),
        ("bert", "BertLMHeadModel has no plain output projection"),
        ("falcon", "'falcon' model, which lets no other attention be put in"),
        ("recurrent_gemma", "'recurrent_gemma' model, which has layers of the kind recurrent"),
        ("llama4_text", "'llama4_text' model, which has layers of the kind chunked_attention"),
        ("mamba", "'mamba' model, which lets no other attention be put in"),
        ("gemma2", "'gemma2' model, which caps its attention scores"),
        ("gpt_oss", "'gpt_oss' model, which has attention sinks"),
    ],
)
def test_families_whose_packed_sequences_would_be_wrong(family: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        check_trainable(EngineSpec(write_family(tmp_path, family)))
    assert said in str(caught.value) and "actor_rollout_ref.model.path" in str(caught.value)


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("cohere", {}, "changes its logits (logit_scale=0.0625)"),
        ("granite", {"logits_scaling": 8.0}, "changes its logits (logits_scaling=8.0)"),
        ("gemma3_text", {"final_logit_softcapping": 5.0}, "changes its logits (final_logit_softcapping=5.0)"),
        ("nanochat", {}, "changes its logits (final_logit_softcapping=15.0)"),
    ],
)
def test_families_whose_log_probs_would_be_wrong(
    family: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        check_trainable(EngineSpec(write_family(tmp_path, family, **changes)))
    assert said in str(caught.value) and "actor_rollout_ref.model.path" in str(caught.value)


@pytest.mark.parametrize(("family", "changes"), [("granite", {"logits_scaling": 1.0}), ("gemma3_text", {})])
def test_logits_that_are_left_as_they_are(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    check_trainable(EngineSpec(write_family(tmp_path, family, **changes)))


def test_a_class_of_one_family_refuses_the_others(tmp_path: Path) -> None:
    path = write_family(tmp_path, "llama")
    with pytest.raises(UserError, match=r"'llama' model, which Qwen2ForProcessRewardModel.*of the family 'qwen2'"):
        check_trainable(EngineSpec(path, model_class=PRM, head="classification", fresh_weights=("score.",)))


@pytest.mark.parametrize("strategy", ["fsdp2", "megatron"])
def test_a_reward_model_is_no_policy(strategy: str, tmp_path: Path) -> None:
    path = write_family(tmp_path, "qwen2", architectures=["Qwen2ForProcessRewardModel"])
    with pytest.raises(UserError, match=r"model\.path.*holds a Qwen2ForProcessRewardModel, not a language model"):
        check_trainable(EngineSpec(path, strategy=strategy))
    check_trainable(EngineSpec(path, model_class=PRM, head="classification", fresh_weights=("score.",)))


def test_a_family_that_transformers_does_not_know(tmp_path: Path) -> None:
    folder = Path(save_tiny_model(tmp_path))
    content = json.loads((folder / "config.json").read_text()) | {"model_type": "qwen99"}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"cannot be read by this transformers \(.*qwen99"):
        check_trainable(EngineSpec(str(folder)))


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("llama", {}, "holds a 'llama' model; strategy=megatron trains Qwen2"),
        ("qwen2", {"use_sliding_window": True}, "uses sliding-window attention"),
    ],
)
def test_megatron_trains_one_family(family: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        check_trainable(EngineSpec(write_family(tmp_path, family, **changes), strategy="megatron"))
    check_trainable(EngineSpec(write_family(tmp_path / "plain", "qwen2"), strategy="megatron"))


def test_adapters_and_heads_need_their_layers(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    check_trainable(EngineSpec(path, lora=LoraSpec(4)))
    check_trainable(EngineSpec(path, model_class=PRM, head="classification", fresh_weights=("score.",)))
    with pytest.raises(UserError, match="target_modules='nowhere'"):
        check_trainable(EngineSpec(path, lora=LoraSpec(4, target_modules=("nowhere",))))
    with pytest.raises(UserError, match="no classification head"):
        check_trainable(EngineSpec(path, head="classification"))
