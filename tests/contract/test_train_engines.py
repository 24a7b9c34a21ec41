# SPDX-License-Identifier: Apache-2.0
"""Every training engine, on one and on two gloo ranks, does what a plain loop over transformers does."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.engine_cases import NUM_STEPS, Case, one_rank_group, plain_log_probs, plain_loop, training_batch
from tests.helpers.engine_cases import run_ranks as start_ranks
from tests.helpers.tiny_models import save_tiny_model, tiny_model

pytest.importorskip("megatron.core", reason="megatron-core is not installed")

from tests.helpers.engine_contract import (
    ONE_RANK,
    RESUMED,
    SAVED_STEPS,
    TWO_RANKS,
    EngineCase,
    refusals,
    resume_all,
    show_all,
)

EVERY = [(size, name) for size, cases in ((1, ONE_RANK), (2, TWO_RANKS)) for name in cases]
EXACT = [(size, name) for size, name in EVERY if "bf16" not in name]
MIDDLE = range(SAVED_STEPS, NUM_STEPS)


def case_of(size: int, name: str) -> EngineCase:
    return (ONE_RANK if size == 1 else TWO_RANKS)[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    save_tiny_model(folder / "tied", tied=True)
    save_tiny_model(folder / "untied", tied=False)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """What each rank of each world size showed."""
    with one_rank_group():
        one = [show_all(folder, ONE_RANK)]
    two = start_ranks(2, folder, partial(show_all, folder, TWO_RANKS))
    with one_rank_group():
        one[0]["resumed"] = resume_all(folder)
        one[0]["refusals"] = refusals(folder)
    return {1: one, 2: two}


@pytest.fixture(scope="module")
def plain() -> dict[bool, dict[str, Any]]:
    return {tied: plain_loop(tiny_model(tied), Case(tied=tied)) for tied in (True, False)}


def assert_weights(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], atol: float = 5e-5) -> None:
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, atol=atol, rtol=0, msg=lambda t, n=name: f"{n}: {t}")


def assert_steps(history: list[dict[str, float]], reference: dict[str, Any], steps: range) -> None:
    losses, norms = ([reference[name][step] for step in steps] for name in ("losses", "norms"))
    assert [metrics["actor/loss"] for metrics in history] == pytest.approx(losses, abs=1e-5, rel=1e-5)
    assert [metrics["actor/grad_norm"] for metrics in history] == pytest.approx(norms, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize(("size", "name"), EXACT)
def test_five_steps_equal_the_plain_loop(size: int, name: str, ranks: dict, plain: dict) -> None:
    reference = plain[case_of(size, name).case.tied]
    for rank in ranks[size]:
        assert_steps(rank[name]["history"], reference, range(NUM_STEPS))
        assert_weights(rank[name]["weights"], reference["weights"])


@pytest.mark.parametrize(("size", "name"), EVERY)
def test_weights_come_out_as_they_went_in(size: int, name: str, ranks: dict) -> None:
    case = case_of(size, name).case
    wanted = dict(tiny_model(case.tied).named_parameters())
    keeps_bits = name.startswith("fsdp2") or case.compute == "float32"
    for rank in ranks[size]:
        loaded = rank[name]["loaded"]
        assert loaded.keys() == wanted.keys()
        for key, weight in wanted.items():
            assert torch.equal(loaded[key], weight if keeps_bits else weight.bfloat16()), key


@pytest.mark.parametrize(("size", "name"), EXACT)
def test_log_probs_and_entropy_equal_plain_transformers(size: int, name: str, ranks: dict) -> None:
    model = tiny_model(case_of(size, name).case.tied)
    batch = training_batch(0, case_of(size, name).case.tied)
    for rank in ranks[size]:
        dp_rank, dp_size = rank[name]["dp"]
        share = len(batch) // dp_size
        found_log_probs, found_entropy = rank[name]["log_probs"]
        for place in range(share):
            log_probs, entropy = plain_log_probs(model, batch, dp_rank * share + place)
            length = len(log_probs)
            torch.testing.assert_close(found_log_probs[place, :length], log_probs, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found_entropy[place, :length], entropy, atol=1e-5, rtol=1e-5)
            assert (found_log_probs[place, length:] == 0).all()


@pytest.mark.parametrize(("size", "name"), EVERY)
def test_data_parallel_numbers(size: int, name: str, ranks: dict) -> None:
    dp_size = case_of(size, name).dp_size
    expected = [(rank if dp_size == size else 0, dp_size) for rank in range(size)]
    assert [rank[name]["dp"] for rank in ranks[size]] == expected


@pytest.mark.parametrize("name", TWO_RANKS)
def test_both_ranks_report_the_same(name: str, ranks: dict) -> None:
    first, second = (rank[name] for rank in ranks[2])
    assert first["history"] == second["history"]
    assert all(torch.equal(first["weights"][key], second["weights"][key]) for key in first["weights"])


@pytest.mark.parametrize("name", [name for name in TWO_RANKS if "bf16" in name])
def test_sixteen_bit_compute_stays_near_float32(name: str, ranks: dict, plain: dict) -> None:
    history = ranks[2][0][name]["history"]
    assert [m["actor/loss"] for m in history] == pytest.approx(plain[True]["losses"], rel=0.05, abs=0.02)
    assert [m["actor/grad_norm"] for m in history] == pytest.approx(plain[True]["norms"], rel=0.1)


@pytest.mark.parametrize(("size", "saved", "name"), RESUMED)
def test_training_goes_on_on_other_ranks(size: int, saved: str, name: str, ranks: dict, plain: dict) -> None:
    for rank in ranks[size]:
        resumed = rank["resumed"][f"{saved} -> {name}"]
        assert_steps(resumed["trained"]["history"], plain[True], MIDDLE)
        assert_weights(resumed["trained"]["weights"], plain[True]["weights"])
        # Saved before the first step: nothing about the start has changed.
        assert_steps(resumed["fresh"]["history"], plain[True], range(2))


@pytest.mark.parametrize("name", ["megatron dp", "megatron dp distributed optimizer", "megatron tp+sp", "megatron pp"])
def test_a_gradient_that_is_no_number_skips_the_step_on_all_ranks(name: str, ranks: dict, plain: dict) -> None:
    for rank in ranks[2]:
        skip = rank["skip"][name]
        assert skip["metrics"]["actor/skipped_steps"] == 1.0
        assert all(torch.equal(skip["before"][key], weight) for key, weight in skip["after"].items())
        # Neither schedule nor moments have moved: the next good step is the first of the plain loop.
        assert_steps([skip["next"]], plain[True], range(1))


@pytest.mark.parametrize("name", ["sharded", "bf16 resumed"])
def test_training_goes_on_exactly_on_the_same_ranks(name: str, ranks: dict) -> None:
    for rank in ranks[2]:
        found = rank[name]
        assert found["resumed"] == found["straight"]
        assert all(torch.equal(found["resumed_weights"][key], weight) for key, weight in found["weights"].items())


def test_checkpoints_that_do_not_fit_are_refused_with_the_reason(ranks: dict) -> None:
    said = ranks[1][0]["refusals"]
    assert "data_parallel=2, which only resumes on the same sizes; here" in said["other sizes"]
    assert "use_distributed_optimizer=False, whose checkpoints any layout reads" in said["other sizes"]
    assert "was written with actor_rollout_ref.actor.megatron.use_distributed_optimizer=True" in said["other optimizer"]
    assert "must hold a complete checkpoint of strategy=megatron" in said["no checkpoint"]
    assert said["written"] == {"tensor_parallel": 1, "pipeline_parallel": 1, "data_parallel": 2}


@pytest.mark.parametrize("name", ["megatron dp", "megatron pp"])
def test_gradients_of_two_passes_add_up(name: str, ranks: dict) -> None:
    norms = ranks[2][0]["adds_up"][name]
    assert norms["once"] > 1.0
    assert norms["twice"] == pytest.approx(2 * norms["once"], rel=1e-5)


@pytest.mark.parametrize("saved", ["1 megatron", "2 dp", "2 tp", "2 pp", "2 fsdp2"])
def test_export_loads_in_transformers(saved: str, folder: Path, ranks: dict) -> None:
    hf, report = AutoModelForCausalLM.from_pretrained(folder / f"saved {saved}" / "hf", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    trained = plain_loop(tiny_model(True), Case(), SAVED_STEPS)["weights"]
    assert_weights(dict(hf.named_parameters()), trained)
