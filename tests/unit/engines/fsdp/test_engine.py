# SPDX-License-Identifier: Apache-2.0
"""The FSDP engine on one and on two gloo ranks against a plain loop. All ranks start once for the whole file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.engine_cases import (
    CASES,
    NUM_STEPS,
    Case,
    one_rank_group,
    plain_log_probs,
    plain_loop,
    resume_from,
    run_all,
    run_ranks,
    training_batch,
)
from tests.helpers.tiny_models import save_tiny_model, tiny_model
from verl.engines.base import EngineSpec, OptimizerSpec
from verl.engines.fsdp.engine import FSDPEngine

EXACT = [name for name, case in CASES.items() if case.compute == "float32"]
ONE_RANK = {name: CASES[name] for name in ("plain", "untied", "checkpointing")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    save_tiny_model(folder / "tied", tied=True)
    save_tiny_model(folder / "untied", tied=False)
    return folder


@pytest.fixture(scope="module")
def one_rank(folder: Path) -> dict[str, Any]:
    with one_rank_group():
        return run_all(folder, ONE_RANK, None)


@pytest.fixture(scope="module")
def two_ranks(folder: Path, one_rank: dict[str, Any]) -> list[dict[str, Any]]:
    return run_ranks(2, folder, partial(run_all, folder, CASES, 1))


@pytest.fixture(scope="module")
def plain() -> dict[tuple[bool, str], dict[str, Any]]:
    problems = {(case.tied, case.loss_agg_mode) for case in CASES.values()}
    return {(tied, mode): plain_loop(tiny_model(tied), Case(tied=tied, loss_agg_mode=mode)) for tied, mode in problems}


def _assert_equals_plain(result: dict[str, Any], reference: dict[str, Any]) -> None:
    losses = [metrics["actor/loss"] for metrics in result["history"]]
    norms = [metrics["actor/grad_norm"] for metrics in result["history"]]
    assert losses == pytest.approx(reference["losses"], abs=1e-5, rel=1e-5)
    assert norms == pytest.approx(reference["norms"], abs=1e-5, rel=1e-5)
    assert result["weights"].keys() == reference["weights"].keys()
    for name, weight in reference["weights"].items():
        torch.testing.assert_close(
            result["weights"][name], weight, atol=5e-5, rtol=0, msg=lambda t, n=name: f"{n}: {t}"
        )


@pytest.mark.parametrize("name", ONE_RANK)
def test_one_rank_equals_the_plain_loop(name: str, one_rank: dict[str, Any], plain: dict) -> None:
    _assert_equals_plain(one_rank[name], plain[CASES[name].tied, CASES[name].loss_agg_mode])


@pytest.mark.parametrize("name", EXACT)
def test_two_ranks_equal_the_plain_loop(name: str, two_ranks: list, plain: dict) -> None:
    for rank in two_ranks:
        _assert_equals_plain(rank[name], plain[CASES[name].tied, CASES[name].loss_agg_mode])


def test_sixteen_bit_compute_stays_near_float32(two_ranks: list, plain: dict) -> None:
    reference = plain[True, "token-mean"]
    history = two_ranks[0]["bf16"]["history"]
    assert [m["actor/loss"] for m in history] == pytest.approx(reference["losses"], rel=0.05, abs=0.02)
    assert [m["actor/grad_norm"] for m in history] == pytest.approx(reference["norms"], rel=0.1)
    # Master weights stay in float32: steps of 1e-3 would vanish in 16-bit weights of size one.
    assert all(weight.dtype == torch.float32 for weight in two_ranks[0]["bf16"]["weights"].values())


def test_metrics_agree_on_all_ranks_and_count_every_token_once(two_ranks: list) -> None:
    first, second = (rank["plain"]["history"] for rank in two_ranks)
    assert first == second
    batch = training_batch(0)
    assert first[0]["actor/num_tokens"] == float(batch.sequences.lengths().sum())
    assert first[0]["actor/padding_share"] == 0.0
    assert 0.0 <= first[0]["actor/attention_padding_share"] <= 0.03
    assert two_ranks[0]["padded"]["history"][0]["actor/padding_share"] > 0.0
    assert first[0]["actor/lr"] == pytest.approx(5e-4)
    assert first[0]["actor/skipped_steps"] == 0.0


def test_log_probs_and_entropy_equal_plain_transformers(two_ranks: list) -> None:
    model, batch = tiny_model(), training_batch(0)
    for row in range(len(batch)):
        log_probs, entropy = plain_log_probs(model, batch, row)
        length = len(log_probs)
        torch.testing.assert_close(two_ranks[0]["log_probs"][row, :length], log_probs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(two_ranks[0]["entropy"][row, :length], entropy, atol=1e-5, rtol=1e-5)
        assert (two_ranks[0]["log_probs"][row, length:] == 0).all()


def test_a_gradient_that_is_no_number_on_one_rank_skips_the_step_on_all(two_ranks: list, plain: dict) -> None:
    for rank in two_ranks:
        skip = rank["skip"]
        assert skip["metrics"]["actor/skipped_steps"] == 1.0
        assert all(skip["before"][name].equal(weight) for name, weight in skip["after"].items())
        # Neither schedule nor moments have moved: the next good step is the first of the plain loop.
        assert skip["next"]["actor/lr"] == pytest.approx(5e-4)
        assert skip["next"]["actor/grad_norm"] == pytest.approx(plain[True, "token-mean"]["norms"][0], rel=1e-5)


def test_saving_before_the_first_step_changes_nothing(two_ranks: list) -> None:
    fresh, straight = two_ranks[0]["new_state"], two_ranks[0]["plain"]["history"]
    assert fresh["kept"] == straight[:2]
    assert fresh["loaded"] == straight[:2]


def test_two_ranks_go_on_from_one_and_one_from_two(folder: Path, one_rank: dict, two_ranks: list) -> None:
    with one_rank_group():
        back = resume_from(folder, 2)
    for resumed, straight in ((two_ranks[0]["resumed"], one_rank["plain"]), (back, two_ranks[0]["plain"])):
        for again, metrics in zip(resumed["history"], straight["history"][3:NUM_STEPS], strict=True):
            assert again["actor/loss"] == pytest.approx(metrics["actor/loss"], abs=1e-5)
            assert again["actor/lr"] == metrics["actor/lr"]
        for name, weight in straight["weights"].items():
            torch.testing.assert_close(resumed["weights"][name], weight, atol=5e-5, rtol=0)


def test_a_resumed_run_steps_with_its_own_settings(folder: Path, tmp_path: Path) -> None:
    """Decay is all that moves a weight whose gradients were always zero: by rate times decay of it."""
    path = str(folder / "untied")
    settings = partial(OptimizerSpec, lr=0.1, warmup_steps=0, clip_grad=1.0)
    with one_rank_group():
        first = FSDPEngine(EngineSpec(path, settings(weight_decay=0.0), device="cpu"))
        first.save(str(tmp_path))
        second = FSDPEngine(EngineSpec(path, settings(weight_decay=0.5), device="cpu"))
        before = {name: weight.clone() for name, weight in second.named_weights()}
        second.load(str(tmp_path))
        for parameter in second.module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        second.optimizer_step()
        for name, weight in second.named_weights():
            torch.testing.assert_close(weight, before[name] * (1 - 0.1 * 0.5), msg=name)


def test_export_loads_in_transformers_with_the_same_weights(folder: Path, two_ranks: list) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(folder / "hf_2", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.dtype == torch.float32
    named = dict(model.named_parameters())
    assert named.keys() == two_ranks[0]["exported"].keys()
    assert all(named[name].equal(weight) for name, weight in two_ranks[0]["exported"].items())
