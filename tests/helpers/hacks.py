# SPDX-License-Identifier: Apache-2.0
"""Known ways of fooling a process reward, driven through every advantage estimator; `tables()` is what comes out.

One group answers "2 + 3 + 4 + 5": two right answers, one of them by luck, and two wrong ones. A response of it is
rewritten the way a policy that games its reward would write it; everything else stays. A toy PRM scores the steps: it
is right about arithmetic and, like real ones, has nothing against a step that was already there.

`python -m tests.helpers.hacks` writes the tables into docs/reward_hacks.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from verl.algorithms import (
    AdvantageEstimator,
    AdvantageInputs,
    EstimatorOptions,
    ProfSettings,
    get_adv_estimator_fn,
    pad_steps,
    prof_filter,
)
from verl.rewards.credit import CreditRule, ScoreColumns, place_rewards

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reward_hacks.md"
BEGIN, END = "<!-- tables: python -m tests.helpers.hacks -->", "<!-- end of tables -->"
SEPARATOR = "\n\n"
GOOD = SEPARATOR.join(["2 + 3 = 5", "5 + 4 = 9", "9 + 5 = 14", "Answer: 14"])
LUCKY = SEPARATOR.join(["2 + 3 = 5", "5 + 4 = 10", "9 + 5 = 14", "Answer: 14"])
SLIP = SEPARATOR.join(["2 + 3 = 5", "5 + 4 = 9", "9 + 5 = 15", "Answer: 15"])
LOST = SEPARATOR.join(["2 + 3 = 6", "6 + 4 = 11", "11 + 5 = 17", "Answer: 17"])
GROUP = (GOOD, LUCKY, SLIP, LOST)
OTHER_GROUP = (GOOD, SLIP)
"""A second prompt's responses, never rewritten: some estimators normalise over the batch."""
RIGHT_ROW, WRONG_ROW = GROUP.index(GOOD), GROUP.index(SLIP)

Rewrite = Callable[[str], str]


def repeat_first_step(copies: int) -> Rewrite:
    """Return the hack that writes the first step so many times more."""
    return lambda text: SEPARATOR.join([text.split(SEPARATOR)[0]] * copies + [text])


HACKS: dict[str, tuple[int, Rewrite]] = {
    "repeat a step, right answer": (RIGHT_ROW, repeat_first_step(4)),
    "repeat a step, wrong answer": (WRONG_ROW, repeat_first_step(4)),
    "merge all steps, right answer": (RIGHT_ROW, lambda text: text.replace(SEPARATOR, " ")),
    "merge all steps, wrong answer": (WRONG_ROW, lambda text: text.replace(SEPARATOR, " ")),
    "delete the answer, right answer": (RIGHT_ROW, lambda text: text.rpartition(SEPARATOR)[0]),
    "write nothing, wrong answer": (WRONG_ROW, lambda text: ""),
}
"""Name to the response that is rewritten (a row of the group) and how."""


@dataclass(frozen=True)
class Method:
    """An estimator with its settings.

    Attributes:
        estimator: Registered name.
        rule: How its token rewards are placed.
        options: Its own settings.
        is_filtered: Whether PROF picks the responses first.
    """

    estimator: str
    rule: CreditRule = CreditRule()
    options: EstimatorOptions = EstimatorOptions()
    is_filtered: bool = False


def methods() -> dict[str, Method]:
    """Return every registered estimator with its defaults, and variants that answer a hack differently."""
    return {str(name): Method(str(name)) for name in AdvantageEstimator} | {
        "grpo, aggregation=min": Method("grpo", rule=CreditRule(aggregation="min")),
        "grpo, gate=correct_only": Method("grpo", rule=CreditRule(gate="correct_only")),
        "grpo_delta, clip only": Method("grpo_delta", options=EstimatorOptions(delta_delta=False)),
        "grpo_delta, delta only": Method("grpo_delta", options=EstimatorOptions(delta_clip=False)),
        "prof filter, then grpo on the outcome": Method("grpo", rule=CreditRule(beta=0.0), is_filtered=True),
    }


