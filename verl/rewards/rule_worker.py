# SPDX-License-Identifier: Apache-2.0
"""The program of one rule worker process: `python -m verl.rewards.rule_worker FD`.

    pool -> setup -> worker answers "" (ready) or why it cannot start
    pool -> RuleItem -> worker answers RuleVerdict, again and again, until the pool closes the connection

Loads the scorers and nothing heavy. The pool keeps time; the timer here only ends a worker whose pool has died.
"""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from verl.rewards.loader import FunctionSpec, RuleItem, call_function, load_function
from verl.rewards.scores.registry import get_scorer
from verl.rewards.types import RuleVerdict

_ORPHAN_GRACE_S = 30.0
_MAX_DETAIL_CHARS = 500


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker is told first.

    Args:
        timeout_s: Time limit per item, in seconds.
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


def prepare(setup: WorkerSetup) -> Callable[[RuleItem], RuleVerdict]:
    """Apply the limits and load the scorer.

    Args:
        setup: What the pool asked for.

    Returns:
        The function that judges one item.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if setup.memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (setup.memory_bytes, setup.memory_bytes))
    spec = setup.function
    if spec is None:
        return judge_by_source
    function = load_function(spec)
    return lambda item: call_function(function, item, spec.kwargs)


def judge_by_source(item: RuleItem) -> RuleVerdict:
    """Judge one item with the shipped scorer of its data source.

    Args:
        item: The response.

    Returns:
        The verdict.
    """
    return get_scorer(item.data_source)(item.response, item.ground_truth, item.extra_info)


def serve(connection: Connection, judge: Callable[[RuleItem], RuleVerdict], timeout_s: float) -> None:
    """Judge items until the pool hangs up.

    Args:
        connection: To the pool.
        judge: Judges one item.
        timeout_s: Time limit per item, in seconds.
    """
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        # The kernel ends the process even inside one long C call, should the pool no longer be there to do it.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, timeout_s + _ORPHAN_GRACE_S)
        try:
            verdict = judge(item)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the loop's outer border; counted by the pool
            verdict = RuleVerdict(score=0.0, is_correct=False, status="error", detail=describe(error))
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(verdict)


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
