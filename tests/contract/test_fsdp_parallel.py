# SPDX-License-Identifier: Apache-2.0
"""What the FSDP engine can do beside plain data parallelism, each against a loop in one process that cannot.

Sequence parallelism on 2, 3 and 4 gloo ranks against whole sequences; low-rank adapters against peft's own model and
torch's AdamW; offloaded activations against none.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM

from tests.helpers.engine_cases import (
    NUM_STEPS,
    TEMPERATURE,
    Case,
    engine_spec,
    plain_log_probs,
    plain_loop,
    run_case,
    run_ranks,
    train,
    training_batch,
    weights_of,
)
from tests.helpers.tiny_models import save_tiny_model, tiny_model
from verl.engines.adapters import LoraSpec
from verl.engines.base import EngineSpec, HeadRequest, OptimizerSpec, PrecisionSpec, ShardingSpec
from verl.engines.fsdp.engine import FSDPEngine
from verl.engines.fsdp.weights import named_full_adapters
from verl.engines.micro_batches import MicroBatchSpec, make_micro_batches
from verl.engines.supervised_update import NextTokenLoss
from verl.engines.token_log_probs import compute_log_probs
from verl.utils.errors import UserError

PAIR, QUARTET = ShardingSpec(sequence_parallel=2), ShardingSpec(sequence_parallel=4)
# more of two ranks in tests/contract/test_train_engines.py
TWO_RANKS = {
    "pair": Case(sharding=PAIR, gradient_checkpointing=True, tied=False),
    "pair_padded": Case(sharding=PAIR, micro=MicroBatchSpec(max_tokens=40, padded=True)),
}
FOUR_RANKS = {
    "two_pairs": Case(sharding=PAIR),
    "quartet": Case(sharding=QUARTET),  # four ranks for two key-value heads
    "two_pairs_replicated": Case(sharding=replace(PAIR, shard_size=2), loss_agg_mode="seq-mean-token-mean"),
}
SIX_HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 48}
LORA = LoraSpec(rank=3, alpha=12)
LORA_CASE = Case(gradient_checkpointing=True)


def lora_spec(folder: Path) -> EngineSpec:
    return replace(engine_spec(str(folder / "tied"), LORA_CASE), lora=LORA)


def adapters_of(engine: FSDPEngine) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in named_full_adapters(engine.module)}


def all_log_probs(engine: FSDPEngine, head: HeadRequest) -> torch.Tensor:
    return compute_log_probs(engine, training_batch(0).sequences, MicroBatchSpec(max_tokens=60), head).log_probs


def train_adapters(spec: EngineSpec, folder: Path, seed: int) -> dict[str, Any]:
    """Five steps with a checkpoint after the third; what is left of them in every form."""
    torch.manual_seed(seed)
    engine = FSDPEngine(spec)
    result: dict[str, Any] = {"start": adapters_of(engine)}
    history = train(engine, LORA_CASE, range(3))
    engine.save(str(folder / "lora_checkpoint"))
    result["history"] = history + train(engine, LORA_CASE, range(3, NUM_STEPS))
    result |= {"weights": weights_of(engine), "adapters": adapters_of(engine)}
    result["log_probs"] = all_log_probs(engine, HeadRequest(TEMPERATURE))
    result["without"] = all_log_probs(engine, HeadRequest(TEMPERATURE, without_adapters=True))
    result["trained"] = [name for name, parameter in engine.module.named_parameters() if parameter.requires_grad]
    engine.export_hf(str(folder / "lora_hf"), torch.float32)
    torch.manual_seed(seed + 1)
    again = FSDPEngine(spec)
    again.load(str(folder / "lora_checkpoint"))
    result["resumed"] = {"history": train(again, LORA_CASE, range(3, NUM_STEPS)), "weights": weights_of(again)}
    return result


def sixteen_bit_adapters(folder: Path) -> dict[str, Any]:
    engine = FSDPEngine(replace(lora_spec(folder), precision=PrecisionSpec()))
    dtypes = {name: str(parameter.dtype) for name, parameter in engine.module.named_parameters()}
    return {"history": train(engine, LORA_CASE, range(1)), "dtypes": dtypes}


def on_two_ranks(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {
        name: run_case(str(folder / ("tied" if case.tied else "untied")), case) for name, case in TWO_RANKS.items()
    }
    results["lora"] = train_adapters(lora_spec(folder), folder, seed=5)
    torch.manual_seed(5)
    shared = FSDPEngine(replace(lora_spec(folder), sharding=PAIR))
    results["lora_pair"] = {"history": train(shared, LORA_CASE, range(NUM_STEPS)), "weights": weights_of(shared)}
    results["lora_bf16"] = sixteen_bit_adapters(folder)
    case = Case(gradient_checkpointing=True)
    offloading = FSDPEngine(replace(engine_spec(str(folder / "tied"), case), activation_offload=True))
    results["offload"] = {"history": train(offloading, case, range(NUM_STEPS)), "weights": weights_of(offloading)}
    with pytest.raises(UserError, match=r"ulysses_sequence_parallel_size=3.*number of ranks \(2\)"):
        FSDPEngine(replace(lora_spec(folder), sharding=ShardingSpec(sequence_parallel=3)))
    return results


def on_four_ranks(folder: Path) -> dict[str, Any]:
    return {name: run_case(str(folder / "tied"), case) for name, case in FOUR_RANKS.items()}


def on_three_ranks(folder: Path) -> dict[str, Any]:
    """Six query heads and two key-value heads over three ranks: neither divides the other."""
    spec = EngineSpec(
        str(folder / "six_heads"),
        OptimizerSpec(lr=1e-3, clip_grad=1.0),
        device="cpu",
        precision=PrecisionSpec(compute="float32"),
        sharding=ShardingSpec(sequence_parallel=3),
    )
    with pytest.raises(UserError, match="ulysses_sequence_parallel_size=3.*4 attention heads"):
        FSDPEngine(replace(spec, model_path=str(folder / "tied")))
    engine = FSDPEngine(spec)
    sequences = training_batch(0).sequences
    log_probs = all_log_probs(engine, HeadRequest(TEMPERATURE))
    micro_batches = make_micro_batches(engine, sequences, range(len(sequences)), MicroBatchSpec(max_tokens=25))
    loss = NextTokenLoss(float(sequences.response_mask.sum()))
    shares = engine.forward_backward(micro_batches, HeadRequest(TEMPERATURE), loss)
    total = sum(float(share["loss"]) for share in shares)
    return {"log_probs": log_probs, "loss": total, "norm": engine.optimizer_step().grad_norm}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    save_tiny_model(folder / "tied", tied=True)
    save_tiny_model(folder / "untied", tied=False)
    tiny_model(**SIX_HEADS).save_pretrained(folder / "six_heads")
    return folder


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> list[dict[str, Any]]:
    return run_ranks(2, folder, partial(on_two_ranks, folder))


@pytest.fixture(scope="module")
def four_ranks(folder: Path) -> list[dict[str, Any]]:
    return run_ranks(4, folder, partial(on_four_ranks, folder))


@pytest.fixture(scope="module")
def plain() -> dict[tuple[bool, str], dict[str, Any]]:
    problems = {(case.tied, case.loss_agg_mode) for case in (*TWO_RANKS.values(), *FOUR_RANKS.values())}
    return {(tied, mode): plain_loop(tiny_model(tied), Case(tied=tied, loss_agg_mode=mode)) for tied, mode in problems}


@pytest.fixture(scope="module")
def peft_loop(two_ranks: list[dict[str, Any]]) -> tuple[dict[str, Any], PeftModel]:
    """The plain loop over peft's model, from the adapters that the engine started with."""
    config = LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(), config)
    loaded = set_peft_model_state_dict(model, two_ranks[0]["lora"]["start"])
    assert not loaded.unexpected_keys
    return plain_loop(model, LORA_CASE), model


