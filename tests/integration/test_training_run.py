# SPDX-License-Identifier: Apache-2.0
"""Whole runs of the real entry point: Ray, rollout servers, a served PRM, FSDP2, weight sync, checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.helpers.tiny_run import make_assets, read_rows, run_arguments, saved_weights, train, with_prm

pytestmark = [pytest.mark.ray, pytest.mark.slow]
CORRECTION = "algorithm.rollout_correction"


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_assets(tmp_path_factory.mktemp("assets"))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())


@pytest.mark.vllm
def test_process_rewards_with_vllm_from_prompts_to_checkpoint(assets: Path, tmp_path: Path) -> None:
    rollout = [
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.weight_sync_verify_every=2",
        f"{CORRECTION}.rollout_is=token",
    ]
    done = train([*run_arguments(assets, tmp_path), *with_prm(assets), *rollout])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "weight sync proved" in done.stderr and "digests of all tensors agree" in done.stderr
    assert "PRM self-test: right solutions score" in done.stderr

    metrics = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [0, 1, 2]
    for row in metrics[1:]:
        assert row["actor/grad_norm"] > 0
        assert row["rollout/log_prob_diff/max"] < 1e-4  # every step samples from the weights it was synced
        assert row["rollout/is_weight/min"] == pytest.approx(1.0, abs=1e-4)
        assert row["rollout/is_weight/max"] == pytest.approx(1.0, abs=1e-4) and row["rollout/masked/share"] == 0.0
        assert row["reward/prm_failed/count"] == 0
        assert row["weight_sync/bytes_per_s"] > 0 and row["weight_sync/gather_s"] + row["weight_sync/load_s"] > 0
    # the first sync made version 1; the one of the first step is the second
    assert [row.get("weight_sync/verify_s", 0.0) > 0 for row in metrics[1:]] == [True, False]
    assert "val/acc/mean@2" in metrics[0] and "val/acc/mean@2" in metrics[2]

    responses = read_rows(tmp_path / "rollouts" / "2.jsonl")
    assert len(responses) == 16
    for response in responses:
        assert response["prm_status"] in ("scored", "retried")
        assert "".join(step["text"] for step in response["steps"]) in ("", response["response"])
        assert all(0.0 <= step["score"] <= 1.0 for step in response["steps"])
    assert any(response["steps"] for response in responses)

    trained, start = weights_of(tmp_path / "hf"), weights_of(assets / "policy_init")
    assert trained.keys() == start.keys()
    assert max(float((trained[name] - start[name]).detach().abs().max()) for name in start) > 1e-4
    assert (tmp_path / "hf" / "tokenizer.json").is_file()
    assert (tmp_path / "checkpoints" / "global_step_2" / "trainer_state.json").is_file()
    assert not list((tmp_path / "checkpoints").glob("*.tmp"))


def test_two_ranks_share_sequences_and_a_resumed_run_stops_at_gradients_that_are_no_numbers(
    assets: Path, tmp_path: Path
) -> None:
    arguments = [
        *run_arguments(assets, tmp_path),
        "actor_rollout_ref.rollout.name=hf",
        "trainer.n_gpus_per_node=2",
        "algorithm.adv_estimator=grpo",
    ]
    sharing = [
        "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2",
        "actor_rollout_ref.ref.ulysses_sequence_parallel_size=1",  # its ranks have rows of their own
        "actor_rollout_ref.actor.fsdp_config.offload_policy=True",
        "actor_rollout_ref.ref.fsdp_config.offload_policy=True",
        "actor_rollout_ref.model.enable_activation_offload=True",
        "actor_rollout_ref.actor.entropy_coeff=0.1",  # a random policy is always wrong: no advantage moves it
    ]
    first = train([*arguments, *sharing])
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows[1:]:
        assert row["actor/grad_norm"] > 0
        assert row["rollout/log_prob_diff/max"] < 1e-4
        assert row["actor/attention_padding_share"] <= 0.03
    assert abs(rows[1]["actor/kl_loss"]) < 1e-5 < rows[2]["actor/kl_loss"]  # it starts as the reference

    # gone on with one sequence per rank, and a loss whose gradients are infinite: two steps without a step are too many
    going_on = [
        "actor_rollout_ref.actor.entropy_coeff=1e39",
        "trainer.max_skipped_steps=2",
        "trainer.total_training_steps=9",
        "trainer.save_freq=1",
        "trainer.val_before_train=False",
        # a sampler that is off: every token's weight is below 1, and those far below are left out
        "actor_rollout_ref.rollout.top_p=0.9",
        f"{CORRECTION}.rollout_is=token",
        f"{CORRECTION}.mask_low=0.5",
    ]
    second = train([*arguments, *going_on])
    assert second.returncode == 2, second.stdout[-3000:] + second.stderr[-3000:]
    assert "resumed from" in second.stderr and "at training step 2" in second.stderr
    assert "trainer.max_skipped_steps=2: stopped" in second.stderr and "Traceback" not in second.stderr
    rows = read_rows(tmp_path / "metrics.jsonl")[3:]
    assert [row["step"] for row in rows] == [3, 4]
    assert [row["actor/skipped_steps/in_a_row"] for row in rows] == [1, 2]
    for row in rows:
        assert 0.5 <= row["rollout/is_weight/min"] <= row["rollout/is_weight/mean"] < 0.99
        assert row["rollout/is_weight/max"] <= 1.0 + 1e-4
    unharmed, last = (saved_weights(tmp_path / "checkpoints" / f"global_step_{step}") for step in (2, 4))
    assert unharmed.keys() == last.keys() and all(torch.equal(unharmed[name], last[name]) for name in unharmed)


@pytest.mark.vllm
def test_adapters_alone_are_trained_and_arrive_in_vllm_whose_log_probs_are_the_old_ones(
    assets: Path, tmp_path: Path
) -> None:
    done = train(
        [
            *run_arguments(assets, tmp_path),
            "actor_rollout_ref.rollout.name=vllm",
            "trainer.n_gpus_per_node=2",
            f"{CORRECTION}.bypass_old_log_probs=True",
            f"{CORRECTION}.rollout_is=token",
            "actor_rollout_ref.model.lora_rank=4",
            "actor_rollout_ref.model.enable_activation_offload=True",
            "actor_rollout_ref.actor.optim.lr=1e-2",
            "actor_rollout_ref.actor.entropy_coeff=0.1",
            "algorithm.adv_estimator=grpo",
            "trainer.val_before_train=False",
            "trainer.test_freq=-1",
        ]
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "weight sync proved" in done.stderr
    rows = read_rows(tmp_path / "metrics.jsonl")[-2:]
    for row in rows:  # the second step samples from merged weights that the first one changed
        assert row["actor/grad_norm"] > 0
        assert row["actor/rollout_log_prob_diff"] < 1e-5
        assert row["actor/rollout_ratio"] == pytest.approx(1.0, abs=1e-5)
        assert row["actor/rollout_truncated"] == row["actor/rollout_masked"] == 0.0
        assert "rollout/log_prob_diff/max" not in row
    assert abs(rows[0]["actor/kl_loss"]) < 1e-5 < rows[1]["actor/kl_loss"]  # without adapters it is the reference
    start = AutoModelForCausalLM.from_pretrained(assets / "policy_init", dtype=torch.float32)
    trained = weights_of(tmp_path / "hf")
    changed = {name for name, weight in start.named_parameters() if not torch.equal(weight, trained[name])}
    assert changed and all("_proj.weight" in name for name in changed)
    merged = PeftModel.from_pretrained(start, tmp_path / "hf" / "adapter").merge_and_unload()
    for name, weight in merged.named_parameters():
        torch.testing.assert_close(weight, trained[name], atol=1e-6, rtol=1e-5)


def test_remax_samples_a_greedy_answer_per_prompt_and_an_alarm_ends_the_run(assets: Path, tmp_path: Path) -> None:
    done = train(
        [
            *run_arguments(assets, tmp_path),
            *with_prm(assets),
            "actor_rollout_ref.rollout.name=hf",
            "reward_model.process_reward.backend=hf",
            "algorithm.adv_estimator=remax",
            "trainer.val_before_train=False",
            "reward_model.alarms.patience=1",  # a random policy writes no answers
            "reward_model.alarms.stop_on=[no_answer]",
        ]
    )
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    assert "alarm no_answer at step 1" in done.stderr and "Traceback" not in done.stderr
    [row] = read_rows(tmp_path / "metrics.jsonl")
    assert row["step"] == 1 and row["alarm/no_answer"] == 1.0 and row["actor/grad_norm"] > 0
    assert len(read_rows(tmp_path / "rollouts" / "1.jsonl")) == 16  # greedy answers are no training rows
