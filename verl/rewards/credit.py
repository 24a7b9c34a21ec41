# SPDX-License-Identifier: Apache-2.0
"""From scores to token-level rewards: Eq. 11, Eq. 12, and where on the response their parts are placed.

    r_hat = agg_k s_k + alpha * s_traj                     Eq. 11 (ReasonFlux-PRM, arXiv 2506.18896)
    r     = (1 - beta) * r_out + beta * r_hat              Eq. 12

The placed row is dense and its sum is Eq. 12 (gate 1), so an estimator that sums rewards reproduces the paper exactly.
Knows no PRM, no verifier and no advantage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from verl.rewards.types import ScoredResponse
from verl.utils.errors import UserError

AGGREGATIONS = ("mean", "min", "last", "prod")
GATES = ("none", "correct_only", "outcome_sign")
MODES = ("step", "scalar", "legacy")
UNSCORED = ("failed", "off")
_SECTION = "reward_model.process_reward"


@dataclass(frozen=True)
class CreditRule:
    """How scores are blended and placed.

    Args:
        alpha: Weight of the trajectory score in Eq. 11.
        beta: Weight of the process reward in Eq. 12, 0 to 1.
        aggregation: `mean` (the paper's), `min`, `last` or `prod` of the step scores.
        gate: Factor of the process reward: `none` 1; `correct_only` 1 or 0; `outcome_sign` +1 or -1. The outcome's
            weight stays (1 - beta).
        mode: `step` places each step's part at its last token; `scalar` everything at the response's last token;
            `legacy` is the published code: beta times one score, no trajectory score.
        score_space: What the scores are; `prod` needs probabilities.
    """

    alpha: float = 1.0
    beta: float = 0.75
    aggregation: str = "mean"
    gate: str = "none"
    mode: str = "step"
    score_space: str = "prob"

    def __post_init__(self) -> None:
        """Refuse names and numbers that mean nothing."""
        named = {"aggregation": AGGREGATIONS, "gate": GATES, "mode": MODES}
        for name, allowed in named.items():
            value = getattr(self, name)
            if value not in allowed:
                raise UserError.for_key(
                    f"{_SECTION}.{name}", value, f"must be one of {', '.join(allowed)}", "Choose one"
                )
        if not 0.0 <= self.beta <= 1.0:
            raise UserError.for_key(f"{_SECTION}.beta", self.beta, "must be from 0 to 1", "Give the process share")
        if self.aggregation == "prod" and self.score_space != "prob":
            raise UserError.for_key(
                f"{_SECTION}.aggregation", "prod", "needs probabilities", f"Set {_SECTION}.score_space=prob"
            )


@dataclass(frozen=True)
class ScoreColumns:
    """Scores of S responses, as the batch's columns hold them.

    Args:
        rule_scores: [S] float32, r_out without any length penalty.
        overlong_penalty: [S] float32, 0 or negative, added to r_out.
        is_correct: [S] bool.
        step_scores: S arrays [K_n] float32, an object array.
        step_ends: S arrays [K_n] int64, an object array: each reasoning step's last token.
        traj_scores: [S] float32.
        prm_status: [S] texts, an object array; `failed` and `off` rows get r_out alone, in full.
    """

    rule_scores: np.ndarray
    overlong_penalty: np.ndarray
    is_correct: np.ndarray
    step_scores: np.ndarray
    step_ends: np.ndarray
    traj_scores: np.ndarray
    prm_status: np.ndarray

    @classmethod
    def of(cls, scored: Sequence[ScoredResponse]) -> ScoreColumns:
        """Collect the columns.

        Args:
            scored: S responses, in the batch's order.

        Returns:
            Their scores; ragged columns are object arrays, as `DataProto` keeps them.
        """
        return cls(
            rule_scores=np.array([item.rule_score for item in scored], dtype=np.float32),
            overlong_penalty=np.array([item.overlong_penalty for item in scored], dtype=np.float32),
            is_correct=np.array([item.verdict.is_correct for item in scored], dtype=bool),
            step_scores=_ragged([np.asarray(item.step_scores, dtype=np.float32) for item in scored]),
            step_ends=_ragged([np.asarray(item.step_ends, dtype=np.int64) for item in scored]),
            traj_scores=np.array([item.traj_score for item in scored], dtype=np.float32),
            prm_status=_ragged([item.prm_status for item in scored]),
        )


def aggregate(step_scores: np.ndarray, aggregation: str) -> float:
    """Return agg_k s_k of Eq. 11, 0 without steps.

    Args:
        step_scores: [K].
        aggregation: `mean`, `min`, `last` or `prod`.
    """
    return float(step_parts(step_scores, aggregation).sum())


def step_parts(step_scores: np.ndarray, aggregation: str) -> np.ndarray:
    """Cut an aggregate into what each reasoning step adds to it, so that the parts' sum is the aggregate.

    Args:
        step_scores: [K].
        aggregation: `mean` gives s_k / K, `last` all to the last step, `min` and `prod` the change of the running
            minimum or product (the first step: all of its score).

    Returns:
        [K] float64.

    Raises:
        ValueError: The aggregation is unknown.
    """
    scores = np.asarray(step_scores, dtype=np.float64)
    if not len(scores):
        return scores
    if aggregation == "mean":
        return scores / len(scores)
    if aggregation == "last":
        return np.where(np.arange(len(scores)) == len(scores) - 1, scores, 0.0)
    running = {"min": np.minimum.accumulate, "prod": np.multiply.accumulate}
    if aggregation not in running:
        raise ValueError(f"aggregation={aggregation!r}: must be one of {', '.join(AGGREGATIONS)}")
    return np.diff(running[aggregation](scores), prepend=0.0)


def process_reward(step_scores: np.ndarray, traj_score: float, rule: CreditRule) -> float:
    """Return r_hat of Eq. 11; in mode `legacy` the published code's, which has no trajectory score.

    Args:
        step_scores: [K]; without steps r_hat is 0.
        traj_score: Score of the whole response.
        rule: alpha, aggregation and mode.
    """
    alpha = 0.0 if rule.mode == "legacy" or not len(step_scores) else rule.alpha
    return aggregate(step_scores, rule.aggregation) + alpha * float(traj_score)


def blend(outcome: float, process: float, beta: float) -> float:
    """Return r of Eq. 12.

    Args:
        outcome: r_out.
        process: r_hat.
        beta: Weight of the process reward.
    """
    return (1.0 - beta) * outcome + beta * process


def gate_factor(is_correct: bool, gate: str) -> float:
    """Return the factor of the process reward.

    Args:
        is_correct: The verifier's verdict.
        gate: `none`, `correct_only` or `outcome_sign`.
    """
    return {"none": 1.0, "correct_only": float(is_correct), "outcome_sign": 1.0 if is_correct else -1.0}[gate]


def place_rewards(columns: ScoreColumns, response_mask: torch.Tensor, rule: CreditRule) -> torch.Tensor:
    """Place every response's rewards on its tokens.

        row[end_k]  += beta * gate * part_k                                             (mode `step`)
        row[last]   += beta * gate * alpha * s_traj + (1 - beta) * r_out

    Args:
        columns: Scores of S responses.
        response_mask: [S, R], 1 on the response's own tokens; its last one (EOS, usually) is `last`.
        rule: How.

    Returns:
        [S, R] float32 `token_level_scores`, 0 where nothing is placed.

    Raises:
        ValueError: A response without tokens, a step end outside its response, a NaN among scores that are used.
    """
    rows = np.zeros(tuple(response_mask.shape), dtype=np.float64)
    lengths = _lengths(response_mask)
    for n, row in enumerate(rows):
        outcome = float(columns.rule_scores[n]) + float(columns.overlong_penalty[n])
        if columns.prm_status[n] in UNSCORED:
            row[lengths[n] - 1] = outcome
            continue
        scores, ends = np.asarray(columns.step_scores[n]), np.asarray(columns.step_ends[n])
        if len(scores) != len(ends) or (len(ends) and not 0 <= ends.min() <= ends.max() < lengths[n]):
            raise ValueError(f"row {n}: {len(scores)} step scores at {ends} do not fit {lengths[n]} response tokens")
        gated = rule.beta * gate_factor(bool(columns.is_correct[n]), rule.gate)
        parts = gated * step_parts(scores, rule.aggregation)
        whole = gated * process_reward(scores, float(columns.traj_scores[n]), rule)
        if rule.mode == "step":
            np.add.at(row, ends, parts)
            whole -= parts.sum()
        row[lengths[n] - 1] += whole + (1.0 - rule.beta) * outcome
    if not np.isfinite(rows).all():
        raise ValueError(f"rows {np.flatnonzero(~np.isfinite(rows).all(axis=1)).tolist()} hold NaN or infinite scores")
    return torch.from_numpy(rows.astype(np.float32))


def _lengths(response_mask: torch.Tensor) -> np.ndarray:
    """Return [S]: one past the last token of each response."""
    mask = response_mask.bool().cpu().numpy()
    if not mask.any(axis=1).all():
        raise ValueError(f"rows {np.flatnonzero(~mask.any(axis=1)).tolist()} have no response token")
    return mask.shape[1] - np.argmax(mask[:, ::-1], axis=1)


def _ragged(rows: Sequence[object]) -> np.ndarray:
    """Return an object array with one Python object per row (numpy would make a matrix of equally long rows)."""
    column = np.empty(len(rows), dtype=object)
    for n, row in enumerate(rows):
        column[n] = row
    return column
