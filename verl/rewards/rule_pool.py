# SPDX-License-Identifier: Apache-2.0
"""Rule verification in worker processes, so that no answer can stall or crash the program that asks.

    consumes    RewardInput, one per call or a whole batch; at most `max_pending` calls at a time (further callers wait)
    produces    RuleVerdict for each, always: scored, timeout or error
    waits for   one worker, at most `timeout_s`; then the worker is killed and another one started
    unblocked by the verdict, the time limit, or the worker's death

Each worker is a plain program on its own socket: nothing is shared, so killing one can never block another, and the
main module of the caller (with torch and Ray in it) is not imported again, as `multiprocessing` would. Pebble's pool
was tried and left: it gives up altogether when an idle worker dies, and leaves orphans behind when its parent does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from verl.rewards.loader import FunctionSpec, RuleItem
from verl.rewards.rule_worker import WorkerSetup
from verl.rewards.scores.registry import get_scorer
from verl.rewards.types import RewardInput, RuleVerdict
from verl.utils.errors import UserError

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 120.0
_SHIPPED_MEMORY_BYTES = 4 << 30
_PENDING_PER_WORKER = 64
_ROOT = str(Path(__file__).resolve().parents[2])


class WorkerDiedError(RuntimeError):
    """A worker process ended by itself: a crash, a kill for memory, an exit call."""


class RuleVerifierPool:
    """Judges responses with the shipped scorers, or with the user's function, in `num_workers` processes.

    Example:
        >>> async with RuleVerifierPool(num_workers=2, timeout_s=10.0) as pool:
        ...     verdict = await pool.verify(reward_input)
    """

    def __init__(self, num_workers: int, timeout_s: float, function: FunctionSpec | None = None) -> None:
        """Prepare the pool; the processes start with `start` or the first `verify`.

        Args:
            num_workers: Number of processes.
            timeout_s: Time limit per call, in seconds: of one response, or of a batch.
            function: The user's reward function, None for the shipped scorers.

        Raises:
            UserError: `num_workers` below 1 or `timeout_s` not above 0.
        """
        if num_workers < 1:
            raise UserError.for_key("num_workers", num_workers, "must be 1 or more", "Give at least one worker")
        if not timeout_s > 0:
            raise UserError.for_key("timeout_s", timeout_s, "must be above 0 seconds", "Give a time limit")
        # The user's function may need any amount of address space (CUDA maps terabytes); the shipped scorers do not.
        memory_bytes = 0 if function else _SHIPPED_MEMORY_BYTES
        self._setup = WorkerSetup(timeout_s, memory_bytes, function)
        self._executor = ThreadPoolExecutor(num_workers, thread_name_prefix="rule-verifier")
        self._pending = asyncio.Semaphore(num_workers * _PENDING_PER_WORKER)
        self._workers = [_Worker(self._setup) for _ in range(num_workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._counts: Counter[str] = Counter()
        self._closed = False

    async def __aenter__(self) -> RuleVerifierPool:
        """Start the workers."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers."""
        self.close()

    @property
    def counts(self) -> dict[str, int]:
        """What happened so far: `scored`, `timeout`, `error` by response, `restarts` by worker."""
        restarts = sum(worker.num_restarts for worker in self._workers)
        return {status: self._counts[status] for status in ("scored", "timeout", "error")} | {"restarts": restarts}

    async def start(self) -> None:
        """Start all workers and wait until they can work.

        Raises:
            UserError: A worker cannot load the user's function.
        """
        loop = asyncio.get_running_loop()
        for worker in self._workers:
            worker.spawn()
        await asyncio.gather(*(loop.run_in_executor(self._executor, worker.wait_ready) for worker in self._workers))

    async def verify(self, reward_input: RewardInput) -> RuleVerdict:
        """Judge one response.

        Args:
            reward_input: The response.

        Returns:
            The verdict; its status is `timeout` or `error` where there is no score.

        Raises:
            UserError: The data source has no scorer, or a worker cannot load the user's function.
            RuntimeError: The pool is closed.
        """
        return (await self.verify_batch([reward_input]))[0]

    async def verify_batch(self, reward_inputs: Sequence[RewardInput]) -> list[RuleVerdict]:
        """Judge responses in one call to one worker; a function that takes a batch sees all of them together.

        Args:
            reward_inputs: The responses.

        Returns:
            Their verdicts, in order; a call that raises or takes too long gives all of them `error` or `timeout`.

        Raises:
            UserError: As `verify`.
            RuntimeError: The pool is closed.
        """
        if self._closed:
            raise RuntimeError("the rule verifier pool is closed")
        if self._setup.function is None:
            for each in reward_inputs:
                get_scorer(each.data_source)
        items = [
            RuleItem(each.data_source, each.response, each.ground_truth, dict(each.extra_info))
            for each in reward_inputs
        ]
        async with self._pending:
            verdicts = await asyncio.get_running_loop().run_in_executor(self._executor, self._judge, items)
        for each, verdict in zip(reward_inputs, verdicts, strict=True):
            self._note(each, verdict)
        return verdicts

    def _note(self, reward_input: RewardInput, verdict: RuleVerdict) -> None:
        self._counts[verdict.status] += 1
        if verdict.status != "scored":
            logger.warning(
                "no rule score: uid=%s index=%d data_source=%s status=%s %s",
                reward_input.uid,
                reward_input.index,
                reward_input.data_source,
                verdict.status,
                verdict.detail,
            )

    def close(self) -> None:
        """End all workers at once. Responses being judged end with status `error`."""
        self._closed = True
        for worker in self._workers:
            worker.retire()
        self._executor.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.kill()

    def _judge(self, items: list[RuleItem]) -> list[RuleVerdict]:
        """Make one call on an idle worker; runs in one of the pool's threads, of which there is one per worker."""
        worker = self._idle.get_nowait()
        try:
            return self._ask_twice(worker, items)
        finally:
            self._idle.put(worker)

    def _ask_twice(self, worker: _Worker, items: list[RuleItem]) -> list[RuleVerdict]:
        """Ask again once after a death: the worker may have been killed for no fault of these items."""
        with contextlib.suppress(WorkerDiedError):
            return worker.ask(items)
        try:
            return worker.ask(items)
        except WorkerDiedError as error:
            return [_no_score("error", str(error))] * len(items)


