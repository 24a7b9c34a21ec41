# SPDX-License-Identifier: Apache-2.0
"""Sender of the backends `gloo` and `nccl`: policy rank 0 broadcasts buckets of weights to the engines of all nodes.

Trainer and engines may stand on different machines and devices. For every bucket the engines are told what comes (in a
thread of its own, since they answer when they have it) while the bucket is sent; the next one is gathered and packed
meanwhile. Knows neither gloo nor NCCL: a `BroadcastGroup` carries the bytes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from verl.weight_sync.base import GroupSyncClient, NamedWeights, SyncReport, WeightSyncFailedError
from verl.weight_sync.buckets import Bucket, pack
from verl.weight_sync.sent import SentWeights, take_part

_FIRST_POLL_S = 0.0002
_LONGEST_POLL_S = 0.005
_TOO_LATE = "weight sync: a bucket did not arrive in time (actor_rollout_ref.rollout.weight_sync_timeout_s)"


class Sending(Protocol):
    """A broadcast under way."""

    def is_done(self) -> bool:
        """Whether it has ended; raises `RuntimeError` when it failed."""


class BroadcastGroup(Protocol):
    """Process group in which this process is rank 0."""

    def broadcast(self, flat: Any) -> Sending:
        """Start to send a flat uint8 tensor to all other ranks; it must live until the sending has ended."""

    def close(self) -> None:
        """Leave the group; broadcasts under way are broken off."""


class GroupDoor(Protocol):
    """Where a group comes together."""

    def init_info(self, world_size: int) -> dict[str, Any]:
        """Open the door; what an engine must know to come in."""

    def enter(self, world_size: int) -> BroadcastGroup:
        """Come in as rank 0; returns when all ranks are there, raises `RuntimeError` after the door's time limit."""

    def close(self) -> None:
        """Give up waiting for the others, as far as that is possible."""


@dataclass(frozen=True, slots=True)
class BroadcastSettings:
    """How to send.

    Attributes:
        bucket_bytes: A bucket ends with the tensor that makes it larger than this. Unit: bytes.
        timeout_s: Longest wait for the group to come together, and for one bucket to arrive. Unit: seconds.
        last_words_s: Longest wait, when the transfer broke off, for the server that died to be named. Unit: seconds.
    """

    bucket_bytes: int
    timeout_s: float
    last_words_s: float = 5.0


class BroadcastSender:
    """Broadcasts weights to engines that are members of a process group.

    Example:
        >>> sender = BroadcastSender(client, GlooDoor("10.0.0.1", 600.0), BroadcastSettings(1 << 28, 600.0))
        >>> report = sender.send(engine.named_weights(torch.bfloat16), version=1, verify=True)
    """

    def __init__(self, client: GroupSyncClient | None, door: GroupDoor | None, settings: BroadcastSettings) -> None:
        """Bring the group together.

        Args:
            client: All engines; None on every rank but 0.
            door: Where the group meets; None likewise.
            settings: How to send.

        Raises:
            WeightSyncFailedError: An engine did not come, or failed.
        """
        self._client, self._settings = client, settings
        self._group: BroadcastGroup | None = None
        if client is not None and door is not None:
            self._group = _come_together(client, door, settings)

    def send(self, weights: NamedWeights, version: int, verify: bool) -> SyncReport:
        """See `WeightSender.send`."""
        if self._client is None or self._group is None:
            return take_part(weights, version)
        started = time.perf_counter()
        sent = SentWeights(weights, verify)
        update = _Update(self._client, self._group, self._settings, version)
        pack_s, asked = 0.0, started
        for bucket in pack(sent, self._settings.bucket_bytes):
            pack_s += time.perf_counter() - asked
            digests = [sent.digests[name] for name in bucket.names] if verify else []
            update.send(bucket, digests)
            asked = time.perf_counter()
        update.end()
        return sent.report(version, started, pack_s - sent.digest_s)

    def close(self) -> None:
        """Leave the group."""
        if self._group is not None:
            self._group.close()
            self._group = None


