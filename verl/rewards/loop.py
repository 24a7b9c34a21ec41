# SPDX-License-Identifier: Apache-2.0
"""Scores responses while others are still being generated, and decides what a failed score means for its group.

    consumes     RewardInput, each the moment its response is complete (`submit`)
    produces     ScoredBatch, when the last response is scored (`finish`)
    waits for    the rule verifier and the PRM, both asked at once, each with its own time limit
    unblocked by their answers, or their giving up

Knows one verifier, one reward manager and one `ScoreSteps`; knows no Ray, no engine, no batch columns.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from verl.rewards.manager import RuleReward
from verl.rewards.monitors import score_metrics
from verl.rewards.prm.counts import count_metrics
from verl.rewards.prm.prompt import problem_of
from verl.rewards.prm.score_space import to_score
from verl.rewards.prm.steps import SplitRule, Steps, find_steps, map_to_tokens
from verl.rewards.prm.types import ScoreRequest, ScoreSteps, StepLogits
from verl.rewards.types import RewardInput, RuleVerdict, ScoredResponse

logger = logging.getLogger(__name__)

ON_ERROR = ("rule_only", "drop_group", "stop")


class Verifier(Protocol):
    """Judges responses; `RuleVerifierPool` is one."""

    async def verify(self, reward_input: RewardInput) -> RuleVerdict:
        """Judge one response; its status says when there is no score."""
        ...


class RewardManager(Protocol):
    """Turns verdicts into outcome rewards; see `verl.rewards.manager`."""

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
class ScoredBatch:
    """The scores of all responses of a batch.

    Args:
        by_response: (uid, index) -> scores, of every response, those of dropped groups included.
        dropped_groups: Groups that must not be trained on.
        metrics: What the scores look like, and what went wrong how often.
    """

    by_response: Mapping[tuple[str, int], ScoredResponse]
    dropped_groups: frozenset[str]
    metrics: Mapping[str, float]


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

    def open_batch(self, uids: Sequence[str], group_size: int) -> BatchScoring:
        """Begin a batch.

        Args:
            uids: Its groups.
            group_size: Responses of each.
        """
        return BatchScoring(self, uids, group_size)

    async def score(self, item: RewardInput) -> ScoredResponse:
        """Ask verifier and PRM at once.

        Args:
            item: A finished response.

        Returns:
            Its scores; `prm_status` is `failed` where the PRM gave none.

        Raises:
            RewardFailedError: The PRM failed, and `on_error=stop`.
        """
        steps = self._find_steps(item)
        verdict, answer = await asyncio.gather(self._verifier.verify(item), self._ask_prm(item, steps))
        rule = self._manager.reward(item, verdict)
        scored = ScoredResponse(
            uid=item.uid,
            index=item.index,
            verdict=verdict,
            rule_score=rule.rule_score,
            overlong_penalty=rule.overlong_penalty,
            step_spans=steps.spans,
            flags=(*self._shape_flags(item, steps), *(("rule_missing",) if rule.is_missing else ())),
        )
        if self._score_steps is None:
            return scored
        if answer is None:
            return replace(scored, prm_status="failed", flags=(*scored.flags, "prm_error"))
        return self._with_steps(scored, steps, answer)

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

    def _find_steps(self, item: RewardInput) -> Steps:
        if self._score_steps is None or not item.response.strip():
            return Steps((), np.zeros(0, dtype=np.int64))
        if self._settings.mode == "legacy":
            whole = ((0, len(item.response)),)
            return map_to_tokens(whole, item.token_starts, len(item.response))
        return find_steps(item.response, item.token_starts, self._settings.split)

    def _shape_flags(self, item: RewardInput, steps: Steps) -> tuple[str, ...]:
        flags = {
            "empty": not item.response.strip() or (self._score_steps is not None and not len(steps)),
            "one_step": len(steps) == 1,
            "truncated": item.truncated,
        }
        return tuple(name for name, is_so in flags.items() if is_so)

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
        except Exception as err:  # the border of scoring: on_error decides, and it is counted
            where = f"uid={item.uid} index={item.index} data_source={item.data_source}"
            if self._settings.on_error == "stop":
                raise self._stop(f"{where}: the PRM: {err}") from err
            logger.warning("no PRM score: %s: %s: %s", where, type(err).__name__, err)
            return None
        return answer

    def _with_steps(self, scored: ScoredResponse, steps: Steps, answer: StepLogits) -> ScoredResponse:
        scores = to_score(answer.logits, self._settings.score_space)
        was_retried = "retried" in answer.flags
        return replace(
            scored,
            step_ends=steps.ends,
            step_scores=scores,
            traj_score=float(scores[-1]) if len(scores) else 0.0,
            prm_status="retried" if was_retried else "scored",
            flags=(*scored.flags, *(flag for flag in answer.flags if flag != "retried")),
        )

    def _stop(self, what: str) -> RewardFailedError:
        return RewardFailedError(f"{what}; no score, and reward_model.process_reward.on_error=stop")


class BatchScoring:
    """The scores of one batch in the making."""

    def __init__(self, reward_loop: RewardLoop, uids: Sequence[str], group_size: int) -> None:
        """Expect `group_size` responses of every group.

        Args:
            reward_loop: Whose scorers are asked.
            uids: The groups.
            group_size: Responses of each.
        """
        self._loop = reward_loop
        self._expected = {(uid, index) for uid in uids for index in range(group_size)}
        self._tasks: dict[tuple[str, int], asyncio.Task[ScoredResponse]] = {}
        self._num_tokens: dict[tuple[str, int], int] = {}
        self._totals_before = reward_loop.totals()

    def submit(self, item: RewardInput) -> None:
        """Start scoring a response. Must be called on the event loop.

        Args:
            item: A response of this batch.

        Raises:
            ValueError: It is none of this batch, or was submitted already.
        """
        key = (item.uid, item.index)
        if key not in self._expected or key in self._tasks:
            raise ValueError(f"response {key} is not awaited (any more) in this batch")
        self._num_tokens[key] = item.num_tokens
        self._tasks[key] = asyncio.get_running_loop().create_task(self._loop.score(item))

    async def finish(self) -> ScoredBatch:
        """Wait for all scores and settle every group.

        Raises:
            ValueError: A response was never submitted.
            RewardFailedError: A score is missing and `on_error=stop`.
        """
        missing = sorted(self._expected - set(self._tasks))
        if missing:
            self.cancel()
            raise ValueError(f"{len(missing)} responses were never submitted, first of them {missing[:3]}")
        try:
            scored = await asyncio.gather(*self._tasks.values())
        except BaseException:
            self.cancel()
            raise
        groups: dict[str, list[ScoredResponse]] = defaultdict(list)
        for response in scored:
            groups[response.uid].append(response)
        settled: list[ScoredResponse] = []
        dropped: set[str] = set()
        for uid, members in groups.items():
            used, is_dropped = self._loop.settle_group(sorted(members, key=lambda member: member.index))
            settled += used
            dropped |= {uid} if is_dropped else set()
        lengths = [self._num_tokens[response.uid, response.index] for response in settled]
        metrics = self._loop.metrics(settled, lengths) | _failure_metrics(settled, dropped, len(groups))
        metrics |= count_metrics(self._totals_before, self._loop.totals())
        return ScoredBatch({(one.uid, one.index): one for one in settled}, frozenset(dropped), metrics)

    def cancel(self) -> None:
        """Stop scoring; what is not finished is lost."""
        for task in self._tasks.values():
            task.cancel()


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


def _failure_metrics(scored: Sequence[ScoredResponse], dropped: set[str], num_groups: int) -> dict[str, float]:
    """Count failures; every one of them shows here, whatever `on_error` made of it."""
    counts: Counter[str] = Counter(response.verdict.status for response in scored)
    by_rule_only = {response.uid for response in scored if "group_by_rule_only" in response.flags}
    return {
        "reward/prm_failed/count": float(sum("prm_error" in response.flags for response in scored)),
        "reward/rule_timeout/count": float(counts["timeout"]),
        "reward/rule_error/count": float(counts["error"]),
        "reward/groups_by_rule_only/share": len(by_rule_only) / max(num_groups, 1),
        "reward/groups_dropped/share": len(dropped) / max(num_groups, 1),
    }
