# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities and running totals of the implicit PRM; warnings and gradients of loaded models."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.prm_families import FAMILIES, family_spec, save_family
from verl.rewards.prm.scoring_model import load_language_model, load_scoring_model
from verl.rewards.prm.spec import load_adapter
from verl.rewards.prm.types import PRMInput, PRMPlan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_family("implicit_prm", tmp_path_factory.mktemp("implicit"))


@pytest.mark.parametrize("shape", [(3, 50), (3, 900)], ids=["at once", "in parts"])
def test_log_probs_are_those_of_the_causal_model(folder, shape):
    ids = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = plain(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        found = load_language_model(folder, torch.float32)(ids)
    assert found.shape == ids.shape and torch.equal(found[:, 0], torch.zeros(3))
    torch.testing.assert_close(found[:, 1:], expected, atol=2e-5, rtol=1e-5)


def test_an_input_of_one_token_has_no_log_prob(folder):
    assert torch.equal(load_language_model(folder, torch.float32)(torch.tensor([[5]])), torch.zeros(1, 1))


def test_a_model_compared_with_itself_rewards_nothing(folder):
    loaded = load_adapter(family_spec("implicit_prm", folder))
    model = load_scoring_model(folder, loaded.head, torch.float32, reference_path=str(folder), beta=3.0)
    rows = (torch.zeros(4, dtype=torch.long), torch.arange(4))
    assert torch.equal(model(torch.tensor([[5, 6, 7, 8]]), rows), torch.zeros(4, 2, dtype=torch.float64))


def test_steps_are_differences_of_running_totals():
    plan = PRMPlan(
        (PRMInput([1] * 9, torch.tensor([2, 4, 4]).numpy(), 0), PRMInput([1] * 9, torch.tensor([5, 8]).numpy(), 2)),
        differences=True,
    )
    rows = [torch.tensor([[0.0, 1.5], [0, 2.0], [0, 2.0]]).numpy(), torch.tensor([[0.0, 7.0], [0, 4.0]]).numpy()]
    assert plan.gather(rows).logits.tolist() == [[0.0, 0.5], [0.0, 0.0], [0.0, -3.0]]
    with pytest.raises(ValueError, match="gave"):
        plan.gather([rows[0][1:], rows[1]])


@pytest.mark.parametrize("adapter", FAMILIES)
def test_loading_is_quiet_and_leaves_nothing_to_train(adapter, tmp_path, caplog):
    """transformers warns of every tensor that it does not know: those of heads are known to us."""
    loaded = load_adapter(family_spec(adapter, save_family(adapter, tmp_path)))
    model = load_scoring_model(loaded.folder, loaded.head, torch.float32, str(tmp_path / "reference"))
    assert not [record for record in caplog.records if "LOAD REPORT" in record.getMessage()]
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())
