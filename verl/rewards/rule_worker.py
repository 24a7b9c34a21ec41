# SPDX-License-Identifier: Apache-2.0
"""The program of one rule worker process: `python -m verl.rewards.rule_worker FD`.

    pool -> setup -> worker answers "" (ready) or why it cannot start
    pool -> RuleItems of one call -> worker answers as many RuleVerdicts, until the pool closes the connection

Loads the scorers and nothing heavy. The pool keeps time; the timer here only ends a worker whose pool has died.
"""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from verl.rewards.loader import CustomFunction, FunctionSpec, RuleItem
from verl.rewards.scores.registry import get_scorer
from verl.rewards.types import RuleVerdict

_ORPHAN_GRACE_S = 30.0
_MAX_DETAIL_CHARS = 500

Judge = Callable[[Sequence[RuleItem]], Sequence[RuleVerdict]]


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker is told first.

    Args:
        timeout_s: Time limit per call, in seconds.
        memory_bytes: Limit on the worker's address space, 0 for none.
        function: The user's reward function, None for the shipped scorers.
    """

    timeout_s: float
    memory_bytes: int
    function: FunctionSpec | None


def main() -> None:
    """Serve the connection whose file descriptor is the first argument."""
    with Connection(int(sys.argv[1])) as connection:
        setup = connection.recv()
        try:
            judge = prepare(setup)
        except Exception as error:  # noqa: BLE001 - the process's outer border; the pool raises it
            connection.send(describe(error))
            return
        connection.send("")
        serve(connection, judge, setup.timeout_s)


def prepare(setup: WorkerSetup) -> Judge:
    """Apply the limits and load the scorer.

    Args:
        setup: What the pool asked for.

    Returns:
        The function that judges the items of one call.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if setup.memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (setup.memory_bytes, setup.memory_bytes))
    return judge_by_source if setup.function is None else CustomFunction(setup.function).judge


def judge_by_source(items: Sequence[RuleItem]) -> list[RuleVerdict]:
    """Judge each item with the shipped scorer of its data source.

    Args:
        items: The responses.

    Returns:
        The verdicts.
    """
    return [get_scorer(item.data_source)(item.response, item.ground_truth, item.extra_info) for item in items]


def serve(connection: Connection, judge: Judge, timeout_s: float) -> None:
    """Judge items until the pool hangs up.

    Args:
        connection: To the pool.
        judge: Judges the items of one call; what it raises is the verdict on all of them.
        timeout_s: Time limit per call, in seconds.
    """
    while True:
        try:
            items = connection.recv()
        except EOFError:
            return
        # The kernel ends the process even inside one long C call, should the pool no longer be there to do it.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, timeout_s + _ORPHAN_GRACE_S)
        try:
            verdicts = list(judge(items))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the loop's outer border; counted by the pool
            verdicts = [RuleVerdict(score=0.0, is_correct=False, status="error", detail=describe(error))] * len(items)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(verdicts)


def describe(error: BaseException) -> str:
    """Write an error in one line of bounded length.

    Args:
        error: The error.

    Returns:
        Its type and text.
    """
    return f"{type(error).__name__}: {error}"[:_MAX_DETAIL_CHARS]


if __name__ == "__main__":
    main()
