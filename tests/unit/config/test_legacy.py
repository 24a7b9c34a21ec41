# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from tests.helpers.configs import WITH_PRM, load, refusal
from verl.config import EvaluationConfig, GenerationConfig, PPOTrainerConfig, PRMTrainerConfig, SFTTrainerConfig
from verl.config.legacy import ENTRIES, VALUES, NoEffect, Renamed, TotalPerStep
from verl.config.migrate import find_entry
from verl.config.schema import tree_of

ROOTS = (PPOTrainerConfig, SFTTrainerConfig, PRMTrainerConfig, GenerationConfig, EvaluationConfig)
TREES = [tree_of(root) for root in ROOTS]

# Keys that GRPO and reward-model scripts of verl 0.4 pass, with values such scripts use.
VERL_04_KEYS = """
actor_rollout_ref.hybrid_engine=True
actor_rollout_ref.model.use_remove_padding=True
actor_rollout_ref.model.enable_gradient_checkpointing=True
actor_rollout_ref.model.trust_remote_code=False
actor_rollout_ref.model.external_lib=null
actor_rollout_ref.model.override_config={}
actor_rollout_ref.model.use_shm=False
actor_rollout_ref.model.use_liger=False
actor_rollout_ref.model.lora_rank=0
actor_rollout_ref.actor.strategy=fsdp
actor_rollout_ref.actor.ppo_mini_batch_size=256
actor_rollout_ref.actor.ppo_micro_batch_size=null
actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4
actor_rollout_ref.actor.use_dynamic_bsz=False
actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384
actor_rollout_ref.actor.grad_clip=1.0
actor_rollout_ref.actor.clip_ratio=0.2
actor_rollout_ref.actor.clip_ratio_low=0.2
actor_rollout_ref.actor.clip_ratio_high=0.28
actor_rollout_ref.actor.clip_ratio_c=3.0
actor_rollout_ref.actor.loss_agg_mode=token-mean
actor_rollout_ref.actor.entropy_coeff=0
actor_rollout_ref.actor.use_kl_loss=True
actor_rollout_ref.actor.kl_loss_coef=0.001
actor_rollout_ref.actor.kl_loss_type=low_var_kl
actor_rollout_ref.actor.ppo_epochs=1
actor_rollout_ref.actor.shuffle=False
actor_rollout_ref.actor.ulysses_sequence_parallel_size=1
actor_rollout_ref.actor.use_torch_compile=True
actor_rollout_ref.actor.checkpoint.contents=['model','optimizer','extra']
actor_rollout_ref.actor.optim.lr=1e-6
actor_rollout_ref.actor.optim.lr_warmup_steps=-1
actor_rollout_ref.actor.optim.lr_warmup_steps_ratio=0.
actor_rollout_ref.actor.optim.min_lr_ratio=null
actor_rollout_ref.actor.optim.warmup_style=constant
actor_rollout_ref.actor.optim.total_training_steps=-1
actor_rollout_ref.actor.optim.weight_decay=0.01
actor_rollout_ref.actor.fsdp_config.wrap_policy.min_num_params=0
actor_rollout_ref.actor.fsdp_config.param_offload=False
actor_rollout_ref.actor.fsdp_config.optimizer_offload=False
actor_rollout_ref.actor.fsdp_config.offload_policy=False
actor_rollout_ref.actor.fsdp_config.reshard_after_forward=True
actor_rollout_ref.actor.fsdp_config.fsdp_size=-1
actor_rollout_ref.ref.strategy=fsdp
actor_rollout_ref.ref.fsdp_config.param_offload=True
actor_rollout_ref.ref.fsdp_config.wrap_policy.min_num_params=0
actor_rollout_ref.ref.use_torch_compile=True
actor_rollout_ref.ref.log_prob_micro_batch_size=null
actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8
actor_rollout_ref.ref.log_prob_use_dynamic_bsz=${actor_rollout_ref.actor.use_dynamic_bsz}
actor_rollout_ref.ref.log_prob_max_token_len_per_gpu=${actor_rollout_ref.actor.ppo_max_token_len_per_gpu}
actor_rollout_ref.ref.ulysses_sequence_parallel_size=1
actor_rollout_ref.rollout.name=vllm
actor_rollout_ref.rollout.mode=sync
actor_rollout_ref.rollout.chat_scheduler=null
actor_rollout_ref.rollout.temperature=1.0
actor_rollout_ref.rollout.top_k=-1
actor_rollout_ref.rollout.top_p=1
actor_rollout_ref.rollout.use_fire_sampling=False
actor_rollout_ref.rollout.prompt_length=${data.max_prompt_length}
actor_rollout_ref.rollout.response_length=${data.max_response_length}
actor_rollout_ref.rollout.dtype=bfloat16
actor_rollout_ref.rollout.gpu_memory_utilization=0.6
actor_rollout_ref.rollout.ignore_eos=False
actor_rollout_ref.rollout.enforce_eager=False
actor_rollout_ref.rollout.free_cache_engine=False
actor_rollout_ref.rollout.load_format=dummy_dtensor
actor_rollout_ref.rollout.tensor_model_parallel_size=2
actor_rollout_ref.rollout.max_num_batched_tokens=8192
actor_rollout_ref.rollout.max_model_len=null
actor_rollout_ref.rollout.max_num_seqs=1024
actor_rollout_ref.rollout.log_prob_micro_batch_size=null
actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8
actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=False
actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=16384
actor_rollout_ref.rollout.disable_log_stats=True
actor_rollout_ref.rollout.enable_chunked_prefill=True
actor_rollout_ref.rollout.do_sample=True
actor_rollout_ref.rollout.engine_kwargs.swap_space=null
actor_rollout_ref.rollout.val_kwargs.top_k=-1
actor_rollout_ref.rollout.val_kwargs.top_p=0.7
actor_rollout_ref.rollout.val_kwargs.temperature=1.0
actor_rollout_ref.rollout.val_kwargs.n=4
actor_rollout_ref.rollout.val_kwargs.do_sample=True
actor_rollout_ref.rollout.multi_turn.enable=False
actor_rollout_ref.rollout.multi_turn.max_turns=5
actor_rollout_ref.rollout.multi_turn.tool_config_path=null
actor_rollout_ref.rollout.multi_turn.format=chatml
data.tokenizer=null
data.prompt_key=prompt
data.reward_fn_key=data_source
data.val_batch_size=null
data.return_raw_input_ids=False
data.return_raw_chat=True
data.shuffle=True
data.filter_overlong_prompts=True
data.filter_overlong_prompts_workers=1
data.truncation=left
data.image_key=images
data.video_key=videos
data.custom_cls.path=null
data.custom_cls.name=null
reward_model.strategy=fsdp
reward_model.model.input_tokenizer=null
reward_model.model.external_lib=null
reward_model.model.use_remove_padding=True
reward_model.model.trust_remote_code=True
reward_model.model.fsdp_config.param_offload=True
reward_model.model.fsdp_config.wrap_policy.min_num_params=0
reward_model.micro_batch_size=null
reward_model.micro_batch_size_per_gpu=1
reward_model.max_length=null
reward_model.ulysses_sequence_parallel_size=1
reward_model.use_dynamic_bsz=False
reward_model.forward_max_token_len_per_gpu=32768
reward_model.reward_manager=naive
reward_model.launch_reward_fn_async=False
custom_reward_function.path=null
custom_reward_function.name=compute_score
algorithm.gamma=1.0
algorithm.lam=1.0
algorithm.adv_estimator=grpo
algorithm.norm_adv_by_std_in_grpo=True
algorithm.use_kl_in_reward=False
algorithm.kl_penalty=kl
algorithm.kl_ctrl.type=fixed
algorithm.kl_ctrl.kl_coef=0.001
algorithm.kl_ctrl.horizon=10000
algorithm.kl_ctrl.target_kl=0.1
trainer.device=cuda
trainer.balance_batch=True
trainer.total_epochs=15
trainer.total_training_steps=null
trainer.project_name=verl_grpo
trainer.experiment_name=run
trainer.logger=['console','wandb']
trainer.log_val_generations=0
trainer.rollout_data_dir=null
trainer.validation_data_dir=null
trainer.nnodes=1
trainer.n_gpus_per_node=8
trainer.save_freq=20
trainer.test_freq=5
trainer.resume_mode=auto
trainer.resume_from_path=null
trainer.val_before_train=False
trainer.val_only=False
trainer.critic_warmup=0
trainer.default_hdfs_dir=null
trainer.del_local_ckpt_after_load=False
trainer.default_local_dir=checkpoints/${trainer.project_name}/${trainer.experiment_name}
trainer.max_actor_ckpt_to_keep=null
trainer.max_critic_ckpt_to_keep=null
trainer.ray_wait_register_center_timeout=300
ray_init.num_cpus=8
""".split("\n")[1:-1]


