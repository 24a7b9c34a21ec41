# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from vllm import ModelRegistry

from tests.helpers.prm_families import CONTEXT, family_spec, save_family
from verl.rewards.prm.spec import load_adapter
from verl.workers.vllm_plugin import ARCHITECTURE, register
from verl.workers.vllm_prm_args import language_model_args, pooling_args

pytestmark = pytest.mark.vllm


def test_own_architecture_with_its_head_for_families_that_vllm_does_not_know(tmp_path: Path) -> None:
    spec = family_spec("math_shepherd", save_family("math_shepherd", tmp_path))
    loaded = load_adapter(spec)
    overrides = pooling_args(spec, loaded).hf_overrides
    assert overrides["architectures"] == [ARCHITECTURE]
    assert overrides["verl_step_head"] == {
        "folder": str(tmp_path),
        "kind": "token_pair",
        "token_ids": loaded.adapter.verdict_ids,
    }
    register()
    register()
    assert ARCHITECTURE in ModelRegistry.get_supported_archs()


def test_the_architecture_that_vllm_knows_is_left_to_it(tmp_path: Path) -> None:
    spec = family_spec("reasonflux_prm", save_family("reasonflux_prm", tmp_path))
    assert "architectures" not in pooling_args(spec, load_adapter(spec)).hf_overrides


def test_extending_the_context_keeps_the_head(tmp_path: Path) -> None:
    folder = save_family("skywork_prm", tmp_path)
    spec = family_spec("skywork_prm", folder, overlong="extend", max_length=2 * CONTEXT)
    args = pooling_args(spec, load_adapter(spec))
    assert args.max_model_len == args.hf_overrides["max_position_embeddings"] == 2 * CONTEXT
    assert args.hf_overrides["verl_step_head"]["kind"] == "value"


@pytest.mark.parametrize(("adapter", "cached"), [("reasonflux_prm_1_5b", True), ("pure_prm", False)])
def test_prefix_cache_only_where_each_input_is_a_prefix_of_the_next(adapter: str, cached: bool, tmp_path: Path) -> None:
    spec = family_spec(adapter, save_family(adapter, tmp_path))
    assert pooling_args(spec, load_adapter(spec)).enable_prefix_caching is cached


def test_engines_can_sleep_where_the_prm_is_to_sleep(tmp_path: Path) -> None:
    spec = family_spec("pure_prm", save_family("pure_prm", tmp_path))
    loaded = load_adapter(spec)
    for sleeps in (True, False):
        spec = replace(spec, enable_sleep_mode=sleeps)
        assert pooling_args(spec, loaded).enable_sleep_mode is sleeps
        assert language_model_args(spec, loaded, loaded.folder, num_engines=2).enable_sleep_mode is sleeps


def test_the_users_engine_kwargs_win(tmp_path: Path) -> None:
    spec = family_spec(
        "pure_prm", save_family("pure_prm", tmp_path), engine_kwargs={"block_size": 32, "max_num_seqs": 3}
    )
    args = pooling_args(spec, load_adapter(spec))
    assert (args.block_size, args.max_num_seqs) == (32, 3)


def test_two_language_models_share_the_memory(tmp_path: Path) -> None:
    spec = family_spec("implicit_prm", save_family("implicit_prm", tmp_path), gpu_memory_utilization=0.8)
    loaded = load_adapter(spec)
    on_gpu = language_model_args(spec, loaded, loaded.folder, num_engines=2)
    assert (on_gpu.gpu_memory_utilization, on_gpu.kv_cache_memory_bytes) == (0.4, None)
    on_cpu = language_model_args(replace(spec, kv_cache_bytes=1 << 20), loaded, loaded.folder, num_engines=2)
    assert on_cpu.kv_cache_memory_bytes == 1 << 19
