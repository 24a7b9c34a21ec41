# SPDX-License-Identifier: Apache-2.0
"""Real vLLM servers on Ray that are killed in the middle of a weight sync: one error that names the server, soon."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from recipe.miniature.models import save
from tests.helpers.weight_sync import engine_spec
from verl.trainer.ppo.placement import actor_environment
from verl.weight_sync.base import WeightSender, WeightStream, WeightSyncFailedError
from verl.weight_sync.broadcast import BroadcastSender, BroadcastSettings
from verl.weight_sync.gloo_group import GlooDoor
from verl.weight_sync.shared_memory import SharedMemorySender
from verl.workers.rollout_server import RolloutServer
from verl.workers.weight_client import RayWeightSyncClient

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]

LIMIT_S = 300.0  # of one message; the error must come long before
SOON_S = 60.0
VICTIM = 1


class WatchedClient(RayWeightSyncClient):
    """The real client; says when the servers have begun, and cuts a sync in two so that one can die in between."""

    def __init__(self, servers: list[Any]) -> None:
        super().__init__(servers, LIMIT_S)
        self.has_begun = threading.Event()
        self.between: Callable[[], None] = lambda: None
        self.sender: WeightSender | None = None

    def start_update(self) -> None:
        super().start_update()
        self.has_begun.set()

    def sync(self, payload: dict[str, Any], version: int) -> None:
        self.start_update()
        self.between()
        self.update(payload)
        self.finish_update(version)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    save(str(folder), seed=0)
    return folder / "policy_init"


@pytest.mark.parametrize(
    ("backend", "victim"),
    [
        ("shared_memory", "engine"),
        ("gloo", "actor"),
        pytest.param("shared_memory", "actor", marks=pytest.mark.opt_in),
        pytest.param("gloo", "engine", marks=pytest.mark.opt_in),
    ],
)
def test_a_server_killed_in_the_middle_of_a_sync_ends_it(
    backend: str, victim: str, policy: Path, ray_cluster: str
) -> None:
    actor_class = ray.remote(RolloutServer).options(
        num_cpus=0, runtime_env={"env_vars": actor_environment("cpu")}, max_concurrency=16
    )
    servers = [actor_class.remote("vllm", engine_spec(policy, backend), str(policy)) for _ in range(2)]
    actor_pid = ray.get([server.start.remote() for server in servers], timeout=300)[VICTIM]
    children = psutil.Process(actor_pid).children(recursive=True)
    engine = next(process for process in children if "EngineCore" in " ".join(process.cmdline()))
    killed_s: list[float] = []

    def kill() -> None:
        os.kill(actor_pid if victim == "actor" else engine.pid, signal.SIGKILL)
        killed_s.append(time.monotonic())

    try:
        client = WatchedClient(servers)
        model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
        send = _send_in_one_file if backend == "shared_memory" else _send_in_buckets
        send(client, model, lambda: None, 1)  # the first sync is sound
        with pytest.raises(WeightSyncFailedError, match=f"rollout server {VICTIM} of 2") as caught:
            send(client, model, kill, 2)
        assert ("died" if victim == "actor" else "engine process is gone") in str(caught.value)
        assert time.monotonic() - killed_s[0] < SOON_S
        assert not list(Path("/dev/shm").glob(f"verl-weights-{os.getpid()}*"))
        _, alive = psutil.wait_procs([engine], timeout=SOON_S)
        assert not alive  # an engine without its server goes, too
    finally:
        for server in servers:
            ray.kill(server)


def _send_in_one_file(client: WatchedClient, model: Any, between: Callable[[], None], version: int) -> None:
    client.between = between
    client.sender = client.sender or SharedMemorySender(client, is_leader=True)
    client.sender.send(WeightStream(lambda: iter(model.named_parameters())), version, verify=True)


def _send_in_buckets(client: WatchedClient, model: Any, between: Callable[[], None], version: int) -> None:
    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        pairs = list(model.named_parameters())
        client.has_begun.clear()
        for number, pair in enumerate(pairs):
            if number == len(pairs) - 1:  # all buckets but the last are on their way
                assert client.has_begun.wait(60)
                between()
            yield pair

    if client.sender is None:
        client.sender = BroadcastSender(client, GlooDoor("127.0.0.1", LIMIT_S), BroadcastSettings(100_000, LIMIT_S))
    client.sender.send(WeightStream(weights), version, verify=True)
