# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.configs import build
from verl.config import BatchPlan, MicroBatchLimit, PPOTrainerConfig, SFTTrainerConfig, SupervisedBatchPlan
from verl.config.hydra import load_config

ACTOR = "actor_rollout_ref.actor"
ROLLOUT = "actor_rollout_ref.rollout"


def plan(*overrides: str) -> BatchPlan:
    return BatchPlan.from_config(build(*overrides))


def test_the_published_run_by_hand() -> None:
    # 32 prompts x 6 responses on 6 ranks, TP 2, 512 + 16384 tokens, one optimizer step
    numbers = plan(
        "data.train_batch_size=32",
        "data.max_response_length=16384",
        f"{ACTOR}.ppo_mini_batch_size=32",
        f"{ROLLOUT}.n=6",
        f"{ROLLOUT}.tensor_model_parallel_size=2",
        "trainer.n_gpus_per_node=6",
    )
    assert numbers.sequences_per_step == 192
    assert numbers.sequences_per_rank == 32
    assert numbers.mini_batch_sequences == 192
    assert numbers.mini_batch_sequences_per_rank == 32
    assert numbers.optimizer_steps_per_training_step == 1
    assert numbers.rollout_servers == 3
    assert numbers.sequences_per_server == 64
    assert numbers.max_sequence_len == 16896
    assert numbers.max_tokens_per_step == 192 * 16896
    # no budget named: 16384 would not hold one full sequence
    assert numbers.actor == MicroBatchLimit(None, 16896)


def sharing_sequences(config: PPOTrainerConfig, *, actor: int, ref: int | None = None) -> PPOTrainerConfig:
    """The door refuses sequence parallelism (not built); its arithmetic is here already."""
    policy = config.actor_rollout_ref
    actor_section = replace(policy.actor, ulysses_sequence_parallel_size=actor)
    ref_section = replace(policy.ref, ulysses_sequence_parallel_size=ref)
    return replace(config, actor_rollout_ref=replace(policy, actor=actor_section, ref=ref_section))


def test_mini_batches_epochs_and_sequence_parallelism() -> None:
    sizes = ("data.train_batch_size=64", f"{ACTOR}.ppo_mini_batch_size=16", f"{ACTOR}.ppo_epochs=2", "trainer.nnodes=2")
    numbers = BatchPlan.from_config(sharing_sequences(build(*sizes), actor=4))
    assert (numbers.policy_ranks, numbers.data_parallel_ranks) == (16, 4)
    assert numbers.optimizer_steps_per_training_step == 8
    assert numbers.mini_batch_sequences_per_rank == 16 * 8 // 4
    assert numbers.actor.max_tokens == 4 * 16384


def test_a_full_server_is_counted_up() -> None:
    assert plan("data.train_batch_size=257", f"{ACTOR}.ppo_mini_batch_size=257").sequences_per_server == 257


@pytest.mark.parametrize(
    ("overrides", "update", "old", "ref"),
    [
        ((), (None, 16384), (None, 16384), (None, 16384)),
        ((f"{ACTOR}.ppo_micro_batch_size_per_gpu=4",), (4, 16384), (4, 16384), (4, 16384)),
        (
            (f"{ACTOR}.use_dynamic_bsz=False", f"{ACTOR}.ppo_micro_batch_size_per_gpu=4"),
            (4, None),
            (4, None),
            (4, None),
        ),
        (
            (f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=16", f"{ACTOR}.ppo_max_token_len_per_gpu=2048"),
            (None, 2048),
            (16, 2048),
            (None, 2048),
        ),
        (
            ("actor_rollout_ref.ref.log_prob_max_token_len_per_gpu=32768",),
            (None, 16384),
            (None, 16384),
            (None, 32768),
        ),
        (
            (
                f"{ACTOR}.use_dynamic_bsz=False",
                f"{ACTOR}.ppo_micro_batch_size_per_gpu=1",
                f"{ROLLOUT}.log_prob_use_dynamic_bsz=True",
            ),
            (1, None),
            (1, 16384),
            (1, None),
        ),
    ],
)
def test_null_limits_follow_the_actor_s(overrides: tuple[str, ...], update: object, old: object, ref: object) -> None:
    numbers = plan(*overrides)
    found = [(limit.max_sequences, limit.max_tokens) for limit in (numbers.actor, numbers.old_log_prob, numbers.ref)]
    assert found == [update, old, ref]


def test_a_budget_counts_one_rank_of_those_that_share_a_sequence() -> None:
    config = build(f"{ACTOR}.ppo_max_token_len_per_gpu=2048")
    numbers = BatchPlan.from_config(sharing_sequences(config, actor=2, ref=4))
    limits = (numbers.actor, numbers.old_log_prob, numbers.ref)
    assert [limit.max_tokens for limit in limits] == [4096, 4096, 8192]


def test_table_names_every_unit() -> None:
    text = plan().table()
    for words in ("1024 prompts", "8 responses", "8192", "256 prompts", "2048 sequences", "16384 tokens"):
        assert words in text
    assert len({len(line.split("  ")[0]) for line in text.splitlines()}) == 1


def test_supervised_batch() -> None:
    overrides = [
        "data.train_files=a.jsonl",
        "model.path=org/m",
        "data.train_batch_size=64",
        "trainer.n_gpus_per_node=4",
    ]
    config = load_config("sft_trainer", overrides, SFTTrainerConfig).config
    numbers = SupervisedBatchPlan.from_config(config)
    assert (numbers.sequences_per_step, numbers.sequences_per_rank) == (64, 16)
    assert numbers.micro == MicroBatchLimit(None, 16384)


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ([], False),
        (["actor_rollout_ref.actor.recompute_old_log_probs=True"], True),
        (["actor_rollout_ref.actor.ppo_mini_batch_size=8"], True),
        (["actor_rollout_ref.actor.ppo_epochs=2"], True),
        (["algorithm.use_kl_in_reward=True"], True),
        (["algorithm.rollout_correction.rollout_is=token"], True),
        (["algorithm.rollout_correction.mask_low=0.5"], True),
        (["algorithm.rollout_correction.bypass_old_log_probs=True"], True),
        (["actor_rollout_ref.actor.use_kl_loss=True"], False),
    ],
)
def test_old_log_probs_take_a_pass_only_where_the_update_does_not_have_them(changes: list[str], needed: bool) -> None:
    one_step = ["data.train_batch_size=16", "actor_rollout_ref.actor.ppo_mini_batch_size=16"]
    assert build(*one_step, *changes).needs_old_log_probs is needed
