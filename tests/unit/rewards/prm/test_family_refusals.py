# SPDX-License-Identifier: Apache-2.0
"""Folders that a PRM family cannot run are refused from their files alone: key, value, what is allowed, the mend."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tests.helpers.prm_families import (
    FAMILIES,
    NEWLINE_MERGES,
    family_spec,
    rewrite_config,
    rewrite_tensors,
    save_family,
    sentencepiece_tokenizer,
)
from tests.helpers.tokenizers import byte_tokenizer, char_tokenizer
from verl.rewards.prm.checks import check_prm
from verl.rewards.prm.spec import PRMSpec, load_adapter
from verl.utils.errors import UserError


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return {adapter: save_family(adapter, tmp_path_factory.mktemp(adapter)) for adapter in FAMILIES}


@pytest.fixture
def copy_of(originals, tmp_path):
    return lambda adapter, name="prm": shutil.copytree(originals[adapter], tmp_path / name)


def refusal(spec: PRMSpec) -> str:
    with pytest.raises(UserError) as caught:
        check_prm(spec)
    return str(caught.value)


@pytest.mark.parametrize("adapter", FAMILIES)
def test_every_family_passes_and_says_what_it_is(adapter, originals):
    facts = check_prm(family_spec(adapter, originals[adapter]))
    assert (facts.adapter, facts.hidden_size, facts.max_tokens) == (adapter, 64, 1024)
    assert facts.notices == (f"PRM adapter {adapter}: as configured",)


# --- auto -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        ("reasonflux_prm", "architecture Qwen2ForProcessRewardModel"),
        ("reasonflux_prm_1_5b", "file reward_head.pt"),
        ("skywork_prm", "architecture Qwen2ForPrmModel"),
        ("pure_prm", "architecture Qwen2ForTokenClassification and 2 labels in score.weight"),
    ],
)
def test_auto_knows_a_family_by_its_head(adapter, reason, originals):
    facts = check_prm(family_spec(adapter, originals[adapter], adapter="auto"))
    assert facts.adapter == adapter and facts.notices == (f"PRM adapter {adapter}: {reason}",)


def test_auto_believes_a_tensor_where_the_architecture_says_nothing(copy_of):
    folder = copy_of("skywork_prm")
    rewrite_config(folder, architectures=["Qwen2ForCausalLM"])
    loaded = load_adapter(family_spec("skywork_prm", folder, adapter="auto"))
    assert (loaded.name, loaded.reason) == ("skywork_prm", "tensor v_head.summary.weight")


@pytest.mark.parametrize(
    ("adapter", "name"),
    [
        ("math_shepherd", "math-shepherd-mistral-7b-prm"),
        ("rlhflow_prm", "Llama3.1-8B-PRM-Deepseek-Data"),
        ("implicit_prm", "EurusPRM-Stage2"),
    ],
)
def test_auto_knows_a_language_model_by_its_name_only(adapter, name, originals, copy_of):
    loaded = load_adapter(family_spec(adapter, copy_of(adapter, name), adapter="auto"))
    assert loaded.name == adapter and "in the name" in loaded.reason
    said = refusal(family_spec(adapter, originals[adapter], adapter="auto"))
    assert "reward_model.process_reward.adapter='auto'" in said
    assert "math_shepherd, rlhflow_prm, implicit_prm" in said and "several families, or none" in said


def test_auto_leaves_a_classifier_of_other_labels_alone(copy_of):
    folder = copy_of("pure_prm")
    rewrite_tensors(folder, {"score.weight": torch.zeros(3, 64), "score.bias": torch.zeros(3)})
    assert "no adapter is known for architectures ['Qwen2ForTokenClassification']" in refusal(
        family_spec("pure_prm", folder, adapter="auto")
    )


# --- the wrong head ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["reasonflux_prm", "skywork_prm", "pure_prm"])
@pytest.mark.parametrize("other", ["reasonflux_prm", "skywork_prm", "pure_prm", "implicit_prm"])
def test_a_checkpoint_of_another_family_is_refused(adapter, other, copy_of):
    if adapter == other:
        return
    folder = copy_of(other)
    said = refusal(family_spec(adapter, folder))
    assert "must hold a process reward head" in said and "but it is missing" in said
    assert f"reward_model.model.path='{folder}'" in said and "reward_model.process_reward.adapter" in said


def test_three_labels_are_no_prm_of_pure(copy_of):
    folder = copy_of("pure_prm")
    rewrite_tensors(folder, {"score.weight": torch.zeros(3, 64), "score.bias": torch.zeros(3)})
    assert "score.weight of shape [2, 64], but it has shape [3, 64]" in refusal(family_spec("pure_prm", folder))


def test_a_value_head_of_another_width_is_refused(copy_of):
    folder = copy_of("skywork_prm")
    rewrite_tensors(folder, {"v_head.summary.weight": torch.zeros(1, 32)})
    assert "v_head.summary.weight of shape [1, 64], but it has shape [1, 32]" in refusal(
        family_spec("skywork_prm", folder)
    )


def test_a_reward_file_that_is_missing_or_of_another_width_is_refused(copy_of):
    folder = copy_of("reasonflux_prm_1_5b")
    torch.save({"weight": torch.zeros(1, 32), "bias": torch.zeros(1)}, folder / "reward_head.pt")
    assert "must hold weight [1, 64] and bias [1]" in refusal(family_spec("reasonflux_prm_1_5b", folder))
    (folder / "reward_head.pt").unlink()
    assert "must hold reward_head.pt" in refusal(family_spec("reasonflux_prm_1_5b", folder))


@pytest.mark.parametrize("adapter", ["math_shepherd", "rlhflow_prm", "implicit_prm"])
def test_a_language_model_without_its_head_is_refused(adapter, copy_of):
    folder = copy_of(adapter)
    rewrite_tensors(folder, {"lm_head.weight": None})
    said = refusal(family_spec(adapter, folder))
    assert "must hold the head of a language model, lm_head.weight" in said and "is missing" in said


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(copy_of):
    folder = copy_of("math_shepherd")
    rewrite_tensors(folder, {"lm_head.weight": torch.zeros(20, 64)})
    assert "but it has shape [20, 64]" in refusal(family_spec("math_shepherd", folder))


# --- the wrong tokenizer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["skywork_prm", "pure_prm"])
def test_a_tokenizer_without_a_line_end_of_its_own_is_refused(adapter, copy_of):
    folder = copy_of(adapter)
    char_tokenizer("abc ").save_pretrained(folder)
    assert "the step token '\\n' must be exactly one token" in refusal(family_spec(adapter, folder))


@pytest.mark.parametrize(
    ("tokenizer", "token"),
    [(sentencepiece_tokenizer(with_step_tag=False), "ки"), (char_tokenizer("ки abc"), "ки")],
    ids=["bytes", "characters"],
)
def test_a_step_tag_of_several_tokens_is_refused(tokenizer, token, copy_of):
    folder = copy_of("math_shepherd")
    tokenizer.save_pretrained(folder)
    assert f"the step token {token!r} must be exactly one token" in refusal(family_spec("math_shepherd", folder))


def test_a_step_tag_that_is_another_token_within_a_text_is_refused(copy_of):
    """Byte-level vocabularies keep a blank with the word behind it: alone and in a text are two tokens."""
    folder = copy_of("math_shepherd")
    merges = (("Ð", "º"), ("Ð", "¸"), ("Ðº", "Ð¸"), ("Ġ", "ÐºÐ¸"))
    byte_tokenizer(merges).save_pretrained(folder)
    assert "must be the same token alone" in refusal(family_spec("math_shepherd", folder))


def test_rlhflow_needs_single_signs_and_a_template_of_turns(copy_of):
    folder = copy_of("rlhflow_prm")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    template = folder / "chat_template.jinja"
    template.write_text("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}")
    assert "does not show user and assistant in turns" in refusal(family_spec("rlhflow_prm", folder))
    template.unlink()
    assert "has no chat template" in refusal(family_spec("rlhflow_prm", folder))
    char_tokenizer("abc -").save_pretrained(folder)
    assert "the step token '+' must be exactly one token" in refusal(family_spec("rlhflow_prm", folder))


# --- the reference of an implicit PRM ---------------------------------------------------------------------------------

REFERENCE = "reward_model.process_reward.implicit.reference_path"


def test_an_implicit_prm_needs_a_reference_that_it_can_be_compared_with(copy_of):
    folder = copy_of("implicit_prm")
    other = folder / "reference"
    assert f"{REFERENCE}=''" in refusal(family_spec("implicit_prm", folder, reference_path=""))
    assert f"{REFERENCE}='/nowhere'" in refusal(family_spec("implicit_prm", folder, reference_path="/nowhere"))
    rewrite_config(other, max_position_embeddings=512)
    assert "reads 512 tokens" in refusal(family_spec("implicit_prm", folder))
    assert check_prm(family_spec("implicit_prm", folder, max_length=512)).max_tokens == 512
    rewrite_config(other, max_position_embeddings=1024)
    byte_tokenizer(NEWLINE_MERGES[:1]).save_pretrained(other)
    assert "must have the PRM's tokenizer" in refusal(family_spec("implicit_prm", folder))
    byte_tokenizer(NEWLINE_MERGES).save_pretrained(other)
    rewrite_tensors(other, {"lm_head.weight": None})
    said = refusal(family_spec("implicit_prm", folder))
    assert f"{REFERENCE}='{other}'" in said and "lm_head.weight" in said


# --- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", FAMILIES)
def test_legacy_is_for_families_whose_score_can_stand_at_the_last_token(adapter, originals):
    spec = family_spec(adapter, originals[adapter], mode="legacy")
    if adapter in ("reasonflux_prm", "qwen_math_prm", "reasonflux_prm_1_5b"):
        assert check_prm(spec).adapter == adapter
    else:
        said = refusal(spec)
        assert "reward_model.process_reward.mode='legacy'" in said and "Use mode step" in said
