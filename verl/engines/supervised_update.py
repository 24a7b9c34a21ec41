# SPDX-License-Identifier: Apache-2.0
"""Supervised training over any `TrainEngine`: next-token loss (SFT) and step-label loss (PRM). It knows no data files.

One call is one optimizer step; the loss is a mean over all targets of all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from verl.engines.base import HeadOutputs, HeadRequest, LossFn, TrainEngine
from verl.engines.micro_batches import MicroBatchSpec, make_micro_batches
from verl.engines.packing import LabelledSequences, PackedSequences, PaddedSequences
from verl.engines.update_metrics import UpdateMetrics

SupervisedBatch = PaddedSequences | LabelledSequences


@dataclass(frozen=True)
class NextTokenLoss:
    """Cross-entropy of the target tokens, as a share of the mean: a `LossFn`.

    Args:
        num_targets: Targets of the batch over all ranks.
    """

    num_targets: float

    def __call__(
        self, micro_batch: PackedSequences, outputs: HeadOutputs
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the share.

        Args:
            micro_batch: On the engine's device.
            outputs: With log-probs.

        Returns:
            Scalar loss in nats with gradient; metric `loss`.
        """
        assert outputs.log_probs is not None
        loss = -outputs.log_probs.sum() / self.num_targets
        return loss, {"loss": loss}


@dataclass(frozen=True)
class StepLabelLoss:
    """Cross-entropy of the two classes against labels between 0 and 1, as a share of the mean: a `LossFn`.

    Args:
        labels: [S, K] float32 on the engine's device, the probability of class 1.
        num_targets: Labels of the batch over all ranks.
    """

    labels: torch.Tensor
    num_targets: float

    def __call__(
        self, micro_batch: PackedSequences, outputs: HeadOutputs
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the share.

        Args:
            micro_batch: On the engine's device.
            outputs: With class logits.

        Returns:
            Scalar loss in nats with gradient; metrics `loss`, `accuracy` (label and prediction on the same side of
            one half) and `positive_share` (labels above one half).
        """
        assert outputs.logits is not None
        right = micro_batch.gather(self.labels)
        soft = torch.stack([1.0 - right, right], dim=-1)
        loss = F.cross_entropy(outputs.logits, soft, reduction="sum") / self.num_targets
        is_right, says_right = right > 0.5, outputs.logits[:, 1] > outputs.logits[:, 0]
        return loss, {
            "loss": loss,
            "accuracy": (is_right == says_right).sum() / self.num_targets,
            "positive_share": is_right.sum() / self.num_targets,
        }


def update_supervised(engine: TrainEngine, batch: SupervisedBatch, micro: MicroBatchSpec) -> dict[str, float]:
    """Make one optimizer step; collective, and equal metrics on every rank.

    Args:
        engine: Has an optimizer, and the head that fits the batch.
        batch: This rank's rows, at least one, on the CPU. `PaddedSequences` trains next tokens, `LabelledSequences`
            step labels.
        micro: Limits of a forward and backward pass.

    Returns:
        Metrics `train/...`: the loss's own and those of `UpdateMetrics`.
    """
    metrics = UpdateMetrics("train")
    num_targets = _count_targets(engine, batch)
    if num_targets == 0:
        metrics.add_empty_mini_batch()
        return metrics.reduce(engine)
    micro_batches = make_micro_batches(engine, batch, range(len(batch)), micro)
    shares = engine.forward_backward(micro_batches, HeadRequest(), _loss_for(engine, batch, num_targets))
    metrics.add_step(shares, engine.optimizer_step())
    metrics.add_tokens(micro_batches, batch.lengths())
    return metrics.reduce(engine)


def evaluate_supervised(
    engine: TrainEngine, batch: SupervisedBatch, micro: MicroBatchSpec
) -> tuple[dict[str, float], float]:
    """Measure the loss without training; collective.

    Args:
        engine: Has the head that fits the batch.
        batch: This rank's rows, at least one, on the CPU.
        micro: Limits of a forward pass.

    Returns:
        The loss's own metrics, means over all targets; the number of targets, to average over several batches.
    """
    num_targets = _count_targets(engine, batch)
    micro_batches = make_micro_batches(engine, batch, range(len(batch)), micro)
    loss_fn = _loss_for(engine, batch, max(num_targets, 1.0))
    outputs = engine.forward(micro_batches, HeadRequest())
    shares = [loss_fn(m.to(engine.device), out)[1] for m, out in zip(micro_batches, outputs, strict=True)]
    names = sorted(shares[0])
    totals = engine.all_reduce(torch.stack([torch.stack([s[n].float() for s in shares]).sum() for n in names]), "sum")
    return dict(zip(names, totals.tolist(), strict=True)), num_targets


def _count_targets(engine: TrainEngine, batch: SupervisedBatch) -> float:
    mask = batch.response_mask if isinstance(batch, PaddedSequences) else batch.label_mask
    return float(engine.all_reduce(mask.bool().sum().double(), "sum"))


def _loss_for(engine: TrainEngine, batch: SupervisedBatch, num_targets: float) -> LossFn:
    if isinstance(batch, PaddedSequences):
        return NextTokenLoss(num_targets)
    return StepLabelLoss(batch.labels.float().to(engine.device), num_targets)
