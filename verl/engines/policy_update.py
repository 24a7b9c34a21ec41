# SPDX-License-Identifier: Apache-2.0
"""The policy update: one loop of mini-batches and micro-batches over any `TrainEngine`. It knows no mesh and no Ray.

    for each epoch, for each mini-batch (= one optimizer step):
        count its tokens and sequences over all ranks          -> global denominators
        pack its rows into micro-batches, equally many per rank
        each micro-batch: log-probs -> shares of policy, KL and entropy loss -> backward
        clip, step

Every share is divided by the global counts before it is summed, so neither the cut into micro-batches nor the number
of ranks changes the loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from verl.algorithms.aggregation import LossDenominator, agg_loss
from verl.algorithms.kl import kl_penalty
from verl.algorithms.policy_losses import ClipSettings, PolicyLoss, get_policy_loss_fn
from verl.algorithms.rollout_correction import CorrectionSettings, masked_log_ratio, mismatch_sums, token_weights
from verl.engines.base import HeadOutputs, HeadRequest, TrainEngine
from verl.engines.micro_batches import MicroBatchSpec, make_micro_batches
from verl.engines.packing import PackedSequences, PaddedSequences
from verl.engines.update_metrics import UpdateMetrics


@dataclass(frozen=True)
class PolicyBatch:
    """One rank's share of a training batch, on the CPU.

    Args:
        prompts: [S, P] int64, left padded.
        prompt_mask: [S, P].
        responses: [S, R] int64, right padded.
        response_mask: [S, R]; a row of zeros (a dropped sequence) counts nowhere.
        old_log_probs: [S, R] float32, of the policy before this update; None where the update is one optimizer step:
            the log-probs of its own forward pass, taken as constants, are the old ones.
        advantages: [S, R] float32.
        ref_log_prob: [S, R] float32, of the reference; needed by the KL loss only.
        rollout_is_weights: [S, R] float32, factor of each token's policy loss (`rollout_correction`); None: all 1.
        rollout_log_probs: [S, R] float32, of the sampler; read only without `old_log_probs`, to log how far it is off.
    """

    prompts: torch.Tensor
    prompt_mask: torch.Tensor
    responses: torch.Tensor
    response_mask: torch.Tensor
    old_log_probs: torch.Tensor | None
    advantages: torch.Tensor
    ref_log_prob: torch.Tensor | None = None
    rollout_is_weights: torch.Tensor | None = None
    rollout_log_probs: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.responses.shape[0]

    @property
    def sequences(self) -> PaddedSequences:
        """The token columns."""
        return PaddedSequences(self.prompts, self.prompt_mask, self.responses, self.response_mask)


@dataclass(frozen=True)
class PolicyUpdateSpec:
    """How a batch becomes optimizer steps.

    Args:
        mini_batch_size: This rank's sequences per optimizer step.
        micro: Limits of a forward and backward pass.
        max_response_len: Fixed divisor of `seq-mean-token-sum-norm`, tokens.
        epochs: Passes over the batch.
        shuffle_seed: Draw the rows of each epoch in a new order; None keeps their order.
        loss_name: Registered policy loss.
        clip: Its bounds.
        loss_agg_mode: How token losses become one number.
        temperature: The one the responses were sampled at.
        entropy_coeff: Weight of the entropy bonus.
        kl_loss_coef: Weight of the KL to the reference; None leaves it out.
        kl_loss_type: Its estimator.
        live_correction: For old log-probs that are the sampler's own: compute weights in the loss, from the policy in
            training; None: they are the trainer's, and weights come with the batch if there are any.
    """

    mini_batch_size: int
    micro: MicroBatchSpec
    max_response_len: int
    epochs: int = 1
    shuffle_seed: int | None = None
    loss_name: str = "vanilla"
    clip: ClipSettings = ClipSettings()
    loss_agg_mode: str = "token-mean"
    temperature: float = 1.0
    entropy_coeff: float = 0.0
    kl_loss_coef: float | None = None
    kl_loss_type: str = "low_var_kl"
    live_correction: CorrectionSettings | None = None


def update_policy(engine: TrainEngine, batch: PolicyBatch, spec: PolicyUpdateSpec) -> dict[str, float]:
    """Train on a batch; collective, and equal metrics on every rank.

    Args:
        engine: Has an optimizer.
        batch: This rank's share, equally many rows on every rank.
        spec: The update.

    Returns:
        Means over the optimizer steps, by names `actor/...` (see `UpdateMetrics`): `loss`, `pg_loss`,
        `pg_clipfrac`, `ppo_kl` and whatever else the policy loss counts, `kl_loss` and `entropy` where they are on;
        without `old_log_probs` also `policy_entropy` and `rollout_...` (see `_own_log_probs_metrics`).

    Raises:
        ValueError: Ranks hold different numbers of rows, the KL loss lacks `ref_log_prob`, or several optimizer
            steps lack old log-probs.
    """
    if spec.kl_loss_coef is not None and batch.ref_log_prob is None:
        raise ValueError("the KL loss needs the column ref_log_prob")
    if batch.old_log_probs is None and (spec.epochs > 1 or len(batch) > spec.mini_batch_size):
        raise ValueError("without old_log_probs an update has one optimizer step: from the second on they differ")
    _check_equal_rows(engine, len(batch))
    metrics = UpdateMetrics("actor")
    on_device = _columns_to(batch, engine.device)
    head = HeadRequest(spec.temperature, with_entropy=spec.entropy_coeff != 0.0 or batch.old_log_probs is None)
    for epoch in range(spec.epochs):
        for rows in mini_batch_rows(len(batch), spec.mini_batch_size, spec.shuffle_seed, epoch):
            counts = count_globally(engine, batch.response_mask[rows], spec.max_response_len)
            if counts.num_tokens == 0:
                metrics.add_empty_mini_batch()
                continue
            micro_batches = make_micro_batches(engine, batch.sequences, rows, spec.micro)
            shares = engine.forward_backward(micro_batches, head, PolicyLossShare(on_device, spec, counts))
            metrics.add_step(shares, engine.optimizer_step())
            metrics.add_tokens(micro_batches, batch.sequences.lengths()[rows])
    return metrics.reduce(engine)


@dataclass(frozen=True)
class PolicyLossShare:
    """The loss of one micro-batch as its share of the mini-batch's: a `LossFn` for the engines.

    Args:
        batch: The rank's batch; its float columns lie on the engine's device.
        spec: The update.
        counts: Global denominators of the mini-batch.
    """

    batch: PolicyBatch
    spec: PolicyUpdateSpec
    counts: LossDenominator

    def __call__(
        self, micro_batch: PackedSequences, outputs: HeadOutputs
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the share and what to log of it.

        Args:
            micro_batch: On the engine's device.
            outputs: With log-probs, and with entropy if the bonus is on.

        Returns:
            Scalar loss with gradient; metric shares.
        """
        assert outputs.log_probs is not None
        log_probs = micro_batch.scatter(outputs.log_probs)
        mask = micro_batch.scatter(torch.ones_like(outputs.log_probs, requires_grad=False))
        rows, spec = micro_batch.rows, self.spec
        policy = self._policy_loss(log_probs, mask, rows)
        loss = self._aggregate(policy.loss, mask)
        metrics = {_metric_name(n): total / self.counts.num_tokens for n, total in policy.metric_sums.items()}
        metrics["pg_loss"] = loss
        if outputs.entropy is not None and spec.entropy_coeff != 0.0:
            entropy = self._aggregate(micro_batch.scatter(outputs.entropy), mask)
            metrics["entropy"] = entropy
            loss = loss - spec.entropy_coeff * entropy
        if spec.kl_loss_coef is not None and self.batch.ref_log_prob is not None:
            kl = self._aggregate(kl_penalty(log_probs, self.batch.ref_log_prob[rows], spec.kl_loss_type), mask)
            metrics["kl_loss"] = kl
            loss = loss + spec.kl_loss_coef * kl
        metrics["loss"] = loss
        if self.batch.old_log_probs is None:
            metrics |= self._own_log_probs_metrics(outputs, log_probs, mask, rows)
        return loss, metrics

    def _own_log_probs_metrics(
        self, outputs: HeadOutputs, log_probs: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """What the pass for the old log-probs would have told: the entropy, and how far the sampler is off."""
        metrics = {}
        if outputs.entropy is not None:
            metrics["policy_entropy"] = outputs.entropy.detach().sum() / self.counts.num_tokens
        if self.batch.rollout_log_probs is not None:
            sampler = self.batch.rollout_log_probs[rows]
            sums = mismatch_sums(log_probs, sampler, mask)
            metrics |= {f"rollout_{name}": total / self.counts.num_tokens for name, total in sums.items()}
            metrics["rollout_log_prob_diff_max"] = masked_log_ratio(log_probs, sampler, mask).abs().max()
        return metrics

    def _policy_loss(self, log_probs: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> PolicyLoss:
        """The loss per token times its importance weight, which is a constant. Denominators stay what they are: a token
        without weight counts as a loss of zero, so that leaving out many makes the step smaller and not noisier.

        With a live correction and weights, the surrogate stands at ratio 1 (nothing is clipped) and the weight alone
        is the truncated ratio: min(rho, cap) * A * grad log pi, as in CISPO (MiniMax-M1, arXiv 2506.13585, Eq. 4).
        """
        spec = self.spec
        old = log_probs.detach() if self.batch.old_log_probs is None else self.batch.old_log_probs[rows]
        sums: dict[str, torch.Tensor] = {}
        weights = None if self.batch.rollout_is_weights is None else self.batch.rollout_is_weights[rows]
        if spec.live_correction is not None:
            weights, keep_mask, is_capped = token_weights(log_probs, old, mask, spec.live_correction)
            sums = {f"rollout_{name}": total for name, total in mismatch_sums(log_probs, old, mask).items()}
            sums |= {"rollout_masked": mask.sum() - keep_mask.sum(), "rollout_truncated": is_capped.sum()}
            old = old if spec.live_correction.level == "none" else log_probs.detach()
        policy = get_policy_loss_fn(spec.loss_name)(log_probs, old, self.batch.advantages[rows], mask, spec.clip)
        if weights is None:
            return policy
        return replace(policy, loss=policy.loss * weights, metric_sums=policy.metric_sums | sums)

    def _aggregate(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return agg_loss(values, mask, self.spec.loss_agg_mode, self.counts)


def _metric_name(name: str) -> str:
    """Users know `actor/pg_clipfrac` and `actor/ppo_kl`."""
    return f"pg_{name}" if name.startswith("clip") else name


def mini_batch_rows(num_rows: int, size: int, shuffle_seed: int | None, epoch: int) -> Iterator[list[int]]:
    """Cut a rank's rows into mini-batches; the last one may be smaller.

    Args:
        num_rows: Rows of the rank.
        size: Rows per mini-batch.
        shuffle_seed: Seed of the order, the same on every rank; None keeps the order.
        epoch: Gives each epoch its own order.

    Yields:
        Row indices.
    """
    order = list(range(num_rows))
    if shuffle_seed is not None:
        generator = torch.Generator().manual_seed(shuffle_seed + epoch)
        order = torch.randperm(num_rows, generator=generator).tolist()
    for start in range(0, num_rows, size):
        yield order[start : start + size]


def count_globally(engine: TrainEngine, mask: torch.Tensor, max_response_len: int) -> LossDenominator:
    """Count a mini-batch's tokens and non-empty sequences over all ranks.

    Args:
        engine: Whose ranks.
        mask: [n, R], this rank's part.
        max_response_len: Passed through.

    Returns:
        The denominators.
    """
    local = torch.tensor([float(mask.bool().sum()), float(mask.bool().any(dim=1).sum())], dtype=torch.float64)
    num_tokens, num_sequences = engine.all_reduce(local, "sum").tolist()
    return LossDenominator(num_tokens, num_sequences, max_response_len)


def _check_equal_rows(engine: TrainEngine, num_rows: int) -> None:
    """Ranks with different numbers of mini-batches would wait for each other without end."""
    largest, negated_smallest = engine.all_reduce(torch.tensor([num_rows, -num_rows]), "max").tolist()
    if largest != -negated_smallest:
        raise ValueError(f"ranks hold between {-negated_smallest} and {largest} rows: they must hold equally many")


def _columns_to(batch: PolicyBatch, device: torch.device) -> PolicyBatch:
    """Move the columns that the loss reads; the tokens are packed on the CPU."""
    names = ("old_log_probs", "advantages", "ref_log_prob", "rollout_is_weights", "rollout_log_probs")
    columns = {name: getattr(batch, name) for name in names}
    return replace(batch, **{name: column.to(device) for name, column in columns.items() if column is not None})
