# SPDX-License-Identifier: Apache-2.0
"""What servers are told at their start, from the configuration alone. Nothing is started here."""

from __future__ import annotations

import pytest

from tests.helpers.configs import build
from verl.trainer.ppo.runtime import rollout_spec, sync_backend

SPLIT = ("actor_rollout_ref.rollout.enable_resource_pool=True", "actor_rollout_ref.rollout.n_gpus_per_node=2")


@pytest.mark.parametrize(
    ("name", "device", "is_split", "expected"),
    [
        ("vllm", "cuda", False, "ipc"),
        ("vllm", "cuda", True, "nccl"),
        ("vllm", "cpu", False, "shared_memory"),
        ("vllm", "cpu", True, "gloo"),
        ("hf", "cuda", False, "shared_memory"),
        ("hf", "cpu", True, "shared_memory"),
    ],
)
def test_how_weights_reach_the_servers(name: str, device: str, is_split: bool, expected: str) -> None:
    config = build(f"actor_rollout_ref.rollout.name={name}", *(SPLIT if is_split else ()))
    assert sync_backend(config, device) == rollout_spec(config, device).weight_sync == expected


def test_a_backend_that_is_named_is_taken() -> None:
    config = build("actor_rollout_ref.rollout.weight_sync_backend=shared_memory", *SPLIT)
    assert sync_backend(config, "cpu") == "shared_memory"


def test_servers_sleep_only_where_they_share_gpus() -> None:
    assert rollout_spec(build(), "cuda").enable_sleep_mode
    assert not rollout_spec(build(), "cpu").enable_sleep_mode
    assert not rollout_spec(build(*SPLIT), "cuda").enable_sleep_mode
    assert not rollout_spec(build("actor_rollout_ref.rollout.free_cache_engine=False"), "cuda").enable_sleep_mode


def test_engines_are_told_what_a_sync_does_to_responses_in_flight() -> None:
    assert rollout_spec(build(), "cpu").in_flight_update == "wait"
    assert rollout_spec(build("actor_rollout_ref.rollout.in_flight_update=keep"), "cpu").in_flight_update == "keep"
