# SPDX-License-Identifier: Apache-2.0
"""From the user's keys to the settings and places of rollout servers; no server is started."""

from __future__ import annotations

from typing import Any

from verl.config.rollout import ServingConfig
from verl.config.sglang import SGLangConfig
from verl.rollout.base import RolloutSpec
from verl.single_controller import ResourcePool
from verl.trainer.ppo.placement import ServerSlot
from verl.trainer.serving import engine_arguments, serving_slots, spec_of_server

POOL = ResourcePool("policy", 2, 4, "cpu")


def spec(rollout: ServingConfig) -> RolloutSpec:
    return RolloutSpec(model_path="m", **engine_arguments(rollout, 96, "cpu"))


def sglang(**changes: Any) -> ServingConfig:
    return ServingConfig(name="sglang", tensor_model_parallel_size=2, sglang=SGLangConfig(python="p", **changes))


def test_servers_that_are_started_fill_the_pool() -> None:
    rollout = sglang(env={"A": 1}, server_args={"b": True})
    slots = serving_slots(rollout, POOL)
    assert slots == [ServerSlot(node, devices) for node in (0, 1) for devices in ((0, 1), (2, 3))]
    server = spec_of_server(spec(rollout), rollout, 3).server
    assert server is not None
    assert (server.python, server.url, server.env, server.arguments) == ("p", "", {"A": "1"}, {"b": True})
    assert server.start_timeout_s == rollout.start_timeout_s


def test_servers_that_are_joined_take_no_device() -> None:
    rollout = sglang(urls=("http://a:1", "http://b:1", "http://c:1"))
    slots = serving_slots(rollout, POOL)
    assert slots == [ServerSlot(0, ()), ServerSlot(1, ()), ServerSlot(0, ())]
    found = [spec_of_server(spec(rollout), rollout, index).server for index in range(3)]
    assert [server.url for server in found if server is not None] == list(rollout.sglang.urls)


def test_other_engines_have_no_server_settings() -> None:
    rollout = ServingConfig(name="vllm")
    assert spec(rollout).server is None
    assert spec_of_server(spec(rollout), rollout, 0) == spec(rollout)
