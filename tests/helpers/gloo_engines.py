# SPDX-License-Identifier: Apache-2.0
"""Receivers of broadcasts as threads of this process, with plain tensors for a model."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from verl.weight_sync.gloo_group import GlooBucketInfo, GlooGroupInfo, GlooReceiver


@dataclass
class GlooEngine:
    """A receiver with plain tensors for a model; `before_update` may do what a broken engine does."""

    before_update: Callable[[dict[str, Any]], None] = lambda payload: None
    said: list[str] = field(default_factory=list)
    model: dict[str, torch.Tensor] = field(default_factory=dict)
    receiver: GlooReceiver | None = None

    def init_transfer(self, init_info: dict[str, Any]) -> None:
        self.receiver = GlooReceiver(GlooGroupInfo(**init_info), 0)

    def start_update(self) -> None:
        self.said.append("start")

    def update(self, payload: dict[str, Any]) -> None:
        self.said.append("update")
        self._load(payload)

    def finish_update(self, version: int) -> None:
        self.said.append(f"finish {version}")

    def sync(self, payload: dict[str, Any], version: int) -> None:
        self.said.append(f"sync {version}")
        self._load(payload)

    def _load(self, payload: dict[str, Any]) -> None:
        self.before_update(payload)
        assert self.receiver is not None
        self.model |= {name: tensor.clone() for name, tensor in self.receiver.receive(GlooBucketInfo(**payload))}


class ThreadedClient:
    """Says each message to all engines at once, as the client on Ray does; the first failure is raised."""

    def __init__(self, *engines: GlooEngine) -> None:
        self._engines = engines
        self._threads = ThreadPoolExecutor(len(engines))

    @property
    def num_receivers(self) -> int:
        return len(self._engines)

    def init_group(self, init_info: dict[str, Any]) -> None:
        self._all("init_transfer", [(init_info | {"rank_offset": 1 + i},) for i in range(len(self._engines))])

    def init_transfer(self, init_info: dict[str, Any]) -> None:
        raise AssertionError("a group is joined with init_group")

    def start_update(self) -> None:
        self._all("start_update", [()] * len(self._engines))

    def update(self, payload: dict[str, Any]) -> None:
        self._all("update", [(payload,)] * len(self._engines))

    def finish_update(self, version: int) -> None:
        self._all("finish_update", [(version,)] * len(self._engines))

    def sync(self, payload: dict[str, Any], version: int) -> None:
        self._all("sync", [(payload, version)] * len(self._engines))

    def _all(self, method: str, arguments: list[tuple[Any, ...]]) -> None:
        outcomes = [
            self._threads.submit(getattr(engine, method), *args)
            for engine, args in zip(self._engines, arguments, strict=True)
        ]
        for outcome in outcomes:
            outcome.result(timeout=30)
