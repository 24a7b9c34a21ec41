# SPDX-License-Identifier: Apache-2.0
"""Whole runs of the real entry point with Megatron-core: two ranks that share one model, on the CPU; rollout servers
and a served PRM have pools of their own.

Workers import `tests.helpers.megatron_cpu_worker` by the configuration's own key, which lets Megatron-core run without
a GPU; nothing else differs from a run on GPUs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.tiny_run import make_assets, read_rows, run_arguments, train, with_prm

pytest.importorskip("megatron.core", reason="megatron-core is not installed")
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for GPUs on machines without any"),
]

ACTOR = "actor_rollout_ref.actor"
MEGATRON = [
    # a random policy answers nothing rightly: the entropy bonus gives the update a gradient
    f"{ACTOR}.entropy_coeff=0.01",
    f"{ACTOR}.strategy=megatron",
    f"{ACTOR}.megatron.dtype=float32",
    "actor_rollout_ref.ref.megatron.dtype=float32",
    "actor_rollout_ref.model.external_lib=tests.helpers.megatron_cpu_worker",
    "actor_rollout_ref.rollout.name=hf",
    "trainer.n_gpus_per_node=2",
]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())


@pytest.mark.vllm
def test_two_ranks_share_one_model_and_resume_where_they_stopped(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    assets = make_assets(tmp_path_factory.mktemp("assets"))
    arguments = [*run_arguments(assets, tmp_path), *MEGATRON, f"{ACTOR}.megatron.tensor_model_parallel_size=2"]
    served = [
        *with_prm(assets),
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.enable_resource_pool=True",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
    ]
    first = train([*arguments, *served])
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    pools = "pool policy: 1 x 2 devices; pool rollout: 1 x 1 devices; pool prm: 1 x 1 devices; 4 in all"
    assert pools in first.stderr and "weight sync proved" in first.stderr
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows[1:]:
        assert row["actor/grad_norm"] > 0 and row["reward/prm_failed/count"] == 0
        assert row["rollout/log_prob_diff/max"] < 1e-4  # every step samples from the weights it was synced
    assert all(response["prm_status"] in ("scored", "retried") for response in read_rows(tmp_path / "rollouts/2.jsonl"))

    trained, start = weights_of(tmp_path / "hf"), weights_of(assets / "policy_init")
    assert trained.keys() == start.keys()
    assert max(float((trained[name] - start[name]).detach().abs().max()) for name in start) > 1e-4

    second = train([*arguments, "trainer.total_training_steps=3", "trainer.val_before_train=False"])
    assert second.returncode == 0, second.stdout[-3000:] + second.stderr[-3000:]
    assert "resumed from" in second.stderr and "at training step 2" in second.stderr


def test_sizes_that_do_not_divide_the_model_are_refused_before_ray_starts(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    assets = make_assets(tmp_path_factory.mktemp("assets"))
    sizes = ["trainer.n_gpus_per_node=8", f"{ACTOR}.megatron.tensor_model_parallel_size=8"]
    done = train([*run_arguments(assets, tmp_path), *MEGATRON, *sizes])
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    assert "must divide the model's" in done.stderr and "Traceback" not in done.stderr
    assert "Started a local Ray instance" not in done.stderr
