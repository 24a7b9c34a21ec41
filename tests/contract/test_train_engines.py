# SPDX-License-Identifier: Apache-2.0
"""Every training engine, on one, two and four gloo ranks, does what a plain loop over transformers does."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.engine_cases import NUM_STEPS, Case, one_rank_group, plain_log_probs, plain_loop, training_batch
from tests.helpers.engine_cases import run_ranks as start_ranks
from tests.helpers.tiny_models import VOCAB_SIZE, save_tiny_model, tiny_model

pytest.importorskip("megatron.core", reason="megatron-core is not installed")

from tests.helpers.engine_contract import (
    CASES_BY_SIZE,
    POISONED,
    RESUMED,
    SAVED_STEPS,
    TWO_RANKS,
    EngineCase,
    refusals,
    resume_all,
    show_all,
)

EVERY = [(size, name) for size, cases in CASES_BY_SIZE.items() for name in cases]
EXACT = [(size, name) for size, name in EVERY if "bf16" not in name]
TIED = (True, "none")
MIDDLE = range(SAVED_STEPS, NUM_STEPS)


def case_of(size: int, name: str) -> EngineCase:
    return CASES_BY_SIZE[size][name]


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
        one = [show_all(folder, CASES_BY_SIZE[1])]
    more = {size: start_ranks(size, folder, partial(show_all, folder, CASES_BY_SIZE[size])) for size in (2, 4)}
    with one_rank_group():
        one[0]["resumed"] = resume_all(folder)
        one[0]["refusals"] = refusals(folder)
    return {1: one, **more}


@pytest.fixture(scope="module")
def plain() -> dict[tuple[bool, str], dict[str, Any]]:
    problems = {(case.case.tied, case.case.correction) for cases in CASES_BY_SIZE.values() for case in cases.values()}
    return {(tied, how): plain_loop(tiny_model(tied), Case(tied=tied, correction=how)) for tied, how in problems}


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
    case = case_of(size, name).case
    reference = plain[case.tied, case.correction]
    for rank in ranks[size]:
        assert_steps(rank[name]["history"], reference, range(NUM_STEPS))
        assert_weights(rank[name]["weights"], reference["weights"])


@pytest.mark.parametrize("name", [name for name in CASES_BY_SIZE[2] if name.endswith("on-policy")])
def test_without_old_log_probs_the_update_says_how_far_the_sampler_is_off(name: str, ranks: dict, plain: dict) -> None:
    wanted = plain[True, "on_policy"]["differences"]
    for rank in ranks[2]:
        found = [metrics["actor/rollout_log_prob_diff_max"] for metrics in rank[name]["history"]]
        assert found == pytest.approx(wanted, abs=1e-4)
        assert all(0 < metrics["actor/policy_entropy"] < math.log(VOCAB_SIZE) for metrics in rank[name]["history"])


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
    case = case_of(size, name)
    expected = [(case.dp_rank(rank), case.dp_size) for rank in range(size)]
    assert sorted({rank for rank, _ in expected}) == list(range(case.dp_size))
    assert [rank[name]["dp"] for rank in ranks[size]] == expected


@pytest.mark.parametrize(("size", "name"), [(size, name) for size, name in EVERY if size > 1])
def test_all_ranks_report_the_same(size: int, name: str, ranks: dict) -> None:
    first, *others = (rank[name] for rank in ranks[size])
    assert len(others) == size - 1
    for other in others:
        assert first["history"] == other["history"]
        assert all(torch.equal(first["weights"][key], other["weights"][key]) for key in first["weights"])


@pytest.mark.parametrize("name", [name for name in TWO_RANKS if "bf16" in name])
def test_sixteen_bit_compute_stays_near_float32(name: str, ranks: dict, plain: dict) -> None:
    history = ranks[2][0][name]["history"]
    assert [m["actor/loss"] for m in history] == pytest.approx(plain[TIED]["losses"], rel=0.05, abs=0.02)
    assert [m["actor/grad_norm"] for m in history] == pytest.approx(plain[TIED]["norms"], rel=0.1)


@pytest.mark.parametrize(("size", "saved", "name"), RESUMED)
def test_training_goes_on_on_other_ranks(size: int, saved: str, name: str, ranks: dict, plain: dict) -> None:
    for rank in ranks[size]:
        resumed = rank["resumed"][f"{saved} -> {name}"]
        assert_steps(resumed["trained"]["history"], plain[TIED], MIDDLE)
        assert_weights(resumed["trained"]["weights"], plain[TIED]["weights"])
        # Saved before the first step: nothing about the start has changed.
        assert_steps(resumed["fresh"]["history"], plain[TIED], range(2))


@pytest.mark.parametrize("name", ["megatron dp", "megatron dp distributed optimizer", "megatron tp+sp", "megatron pp"])
def test_a_gradient_that_is_no_number_skips_the_step_on_all_ranks(name: str, ranks: dict, plain: dict) -> None:
    for rank in ranks[2]:
        skip = rank["skip"][name]
        assert skip["metrics"]["actor/skipped_steps"] == 1.0
        assert all(torch.equal(skip["before"][key], weight) for key, weight in skip["after"].items())
        # Neither schedule nor moments have moved: the next good step is the first of the plain loop.
        assert_steps([skip["next"]], plain[TIED], range(1))


@pytest.mark.parametrize(("size", "name"), [(size, name) for size, names in POISONED.items() for name in names])
def test_a_part_of_the_gradient_that_is_not_finite_skips_the_step_on_all_ranks(
    size: int, name: str, ranks: dict, plain: dict
) -> None:
    for rank in ranks[size]:
        found = rank["poisoned"][name]
        assert found["report"].is_skipped and not math.isfinite(found["report"].grad_norm)
        assert all(torch.equal(found["before"][key], weight) for key, weight in found["after"].items())
        assert_steps([found["next"]], plain[TIED], range(1))


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


@pytest.mark.parametrize("saved", ["1 megatron", "2 dp", "2 tp", "2 pp", "2 fsdp2", "4 tp+pp"])
def test_export_loads_in_transformers(saved: str, folder: Path, ranks: dict) -> None:
    hf, report = AutoModelForCausalLM.from_pretrained(folder / f"saved {saved}" / "hf", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    trained = plain_loop(tiny_model(True), Case(), SAVED_STEPS)["weights"]
    assert_weights(dict(hf.named_parameters()), trained)
