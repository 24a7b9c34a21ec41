# SPDX-License-Identifier: Apache-2.0
"""Scores responses while others are still being generated, and decides what a failed score means for its group.

    consumes     RewardInput, each the moment its response is complete
    produces     ScoredResponse; groups and batches of them are put together in `batch_scoring`
    waits for    the rule verifier and the PRM, both asked at once, each with its own time limit; where the user's own
                 function may give the step scores, the PRM is asked only if it did not
    unblocked by their answers, or their giving up

Knows one verifier, one reward manager and one `ScoreSteps`; knows no Ray, no engine, no batch columns.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, cast

import numpy as np

from verl.rewards.batch_scoring import (
    BatchScoring,
    BatchVerifier,
    GroupRules,
    ScoredBatch,
    ScoredGroup,
    Verifier,
    WholeBatchVerifier,
)
from verl.rewards.manager import RuleReward
from verl.rewards.monitors import score_metrics
from verl.rewards.prm.counts import count_metrics
from verl.rewards.prm.prompt import problem_of
from verl.rewards.prm.score_space import to_score
from verl.rewards.prm.steps import SplitRule, Steps, count_repeated, find_steps, map_to_tokens
from verl.rewards.prm.types import ScoreRequest, ScoreSteps, StepLogits
from verl.rewards.process import own_steps, with_step_texts
from verl.rewards.types import PrmStatus, RewardInput, RuleVerdict, ScoredResponse

__all__ = [
    "BatchScoring",
    "LoopSettings",
    "RewardFailedError",
    "RewardLoop",
    "RewardManager",
    "ScoredBatch",
    "ScoredGroup",
    "Verifier",
]

logger = logging.getLogger(__name__)

ON_ERROR = ("rule_only", "drop_group", "stop")
_NO_SCORES = np.zeros(0, dtype=np.float32)


class RewardManager(Protocol):
    """Turns verdicts into outcome rewards; see `verl.rewards.manager.AbstractRewardManager`."""

    @property
    def judges_batch(self) -> bool:
        """Whether a batch is judged in one call."""
        ...

    @property
    def reads_step_scores(self) -> bool:
        """Whether the function's step scores stand in for the PRM's."""
        ...

    def reward(self, reward_input: RewardInput, verdict: RuleVerdict) -> RuleReward:
        """Give one response its outcome reward."""
        ...


class RewardFailedError(RuntimeError):
    """A response has no score, and `on_error=stop`."""


@dataclass(frozen=True)
class LoopSettings:
    """How responses are cut and scored, and what a failure means.

    Args:
        split: How a response is cut into reasoning steps.
        mode: `legacy` shows the PRM the whole response as one step; `step` and `scalar` cut it.
        score_space: `prob`, `signed` or `logit_diff`.
        on_error: When a response has no PRM score: its whole group by rule only, the group left out, or an end.
    """

    split: SplitRule = field(default_factory=SplitRule)
    mode: str = "step"
    score_space: str = "prob"
    on_error: str = "rule_only"

    def __post_init__(self) -> None:
        """Refuse an unknown `on_error`."""
        if self.on_error not in ON_ERROR:
            raise ValueError(f"on_error={self.on_error!r}: must be one of {', '.join(ON_ERROR)}")


@dataclass(frozen=True)
class _StepResult:
    """Step scores of one response, from whoever gave them."""

    steps: Steps
    scores: np.ndarray
    status: PrmStatus
    flags: tuple[str, ...] = ()


class _ShowsSteps:
    """A verifier whose function sees the reasoning steps."""

    def __init__(self, verifier: Verifier, find: Callable[[RewardInput], Steps]) -> None:
        self._verifier = verifier
        self._find = find

    async def verify(self, reward_input: RewardInput) -> RuleVerdict:
        """See `Verifier`."""
        return await self._verifier.verify(with_step_texts(reward_input, self._find(reward_input)))


class RewardLoop:
    """Verifier and PRM behind one call.

    Example:
        >>> scoring = RewardLoop(pool, manager, dispatcher, LoopSettings()).open_batch(["p0", "p1"], group_size=6)
        >>> scoring.submit(reward_input)   # on the event loop, as each response ends
        >>> scored = await scoring.finish()
    """

    def __init__(
        self,
        verifier: Verifier,
        manager: RewardManager,
        score_steps: ScoreSteps | None,
        settings: LoopSettings,
        counts: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """Take the scorers.

        Args:
            verifier: Rule verifier.
            manager: Turns its verdicts into r_out.
            score_steps: The PRM, retries included; None without one.
            settings: Splitting, score space, failures.
            counts: Running totals of dispatcher and cache; each batch's share of them is in its metrics.
        """
        self._counts = counts
        self._verifier = verifier
        self._manager = manager
        self._score_steps = score_steps
        self._settings = settings
        self._described: dict[str, int] | None = None

    def open_batch(
        self, uids: Sequence[str], group_size: int, on_group: Callable[[ScoredGroup], None] | None = None
    ) -> BatchScoring:
        """Begin a batch; several may be open at once, and what is counted falls to the one that ends next.

        Args:
            uids: Its groups.
            group_size: Responses of each.
            on_group: Called on the event loop with each group when all its responses are scored.
        """
        verifier = self.open_verifier(uids, group_size)
        if self._described is None:
            self._described = self.totals()

        def describe(scored: Sequence[ScoredResponse], num_tokens: Sequence[int]) -> dict[str, float]:
            before, self._described = self._described or {}, self.totals()
            return self.metrics(scored, num_tokens) | count_metrics(before, self._described)

        rules = GroupRules(partial(self._score, verifier), self.settle_group, describe)
        return BatchScoring(rules, uids, group_size, on_group)

    def open_verifier(self, uids: Sequence[str], group_size: int) -> Verifier:
        """Return the rule verifier for one batch as the reward manager asks it; validation asks it the same way.

        Args:
            uids: The groups.
            group_size: Responses of each; a manager that judges batches answers when all were handed in.
        """
        if self._manager.judges_batch:
            return WholeBatchVerifier(cast(BatchVerifier, self._verifier), uids, group_size)
        return _ShowsSteps(self._verifier, self._find_steps) if self._manager.reads_step_scores else self._verifier

    async def _score(self, verifier: Verifier, item: RewardInput) -> ScoredResponse:
        """Ask verifier and PRM; `prm_status` is `failed` where there are no step scores."""
        steps = self._find_steps(item)
        if self._manager.reads_step_scores:
            verdict = await verifier.verify(item)
            found = await self._steps_of(item, steps, verdict)
        else:
            verdict, found = await asyncio.gather(verifier.verify(item), self._steps_by_prm(item, steps))
        rule = self._manager.reward(item, verdict)
        num_repeated = count_repeated(found.steps.pieces(item.response))
        flags = {
            "empty": not item.response.strip() or (self._has_steps and not len(found.steps)),
            "one_step": len(found.steps) == 1,
            "repeated": num_repeated > 0,
            "truncated": item.truncated,
            "rule_missing": rule.is_missing,
        }
        has_scores = len(found.scores) > 0
        return ScoredResponse(
            uid=item.uid,
            index=item.index,
            verdict=verdict,
            rule_score=rule.rule_score,
            overlong_penalty=rule.overlong_penalty,
            step_spans=found.steps.spans,
            step_ends=found.steps.ends if has_scores else np.zeros(0, dtype=np.int64),
            step_scores=found.scores,
            traj_score=float(found.scores[-1]) if has_scores else 0.0,
            prm_status=found.status,
            num_repeated_steps=num_repeated,
            flags=(*(name for name, is_so in flags.items() if is_so), *found.flags),
        )

    def settle_group(self, members: Sequence[ScoredResponse]) -> tuple[list[ScoredResponse], bool]:
        """Decide what missing scores mean for a group, so that no group mixes two scales.

        Args:
            members: All responses of one group.

        Returns:
            The responses as they are to be used, and whether the group is dropped. A missing rule score of the user's
            own function has no substitute: `rule_only` drops such a group too.

        Raises:
            RewardFailedError: A score is missing and `on_error=stop`.
        """
        prm_failed = any(member.prm_status == "failed" for member in members)
        rule_missing = [member for member in members if "rule_missing" in member.flags]
        if not prm_failed and not rule_missing:
            return list(members), False
        if rule_missing and self._settings.on_error == "stop":
            first = rule_missing[0]
            raise self._stop(f"uid={first.uid} index={first.index}: the reward function: {first.verdict.detail}")
        # The numbers of a dropped group are read by nobody; a NaN among them could still reach a sum.
        finite = [replace(m, rule_score=0.0) if "rule_missing" in m.flags else m for m in members]
        if rule_missing or self._settings.on_error == "drop_group":
            return finite, True
        return [_by_rule_only(member) for member in finite], False

    def totals(self) -> dict[str, int]:
        """Read the running totals of dispatcher and cache; empty without a PRM."""
        return dict(self._counts())

    def metrics(self, scored: Sequence[ScoredResponse], num_tokens: Sequence[int]) -> dict[str, float]:
        """Describe scored responses; see `verl.rewards.monitors`.

        Args:
            scored: The responses.
            num_tokens: Tokens of each.
        """
        return score_metrics(scored, num_tokens, self._settings.score_space)

    @property
    def _has_steps(self) -> bool:
        return self._score_steps is not None or self._manager.reads_step_scores

    def _find_steps(self, item: RewardInput) -> Steps:
        if not self._has_steps or not item.response.strip():
            return Steps((), np.zeros(0, dtype=np.int64))
        if self._settings.mode == "legacy":
            whole = ((0, len(item.response)),)
            return map_to_tokens(whole, item.token_starts, len(item.response))
        return find_steps(item.response, item.token_starts, self._settings.split)

    async def _steps_of(self, item: RewardInput, steps: Steps, verdict: RuleVerdict) -> _StepResult:
        """Take the step scores of the user's function, else the PRM's."""
        if verdict.step_scores is None and self._score_steps is not None:
            return await self._steps_by_prm(item, steps)
        if verdict.status != "scored":  # counted with the verdict, which is missing too
            return _StepResult(steps, _NO_SCORES, "failed")
        try:
            if verdict.step_scores is None and len(steps):
                raise ValueError("the reward function gave no step_scores, and there is no PRM")
            own, scores = own_steps(item, steps, replace(verdict, step_scores=verdict.step_scores or ()))
        except ValueError as error:
            self._note_no_steps(item, error)
            return _StepResult(steps, _NO_SCORES, "failed", ("prm_error",))
        return _StepResult(own, scores, "scored", ("own_steps",))

    async def _steps_by_prm(self, item: RewardInput, steps: Steps) -> _StepResult:
        if self._score_steps is None:
            return _StepResult(steps, _NO_SCORES, "off")
        answer = await self._ask_prm(item, steps)
        if answer is None:
            return _StepResult(steps, _NO_SCORES, "failed", ("prm_error",))
        scores = to_score(answer.logits, self._settings.score_space)
        status: PrmStatus = "retried" if "retried" in answer.flags else "scored"
        return _StepResult(steps, scores, status, tuple(flag for flag in answer.flags if flag != "retried"))

    async def _ask_prm(self, item: RewardInput, steps: Steps) -> StepLogits | None:
        """Return the PRM's answer, or None where it gave none that can be used."""
        if self._score_steps is None or not len(steps):
            return StepLogits(np.zeros((0, 2), dtype=np.float32))
        name = f"{item.uid}-{item.index}"
        request = ScoreRequest(name, problem_of(item.prompt), steps.pieces(item.response), item.num_tokens)
        try:
            answer = await self._score_steps(request)
            if answer.logits.shape != (len(steps), 2) or not np.isfinite(answer.logits).all():
                raise ValueError(f"unusable logits for {len(steps)} reasoning steps: {answer.logits.tolist()}")
        except Exception as err:  # noqa: BLE001 - the border of scoring: on_error decides, and it is counted
            self._note_no_steps(item, err)
            return None
        return answer

    def _note_no_steps(self, item: RewardInput, error: Exception) -> None:
        where = f"uid={item.uid} index={item.index} data_source={item.data_source}"
        if self._settings.on_error == "stop":
            raise self._stop(f"{where}: the step scores: {error}") from error
        logger.warning("no step scores: %s: %s: %s", where, type(error).__name__, error)

    def _stop(self, what: str) -> RewardFailedError:
        return RewardFailedError(f"{what}; no score, and reward_model.process_reward.on_error=stop")


def _by_rule_only(member: ScoredResponse) -> ScoredResponse:
    """Take the PRM's part out of a response whose group has no complete scores."""
    return replace(
        member,
        step_ends=np.zeros(0, dtype=np.int64),
        step_scores=np.zeros(0, dtype=np.float32),
        traj_score=0.0,
        prm_status="failed",
        flags=(*member.flags, "group_by_rule_only"),
    )
