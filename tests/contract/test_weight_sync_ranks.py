# SPDX-License-Identifier: Apache-2.0
"""Weights of a policy that is sharded over two ranks, broadcast by rank 0: whole tensors arrive, adapters merged."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from tests.helpers.engine_cases import Case, engine_spec, run_ranks, train
from tests.helpers.gloo_engines import GlooEngine, ThreadedClient
from tests.helpers.tiny_models import save_tiny_model
from verl.engines.adapters import LoraSpec
from verl.engines.fsdp.engine import FSDPEngine
from verl.engines.fsdp.gathering import gather_whole
from verl.weight_sync.base import WeightStream
from verl.weight_sync.broadcast import BroadcastSender, BroadcastSettings
from verl.weight_sync.gloo_group import GlooDoor

pytestmark = pytest.mark.slow

SHAPES = [(7, 3), (1, 5), (64,), (2, 2, 2), (100, 128), (0, 4), (3,), (5, 1)]
SETTINGS = BroadcastSettings(bucket_bytes=10_000, timeout_s=60.0)


def broadcast(folder: Path) -> dict[str, Any]:
    """Two syncs of each policy, the second after a training step; what arrived and what the engine has."""
    rank, results = int(os.environ["RANK"]), {}
    for name, lora in (("whole", None), ("adapters", LoraSpec(rank=3, alpha=12))):
        receivers = [GlooEngine(), GlooEngine()]
        torch.manual_seed(5)
        engine = FSDPEngine(replace(engine_spec(str(folder / "tied"), Case()), lora=lora))
        sends = rank == 0
        sender = BroadcastSender(
            ThreadedClient(*receivers) if sends else None, GlooDoor("127.0.0.1", 60.0) if sends else None, SETTINGS
        )
        for version in (1, 2):
            stream = WeightStream(lambda engine=engine: engine.named_weights(torch.float32))
            report = sender.send(stream, version, verify=True)
            kept = {key: weight.clone() for key, weight in engine.named_weights(torch.float32)}
            results[f"{name} {version}"] = (report, kept, [dict(receiver.model) for receiver in receivers])
            train(engine, Case(), range(1))
        sender.close()
    return results


def test_rank_0_sends_what_both_ranks_hold(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "tied")
    first, second = run_ranks(2, tmp_path, partial(broadcast, tmp_path))
    for name, (report, kept, received) in first.items():
        assert report.num_bytes == sum(tensor.nbytes for tensor in kept.values()) > 3 * SETTINGS.bucket_bytes
        assert report.digests_compared
        for model in received:
            assert model.keys() == kept.keys()
            assert all(torch.equal(model[key], kept[key]) for key in kept)
        assert (second[name][0].num_bytes, second[name][2]) == (0, [{}, {}])
    for name in ("whole", "adapters"):
        before, after = first[f"{name} 1"][1], first[f"{name} 2"][1]
        assert any(not torch.equal(before[key], after[key]) for key in before)


def gather() -> bool:
    """Compare tensors gathered some together with each gathered by torch, for groups of every size."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    torch.manual_seed(0)
    placements = [Shard(0), Shard(0), Replicate()]
    tensors: dict[str, torch.Tensor] = {
        f"w{index}": distribute_tensor(torch.randn(*shape), mesh, [placements[index % 3] if shape[0] else Shard(0)])
        for index, shape in enumerate(SHAPES)
    }
    tensors |= {"plain": torch.randn(4), "columns": distribute_tensor(torch.randn(6, 9), mesh, [Shard(1)])}
    tensors["w2"] = tensors["w2"].to(torch.bfloat16)
    for group_bytes in (0, 200, 1 << 20):
        found = list(gather_whole(tensors.items(), group_bytes))
        assert [name for name, _ in found] == list(tensors)
        for name, tensor in found:
            whole = tensors[name].full_tensor() if isinstance(tensors[name], DTensor) else tensors[name]
            assert tensor.dtype == whole.dtype and torch.equal(tensor, whole), name
    return True


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_tensors_gathered_together_are_those_gathered_alone(num_ranks: int, tmp_path: Path) -> None:
    assert run_ranks(num_ranks, tmp_path, gather) == [True] * num_ranks
