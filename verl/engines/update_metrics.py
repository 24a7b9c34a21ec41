# SPDX-License-Identifier: Apache-2.0
"""What is logged of an update, collected over optimizer steps and combined over ranks once. It knows no loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from verl.engines.attention import uses_varlen
from verl.engines.base import OptimizerReport, TrainEngine
from verl.engines.length_buckets import padded_places
from verl.engines.packing import PackedSequences


class UpdateMetrics:
    """Collects metric shares, reports and token counts.

    Names, each behind `<prefix>/`: the loss's own shares (summed over micro-batches and ranks, means over optimizer
    steps; a name that ends in `_max` is no share but a largest value of all of them); `grad_norm` (mean over steps
    that were not skipped), `grad_norm_max`, `lr` (last), `skipped_steps`, `optimizer_steps`, `empty_mini_batches`;
    `num_tokens` (all ranks), `micro_batches` (per rank), `padding_share` (of the tokens that went through the model),
    `attention_padding_share` (of the places that attention computed), `token_imbalance` (busiest rank over mean).

    Args:
        prefix: First part of every name.

    Example:
        >>> UpdateMetrics("actor").add_empty_mini_batch()
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._steps: list[dict[str, torch.Tensor]] = []
        self._reports: list[OptimizerReport] = []
        self._num_empty = 0
        self._num_micro_batches = 0
        self._real_tokens = 0
        self._model_tokens = 0
        self._grid_tokens = 0

    def add_step(self, shares: Sequence[dict[str, torch.Tensor]], report: OptimizerReport | None) -> None:
        """Add one mini-batch.

        Args:
            shares: One dict of scalars per micro-batch, all with the same names.
            report: What the optimizer did; None where nothing was trained.
        """
        table = {name: torch.stack([s[name].float() for s in shares]) for name in shares[0]}
        self._steps.append({name: row.amax() if _is_max(name) else row.sum() for name, row in table.items()})
        if report is not None:
            self._reports.append(report)

    def add_empty_mini_batch(self) -> None:
        """Count a mini-batch in which no rank had a token to train on: no optimizer step is made for it."""
        self._num_empty += 1

    def add_tokens(self, micro_batches: Sequence[PackedSequences], lengths: torch.Tensor) -> None:
        """Count what went through the model.

        Args:
            micro_batches: All of a mini-batch.
            lengths: [n] tokens of its sequences without padding.
        """
        self._num_micro_batches += len(micro_batches)
        self._real_tokens += int(lengths.sum())
        self._model_tokens += sum(micro_batch.num_tokens for micro_batch in micro_batches)
        self._grid_tokens += sum(padded_places(micro_batch.cu_seqlens.diff().tolist()) for micro_batch in micro_batches)

    def reduce(self, engine: TrainEngine) -> dict[str, float]:
        """Combine over steps and ranks; collective.

        Args:
            engine: Whose ranks.

        Returns:
            Metrics by full name, equal on every rank.
        """
        metrics = self._loss_metrics(engine) | self._optimizer_metrics() | self._token_metrics(engine)
        return {f"{self._prefix}/{name}": value for name, value in metrics.items()}

    def _loss_metrics(self, engine: TrainEngine) -> dict[str, float]:
        if not self._steps:
            return {}
        sums = sorted(name for name in self._steps[0] if not _is_max(name))
        largest = sorted(name for name in self._steps[0] if _is_max(name))
        combined = engine.all_reduce(self._table(sums), "sum").mean(dim=0).tolist()
        if largest:
            combined += engine.all_reduce(self._table(largest), "max").amax(dim=0).tolist()
        return dict(zip([*sums, *largest], combined, strict=True))

    def _table(self, names: Sequence[str]) -> torch.Tensor:
        return torch.stack([torch.stack([step[name] for name in names]) for step in self._steps])

    def _optimizer_metrics(self) -> dict[str, float]:
        metrics = {"empty_mini_batches": float(self._num_empty), "optimizer_steps": float(len(self._reports))}
        if not self._reports:
            return metrics
        norms = [report.grad_norm for report in self._reports if not report.is_skipped]
        return metrics | {
            "grad_norm": sum(norms) / len(norms) if norms else math.nan,
            "grad_norm_max": max(norms, default=math.nan),
            "lr": self._reports[-1].lr,
            "skipped_steps": float(sum(report.is_skipped for report in self._reports)),
        }

    def _token_metrics(self, engine: TrainEngine) -> dict[str, float]:
        compute = getattr(torch, engine.spec.precision.compute)
        attended = self._model_tokens if uses_varlen(engine.device.type, compute) else self._grid_tokens
        local = torch.tensor([self._real_tokens, self._model_tokens, attended], dtype=torch.float64)
        real, model, places = engine.all_reduce(local, "sum").tolist()
        busiest = float(engine.all_reduce(local[1], "max"))
        if real == 0:
            return {}
        return {
            "num_tokens": real,
            "micro_batches": float(self._num_micro_batches),
            "padding_share": 1.0 - real / model,
            "attention_padding_share": 1.0 - real / places,
            "token_imbalance": busiest * engine.dp_size / model,
        }


def _is_max(name: str) -> bool:
    return name.endswith("_max")