def toy_scores(text: str) -> list[float]:
    """Score the steps of a response with probabilities of being right, read at the end of each step.

    Args:
        text: The response; steps are separated by blank lines.

    Returns:
        Per step: 0.9 for a right sum, 0.2 for a wrong one, 0.4 for a right sum after a wrong one; an answer 0.8, after
        a wrong sum 0.2. A step with several of these in it gets the score of the last one.
    """
    is_broken, scores = False, []
    for step in filter(None, text.split(SEPARATOR)):
        score = 0.0
        for left, right, result in re.findall(r"(\d+) \+ (\d+) = (\d+)", step):
            is_right = int(left) + int(right) == int(result)
            score = (0.4 if is_broken else 0.9) if is_right else 0.2
            is_broken |= not is_right
        scores.append((0.2 if is_broken else 0.8) if "Answer" in step else score)
    return scores


def judge(texts: list[str], groups: list[int], rule: CreditRule) -> AdvantageInputs:
    """Score responses and place their rewards: a token per word, and one for the end.

    Args:
        texts: The responses.
        groups: Their prompts.
        rule: How rewards are placed; its `score_space` says how the toy's probabilities are shown.
    """
    spaces = {"prob": lambda p: p, "signed": lambda p: 2 * p - 1}
    rows = [[spaces[rule.score_space](p) for p in toy_scores(text)] for text in texts]
    scores = [np.array(row, dtype=np.float32) for row in rows]
    words = [[len(step.split()) for step in text.split(SEPARATOR) if step] for text in texts]
    ends = [np.cumsum(row, dtype=np.int64) - 1 for row in words]
    lengths = torch.tensor([sum(row) + 1 for row in words])
    mask = (torch.arange(int(lengths.max()))[None, :] < lengths[:, None]).long()
    is_correct = np.array(["Answer: 14" in text for text in texts])
    columns = ScoreColumns(
        rule_scores=np.where(is_correct, 1.0, -1.0).astype(np.float32),
        overlong_penalty=np.zeros(len(texts), dtype=np.float32),
        is_correct=is_correct,
        step_scores=_ragged(scores),
        step_ends=_ragged(ends),
        traj_scores=np.array([row[-1] if row else 0.0 for row in rows], dtype=np.float32),
        prm_status=_ragged(["scored"] * len(texts)),
    )
    padded_scores, padded_ends, step_mask = pad_steps(scores, ends)
    placed = place_rewards(columns, mask, rule)
    return AdvantageInputs(
        token_level_rewards=placed,
        response_mask=mask,
        group_index=torch.tensor(groups),
        step_scores=padded_scores,
        step_ends=padded_ends,
        step_mask=step_mask,
        rule_scores=torch.from_numpy(columns.rule_scores),
        is_correct=torch.from_numpy(is_correct),
        beta=rule.beta,
    )


@dataclass(frozen=True)
class Outcome:
    """What a response got.

    Attributes:
        reward: Sum of its token rewards (Eq. 12, with the gate).
        advantage: At its first token, where everything the response does is still to come; NaN if it was filtered out.
    """

    reward: float
    advantage: float


