# SPDX-License-Identifier: Apache-2.0
"""The scores of one batch in the making: responses in, groups settled when complete, the whole batch at the end.

consumes     RewardInput, each the moment its response is complete (`submit`)
produces     ScoredGroup, when the last response of a group is scored (`on_group`); ScoredBatch (`finish`)
waits for    `score` of every response, which has its own time limits
unblocked by the last score, or the first failure under `on_error=stop`: then the other scores are given up at once
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from verl.rewards.types import RewardInput, RuleVerdict, ScoredResponse

_Key = tuple[str, int]


class Verifier(Protocol):
    """Judges responses; `RuleVerifierPool` is one."""

    async def verify(self, reward_input: RewardInput) -> RuleVerdict:
        """Judge one response; its status says when there is no score."""
        ...


class BatchVerifier(Protocol):
    """Judges responses together; `RuleVerifierPool` is one."""

    async def verify_batch(self, reward_inputs: Sequence[RewardInput]) -> list[RuleVerdict]:
        """Judge responses in one call: as many verdicts, in order."""
        ...


@dataclass(frozen=True)
class ScoredGroup:
    """One group, complete and settled.

    Args:
        uid: Its name.
        responses: [G] in the order of their index, as they are to be used.
        is_dropped: Whether it must not be trained on.
    """

    uid: str
    responses: tuple[ScoredResponse, ...]
    is_dropped: bool


@dataclass(frozen=True)
class ScoredBatch:
    """The scores of all responses of a batch.

    Args:
        by_response: (uid, index) -> scores, of every response, those of dropped groups included.
        dropped_groups: Groups that must not be trained on.
        metrics: What the scores look like, and what went wrong how often.
    """

    by_response: Mapping[_Key, ScoredResponse]
    dropped_groups: frozenset[str]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class GroupRules:
    """What the reward loop does with responses, groups and batches.

    Args:
        score: Scores one response.
        settle: Decides what missing scores mean for a group, its responses given in the order of their index.
        describe: Metrics of scored responses and their lengths in tokens.
    """

    score: Callable[[RewardInput], Awaitable[ScoredResponse]]
    settle: Callable[[Sequence[ScoredResponse]], tuple[list[ScoredResponse], bool]]
    describe: Callable[[Sequence[ScoredResponse], Sequence[int]], dict[str, float]]


class BatchScoring:
    """Scores of one batch; made by `RewardLoop.open_batch`."""

    def __init__(
        self,
        rules: GroupRules,
        uids: Sequence[str],
        group_size: int,
        on_group: Callable[[ScoredGroup], None] | None = None,
    ) -> None:
        """Expect `group_size` responses of every group.

        Args:
            rules: How to score and settle.
            uids: The groups.
            group_size: Responses of each.
            on_group: Called on the event loop with each group when it is complete, in the order of completion.
        """
        self._rules = rules
        self._uids = list(dict.fromkeys(uids))
        self._group_size = group_size
        self._on_group = on_group
        self._expected = {(uid, index) for uid in self._uids for index in range(group_size)}
        self._tasks: dict[_Key, asyncio.Task[None]] = {}
        self._num_tokens: dict[_Key, int] = {}
        self._members: dict[str, list[ScoredResponse]] = defaultdict(list)
        self._settled: dict[str, ScoredGroup] = {}
        self._failure: BaseException | None = None

    def submit(self, item: RewardInput) -> None:
        """Start scoring a response. Must be called on the event loop.

        Args:
            item: A response of this batch.

        Raises:
            ValueError: It is none of this batch, or was submitted already.
            RewardFailedError: An earlier response has no score, and `on_error=stop`: no use in generating more.
        """
        key = (item.uid, item.index)
        if key not in self._expected or key in self._tasks:
            raise ValueError(f"response {key} is not awaited (any more) in this batch")
        if self._failure is not None:
            raise self._failure
        self._num_tokens[key] = item.num_tokens
        task = asyncio.get_running_loop().create_task(self._score(item))
        task.add_done_callback(self._note_end)
        self._tasks[key] = task

    async def finish(self) -> ScoredBatch:
        """Wait for all groups.

        Raises:
            ValueError: A response was never submitted.
            RewardFailedError: A score is missing and `on_error=stop`.
        """
        missing = sorted(self._expected - set(self._tasks))
        if missing and self._failure is None:
            self.cancel()
            raise ValueError(f"{len(missing)} responses were never submitted, first of them {missing[:3]}")
        try:
            if self._tasks:
                await asyncio.wait(self._tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
        except BaseException:
            self.cancel()
            raise
        if self._failure is not None:
            raise self._failure
        groups = [self._settled[uid] for uid in self._uids]
        settled = [response for group in groups for response in group.responses]
        dropped = frozenset(group.uid for group in groups if group.is_dropped)
        lengths = [self._num_tokens[response.uid, response.index] for response in settled]
        metrics = self._rules.describe(settled, lengths) | _failure_metrics(settled, dropped, len(groups))
        return ScoredBatch({(one.uid, one.index): one for one in settled}, dropped, metrics)

    def cancel(self) -> None:
        """Stop scoring; what is not finished is lost."""
        for task in self._tasks.values():
            task.cancel()

    async def _score(self, item: RewardInput) -> None:
        """Score a response; the last one of a group settles it."""
        members = self._members[item.uid]
        members.append(await self._rules.score(item))
        if len(members) < self._group_size:
            return
        responses, is_dropped = self._rules.settle(sorted(members, key=lambda member: member.index))
        group = self._settled[item.uid] = ScoredGroup(item.uid, tuple(responses), is_dropped)
        if self._on_group is not None:
            self._on_group(group)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        """Keep the first failure, and spare the other responses the work."""
        error = None if task.cancelled() else task.exception()
        if error is not None and self._failure is None:
            self._failure = error
            self.cancel()


class WholeBatchVerifier:
    """Gathers the responses of a batch and has them judged in one call, when the last one is there."""

    def __init__(self, verifier: BatchVerifier, uids: Sequence[str], group_size: int) -> None:
        """Expect `group_size` responses of every group.

        Args:
            verifier: Makes the call.
            uids: The groups, in the order in which the function gets them.
            group_size: Responses of each.
        """
        self._verifier = verifier
        self._keys = [(uid, index) for uid in dict.fromkeys(uids) for index in range(group_size)]
        self._items: dict[_Key, RewardInput] = {}
        self._verdicts: asyncio.Future[dict[_Key, RuleVerdict]] | None = None

    async def verify(self, reward_input: RewardInput) -> RuleVerdict:
        """Wait for the whole batch and return this response's verdict.

        Args:
            reward_input: A response of the batch.
        """
        if self._verdicts is None:
            self._verdicts = asyncio.get_running_loop().create_future()
        key = (reward_input.uid, reward_input.index)
        self._items[key] = reward_input
        if len(self._items) == len(self._keys):
            await self._call(self._verdicts)
        return (await asyncio.shield(self._verdicts))[key]

    async def _call(self, verdicts: asyncio.Future[dict[_Key, RuleVerdict]]) -> None:
        """Make the call; what it raises reaches everyone who waits."""
        try:
            found = await self._verifier.verify_batch([self._items[key] for key in self._keys])
        except Exception as error:  # noqa: BLE001 - handed on as it is, to all responses of the batch
            verdicts.set_exception(error)
            return
        verdicts.set_result(dict(zip(self._keys, found, strict=True)))


def _failure_metrics(scored: Sequence[ScoredResponse], dropped: frozenset[str], num_groups: int) -> dict[str, float]:
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
