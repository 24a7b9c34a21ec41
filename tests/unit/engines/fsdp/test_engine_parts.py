# SPDX-License-Identifier: Apache-2.0
"""One rank in this process: what surrounds training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from tests.helpers.engine_cases import CASES, engine_spec, one_rank_group, plain_log_probs, training_batch
from tests.helpers.tiny_models import save_tiny_model, tiny_model
from verl.engines.base import EngineSpec, HeadRequest, PrecisionSpec, ShardingSpec, build_engine
from verl.engines.fsdp.engine import FSDPEngine
from verl.engines.micro_batches import MicroBatchSpec
from verl.engines.token_log_probs import compute_log_probs
from verl.utils.errors import UserError


@pytest.fixture(autouse=True, scope="module")
def group() -> Iterator[None]:
    with one_rank_group():
        yield


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tied"))


@pytest.mark.parametrize("reshards", [True, False])
def test_weights_after_a_forward_pass_are_still_the_master_weights(model_path: str, reshards: bool) -> None:
    sharding = ShardingSpec(reshard_after_forward=reshards)
    engine = FSDPEngine(engine_spec(model_path, replace(CASES["bf16"], sharding=sharding)))
    compute_log_probs(engine, training_batch(0).sequences, MicroBatchSpec(), HeadRequest())
    for name, parameter in tiny_model().named_parameters():
        assert dict(engine.named_weights())[name].equal(parameter)
    assert all(weight.dtype == torch.bfloat16 for _, weight in engine.named_weights(torch.bfloat16))


def test_layers_share_one_layout_so_that_rectangles_are_planned_once(model_path: str) -> None:
    engine, seen = FSDPEngine(engine_spec(model_path, CASES["plain"])), []
    for layer in engine.module.model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _module, _args, kwargs: seen.append(kwargs["layout"]), with_kwargs=True
        )
    compute_log_probs(engine, training_batch(0).sequences, MicroBatchSpec(), HeadRequest())
    assert len(seen) == 2 and seen[0] is seen[1]


def test_a_frozen_16_bit_engine_gives_log_probs_and_refuses_to_train(model_path: str) -> None:
    spec = EngineSpec(model_path, device="cpu", precision=PrecisionSpec(master="bfloat16"))
    engine = build_engine(spec)
    batch = training_batch(0)
    result = compute_log_probs(engine, batch.sequences, MicroBatchSpec(), HeadRequest(0.7))
    assert result.entropy is None
    reference = plain_log_probs(tiny_model(), batch, 2)[0]
    assert (result.log_probs[2, : len(reference)] - reference).abs().max() < 0.1
    with pytest.raises(RuntimeError, match="frozen"):
        engine.optimizer_step()


def test_rotary_frequencies_keep_float32_in_a_16_bit_engine(model_path: str) -> None:
    engine = FSDPEngine(EngineSpec(model_path, device="cpu", precision=PrecisionSpec(master="bfloat16")))
    found = dict(engine.module.named_buffers())
    wanted = dict(tiny_model().named_buffers())
    assert found["model.model.rotary_emb.inv_freq"].equal(wanted["model.rotary_emb.inv_freq"])


def test_config_overrides_reach_the_model(model_path: str) -> None:
    engine = FSDPEngine(EngineSpec(model_path, device="cpu", config_overrides={"rms_norm_eps": 0.5}))
    assert engine.module.model.config.rms_norm_eps == 0.5


def test_export_of_a_16_bit_run_says_its_dtype(model_path: str, tmp_path: Path) -> None:
    engine = FSDPEngine(engine_spec(model_path, CASES["bf16"]))
    engine.export_hf(str(tmp_path))
    assert AutoConfig.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_a_device_or_engine_that_is_not_there_is_a_user_error(model_path: str) -> None:
    with pytest.raises(UserError, match="strategy='deepspeed'"):
        build_engine(EngineSpec(model_path, strategy="deepspeed"))
    with pytest.raises(UserError, match=r"fsdp_config.fsdp_size=3"):
        spec = engine_spec(model_path, CASES["plain"])
        FSDPEngine(replace(spec, sharding=replace(spec.sharding, shard_size=3)))


def test_loading_from_a_folder_without_a_complete_checkpoint_is_a_user_error(model_path: str, tmp_path: Path) -> None:
    engine = FSDPEngine(engine_spec(model_path, CASES["plain"]))
    with pytest.raises(UserError, match=r"\.metadata is not there"):
        engine.load(str(tmp_path))
