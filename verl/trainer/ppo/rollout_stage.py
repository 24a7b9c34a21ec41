# SPDX-License-Identifier: Apache-2.0
"""Stages 1 to 3 of a training step: prompts to responses, every finished one sent to the scorers at once.

consumes   prompt rows of the data loader (`RolloutStage.start`)
produces   the batch of prompts and responses, and the scores that are still being made (`PendingRollout.result`)
waits for  the rollout servers; between start and result nobody does
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from verl.algorithms.registry import adv_estimator_columns
from verl.config import PPOTrainerConfig
from verl.protocol import DataProto
from verl.rewards.loop import BatchScoring, RewardFailedError, ScoredBatch
from verl.rollout.base import SamplingSettings
from verl.rollout.to_batch import RolloutOutput, to_batch
from verl.trainer.ppo.balancing import balanced_order, sequence_lengths
from verl.trainer.ppo.prompts import as_objects, group_requests, prompt_batch, reward_input, reward_inputs_of
from verl.trainer.ppo.runtime import Runtime
from verl.workers.rollout_server import GroupRequest

_GREEDY = "greedy"


class PendingRollout:
    """A batch whose responses are being sampled, and scored as they end."""

    def __init__(
        self,
        training_step: int,
        runtime: Runtime,
        sampling: Future[list[list[RolloutOutput]]],
        scoring: BatchScoring,
        collect: Callable[[list[list[RolloutOutput]]], DataProto],
    ) -> None:
        """Take what was started; `RolloutStage.start` does.

        Args:
            training_step: In which the batch will be trained on.
            runtime: The event loop, and the servers that go to sleep when the responses are there.
            sampling: The responses.
            scoring: Their scores.
            collect: Makes the batch of the responses.
        """
        self.training_step = training_step
        self._runtime, self._sampling, self._scoring, self._collect = runtime, sampling, scoring, collect

    def result(self) -> tuple[DataProto, Future[ScoredBatch]]:
        """Wait for the responses.

        Returns:
            [S = B * G] rows with the columns of stages 1 and 2 and `sample_index`, dealt to the ranks; and the scores,
            ready when the last response is scored.

        Raises:
            RewardFailedError: A response has no score, and `on_error=stop`.
            RuntimeError: Not all responses came; the message names the training step.
        """
        try:
            outputs = self._sampling.result()
        except RuntimeError as error:
            if isinstance(error.__cause__, RewardFailedError):  # `submit` says so while others still generate
                raise error.__cause__ from None
            raise RuntimeError(f"batch of training step {self.training_step}: {error}") from error
        self._runtime.sleep_servers()
        return self._collect(outputs), self._runtime.loop.submit(self._finish_scoring())

    async def _finish_scoring(self) -> ScoredBatch:
        scores = await self._scoring.finish()
        await self._runtime.sleep_scorers()
        return scores

    @property
    def has_failed(self) -> bool:
        """Whether `result` would raise at once."""
        sampling = self._sampling
        return sampling.done() and (sampling.cancelled() or sampling.exception() is not None)

    def cancel(self) -> None:
        """Give up sampling and scoring."""
        self._sampling.cancel()
        self._runtime.loop.submit(_cancel(self._scoring))


class RolloutStage:
    """Samples the responses of a training step.

    Example:
        >>> pending = RolloutStage(config, runtime).start(rows, training_step=1)
        >>> batch, scoring = pending.result()
    """

    def __init__(self, config: PPOTrainerConfig, runtime: Runtime) -> None:
        """Read the sampling settings.

        Args:
            config: The run's configuration.
            runtime: Started servers and scorers.
        """
        rollout = config.actor_rollout_ref.rollout
        self._config, self._runtime = config, runtime
        self._group_size = rollout.n
        self._sampling = SamplingSettings(
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            max_new_tokens=config.data.max_response_length,
            ignore_eos=rollout.ignore_eos,
        )
        self._wants_greedy = "reward_baselines" in adv_estimator_columns(config.algorithm.adv_estimator)

    def start(self, rows: Mapping[str, list[Any]], training_step: int) -> PendingRollout:
        """Ask for G responses per prompt, and a greedy one where the estimator compares with it (ReMax).

        Args:
            rows: `data.train_batch_size` prompt rows.
            training_step: In which they will be trained on.

        Returns:
            The batch in the making. A greedy response is scored as member G of its group and is no row.
        """
        runtime, group_size = self._runtime, self._group_size
        prompts = prompt_batch(rows, f"step{training_step}", runtime.pad_token_id)
        by_uid = reward_inputs_of(prompts)
        requests = group_requests(prompts, group_size, self._sampling)
        greedy = self._greedy_requests(requests)
        scoring = runtime.reward_loop.open_batch([r.uid for r in requests], group_size + bool(greedy))

        def submit(output: RolloutOutput) -> None:
            if output.uid in greedy:
                output = replace(output, uid=greedy[output.uid].uid, index=group_size)
            scoring.submit(reward_input(output, by_uid[output.uid]))

        def collect(outputs: list[list[RolloutOutput]]) -> DataProto:
            outputs = outputs[: len(requests)]
            batch = to_batch(prompts, outputs, runtime.pad_token_id)
            places = [output.index for group in outputs for output in group]
            batch.non_tensor_batch["sample_index"] = as_objects(places)
            return self._balance(batch)

        runtime.wake_servers()
        runtime.wake_scorers()
        wanted = [*requests, *(_as_greedy(uid, request) for uid, request in greedy.items())]
        hold = not self._config.reward_model.overlap_rollout
        sampling = runtime.loop.submit(runtime.stream.generate(wanted, submit, hold))
        return PendingRollout(training_step, runtime, sampling, scoring, collect)

    def _greedy_requests(self, requests: list[GroupRequest]) -> dict[str, GroupRequest]:
        """The request each greedy answer belongs to, by the name the greedy one goes by on the servers."""
        return {f"{request.uid}-{_GREEDY}": request for request in requests} if self._wants_greedy else {}

    def _balance(self, batch: DataProto) -> DataProto:
        """Deal the rows to the data-parallel ranks."""
        dp_size = self._runtime.actor.dp_size
        if not self._config.trainer.balance_batch or dp_size == 1:
            return batch
        rows = self._config.actor_rollout_ref.actor.ppo_mini_batch_size * self._group_size
        return batch.reorder(balanced_order(sequence_lengths(batch).numpy(), dp_size, rows))


async def _cancel(scoring: BatchScoring) -> None:
    scoring.cancel()  # its tasks belong to the loop's thread


def _as_greedy(uid: str, request: GroupRequest) -> GroupRequest:
    sampling = replace(request.sampling, temperature=0.0, top_p=1.0, top_k=-1, seed=None)
    return replace(request, uid=uid, num_responses=1, sampling=sampling)