@pytest.mark.parametrize("prefix", ["", "+"])
def test_every_key_of_a_verl_04_grpo_and_reward_model_script_is_accepted(prefix: str) -> None:
    loaded = load(*WITH_PRM, *(prefix + line for line in VERL_04_KEYS))
    policy = loaded.config.actor_rollout_ref
    assert policy.actor.ppo_micro_batch_size_per_gpu == 4
    assert policy.actor.optim.min_lr_ratio == 0.0
    assert policy.rollout.engine_kwargs == {}
    assert loaded.config.reward_model.max_num_batched_tokens == 32768
    assert loaded.config.trainer.checkpoint_dir == "checkpoints/verl_grpo/run"
    assert loaded.config.ray_kwargs.ray_init == {"num_cpus": 8}


def test_every_key_without_effect_is_said_to_have_none() -> None:
    loaded = load(*WITH_PRM, *VERL_04_KEYS)
    tree = tree_of(PPOTrainerConfig)
    said = {key.strip() for notice in loaded.notices for key in notice.split(": no effect here")[0].split(",")}
    silent = [line.split("=")[0] for line in VERL_04_KEYS]
    without_effect = {key for key in silent if isinstance(find_entry(key, tree), NoEffect)}
    assert len(without_effect) > 30
    assert without_effect <= said


