# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from verl.config import PPOTrainerConfig, SFTTrainerConfig
from verl.config.migrate import Migration, find_entry, rename
from verl.config.schema import tree_of

PPO, SFT = tree_of(PPOTrainerConfig), tree_of(SFTTrainerConfig)


def test_rename_follows_chains() -> None:
    assert rename("reward.reward_model.model_path", PPO) == "reward_model.model.path"
    assert rename("reward.reward_model.nnodes", PPO) == "reward_model.nnodes"
    assert rename("trainer.seed", PPO) == "trainer.seed"


def test_an_entry_that_leads_to_a_section_of_another_root_is_passed_over() -> None:
    assert rename("data.trust_remote_code", PPO) == "actor_rollout_ref.model.trust_remote_code"
    assert find_entry("data.trust_remote_code", SFT) is None
    assert rename("model.partial_pretrain", SFT) == "model.path"


def test_composed_data_is_translated() -> None:
    migration = Migration(PPO)
    plain = migration.run(
        {
            "_target_": "x.Y",
            "trainer": {"nnodes": 2, "n_gpus_per_node": 4, "critic_warmup": 0},
            "actor_rollout_ref": {
                "actor": {"ppo_micro_batch_size": 32, "ulysses_sequence_parallel_size": 2, "policy_loss": {}},
                "rollout": {"engine_kwargs": {"c": 2, "vllm": {"a.b": 1}}},
            },
        }
    )
    assert plain == {
        "trainer": {"nnodes": 2, "n_gpus_per_node": 4},
        "actor_rollout_ref": {
            # 8 ranks, two of which share a sequence: 32 over 4
            "actor": {"ulysses_sequence_parallel_size": 2, "ppo_micro_batch_size_per_gpu": 8},
            "rollout": {"engine_kwargs": {"a.b": 1, "c": 2}},
        },
    }
    assert not migration.problems
    assert len(migration.notices) == 5


def test_a_default_gives_way_to_the_old_name_and_another_value_does_not() -> None:
    default = Migration(PPO)
    optim = {"optim": {"lr_scheduler_type": "constant", "warmup_style": "cosine"}}
    plain = default.run({"actor_rollout_ref": {"actor": optim}})
    assert plain["actor_rollout_ref"]["actor"]["optim"] == {"lr_scheduler_type": "cosine"}
    chosen = Migration(PPO)
    optim = {"optim": {"lr_scheduler_type": "cosine", "warmup_style": "constant"}}
    chosen.run({"actor_rollout_ref": {"actor": optim}})
    assert "Keep only" in chosen.problems[0].mend
