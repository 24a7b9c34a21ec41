# SPDX-License-Identifier: Apache-2.0
"""The published helper's names: values against computations of our own, and the documented snippets run as they are."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, Qwen2ForCausalLM

from tests.helpers.prm import save_tiny_prm, tiny_config
from tests.helpers.tokenizers import byte_tokenizer
from verl.rewards.prm.model import load_prm
from verl.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
APPLICATION = ROOT / "Application"
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "prm_usage.md").read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def rm_utils():
    """The module as the snippets find it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(APPLICATION))
        yield importlib.import_module("utils.rm_utils")
        for name in ("utils", "utils.rm_utils"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def step_prm(tmp_path_factory) -> Path:
    return save_tiny_prm(tmp_path_factory.mktemp("prm-7b"))


def save_value_model(folder: Path, seed: int = 3) -> Path:
    """ReasonFlux-PRM-1.5B's layout: causal language model, tokenizer, and a head in a file of its own."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    Qwen2ForCausalLM(tiny_config(tokenizer, initializer_range=0.2)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.save({"weight": torch.randn(1, 64) / 4, "bias": torch.tensor([0.3])}, folder / "reward_head.pt")
    return folder


@pytest.fixture(scope="module")
def value_prm(tmp_path_factory) -> Path:
    return save_value_model(tmp_path_factory.mktemp("prm-1.5b"))


def value_by_hand(folder: Path, text: str) -> float:
    """One unpadded forward, the last hidden state, the head's formula written out."""
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([byte_tokenizer()(text)["input_ids"]])
    with torch.no_grad():
        last = model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
    head = torch.load(folder / "reward_head.pt", weights_only=True)
    value = float((head["weight"][0] * last).sum() + head["bias"][0])
    return 1 / (1 + math.exp(-value))


class TestMakeStepRewards:
    def test_values_positions_and_ragged_batches(self, rm_utils):
        torch.manual_seed(0)
        logits = torch.randn(3, 7, 2) * 3
        masks = torch.zeros(3, 7, dtype=torch.bool)
        masks[0, [1, 4, 6]] = True
        masks[2, 0] = True
        wanted = [
            [
                math.exp(logits[b, t, 1]) / (math.exp(logits[b, t, 0]) + math.exp(logits[b, t, 1]))
                for t in range(7)
                if masks[b, t]
            ]
            for b in range(3)
        ]
        got = rm_utils.make_step_rewards(logits, masks)
        assert [len(row) for row in got] == [3, 0, 1]
        for row, expected in zip(got, wanted, strict=True):
            assert row == pytest.approx(expected, rel=1e-5) and all(type(value) is float for value in row)
        assert rm_utils.make_step_rewards(logits, masks.long()) == got

    def test_exact_zeros_and_ones_are_scores(self, rm_utils):
        """A reader of nonzero values loses the first two steps here, and pairs the rest wrongly."""
        logits = torch.tensor([[[300.0, -300.0], [-300.0, 300.0], [0.0, 0.0], [300.0, -300.0]]])
        masks = torch.ones(1, 4, dtype=torch.bool)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert rm_utils.make_step_rewards(logits.to(dtype), masks) == [[0.0, 1.0, 0.5, 0.0]]

    def test_the_softmax_is_finer_than_the_logits(self, rm_utils):
        """In bfloat16 both probabilities would be 1."""
        logits = torch.tensor([[[0.0, 6.5], [0.0, 7.5]]], dtype=torch.bfloat16)
        ((first, second),) = rm_utils.make_step_rewards(logits, torch.ones(1, 2))
        assert 0.998 < first < second < 1.0

    def test_no_step_and_no_sample(self, rm_utils):
        assert rm_utils.make_step_rewards(torch.randn(2, 5, 2), torch.zeros(2, 5)) == [[], []]
        assert rm_utils.make_step_rewards(torch.randn(0, 5, 2), torch.zeros(0, 5)) == []

    def test_one_tokens_logits_stand_for_every_step(self, rm_utils):
        """As the published training code calls it, with the logits of the last valid token."""
        masks = torch.tensor([[True, False, True]])
        (row,) = rm_utils.make_step_rewards(torch.tensor([0.5, 1.5]), masks)
        assert row == pytest.approx([1 / (1 + math.exp(-1.0))] * 2)

    @pytest.mark.parametrize(("logits", "mask"), [((1, 4, 152064), (1, 4)), ((1, 4, 1), (1, 4)), ((1, 4, 2), (4,))])
    def test_a_model_without_its_head_is_refused(self, rm_utils, logits, mask):
        with pytest.raises(ValueError, match="AutoModel drops the head"):
            rm_utils.make_step_rewards(torch.zeros(logits), torch.zeros(mask))


class TestProcessRewardModel:
    def test_logits_are_the_models_own_and_padding_changes_nothing(self, rm_utils, step_prm):
        model = rm_utils.load_process_reward_model(str(step_prm), device_map="cpu", trust_remote_code=True)
        ids = torch.randint(0, 200, (1, 9), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            plain = load_prm(str(step_prm), torch.float32)(ids)
            outputs = model(input_ids=ids)
            padded = model(torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], 1), torch.tensor([[0] * 4 + [1] * 9]))
        assert outputs[0].shape == (1, 9, 2) and outputs.logits is outputs[0]
        torch.testing.assert_close(outputs[0], plain)
        torch.testing.assert_close(padded[0][:, 4:], plain, atol=1e-5, rtol=1e-5)
        assert model.device == torch.device("cpu") and not model.training

    def test_dtype_of_the_backbone(self, rm_utils, step_prm):
        for dtype in (torch.bfloat16, "bfloat16"):
            model = rm_utils.load_process_reward_model(str(step_prm), device_map="cpu", torch_dtype=dtype)
            assert next(model.parameters()).dtype == torch.bfloat16
            assert model(input_ids=torch.tensor([[1, 2]]))[0].dtype == torch.float32

    def test_auto_model_drops_the_head_which_is_noticed(self, rm_utils, step_prm):
        """Why the snippets need a loader of ours."""
        with torch.no_grad():
            hidden = AutoModel.from_pretrained(step_prm)(input_ids=torch.tensor([[1, 2]]))[0]
        assert hidden.shape == (1, 2, 64)
        with pytest.raises(ValueError, match="load_process_reward_model"):
            rm_utils.make_step_rewards(hidden, torch.ones(1, 2))

    def test_a_policy_is_refused(self, rm_utils, value_prm):
        with pytest.raises(UserError, match="score"):
            rm_utils.load_process_reward_model(str(value_prm))