def test_no_old_name_hides_a_present_key() -> None:
    for entry in ENTRIES:
        hidden = [tree.leaves[entry.old] for tree in TREES if entry.old in tree.leaves]
        section = entry.old.removesuffix("*")
        if entry.old.endswith(".*"):
            hidden += [spec for tree in TREES for key, spec in tree.leaves.items() if key.startswith(section)]
        assert not hidden, f"{entry.old} hides {[spec.key for spec in hidden]}"


def test_every_new_name_exists() -> None:
    for entry in ENTRIES:
        if isinstance(entry, Renamed | TotalPerStep):
            assert any(tree.knows(entry.new.removesuffix(".*")) for tree in TREES), entry.new
    assert not [key for key in VALUES if not any(key in tree.leaves for tree in TREES)]


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("actor_rollout_ref.actor.optim.warmup_style=cosine", "actor.optim.lr_scheduler_type", "cosine"),
        ("actor_rollout_ref.actor.ppo_micro_batch_size=16", "actor.ppo_micro_batch_size_per_gpu", 2),
        ("actor_rollout_ref.ref.log_prob_micro_batch_size=32", "ref.log_prob_micro_batch_size_per_gpu", 4),
        ("actor_rollout_ref.actor.use_remove_padding=False", "model.use_remove_padding", False),
        ("actor_rollout_ref.actor.fsdp_config.model_dtype=bf16", "actor.fsdp_config.model_dtype", "bfloat16"),
        ("actor_rollout_ref.actor.megatron.dtype=fp32", "actor.megatron.dtype", "float32"),
        ("actor_rollout_ref.actor.fsdp_config.dtype=fp32", "actor.fsdp_config.mixed_precision.param_dtype", "float32"),
        ("actor_rollout_ref.rollout.top_k=0", "rollout.top_k", -1),
        ("data.trust_remote_code=True", "model.trust_remote_code", True),
    ],
)
def test_policy_keys_under_their_old_names(override: str, key: str, value: object) -> None:
    loaded = load(override)
    found: object = loaded.config.actor_rollout_ref
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value
    assert any(" is read as " in notice for notice in loaded.notices)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("reward.reward_model.enable=False", "enable", False),
        ("reward.reward_manager.name=dapo", "reward_manager", "dapo"),
        ("reward.num_workers=9", "num_verifier_workers", 9),
        ("reward.reward_model.rollout.gpu_memory_utilization=0.3", "gpu_memory_utilization", 0.3),
        ("reward_model.rollout.max_model_len=4096", "max_length", 4096),
        ("reward_model.num_workers=3", "num_verifier_workers", 3),
        ("reward.reward_manager.name=prime", "reward_manager", "prime"),
        ("reward.reward_model.forward_max_token_len_per_gpu=99", "max_num_batched_tokens", 99),
    ],
)
def test_reward_keys_of_later_versions(override: str, key: str, value: object) -> None:
    assert getattr(load(override).config.reward_model, key) == value


