# SPDX-License-Identifier: Apache-2.0
"""Does a loaded PRM mean what we think? Right steps must outscore wrong ones; known scores must come out again.

Asked once, of the running scorer, before the first rollout. Users report checkpoints whose class order is reversed:
trained with, they would reward mistakes.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from verl.rewards.prm.score_space import to_score
from verl.rewards.prm.types import ScoreRequest, ScoreSteps
from verl.utils.errors import UserError

logger = logging.getLogger(__name__)

PROBES_FILE = "prm_probes.jsonl"
"""A PRM's folder may hold its own probes under this name, in its own language."""


class PRMSelfTestError(UserError):
    """The PRM is loaded, but does not score as it should."""


@dataclass(frozen=True)
class Probe:
    """Two solutions of a problem that differ in being right.

    Args:
        problem: The problem.
        right: Reasoning steps, the last of them right.
        wrong: The same up to the last step, which is wrong.
    """

    problem: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse a solution without steps."""
        if not self.right or not self.wrong:
            raise ValueError("right and wrong need a step each")


@dataclass(frozen=True)
class Golden:
    """Scores that are known from elsewhere.

    Args:
        problem: The problem.
        steps: Reasoning steps.
        scores: [K] probabilities of being right.
        tolerance: Largest difference.
    """

    problem: str
    steps: tuple[str, ...]
    scores: tuple[float, ...]
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        """Refuse scores that do not belong to the steps."""
        if not self.steps or len(self.steps) != len(self.scores):
            raise ValueError("as many scores as steps are needed, at least one")


SHIPPED_PROBES = (
    Probe(
        "Tom has 3 bags with 4 apples each. He eats 2 apples. How many apples are left?",
        ("Tom starts with 3 * 4 = 12 apples.", "After eating 2, he has 12 - 2 = 10 apples left."),
        ("Tom starts with 3 * 4 = 12 apples.", "After eating 2, he has 12 - 2 = 14 apples left."),
    ),
    Probe(
        "What is 17 + 26?",
        ("Adding the ones gives 7 + 6 = 13, so we write 3 and carry 1. The tens give 1 + 2 + 1 = 4, hence 43.",),
        ("Adding the ones gives 7 + 6 = 13, so we write 3 and carry 1. The tens give 1 + 2 + 1 = 5, hence 53.",),
    ),
    Probe(
        "Solve 2x + 3 = 11.",
        ("Subtract 3 from both sides to get 2x = 8.", "Divide both sides by 2 to get x = 4."),
        ("Subtract 3 from both sides to get 2x = 8.", "Divide both sides by 2 to get x = 6."),
    ),
    Probe(
        "What is the area of a rectangle with sides 5 and 7?",
        ("The area of a rectangle is the product of its sides.", "So the area is 5 * 7 = 35."),
        ("The area of a rectangle is the product of its sides.", "So the area is 5 + 7 = 12."),
    ),
    Probe(
        "What is the derivative of x^3?",
        ("By the power rule, the derivative of x^n is n x^(n-1).", "Therefore the derivative of x^3 is 3x^2."),
        ("By the power rule, the derivative of x^n is n x^(n-1).", "Therefore the derivative of x^3 is x^4."),
    ),
    Probe(
        "Is 91 a prime number?",
        ("We try small divisors: 91 = 7 * 13.", "So 91 is not a prime number."),
        ("We try small divisors: 91 = 7 * 13.", "So 91 is a prime number."),
    ),
)
"""Every English-speaking mathematical PRM should tell these apart; written for this package."""


async def check_orientation(score_steps: ScoreSteps, probes: Sequence[Probe] = SHIPPED_PROBES) -> float:
    """Check that right last steps outscore wrong ones on average.

    Args:
        score_steps: The running PRM.
        probes: Pairs of solutions.

    Returns:
        Mean probability of the right last steps minus that of the wrong ones.

    Raises:
        PRMSelfTestError: It is not above zero.
    """
    right, wrong = await _last_scores(score_steps, probes)
    margin = float(np.mean(right - wrong)) if len(right) else float("nan")
    if not margin > 0:
        raise PRMSelfTestError(
            f"reward_model.model.path: this PRM scores wrong steps at least as high as right ones (right "
            f"{right.mean():.3f}, wrong {wrong.mean():.3f} on {len(probes)} probes). Its classes may be in "
            f"reverse order, its head untrained, or the adapter the wrong one; a PRM of another language needs probes "
            f"of its own in {PROBES_FILE} beside its config.json."
        )
    return margin


async def check_golden(score_steps: ScoreSteps, golden: Sequence[Golden]) -> float:
    """Check that known scores come out.

    Args:
        score_steps: The running PRM.
        golden: Known scores.

    Returns:
        The largest difference.

    Raises:
        PRMSelfTestError: One differs by more than its tolerance.
    """
    worst = 0.0
    for n, known in enumerate(golden):
        answer = await score_steps(ScoreRequest(f"golden-{n}", known.problem, known.steps))
        got = to_score(answer.logits, "prob")
        difference = float(np.abs(got - np.array(known.scores, dtype=np.float64)).max())
        if not difference <= known.tolerance:
            raise PRMSelfTestError(
                f"reward_model.model.path: golden scores {list(known.scores)} came out as "
                f"{[round(float(score), 4) for score in got]} (problem {known.problem[:60]!r}): other weights, another "
                f"adapter, or an engine that computes something else."
            )
        worst = max(worst, difference)
    return worst


def load_probes(path: Path) -> tuple[list[Probe], list[Golden]]:
    """Read probes and golden scores, one JSON object per line.

    Args:
        path: Lines with `problem`, `right`, `wrong`, or with `problem`, `steps`, `scores` and maybe `tolerance`.

    Returns:
        Probes, and golden scores.

    Raises:
        UserError: A line is neither; it is named.
    """
    probes: list[Probe] = []
    golden: list[Golden] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if "right" in row:
                probes.append(Probe(row["problem"], tuple(row["right"]), tuple(row["wrong"])))
            else:
                limits = {"tolerance": float(row["tolerance"])} if "tolerance" in row else {}
                golden.append(Golden(row["problem"], tuple(row["steps"]), tuple(map(float, row["scores"])), **limits))
        except (ValueError, KeyError, TypeError) as err:
            raise UserError(
                f"{path}:{number}: must be an object with problem, right, wrong, or problem, steps, scores ({err!r})"
            ) from err
    return probes, golden


async def self_test(score_steps: ScoreSteps, prm_path: str, joined_by: str | None = None) -> float:
    """Run both checks with the PRM's own probes where its folder has some, else with the shipped ones.

    Args:
        score_steps: The running PRM.
        prm_path: Its folder; a hub name has no probes of its own.
        joined_by: Mode `legacy`, where a request is one step: what joins a probe's steps to it. Golden scores are of
            steps, so they are left out, and a margin not above zero is told, not refused: the last token, where
            this mode reads, is one that a PRM of steps was never taught.

    Returns:
        The margin of `check_orientation`.

    Raises:
        PRMSelfTestError: The PRM does not score as it should.
    """
    own = Path(prm_path).expanduser() / PROBES_FILE
    probes, golden = load_probes(own) if own.is_file() else (list(SHIPPED_PROBES), [])
    probes = probes or list(SHIPPED_PROBES)
    if joined_by is not None:
        whole = [Probe(p.problem, (joined_by.join(p.right),), (joined_by.join(p.wrong),)) for p in probes]
        right, wrong = await _last_scores(score_steps, whole)
        if not np.mean(right - wrong) > 0:
            logger.warning(
                "mode=legacy: at its last token this PRM scores wrong solutions at least as high as right ones (right "
                "%.3f, wrong %.3f on %d probes)",
                np.mean(right),
                np.mean(wrong),
                len(whole),
            )
        return float(np.mean(right - wrong))
    await check_golden(score_steps, golden)
    return await check_orientation(score_steps, probes)


async def _last_scores(score_steps: ScoreSteps, probes: Sequence[Probe]) -> tuple[np.ndarray, np.ndarray]:
    """Score every probe; returns the last steps' probabilities, [N] of the right and [N] of the wrong solutions."""
    requests = [
        ScoreRequest(f"self-test-{n}-{side}", probe.problem, getattr(probe, side))
        for n, probe in enumerate(probes)
        for side in ("right", "wrong")
    ]
    answers = await asyncio.gather(*(score_steps(request) for request in requests))
    last = np.array([to_score(answer.logits, "prob")[-1] for answer in answers], dtype=np.float64)
    return last[0::2], last[1::2]