def assert_equal_runs(result: dict[str, Any], reference: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    losses = [metrics["actor/loss"] for metrics in result["history"]]
    norms = [metrics["actor/grad_norm"] for metrics in result["history"]]
    assert losses == pytest.approx(reference["losses"], abs=1e-5, rel=1e-5)
    assert norms == pytest.approx(reference["norms"], abs=1e-5, rel=1e-5)
    assert result["weights"].keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(
            result["weights"][name], weight, atol=5e-5, rtol=0, msg=lambda t, n=name: f"{n}: {t}"
        )


@pytest.mark.parametrize("name", TWO_RANKS)
def test_two_ranks_that_share_sequences_equal_the_plain_loop(name: str, two_ranks: list, plain: dict) -> None:
    reference = plain[TWO_RANKS[name].tied, TWO_RANKS[name].loss_agg_mode]
    for rank in two_ranks:
        assert_equal_runs(rank[name], reference, reference["weights"])
    assert two_ranks[0][name]["history"] == two_ranks[1][name]["history"]


@pytest.mark.parametrize("name", FOUR_RANKS)
def test_four_ranks_in_groups_equal_the_plain_loop(name: str, four_ranks: list, plain: dict) -> None:
    reference = plain[FOUR_RANKS[name].tied, FOUR_RANKS[name].loss_agg_mode]
    for rank in four_ranks:
        assert_equal_runs(rank[name], reference, reference["weights"])


def test_every_token_is_counted_once_and_attention_pads_little(two_ranks: list, four_ranks: list) -> None:
    tokens = float(training_batch(0).sequences.lengths().sum())
    for result in (two_ranks[0]["pair"], four_ranks[0]["two_pairs"], four_ranks[0]["quartet"]):
        metrics = result["history"][0]
        assert metrics["actor/num_tokens"] == tokens
        assert 0.0 <= metrics["actor/attention_padding_share"] <= 0.03


def test_three_ranks_share_heads_that_do_not_divide_evenly_into_groups(folder: Path) -> None:
    results = run_ranks(3, folder, partial(on_three_ranks, folder))
    model, batch = tiny_model(**SIX_HEADS), training_batch(0)
    expected = [plain_log_probs(model, batch, row)[0] for row in range(len(batch))]
    loss = -torch.cat(expected).mean()
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    for result in results:
        for row, log_probs in enumerate(expected):
            torch.testing.assert_close(
                result["log_probs"][row, : len(log_probs)], log_probs.detach(), atol=1e-5, rtol=1e-5
            )
        assert result["loss"] == pytest.approx(float(loss), rel=1e-5)
        assert result["norm"] == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.parametrize("name", ["lora", "lora_pair"])
def test_adapters_train_as_in_peft_and_merge_to_the_same_weights(name: str, two_ranks: list, peft_loop: tuple) -> None:
    reference, model = peft_loop
    trained = {key: value.clone() for key, value in model.state_dict().items() if ".lora_" in key}
    merged = dict(_merged(model).named_parameters())
    for rank in two_ranks:
        assert_equal_runs(rank[name], reference, {key: value.detach() for key, value in merged.items()})
    for key, value in two_ranks[0]["lora"]["adapters"].items():
        torch.testing.assert_close(value, trained[key.replace(".weight", ".default.weight")], atol=5e-5, rtol=0)


def _merged(model: PeftModel) -> torch.nn.Module:
    """Merge a copy: the fixture serves several tests."""
    copy = get_peft_model(tiny_model(), model.peft_config["default"])
    copy.load_state_dict(model.state_dict())
    return copy.merge_and_unload()


def test_only_adapters_change_and_without_them_the_model_is_the_old_one(two_ranks: list) -> None:
    lora, batch = two_ranks[0]["lora"], training_batch(0)
    assert lora["trained"] and all(".lora_" in name for name in lora["trained"])
    for row in range(len(batch)):
        expected = plain_log_probs(tiny_model(), batch, row)[0].detach()
        torch.testing.assert_close(lora["without"][row, : len(expected)], expected, atol=1e-5, rtol=1e-5)
    assert (lora["log_probs"] - lora["without"]).abs().max() > 0.01


def test_a_checkpoint_of_adapters_holds_no_frozen_weights_and_resumes(folder: Path, two_ranks: list) -> None:
    saved = FileSystemReader(folder / "lora_checkpoint").read_metadata().state_dict_metadata
    weights = [name for name in saved if name.startswith("model.")]
    assert weights and all(".lora_" in name for name in weights)
    lora = two_ranks[0]["lora"]
    assert lora["resumed"]["history"] == lora["history"][3:]
    assert all(lora["resumed"]["weights"][name].equal(weight) for name, weight in lora["weights"].items())


def test_export_holds_merged_weights_and_the_adapter_as_peft_reads_it(folder: Path, two_ranks: list) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(folder / "lora_hf", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    base = AutoModelForCausalLM.from_pretrained(folder / "tied")
    adapted = PeftModel.from_pretrained(base, folder / "lora_hf" / "adapter")
    assert adapted.peft_config["default"].base_model_name_or_path == str(folder / "tied")
    merged = dict(adapted.merge_and_unload().named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.equal(two_ranks[0]["lora"]["weights"][name])
        torch.testing.assert_close(parameter, merged[name], atol=1e-7, rtol=1e-6)


def test_beside_16_bit_weights_adapters_are_float32(two_ranks: list, peft_loop: tuple) -> None:
    result = two_ranks[0]["lora_bf16"]
    assert {dtype for name, dtype in result["dtypes"].items() if ".lora_" in name} == {"torch.float32"}
    assert {dtype for name, dtype in result["dtypes"].items() if ".lora_" not in name} == {"torch.bfloat16"}
    assert result["history"][0]["actor/loss"] == pytest.approx(peft_loop[0]["losses"][0], rel=0.05, abs=0.02)


def test_offloaded_activations_change_nothing(two_ranks: list, plain: dict) -> None:
    reference = plain[True, "token-mean"]
    for rank in two_ranks:
        assert_equal_runs(rank["offload"], reference, reference["weights"])