def test_deeper_reward_keys_of_later_versions() -> None:
    buffer = "reward_model.reward_kwargs.overlong_buffer_cfg"
    loaded = load(
        "reward.reward_model.model_path=org/prm",
        "reward.custom_reward_function.path=f.py",
        "reward.custom_reward_function.reward_kwargs={a:1}",
        "reward_model.reward_manager=dapo",
        f"+{buffer}.enable=True",
        f"+{buffer}.len=128",
        f"+{buffer}.log=True",
        "+reward_model.reward_kwargs.max_resp_len=512",
    )
    assert loaded.config.reward_model.model.path == "org/prm"
    assert loaded.config.custom_reward_function.reward_kwargs == {"a": 1}
    assert (loaded.config.reward_model.overlong_buffer.enable, loaded.config.reward_model.overlong_buffer.len) == (
        True,
        128,
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("critic.model.path=x", "there is no critic"),
        ("trainer.critic_warmup=5", "only 0 is accepted (there is no critic)"),
        ("actor_rollout_ref.rollout.multi_turn.enable=True", "Tool use is not built"),
        ("actor_rollout_ref.model.exclude_modules=[lm_head]", "Name the wanted ones in target_modules"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=gspo", "only vanilla is accepted"),
        ("trainer.default_hdfs_dir=hdfs://x", "Checkpoints go to trainer.default_local_dir"),
        ("trainer.remove_previous_ckpt_in_save=True", "Use trainer.max_actor_ckpt_to_keep=1"),
        ("reward_model.sandbox_fusion.url=http://x", "Rewards from running code are not built"),
        ("reward.unheard_of=1", "this section is reward_model here"),
        ("algorithm.filter_groups.enable=True", "dynamic sampling is not built"),
        ("actor_rollout_ref.actor.ppo_micro_batch_size=12", "must be a multiple of their number, 8"),
        ("algorithm.adv_estimator=gae", "There is no critic: use 'grpo'"),
        ("trainer.logger=['console','swanlab']", "allowed: console | jsonl | tensorboard | wandb"),
    ],
)
def test_what_is_not_there_is_refused_with_the_way_on(override: str, said: str) -> None:
    assert said in refusal(override)


def test_a_refused_section_is_one_line() -> None:
    assert len(refusal("critic.model.path=x", "critic.optim.lr=1e-5", "critic.strategy=fsdp").splitlines()) == 1


def test_old_and_new_name_with_two_values() -> None:
    new = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"
    old = "actor_rollout_ref.actor.ppo_micro_batch_size"
    assert f"Keep only {new}" in refusal(f"{new}=4", f"{old}=16")
    assert load(f"{new}=2", f"{old}=16").config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu == 2


def test_the_last_of_an_old_and_a_new_name_wins_when_both_mean_one_thing() -> None:
    old, new = "actor_rollout_ref.actor.optim.warmup_style", "actor_rollout_ref.actor.optim.lr_scheduler_type"
    assert load(f"{old}=cosine", f"{new}=constant").config.actor_rollout_ref.actor.optim.lr_scheduler_type == "constant"
    assert load(f"{new}=constant", f"{old}=cosine").config.actor_rollout_ref.actor.optim.lr_scheduler_type == "cosine"


def test_engine_arguments_of_one_engine() -> None:
    key = "actor_rollout_ref.rollout.engine_kwargs"
    loaded = load(f"{key}.vllm.block_size=32", f"{key}.seed=1", f"+{key}.vllm.swap_space=4", f"+{key}.sglang={{}}")
    assert loaded.config.actor_rollout_ref.rollout.engine_kwargs == {"block_size": 32, "seed": 1}
    served = load("actor_rollout_ref.rollout.name=sglang", f"+{key}.sglang.attention_backend=fa3").config
    assert served.actor_rollout_ref.rollout.sglang.server_args == {"attention_backend": "fa3"}
    assert served.actor_rollout_ref.rollout.engine_kwargs == {}
    assert load(f"{key}={{vllm:{{a:1}},b:2}}").config.actor_rollout_ref.rollout.engine_kwargs == {"a": 1, "b": 2}


def test_hydra_s_own_keys_have_no_effect() -> None:
    notices = load("hydra.run.dir=x", "hydra/job_logging=none").notices
    assert len(notices) == 1
    assert "hydra.run.dir" in notices[0]
