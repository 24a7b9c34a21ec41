# SPDX-License-Identifier: Apache-2.0
"""A group of worker actors, one per device of a pool, called as one object."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError

from verl.single_controller.base.decorator import Dispatch, dispatch_mode_of, join_results, split_arguments
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
        self._actors = [self._start_actor(pool, spec, rank) for rank in range(pool.world_size)]
        for name in dir(spec.worker_class):
            mode = dispatch_mode_of(getattr(spec.worker_class, name))
            if mode is not None:
                setattr(self, name, self._bind(name, mode))
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
        mode = dispatch_mode_of(getattr(self._worker_class, method)) or Dispatch.ONE_TO_ALL
        return join_results(mode, self._wait(self._submit(mode, method, args, kwargs), method, timeout_s))

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

    def _bind(self, method: str, mode: Dispatch) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return join_results(mode, self._wait(self._submit(mode, method, args, kwargs), method, None))

        return call

    def _submit(self, mode: Dispatch, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        per_rank = split_arguments(mode, self.world_size, args, kwargs)
        return [
            getattr(actor, method).remote(*rank_args, **rank_kwargs)
            for actor, (rank_args, rank_kwargs) in zip(self._actors, per_rank, strict=True)
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
