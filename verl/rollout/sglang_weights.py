# SPDX-License-Identifier: Apache-2.0
"""New weights for one SGLang server: a process group of its own, over which a mapped bundle is broadcast.

This process is rank 0 of the group, the ranks of the server follow. Every message of an update goes over HTTP and is
looked into; the bytes go over the group. Knows no trainer and no request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

from verl.rollout.sglang_digest import ServerShape, compare_with_server
from verl.rollout.sglang_http import SGLangClient, SGLangError
from verl.weight_sync.bundle import WeightManifest, read_bundle

BUCKET_BYTES = 512 << 20
"""Most bytes that a server holds beside its weights at a time (one tensor may be larger)."""

_GROUP_TIMEOUT = timedelta(minutes=10)
_ANSWER_AFTER_BREAK_S = 2.0
_FLUSH_S = 60.0
_Named = tuple[str, torch.Tensor]


class SGLangWeightChannel:
    """Sends bundles to one server.

    Example:
        >>> channel = SGLangWeightChannel(client)
        >>> await channel.open(ServerShape("cuda", num_ranks=1, num_key_heads=4))
        >>> await channel.begin()
        >>> await channel.send(manifest)
        >>> await channel.finish(version=1)
    """

    def __init__(self, client: SGLangClient) -> None:
        """Remember the server.

        Args:
            client: Speaks to it.
        """
        self._client = client
        self._name = f"verl-weights-{os.getpid()}-{id(self):x}"
        self._shape: ServerShape | None = None
        self._store: Any = None
        self._group: Any = None
        self._is_broken = False

    async def open(self, shape: ServerShape) -> None:
        """Make the process group; the server joins it.

        Args:
            shape: Of the server.

        Raises:
            SGLangError: The server refused.
        """
        if self._group is not None:
            return
        self._shape = shape
        self._store = dist.TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False, timeout=_GROUP_TIMEOUT)
        invitation = {
            "master_address": address_towards(self._client.url),
            "master_port": self._store.port,
            "rank_offset": 1,
            "world_size": 1 + shape.num_ranks,
            "group_name": self._name,
            "backend": "gloo",  # the two environments hold different NCCLs, which do not speak to each other
        }
        joined = _in_a_thread(partial(self._join, 1 + shape.num_ranks))
        self._group = await _both(self._client.post("/init_weights_update_group", invitation), joined)

    async def begin(self) -> None:
        """Make the server ready to take weights."""
        await self._client.post("/begin_weight_update", {})

    async def send(self, manifest: WeightManifest) -> None:
        """Map a bundle and broadcast it; where it carries digests, compare what the server then holds.

        Args:
            manifest: Says where the tensors lie.

        Raises:
            WeightDigestError: The bytes in the file are not those that were sent, and nothing has gone to the server;
                or those of its parameters are not.
            SGLangError: The server could not take them in; the group cannot be used again.
        """
        assert self._group is not None and not self._is_broken, "open() was not awaited, or an earlier update failed"
        for bucket in buckets(list(read_bundle(manifest)), BUCKET_BYTES):
            message = {
                "names": [name for name, _ in bucket],
                "dtypes": [str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket],
                "shapes": [list(tensor.shape) for _, tensor in bucket],
                "group_name": self._name,
                "flush_cache": False,
            }
            sent = _in_a_thread(partial(self._broadcast, [tensor for _, tensor in bucket]))
            try:
                await _both(self._client.post("/update_weights_from_distributed", message), sent)
            except RuntimeError:
                self._is_broken = True  # the next broadcast would meet the rest of this one
                raise
        if manifest.digests:
            await self.compare(manifest)

    async def compare(self, manifest: WeightManifest) -> None:
        """Compare what the server holds with a bundle; while an update is open, since the end may change the layout.

        Args:
            manifest: Says where the tensors lie.

        Raises:
            WeightDigestError: The bytes of a parameter on some rank are not those of the bundle.
        """
        assert self._shape is not None, "open() was not awaited"
        said = await self._client.post("/weights_checker", {"action": "checksum", "selector": "target"})
        weights = dict(read_bundle(manifest))
        await asyncio.to_thread(compare_with_server, weights, said["ranks"], self._shape)

    async def finish(self, version: int, is_idle: bool) -> None:
        """Let the server process its new weights, forget what it computed with the old ones, and name the version.

        Args:
            version: Policy version.
            is_idle: Whether all requests are answered; else the server is paused and has some in its queue.
        """
        await self._client.post("/end_weight_update", {})
        # with a time limit it waits for what the server is just ending, instead of refusing; and for its queue, too
        await self._client.post(f"/flush_cache?timeout={_FLUSH_S if is_idle else 0.0}", {})
        await self._client.post("/update_weight_version", {"new_version": str(version), "abort_all_requests": False})

    async def close(self) -> None:
        """Leave the group; a server that goes on leaves it, too."""
        if self._group is None or self._is_broken:  # a broken group waits for its last broadcast before it ends
            return
        with contextlib.suppress(SGLangError):  # it may be gone, and then there is nothing to leave
            await self._client.post("/destroy_weights_update_group", {"group_name": self._name})
        self._group = self._store = None

    def _join(self, world_size: int) -> Any:
        """Meet the server's ranks under the keys that torch derives from the group's name on their side."""
        store = dist.PrefixStore(self._name, self._store)
        store = dist.PrefixStore("cpu/", dist.PrefixStore(f"{self._name}/", store))
        return dist.ProcessGroupGloo(store, 0, world_size, _GROUP_TIMEOUT)

    def _broadcast(self, tensors: Sequence[torch.Tensor]) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        for tensor in tensors:
            self._group.broadcast([tensor], options).wait()


def buckets(tensors: Sequence[_Named], limit_bytes: int) -> Iterator[list[_Named]]:
    """Cut named tensors into runs of limited size, in order.

    Args:
        tensors: `(name, tensor)` pairs.
        limit_bytes: Most bytes of a run; a larger tensor is a run by itself.

    Yields:
        The runs, none of them empty.
    """
    run: list[_Named] = []
    filled = 0
    for name, tensor in tensors:
        num_bytes = tensor.numel() * tensor.element_size()
        if run and filled + num_bytes > limit_bytes:
            yield run
            run, filled = [], 0
        run.append((name, tensor))
        filled += num_bytes
    if run:
        yield run


def address_towards(url: str) -> str:
    """This machine's address as a server sees it.

    Args:
        url: Of the server.

    Returns:
        An IP address; nothing is sent to find it.
    """
    parts = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((parts.hostname or "127.0.0.1", parts.port or 80))
        return str(probe.getsockname()[0])


def _in_a_thread(work: Callable[[], Any]) -> asyncio.Future[Any]:
    """Run what waits for the server's ranks; where these are gone, the thread holds up neither the loop nor its end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        result, failed = None, None
        try:
            result = work()
        except RuntimeError as error:  # torch's errors of groups and stores are of this kind
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=run, name="verl-sglang-weights", daemon=True).start()
    return future


async def _both(answer: Coroutine[Any, Any, Any], work: asyncio.Future[Any]) -> Any:
    """Wait for the server's answer and for our side of the group; the first that fails ends the wait.

    A broken group often comes before the answer that says why, so that the answer gets a moment, and goes first.
    """
    said = asyncio.ensure_future(answer)
    await asyncio.wait([said, work], return_when=asyncio.FIRST_EXCEPTION)
    if not said.done():
        await asyncio.wait([said], timeout=_ANSWER_AFTER_BREAK_S)
    work.add_done_callback(lambda each: each.cancelled() or each.exception())  # it may fail when nobody asks any more
    if said.done():
        said.result()
    said.cancel()
    return work.result()
