# SPDX-License-Identifier: Apache-2.0
"""Bounded asynchrony: the batches of the next training steps are sampled while the present one is trained on.

consumes   prompt rows of the data loader, as many batches ahead as the staleness bound allows
produces   the batch of each training step, in order
waits for  the responses of the batch that is asked for; before a weight sync for all that are in flight, or for none

With a bound of m the batch of step t + m is begun at the start of step t, so that at most m weight syncs lie between
its first token and its update; with m = 0 it is begun and waited for in its own step. Knows neither engine nor reward.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from verl.protocol import DataProto
from verl.rewards.loop import ScoredBatch
from verl.trainer.ppo.rollout_stage import PendingRollout, RolloutStage
from verl.trainer.ppo.rollout_stream import RolloutStream
from verl.utils.async_loop import BackgroundLoop


@dataclass(frozen=True)
class AheadSettings:
    """How far, and what a weight sync does to responses in flight.

    Args:
        max_staleness: Policy versions that may lie between the sampling of a response and its training.
        last_step: Last training step of the run; nothing is sampled for later ones.
        keeps_in_flight: The engines freeze what they are sampling, take the new weights and go on; else a sync waits.
    """

    max_staleness: int
    last_step: int
    keeps_in_flight: bool = False


@dataclass(frozen=True)
class _Ahead:
    """A batch that is under way, and the data loader's state once it was drawn."""

    pending: PendingRollout
    data_state: Mapping[str, Any]


class RolloutAhead:
    """Keeps the rollouts of the coming training steps under way.

    Example:
        >>> rollouts = RolloutAhead(stage, stream, loop, train_loader, AheadSettings(max_staleness=1, last_step=100))
        >>> batch, scoring, metrics = rollouts.take(training_step=1, policy_version=1)
        >>> rollouts.hold()
        >>> # ... weight sync ...
        >>> rollouts.resume()
    """

    def __init__(
        self, stage: RolloutStage, stream: RolloutStream, loop: BackgroundLoop, loader: Any, settings: AheadSettings
    ) -> None:
        """Remember the parts; nothing is begun yet.

        Args:
            stage: Starts rollouts.
            stream: Hands groups to the servers.
            loop: Where both live.
            loader: Prompt rows, batch by batch and epoch by epoch, with `state_dict`.
            settings: The bound.
        """
        self._stage, self._stream, self._loop, self._loader = stage, stream, loop, loader
        self._settings = settings
        self._batches = self._endless_batches()
        self._under_way: deque[_Ahead] = deque()
        self._data_state: Mapping[str, Any] = {}

    def take(self, training_step: int, policy_version: int) -> tuple[DataProto, Future[ScoredBatch], dict[str, float]]:
        """Begin what may be begun by now, and wait for the batch of this step.

        Args:
            training_step: The step, one more than at the last call.
            policy_version: Of the weights that are about to be trained.

        Returns:
            What `PendingRollout.result` gives, and metrics `staleness/...`.

        Raises:
            RuntimeError: A rollout failed, be it one ahead; or a response is older than the bound allows.
        """
        until = max(training_step, min(training_step + self._settings.max_staleness, self._settings.last_step))
        for coming in range(training_step + len(self._under_way), until + 1):
            self._begin(coming)
        self._raise_failure()
        ahead = self._under_way.popleft()
        assert ahead.pending.training_step == training_step, "training steps are taken in order"
        try:
            batch, scoring = ahead.pending.result()
        except BaseException:
            ahead.pending.cancel()
            raise
        self._data_state = ahead.data_state
        return batch, scoring, staleness_metrics(batch, policy_version, self._settings.max_staleness)

    def hold(self) -> None:
        """Get ready for a weight sync: hand over no further groups, and wait for those in flight unless they are kept.

        Raises:
            RuntimeError: A rollout ahead is known to have failed; one that has only just failed is found by `take`.
        """
        if self._under_way:
            self._loop.run(self._stream.pause(until_idle=not self._settings.keeps_in_flight))
            self._raise_failure()

    def resume(self) -> None:
        """Hand over groups again: all servers have the new weights."""
        if self._under_way:
            self._loop.run(self._stream.resume())

    def data_state(self) -> Mapping[str, Any]:
        """Give the data loader's state after the batch last taken: a resumed run draws those ahead once more."""
        return self._data_state

    def cancel(self) -> None:
        """Give up everything that is under way."""
        while self._under_way:
            self._under_way.popleft().pending.cancel()

    def _begin(self, training_step: int) -> None:
        rows = next(self._batches)
        pending = self._stage.start(rows, training_step)
        self._under_way.append(_Ahead(pending, self._loader.state_dict()))

    def _raise_failure(self) -> None:
        """End now what would end anyway in the failed batch's own step."""
        for ahead in self._under_way:
            if ahead.pending.has_failed:
                ahead.pending.result()

    def _endless_batches(self) -> Iterator[Mapping[str, list[Any]]]:
        while True:
            yield from self._loader


def staleness_metrics(batch: DataProto, policy_version: int, max_staleness: int) -> dict[str, float]:
    """Count the policy versions between sampling and training, and insist on the bound.

    Args:
        batch: [S] rows with `policy_version`: no token of a response is of older weights.
        policy_version: Of the weights that are about to be trained.
        max_staleness: The bound.

    Returns:
        `staleness/mean` and `staleness/max`, unit: policy versions.

    Raises:
        RuntimeError: A response is older than the bound allows, or newer than the policy.
    """
    staleness = policy_version - batch.batch["policy_version"]
    oldest, newest = int(staleness.max()), int(staleness.min())
    if oldest > max_staleness or newest < 0:
        row = int(staleness.argmax() if oldest > max_staleness else staleness.argmin())
        raise RuntimeError(
            f"response {batch.non_tensor_batch['uid'][row]} was sampled with policy version "
            f"{int(batch.batch['policy_version'][row])}, the policy in training has version {policy_version}: "
            f"trainer.max_staleness={max_staleness} allows 0 to {max_staleness} versions between them"
        )
    return {"staleness/mean": float(staleness.float().mean()), "staleness/max": float(oldest)}