class TestRewardModel:
    TEXTS = ("What is 1+1? It is 2.", "Short", "A third text that is quite a bit longer than both of the others: 1+1=2")

    @pytest.mark.parametrize("side", ["right", "left"])
    def test_padding_on_either_side_gives_each_texts_own_reward(self, rm_utils, value_prm, side):
        model = rm_utils.RewardModel.from_pretrained(str(value_prm), auth_token="unused for a folder")
        tokenizer = byte_tokenizer()
        tokenizer.padding_side = side
        encoded = tokenizer(list(self.TEXTS), return_tensors="pt", padding=True)
        with torch.no_grad():
            rewards = model(encoded["input_ids"], encoded["attention_mask"])
        assert rewards.shape == (3,) and rewards.dtype == torch.float32
        wanted = [value_by_hand(value_prm, text) for text in self.TEXTS]
        assert rewards.tolist() == pytest.approx(wanted, abs=1e-5)
        assert max(wanted) - min(wanted) > 0.01

    def test_without_a_mask_the_last_token_counts(self, rm_utils, value_prm):
        model = rm_utils.RewardModel.from_pretrained(str(value_prm), device_map="cpu")
        ids = torch.tensor([byte_tokenizer()(self.TEXTS[0])["input_ids"]])
        with torch.no_grad():
            assert model(ids).item() == pytest.approx(value_by_hand(value_prm, self.TEXTS[0]), abs=1e-5)

    def test_a_row_without_tokens_is_refused(self, rm_utils, value_prm):
        model = rm_utils.RewardModel.from_pretrained(str(value_prm))
        with pytest.raises(ValueError, match="without any token"):
            model(torch.tensor([[1, 2], [1, 2]]), torch.tensor([[1, 1], [0, 0]]))

    def test_a_missing_or_wrong_head_is_refused(self, rm_utils, step_prm, tmp_path):
        with pytest.raises(UserError, match=r"must hold reward_head\.pt"):
            rm_utils.RewardModel.from_pretrained(str(step_prm))
        folder = save_value_model(tmp_path)
        torch.save({"weight": torch.zeros(2, 64)}, folder / "reward_head.pt")
        with pytest.raises(UserError, match=r"reward_head\.pt.*must hold weight"):
            rm_utils.RewardModel.from_pretrained(str(folder))

    def test_a_head_that_runs_code_is_not_loaded(self, rm_utils, tmp_path):
        folder = save_value_model(tmp_path / "model")
        marker = tmp_path / "it ran"
        torch.save({"weight": Bomb(str(marker))}, folder / "reward_head.pt")
        with pytest.raises(UserError, match=r"reward_head\.pt"):
            rm_utils.RewardModel.from_pretrained(str(folder))
        assert not marker.exists()


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def run_snippet(number: int, step_prm: Path, value_prm: Path) -> list[str]:
    source = SNIPPETS[number]
    for name, folder in {"Gen-Verse/ReasonFlux-PRM-7B": step_prm, "Gen-Verse/ReasonFlux-PRM-1.5B": value_prm}.items():
        source = source.replace(name, str(folder))
    # a CPU run in float32, so that the numbers can be compared exactly
    source = source.replace("torch.bfloat16", "torch.float32")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=APPLICATION, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_the_documented_7b_snippet_runs_and_agrees_with_the_scorer(step_prm, value_prm):
    assert "make_step_rewards(outputs[0], token_masks)" in SNIPPETS[1]
    (line,) = run_snippet(1, step_prm, value_prm)
    tokenizer = byte_tokenizer()
    shown = "First, 3 * 4 = 12.<extra_0>Then 12 - 2 = 10.<extra_0>"
    messages = [{"role": "user", "content": "What is 3 * 4 - 2?"}, {"role": "assistant", "content": shown}]
    ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False))["input_ids"]
    with torch.no_grad():
        probabilities = torch.softmax(load_prm(str(step_prm), torch.float32)(torch.tensor([ids]))[0], -1)[:, 1]
    step_id = tokenizer.convert_tokens_to_ids("<extra_0>")
    wanted = [float(probabilities[place]) for place, token in enumerate(ids) if token == step_id]
    assert len(wanted) == 2
    assert json.loads(line) == pytest.approx(wanted, abs=1e-5)


def test_the_documented_1_5b_snippet_runs(step_prm, value_prm):
    assert "RewardModel.from_pretrained(" in SNIPPETS[2]
    (line,) = run_snippet(2, step_prm, value_prm)
    text = "What is 3 * 4 - 2?First, 3 * 4 = 12.\n\nThen 12 - 2 = 10."
    assert float(line) == pytest.approx(value_by_hand(value_prm, text), abs=1e-5)


def test_the_documented_scorer_runs(step_prm, value_prm):
    lines = run_snippet(0, step_prm, value_prm)
    assert len(lines) == 2 and all(line.startswith("[0.") for line in lines)