class _Update:
    """One sync: at most one bucket on its way, told to the engines and sent to them at the same time."""

    def __init__(
        self, client: GroupSyncClient, group: BroadcastGroup, settings: BroadcastSettings, version: int
    ) -> None:
        self._client, self._group, self._settings, self._version = client, group, settings, version
        self._on_the_way: tuple[Bucket, Sending, Future[None], float] | None = None
        self._is_first = True

    def send(self, bucket: Bucket, digests: list[str]) -> None:
        """Start to send a bucket, when the one before has arrived."""
        self._wait()
        payload = {
            "names": bucket.names,
            "dtype_names": bucket.dtype_names,
            "shapes": bucket.shapes,
            "digests": digests,
        }
        answer = run_aside(partial(self._tell, payload, self._is_first, bucket.is_last))
        deadline_s = time.monotonic() + self._settings.timeout_s
        self._on_the_way = (bucket, self._group.broadcast(bucket.flat), answer, deadline_s)
        self._is_first = False

    def end(self) -> None:
        """Wait for the last bucket; the engines have then finished the update."""
        self._wait()

    def _tell(self, payload: dict[str, Any], is_first: bool, is_last: bool) -> None:
        if is_first and is_last:
            self._client.sync(payload, self._version)
            return
        if is_first:
            self._client.start_update()
        self._client.update(payload)
        if is_last:
            self._client.finish_update(self._version)

    def _wait(self) -> None:
        if self._on_the_way is None:
            return
        _, sending, answer, deadline_s = self._on_the_way
        wait_for(sending, answer, deadline_s, self._settings.last_words_s)
        self._on_the_way = None


def wait_for(sending: Sending, answer: Future[None], deadline_s: float, last_words_s: float) -> None:
    """Wait until a broadcast has ended and the engines have answered, whichever fails first.

    Args:
        sending: The broadcast.
        answer: What the engines say to it.
        deadline_s: Latest end, `time.monotonic()`.
        last_words_s: Longest wait, when the broadcast failed, for an engine to say why.

    Raises:
        WeightSyncFailedError: An engine failed, the broadcast failed, or neither ended in time.
    """
    poll_s = _FIRST_POLL_S
    while not _has_ended(sending, answer, last_words_s):
        if answer.done():
            answer.result()  # an engine that failed takes no part in the broadcast
        if time.monotonic() > deadline_s:
            raise WeightSyncFailedError(_TOO_LATE)
        time.sleep(poll_s)
        poll_s = min(2 * poll_s, _LONGEST_POLL_S)
    wait([answer], timeout=max(0.0, deadline_s - time.monotonic()))
    if not answer.done():
        raise WeightSyncFailedError(_TOO_LATE)
    answer.result()


def _has_ended(sending: Sending, answer: Future[None], last_words_s: float) -> bool:
    try:
        return sending.is_done()
    except RuntimeError as error:
        _let_the_engines_explain(answer, last_words_s)
        raise WeightSyncFailedError(f"weight sync: the broadcast broke off: {error}") from error


def run_aside(work: Callable[[], Any]) -> Future[Any]:
    """Run a function in a thread that does not keep the process alive.

    Args:
        work: The function.

    Returns:
        Its outcome.
    """
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - the border of the thread; whoever reads the outcome gets it
            outcome.set_exception(error)

    threading.Thread(target=run, name="weight-sync", daemon=True).start()
    return outcome


def _let_the_engines_explain(answer: Future[None], seconds: float) -> None:
    """Raise what an engine says, where it says something soon: it names the server, a broken connection does not."""
    try:
        answer.result(timeout=seconds)
    except TimeoutError:
        return


def _come_together(client: GroupSyncClient, door: GroupDoor, settings: BroadcastSettings) -> BroadcastGroup:
    """Enter the group while the engines do; the first failure ends the wait."""
    world_size = 1 + client.num_receivers
    init_info = door.init_info(world_size)
    where = f"{init_info['master_address']}:{init_info['master_port']} ({world_size} ranks)"
    answer = run_aside(lambda: client.init_group(init_info))
    entering = run_aside(lambda: door.enter(world_size))
    deadline = time.monotonic() + settings.timeout_s + settings.last_words_s
    try:
        while not (answer.done() and entering.done()):
            if answer.done():
                answer.result()
            if entering.done() and (error := entering.exception()) is not None:
                _let_the_engines_explain(answer, settings.last_words_s)
                raise WeightSyncFailedError(
                    f"weight sync: the process group of trainer and rollout servers did not come together at {where}: "
                    f"{error}. Can the servers' nodes reach that address?"
                ) from error
            if time.monotonic() > deadline:
                raise WeightSyncFailedError(
                    f"weight sync: trainer and rollout servers did not come together at {where} in "
                    f"{settings.timeout_s:g} s (actor_rollout_ref.rollout.weight_sync_timeout_s)"
                )
            time.sleep(_LONGEST_POLL_S)
        answer.result()
        group: BroadcastGroup = entering.result()
    except WeightSyncFailedError:
        door.close()
        raise
    return group
