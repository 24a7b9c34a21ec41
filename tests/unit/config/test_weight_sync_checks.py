# SPDX-License-Identifier: Apache-2.0
"""Backends of the weight sync against engine, placement and device: refused with key and mend, others accepted."""

from __future__ import annotations

import pytest

from tests.helpers.configs import build, fault
from verl.config.weight_sync_checks import device_problems

ROLLOUT = "actor_rollout_ref.rollout"
KEY = f"{ROLLOUT}.weight_sync_backend"
OWN_POOL = (f"{ROLLOUT}.enable_resource_pool=True", f"{ROLLOUT}.n_gpus_per_node=2")


@pytest.mark.parametrize(
    ("refused", "said", "accepted"),
    [
        ([f"{KEY}=ipc", "trainer.device=cpu"], "needs cuda, but the run is on cpu", ["trainer.device=cuda"]),
        ([f"{KEY}=nccl", "trainer.device=cpu", *OWN_POOL], "needs cuda, but the run is", ["trainer.device=cuda"]),
        ([f"{KEY}=gloo", "trainer.device=cuda"], "needs cpu, but the run is on cuda", ["trainer.device=cpu"]),
        ([f"{KEY}=gloo", f"{ROLLOUT}.name=hf"], "is for vllm servers; hf servers take", [f"{ROLLOUT}.name=vllm"]),
        ([f"{KEY}=ipc", *OWN_POOL], "on the same GPUs, but", [f"{KEY}=auto"]),
        ([f"{KEY}=nccl"], "joins policy and rollout servers on different GPUs", [*OWN_POOL]),
        (
            [f"{KEY}=shared_memory", "trainer.nnodes=2", *OWN_POOL],
            "weight_sync_backend='shared_memory': reaches vllm servers on the policy's own node only",
            ["trainer.nnodes=1"],
        ),
        ([f"{ROLLOUT}.name=hf", *OWN_POOL, f"{ROLLOUT}.nnodes=2"], "the pools have 2 nodes", [f"{ROLLOUT}.nnodes=1"]),
        ([f"{ROLLOUT}.weight_sync_bucket_mib=0"], "weight_sync_bucket_mib", [f"{ROLLOUT}.weight_sync_bucket_mib=1"]),
        ([f"{ROLLOUT}.weight_sync_verify_every=-1"], "verify_every", [f"{ROLLOUT}.weight_sync_verify_every=0"]),
    ],
)  # fmt: skip
def test_a_backend_that_cannot_work_is_refused(refused: list[str], said: str, accepted: list[str]) -> None:
    assert said in fault(*refused)
    build(*refused, *accepted)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("backend", ["auto", "shared_memory", "ipc", "nccl", "gloo"])
def test_devices(backend: str, device: str) -> None:
    works = {"ipc": ["cuda"], "nccl": ["cuda"], "gloo": ["cpu"]}.get(backend, ["cuda", "cpu"])
    assert (list(device_problems(backend, device)) == []) == (device in works)
    assert list(device_problems(backend, "auto")) == []
