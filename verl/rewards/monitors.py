# SPDX-License-Identifier: Apache-2.0
"""What the scores of a batch look like: agreement of PRM and verifier, step shapes, saturation, missing scores.

Pure functions over scored responses. Each of these moves when a policy learns to please a PRM instead of being right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from verl.rewards.types import ScoredResponse

FLAGS = ("empty", "one_step", "repeated", "truncated", "escaped", "windowed", "extended", "cut")
"""Shares of responses; `escaped` ones hold the PRM's step token as text."""
POSITIONS = {"1": (1, 1), "2": (2, 2), "3": (3, 3), "4": (4, 4), "5-8": (5, 8), "9-16": (9, 16), "17+": (17, 1 << 62)}
"""Places of a reasoning step in its response, counted from 1, that are looked at together: name -> first and last."""
SATURATION_RANGE = (0.001, 0.999)
"""A probability outside counts as saturated: differences between such steps are noise of the number format."""


def auc(scores: np.ndarray, is_right: np.ndarray) -> float:
    """Probability that a right response scores above a wrong one, ties counting half.

    Args:
        scores: [N].
        is_right: [N] bool.

    Returns:
        The area under the ROC curve; NaN where all are right or all are wrong.

    Source: Mann-Whitney U from mean ranks.
    """
    scores, is_right = np.asarray(scores, dtype=np.float64), np.asarray(is_right, dtype=bool)
    num_right, num_wrong = int(is_right.sum()), int((~is_right).sum())
    if not num_right or not num_wrong:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = mean_rank[inverse][is_right].sum()
    return float((rank_sum - num_right * (num_right + 1) / 2) / (num_right * num_wrong))


def score_metrics(
    scored: Sequence[ScoredResponse], num_tokens: Sequence[int], score_space: str = "prob"
) -> dict[str, float]:
    """Describe a batch.

    Args:
        scored: Its responses.
        num_tokens: Tokens of each.
        score_space: What the step scores are; says when one is saturated.

    Returns:
        `reward/what/reduction` -> number; numbers of the user's function as `reward/NAME/mean` where NAME is free.
        Metrics that the batch says nothing of (an AUC where all answers are right, anything of a PRM that is off) are
        left out.
    """
    if not scored:
        return {}
    metrics = _of_verdicts(scored)
    if all(one.prm_status == "off" for one in scored):
        return metrics
    metrics |= {f"prm/{flag}/share": _share(flag in one.flags for one in scored) for flag in FLAGS}
    metrics["prm/unscored/share"] = _share(one.prm_status == "failed" for one in scored)
    metrics["prm/retried/share"] = _share(one.prm_status == "retried" for one in scored)
    metrics["prm/steps_per_response/mean"] = float(np.mean([len(one.step_spans) for one in scored]))
    num_steps = sum(len(one.step_spans) for one in scored)
    if num_steps:
        metrics["prm/repeated_steps/share"] = sum(one.num_repeated_steps for one in scored) / num_steps
    return metrics | _of_steps(scored, num_tokens, score_space)


def _of_verdicts(scored: Sequence[ScoredResponse]) -> dict[str, float]:
    """Describe what the rule, or the user's function, said."""
    given: dict[str, list[float]] = defaultdict(list)
    for one in scored:
        for name, value in one.verdict.metrics.items():
            given[name].append(value)
    metrics = {f"reward/{name}/mean": float(np.mean(values)) for name, values in given.items()}
    metrics["reward/rule_score/mean"] = float(np.mean([one.rule_score for one in scored]))
    metrics["reward/overlong_penalty/mean"] = float(np.mean([one.overlong_penalty for one in scored]))
    saying = [one.verdict for one in scored if one.verdict.says_predicted and one.verdict.status == "scored"]
    if saying:
        metrics["reward/no_answer/share"] = _share(not verdict.predicted for verdict in saying)
    return metrics


def _of_steps(scored: Sequence[ScoredResponse], num_tokens: Sequence[int], score_space: str) -> dict[str, float]:
    """Describe the responses that have step scores."""
    kept = [(one, count) for one, count in zip(scored, num_tokens, strict=True) if len(one.step_scores)]
    if not kept:
        return {}
    means = np.array([np.mean(one.step_scores, dtype=np.float64) for one, _ in kept])
    is_right = np.array([one.verdict.is_correct for one, _ in kept])
    steps = np.concatenate([one.step_scores for one, _ in kept]).astype(np.float64)
    on_right = float(means[is_right].mean()) if is_right.any() else float("nan")
    on_wrong = float(means[~is_right].mean()) if not is_right.all() else float("nan")
    metrics = {
        "prm/score/mean": float(steps.mean()),
        "prm/score/std": float(steps.std()),
        "prm/first_step/mean": float(np.mean([one.step_scores[0] for one, _ in kept])),
        "prm/last_step/mean": float(np.mean([one.step_scores[-1] for one, _ in kept])),
        "prm/tokens_per_step/mean": float(np.mean([count / len(one.step_scores) for one, count in kept])),
        "prm/auc/mean": auc(means, is_right),
        "prm/on_right/mean": on_right,
        "prm/on_wrong/mean": on_wrong,
        "prm/right_minus_wrong/mean": on_right - on_wrong,
        **_by_position([one.step_scores for one, _ in kept]),
    }
    # a function's own numbers follow no score space
    by_prm = [one.step_scores for one, _ in kept if "own_steps" not in one.flags]
    if by_prm:
        metrics["prm/saturated_steps/share"] = _saturated(np.concatenate(by_prm).astype(np.float64), score_space)
    return {name: value for name, value in metrics.items() if np.isfinite(value)}


def _by_position(step_scores: Sequence[np.ndarray]) -> dict[str, float]:
    """Describe the scores by the step's place in its response, and those of last steps."""
    places = np.concatenate([np.arange(1, len(scores) + 1) for scores in step_scores])
    values = np.concatenate(step_scores).astype(np.float64)
    chosen = {name: values[(places >= first) & (places <= last)] for name, (first, last) in POSITIONS.items()}
    chosen["last"] = np.array([scores[-1] for scores in step_scores], dtype=np.float64)
    metrics: dict[str, float] = {}
    for name, found in chosen.items():
        if len(found):
            metrics |= {
                f"prm/position/{name}/mean": float(found.mean()),
                f"prm/position/{name}/std": float(found.std()),
            }
    return metrics


def _saturated(steps: np.ndarray, score_space: str) -> float:
    """Return the share of steps whose probability is next to 0 or 1."""
    if score_space == "signed":
        steps = (steps + 1.0) / 2.0
    if score_space == "logit_diff":
        steps = 1.0 / (1.0 + np.exp(-steps))
    low, high = SATURATION_RANGE
    return float(np.mean((steps < low) | (steps > high)))


def _share(which: Iterable[bool]) -> float:
    return float(np.mean(list(which)))
