# SPDX-License-Identifier: Apache-2.0
"""What the senders say is what vLLM's receivers take in, as far as that can be seen without a GPU."""

from __future__ import annotations

import pickle
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from verl.config.names import WEIGHT_SYNC_BACKENDS
from verl.weight_sync.bundle import WeightManifest
from verl.weight_sync.digest import digest_of
from verl.weight_sync.gloo_group import GlooDoor
from verl.weight_sync.sent import SentWeights

pytestmark = pytest.mark.vllm

TENSORS = {"names": ["a", "b"], "dtype_names": ["float32", "bfloat16"], "shapes": [[2, 3], [4]], "digests": ["0", "1"]}
PAYLOADS = {
    "shared_memory": WeightManifest("/x", ["a"], ["float32"], [[2, 3]], [0], ["0"]).to_dict(),
    "gloo": TENSORS,
    "nccl": TENSORS,
    "ipc": TENSORS | {"handles": pickle.dumps({"gpu": ()}), "tensor_sizes": [24, 8]},
}


@pytest.fixture(scope="module")
def receivers() -> dict[str, Any]:
    factory = pytest.importorskip("vllm.distributed.weight_transfer.factory").WeightTransferEngineFactory
    plugin = pytest.importorskip("verl.weight_sync.vllm_plugin")
    plugin.register()
    plugin.register()  # vLLM may load plugins twice
    return {backend: factory._registry[plugin.receiver_name(backend)]() for backend in plugin.RECEIVERS}


def test_every_backend_has_a_receiver(receivers: dict[str, Any]) -> None:
    assert set(receivers) == set(WEIGHT_SYNC_BACKENDS) - {"auto"} == set(PAYLOADS)


@pytest.mark.parametrize("backend", sorted(PAYLOADS))
def test_a_receiver_understands_an_update(receivers: dict[str, Any], backend: str) -> None:
    info = receivers[backend].update_info_cls(**PAYLOADS[backend])
    assert set(PAYLOADS[backend]) <= {each.name for each in fields(info)}
    assert list(info.digests) == PAYLOADS[backend]["digests"]


def test_receivers_of_a_group_understand_how_to_join(receivers: dict[str, Any]) -> None:
    group = pytest.importorskip("verl.weight_sync.vllm_nccl_group")
    door = group.NCCLDoor("127.0.0.1", 0)
    info = receivers["nccl"].init_info_cls(**door.init_info(5), rank_offset=3)
    assert (info.world_size, info.rank_offset, info.packed) == (5, 3, True)
    assert info.packed_buffer_size_bytes > 1 << 50  # one message is one broadcast, whatever the bucket's size
    info = receivers["gloo"].init_info_cls(**GlooDoor("127.0.0.1", 7.0).init_info(5), rank_offset=3)
    assert (info.world_size, info.rank_offset, info.timeout_s) == (5, 3, 7.0)


def test_an_ipc_update_carries_the_digests_of_the_tensors_it_names() -> None:
    sender = pytest.importorskip("verl.weight_sync.vllm_ipc_sender")
    weights = {"a": torch.ones(3), "b": torch.zeros(2), "c": torch.full((4,), 2.0)}
    said: list[tuple[str, Any]] = []

    class Client:
        def update(self, payload: dict[str, Any]) -> None:
            said.append(("update", payload))

        def finish_update(self, version: int) -> None:
            said.append(("finish", version))

    source = sender.CurrentWeights(torch.device("cpu"))
    client = sender.ClientAdapter(Client(), source)
    for verify in (True, False):
        source.sent, client.version = SentWeights(weights.items(), verify), 4
        stream = iter(source)
        assert [next(stream)[0] for _ in range(3)] == ["a", "b", "c"]  # vLLM looks ahead of the chunk it sends
        client.update_weights({"names": ["a", "b"], "ipc_handles": {}})
        client.finish_weight_update()
    digests = [digest_of(weights["a"]), digest_of(weights["b"])]
    no_handles = {"handles": pickle.dumps({}), "ipc_handles": None}
    assert said == [
        ("update", {"names": ["a", "b"], "digests": digests} | no_handles),
        ("finish", 4),
        ("update", {"names": ["a", "b"], "digests": []} | no_handles),
        ("finish", 4),
    ]


def test_handles_of_gpu_memory_reach_the_process_that_opens_them(receivers: dict[str, Any]) -> None:
    """Through vLLM's own messages to its engine process, which carry plain values alone; a handle names classes too."""
    sender = pytest.importorskip("verl.weight_sync.vllm_ipc_sender")
    serial = pytest.importorskip("vllm.v1.serial_utils")
    said: list[dict[str, Any]] = []
    client = sender.ClientAdapter(SimpleNamespace(update=said.append), sender.CurrentWeights(torch.device("cpu")))
    kinds = (
        torch.Tensor,
        torch.Size([32]),
        (1,),
        0,
        torch.UntypedStorage,
        torch.uint8,
    )  # as `reduce_tensor` gives them
    handle = (*kinds, 1, b"memory", 32, 0, False, b"counter", 3, b"event", True)
    sent = {key: TENSORS[key] for key in ("names", "dtype_names", "shapes")} | {"tensor_sizes": [24, 8]}
    client.update_weights(sent | {"ipc_handles": {"GPU-1": handle}, "ipc_handles_pickled": None})

    encoded = serial.MsgpackEncoder().encode(("update_weights", {"update_info": said[0]}))
    method, arguments = serial.MsgpackDecoder().decode(encoded)
    info = receivers["ipc"].update_info_cls(**arguments["update_info"])
    assert (method, info.names, info.tensor_sizes, info.shapes) == (
        "update_weights",
        ["a", "b"],
        [24, 8],
        [[2, 3], [4]],
    )
    assert info.ipc_handles == {"GPU-1": handle}