def outcome_of(method: Method, row: int, rewrite: Rewrite | None = None, score_space: str = "prob") -> Outcome:
    """Estimate with one response of the group rewritten.

    Args:
        method: Estimator and settings.
        row: Which response.
        rewrite: How; None leaves it as it is.
        score_space: `prob` or `signed`.
    """
    texts = list(GROUP)
    if rewrite is not None:
        texts[row] = rewrite(texts[row])
    rule = replace(method.rule, score_space=score_space)
    inputs = judge([*texts, *OTHER_GROUP], [0] * len(texts) + [1] * len(OTHER_GROUP), rule)
    greedy = judge([LUCKY], [0], rule).token_level_rewards.sum()
    inputs = replace(inputs, options=method.options, reward_baselines=greedy.expand(len(inputs.group_index)))
    is_kept = torch.ones(len(inputs.group_index), dtype=torch.bool)
    if method.is_filtered:
        is_kept = prof_filter(inputs, ProfSettings())
    advantages = torch.full_like(inputs.token_level_rewards, torch.nan)
    advantages[is_kept] = get_adv_estimator_fn(method.estimator)(inputs.only(is_kept))[0]
    return Outcome(float(inputs.token_level_rewards[row].sum()), float(advantages[row, 0]))


def change(method: Method, hack: str, score_space: str = "prob") -> Outcome:
    """Return by how much a hack raises what its response gets.

    Args:
        method: Estimator and settings.
        hack: A name of `HACKS`.
        score_space: `prob` or `signed`.
    """
    row, rewrite = HACKS[hack]
    before, after = outcome_of(method, row, None, score_space), outcome_of(method, row, rewrite, score_space)
    return Outcome(after.reward - before.reward, after.advantage - before.advantage)


COPIES = (0, 1, 4, 16, 64, 256)


def growth(method: Method, score_space: str = "prob") -> list[float]:
    """Return the advantage of the wrong response with its first, right step repeated `COPIES` times more."""
    return [outcome_of(method, WRONG_ROW, repeat_first_step(copies), score_space).advantage for copies in COPIES]


def tables() -> str:
    """Write all results as Markdown."""
    parts = []
    for space in ("prob", "signed"):
        rewards = {
            name: [change(method, hack, space).reward for hack in HACKS] for name, method in _rewarders().items()
        }
        advantages = {name: [_told(method, hack, space) for hack in HACKS] for name, method in methods().items()}
        grown = {name: growth(method, space) for name, method in methods().items()}
        copies = [f"{copies} copies" for copies in COPIES]
        parts += [
            f"### Change of the reward (Eq. 12), `score_space={space}`",
            _markdown("reward", list(HACKS), rewards),
            f"### Change of the advantage, `score_space={space}`",
            _markdown("estimator", list(HACKS), advantages),
            f"### Advantage of the wrong answer whose first step is repeated, `score_space={space}`",
            _markdown("estimator", copies, grown),
        ]
    return "\n\n".join(parts)


def _rewarders() -> dict[str, Method]:
    rules = {"aggregation=mean": CreditRule(), "aggregation=min": CreditRule(aggregation="min")}
    rules |= {"aggregation=last": CreditRule(aggregation="last"), "gate=correct_only": CreditRule(gate="correct_only")}
    return {name: Method("grpo", rule=rule) for name, rule in rules.items()}


def _told(method: Method, hack: str, space: str) -> float | str:
    """Return the change of the advantage, or in words how the filter changed its mind."""
    row, rewrite = HACKS[hack]
    before, after = (outcome_of(method, row, how, space).advantage for how in (None, rewrite))
    if np.isnan(before) or np.isnan(after):
        return f"{'out' if np.isnan(before) else f'{before:+.2f}'} to {'out' if np.isnan(after) else f'{after:+.2f}'}"
    return after - before


def _markdown(corner: str, heads: list[str], rows: dict[str, list[float | str]] | dict[str, list[float]]) -> str:
    lines = [f"| {corner} | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    lines += [f"| {name} | {' | '.join(map(_cell, cells))} |" for name, cells in rows.items()]
    return "\n".join(lines)


def _cell(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return "out" if np.isnan(value) else f"{round(value, 2) + 0.0:+.2f}"


def _ragged(rows: list) -> np.ndarray:
    column = np.empty(len(rows), dtype=object)
    column[:] = rows
    return column


def with_tables(document: str) -> str:
    """Return the document with its tables computed anew."""
    head, _, rest = document.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{tables()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