class _Worker:
    """One worker process at a time, replaced when it hangs or dies. Used by one thread at a time."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._popen: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._is_ready = False
        self._is_retired = False
        self._num_started = 0

    @property
    def num_restarts(self) -> int:
        """How often a process had to be replaced."""
        return max(0, self._num_started - 1)

    def spawn(self) -> None:
        """Start the process, without waiting for it; a running one is kept.

        Raises:
            WorkerDiedError: The pool was closed.
        """
        if self._is_retired:
            raise WorkerDiedError("the rule verifier pool was closed")
        if self._popen is not None:
            return
        ours, theirs = Pipe()
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "verl.rewards.rule_worker", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env=_worker_environment(),
                start_new_session=True,
            )
        self._connection = ours
        self._is_ready = False
        self._num_started += 1
        ours.send(self._setup)

    def wait_ready(self) -> None:
        """Wait until the process can work.

        Raises:
            UserError: It cannot load the user's function.
            WorkerDiedError: It died, or was not ready in time.
        """
        self.spawn()
        if self._is_ready:
            return
        problem = self._receive(_START_TIMEOUT_S)
        if problem is None:
            self.kill()
            raise WorkerDiedError(f"a rule worker was not ready within {_START_TIMEOUT_S:.0f} s")
        if problem:
            self.kill()
            raise UserError(f"a rule worker cannot start: {problem}")
        self._is_ready = True

    def ask(self, items: list[RuleItem]) -> list[RuleVerdict]:
        """Have the items of one call judged.

        Args:
            items: The responses.

        Returns:
            Their verdicts, `timeout` where the limit was reached; the process has then been replaced.

        Raises:
            WorkerDiedError: The process died.
            UserError: As `wait_ready`.
        """
        self.wait_ready()
        assert self._connection is not None
        try:
            self._connection.send(items)
        except OSError as error:
            raise self._died() from error
        verdicts: list[RuleVerdict] | None = self._receive(self._setup.timeout_s)
        if verdicts is None:
            self._replace()
            detail = f"no verdict within {self._setup.timeout_s:g} s; the worker was killed"
            return [_no_score("timeout", detail)] * len(items)
        return verdicts

    def retire(self) -> None:
        """End the process for good; the one call allowed beside another thread's, which then sees the process die."""
        self._is_retired = True
        if self._popen is not None:
            _kill_group(self._popen)

    def kill(self) -> None:
        """End the process and all it has started."""
        popen, connection = self._popen, self._connection
        self._popen = self._connection = None
        if popen is not None:
            _kill_group(popen)
            popen.wait()
        if connection is not None:
            connection.close()

    def _receive(self, timeout_s: float) -> Any:
        """Wait for an answer; None where the time is over."""
        assert self._connection is not None
        try:
            return self._connection.recv() if self._connection.poll(timeout_s) else None
        except (EOFError, OSError) as error:
            raise self._died() from error

    def _replace(self) -> None:
        """End the process and start another one, which is loading while the pool does something else."""
        self.kill()
        if not self._is_retired:
            self.spawn()

    def _died(self) -> WorkerDiedError:
        """Take leave of a dead process and say how it ended."""
        popen = self._popen
        self._replace()
        status = None if popen is None else popen.returncode
        name = signal.Signals(-status).name if status is not None and status < 0 else f"exit code {status}"
        return WorkerDiedError(f"the rule worker died ({name})")


def _kill_group(popen: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(popen.pid, signal.SIGKILL)


def _worker_environment() -> dict[str, str]:
    """The caller's environment, one thread per worker, and this package on the path wherever the caller runs."""
    paths = [_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _no_score(status: Literal["timeout", "error"], detail: str) -> RuleVerdict:
    return RuleVerdict(score=0.0, is_correct=False, status=status, detail=detail)
