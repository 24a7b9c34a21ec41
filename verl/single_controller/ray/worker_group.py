# SPDX-License-Identifier: Apache-2.0
"""A group of worker actors, one per device of a pool, called as one object."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError

from verl.protocol import DataProto
from verl.single_controller.base.decorator import (
    MAIN_ROLE,
    DataShare,
    Dispatch,
    dispatch_mode_of,
    dispatch_role_of,
    join_results,
    output_ranks,
    split_arguments,
)
from verl.single_controller.base.worker import Worker, WorkerPlace
from verl.single_controller.ray.resource_pool import ResourcePool


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What runs on each rank.

    Attributes:
        worker_class: Subclass of `Worker`, not yet a Ray actor class.
        kwargs: Constructor arguments beside `place`; must pickle.
        env_vars: Environment of the actor processes.
        name: Shown in messages and in Ray's actor list.
    """

    worker_class: type[Worker]
    kwargs: dict[str, Any] = field(default_factory=dict)
    env_vars: dict[str, str] = field(default_factory=dict)
    name: str = "worker"


class RayWorkerGroup:
    """Ranks of one role. Every method that the worker class marks with `register` is offered under its own name.

    Example:
        >>> group = RayWorkerGroup(pool, WorkerSpec(ActorRolloutRefWorker, {"config": config}))
        >>> log_probs = group.compute_log_prob(batch)
    """

    def __init__(self, pool: ResourcePool, spec: WorkerSpec, start_timeout_s: float = 600.0) -> None:
        """Start one actor per device and let them find each other.

        Args:
            pool: Acquired devices.
            spec: What to run.
            start_timeout_s: Seconds until the actors must answer.
        """
        self.world_size = pool.world_size
        self._name = spec.name
        self._shares: dict[str, list[DataShare]] = {}
        self._actors = [self._start_actor(pool, spec, rank) for rank in range(pool.world_size)]
        for name in dir(spec.worker_class):
            if dispatch_mode_of(getattr(spec.worker_class, name)) is not None:
                setattr(self, name, partial(self.call, name))
        address, port = self._wait([self._actors[0].find_free_port.remote()], "find_free_port", start_timeout_s)[0]
        self.call("set_rendezvous", address, port)

    def call(self, method: str, *args: Any, timeout_s: float | None = None, **kwargs: Any) -> Any:
        """Call a marked method on all ranks and wait.

        Args:
            method: Its name.
            args: Positional arguments, split as the method declares.
            timeout_s: Seconds to wait; None waits until the ranks answer or die.
            kwargs: Keyword arguments, split likewise.

        Returns:
            The joined result.

        Raises:
            RuntimeError: A rank died, or did not answer in time.
        """
        marked = getattr(self._worker_class, method)
        mode = dispatch_mode_of(marked)
        if mode is None or mode is Dispatch.ONE_TO_ALL:
            return self._wait(self._submit(method, [(args, kwargs)] * self.world_size), method, timeout_s)
        shares = self._shares_of(dispatch_role_of(marked))
        results = self._wait(self._submit(method, split_arguments(shares, args, kwargs)), method, timeout_s)
        return join_results(mode, shares, results)

    @property
    def dp_size(self) -> int:
        """Chunks into which a batch is cut; asks the ranks on first use, so their model must be loaded."""
        return self._shares_of(MAIN_ROLE)[0].dp_size

    @property
    def actors(self) -> list[Any]:
        """Actor handles in rank order."""
        return list(self._actors)

    def shutdown(self) -> None:
        """End all ranks."""
        for actor in self._actors:
            ray.kill(actor)

    def _start_actor(self, pool: ResourcePool, spec: WorkerSpec, rank: int) -> Any:
        self._worker_class = spec.worker_class
        node_index, local_rank = divmod(rank, pool.devices_per_node)
        place = WorkerPlace(rank, pool.world_size, local_rank, node_index)
        actor_class = ray.remote(spec.worker_class)
        return actor_class.options(
            num_cpus=1,
            num_gpus=1 if pool.device == "cuda" else 0,
            scheduling_strategy=pool.scheduling(node_index),
            runtime_env={"env_vars": spec.env_vars},
            max_concurrency=1,
        ).remote(place=place, **spec.kwargs)

    def _shares_of(self, role: str) -> list[DataShare]:
        """What the ranks said about a role, in rank order."""
        if not self._shares:
            answers: list[dict[str, DataShare]] = self.call("data_shares")
            shares = {name: [answer[name] for answer in answers] for name in answers[0]}
            for of_one_role in shares.values():
                output_ranks(of_one_role)  # complain now, not when the first results come back
            self._shares = shares
        return self._shares[role]

    def _submit(self, method: str, per_rank: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[Any]:
        stored: dict[int, Any] = {}

        def stored_once(value: Any) -> Any:
            """A chunk that several ranks read is written to Ray's object store once."""
            if not isinstance(value, DataProto):
                return value
            if id(value) not in stored:
                stored[id(value)] = ray.put(value)
            return stored[id(value)]

        return [
            getattr(actor, method).remote(
                *map(stored_once, args), **{key: stored_once(value) for key, value in kwargs.items()}
            )
            for actor, (args, kwargs) in zip(self._actors, per_rank, strict=True)
        ]

    def _wait(self, references: list[Any], method: str, timeout_s: float | None) -> list[Any]:
        """Results in rank order; the first failure of any rank ends the wait, the others could hang in a collective."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        pending, results = list(references), [None] * len(references)
        while pending:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            done, pending = ray.wait(pending, num_returns=1, timeout=left_s)
            if not done:
                raise RuntimeError(f"{self._name}.{method}: {len(pending)} rank(s) did not answer in {timeout_s} s")
            rank = references.index(done[0])
            try:
                results[rank] = ray.get(done[0])
            except RayActorError as error:
                raise RuntimeError(f"{self._name}.{method}: rank {rank} died: {error}") from error
        return results
