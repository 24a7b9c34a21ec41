# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers.engine_cases import one_rank_group
from tests.helpers.tiny_models import random_padded, save_tiny_model, tiny_model
from verl.engines.base import EngineSpec, OptimizerSpec, PrecisionSpec, build_engine
from verl.engines.micro_batches import MicroBatchSpec
from verl.engines.packing import LabelledSequences
from verl.engines.supervised_update import evaluate_supervised, update_supervised
from verl.rewards.prm.model import Qwen2ForProcessRewardModel

FLOAT32 = PrecisionSpec(compute="float32")
OPTIMIZER = OptimizerSpec(lr=1e-2, weight_decay=0.0)
MICRO = MicroBatchSpec(max_tokens=20)


@pytest.fixture(autouse=True, scope="module")
def group() -> Iterator[None]:
    with one_rank_group():
        yield


def _labelled() -> LabelledSequences:
    sequences = random_padded([5, 9, 4], [3, 1, 8])
    ids = torch.cat([sequences.prompts.flip(1), sequences.responses], dim=1)
    mask = torch.cat([sequences.prompt_mask.flip(1), sequences.response_mask], dim=1)
    rows = [ids[i][mask[i].bool()] for i in range(3)]
    lengths = torch.tensor([len(row) for row in rows])
    return LabelledSequences(
        input_ids=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        attention_mask=(torch.arange(int(lengths.max()))[None, :] < lengths[:, None]).long(),
        positions=torch.tensor([[1, 7, 0], [9, 0, 0], [0, 3, 11]]),
        labels=torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.0, 0.0], [1.0, 1.0, 0.0]]),
        label_mask=torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]]),
    )


def test_next_token_loss_is_the_mean_over_all_response_tokens_and_falls(tmp_path: Path) -> None:
    batch, model = random_padded([3, 6, 2, 5], [7, 1, 9, 4]), tiny_model()
    nll = []
    for row in range(len(batch)):
        prompt = batch.prompts[row][batch.prompt_mask[row].bool()]
        response = batch.responses[row][batch.response_mask[row].bool()]
        logits = model(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
        nll.append(torch.nn.functional.cross_entropy(logits, response, reduction="none"))
    expected = torch.cat(nll).mean().item()

    engine = build_engine(EngineSpec(save_tiny_model(tmp_path), OPTIMIZER, device="cpu", precision=FLOAT32))
    metrics, num_targets = evaluate_supervised(engine, batch, MICRO)
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert num_targets == 21.0
    losses = [update_supervised(engine, batch, MICRO)["train/loss"] for _ in range(15)]
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < 0.5 * losses[0]


def test_step_label_loss_equals_plain_cross_entropy_and_the_trained_prm_is_exported(tmp_path: Path) -> None:
    torch.manual_seed(3)
    reference = Qwen2ForProcessRewardModel(tiny_model().config).float().eval()
    reference.save_pretrained(tmp_path / "prm")
    batch = _labelled()
    terms, hits = [], []
    for row in range(3):
        logits = reference(batch.input_ids[row][batch.attention_mask[row].bool()][None])[0]
        keep = batch.label_mask[row].bool()
        chosen, labels = logits[batch.positions[row][keep]], batch.labels[row][keep]
        table = torch.log_softmax(chosen, dim=-1)
        terms.append(-(labels * table[:, 1] + (1 - labels) * table[:, 0]))
        hits.append((chosen[:, 1] > chosen[:, 0]) == (labels > 0.5))

    spec = EngineSpec(
        str(tmp_path / "prm"),
        OPTIMIZER,
        device="cpu",
        model_class="verl.rewards.prm.model:Qwen2ForProcessRewardModel",
        head="classification",
        precision=FLOAT32,
    )
    engine = build_engine(spec)
    metrics, num_targets = evaluate_supervised(engine, batch, MICRO)
    assert num_targets == 6.0
    assert metrics["loss"] == pytest.approx(torch.cat(terms).mean().item(), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(torch.cat(hits).float().mean().item())
    assert metrics["positive_share"] == pytest.approx(3 / 6)

    losses = [update_supervised(engine, batch, MICRO)["train/loss"] for _ in range(15)]
    assert losses[-1] < 0.5 * losses[0]
    engine.export_hf(str(tmp_path / "out"), torch.float32)
    exported = Qwen2ForProcessRewardModel.from_pretrained(tmp_path / "out")
    assert exported.config.architectures == ["Qwen2ForProcessRewardModel"]
    for name, weight in engine.named_weights():
        assert exported.get_parameter(name).equal(weight)


def test_a_batch_without_labels_makes_no_step(tmp_path: Path) -> None:
    batch = random_padded([3, 2], [2, 1])
    engine = build_engine(EngineSpec(save_tiny_model(tmp_path), OPTIMIZER, device="cpu", precision=FLOAT32))
    empty = type(batch)(batch.prompts, batch.prompt_mask, batch.responses, batch.response_mask * 0)
    assert update_supervised(engine, empty, MICRO)["train/empty_mini_batches"] == 1.0


def test_a_label_that_is_no_number_makes_no_step(tmp_path: Path) -> None:
    torch.manual_seed(3)
    Qwen2ForProcessRewardModel(tiny_model().config).float().save_pretrained(tmp_path / "prm")
    spec = EngineSpec(
        str(tmp_path / "prm"),
        OPTIMIZER,
        device="cpu",
        model_class="verl.rewards.prm.model:Qwen2ForProcessRewardModel",
        head="classification",
        precision=FLOAT32,
    )
    engine, good = build_engine(spec), _labelled()
    before = {name: weight.clone() for name, weight in engine.named_weights()}
    metrics = update_supervised(engine, replace(good, labels=good.labels * float("nan")), MICRO)
    assert metrics["train/skipped_steps"] == metrics["train/optimizer_steps"] == 1.0
    assert all(before[name].equal(weight) for name, weight in engine.named_weights())
    assert update_supervised(engine, good, MICRO)["train/skipped_steps"] == 0.0
