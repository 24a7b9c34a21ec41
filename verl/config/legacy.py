# SPDX-License-Identifier: Apache-2.0
"""The one table of verl 0.4 to 0.9 spellings: renamed, accepted without effect, or refused. Knows no Hydra.

A key in the table ends with `.*` when it stands for everything below a section. More exact entries go first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_ROLLOUT = "actor_rollout_ref.rollout"
_ACTOR = "actor_rollout_ref.actor"
_REF = "actor_rollout_ref.ref"
_MODEL = "actor_rollout_ref.model"
_CORRECTION = "algorithm.rollout_correction"


@dataclass(frozen=True)
class Renamed:
    """The same setting under its present name."""

    old: str
    new: str


@dataclass(frozen=True)
class TotalPerStep:
    """A micro-batch size that counted all ranks together; the present key counts one rank."""

    old: str
    new: str


@dataclass(frozen=True)
class NoEffect:
    """Accepted, and said to have no effect."""

    old: str
    why: str
    harmless: tuple[Any, ...] | None = None
    """Values that may be given; None = any. Another value asks for something that does not exist here: refused."""
    mend: str = "Leave the key out"


@dataclass(frozen=True)
class Refused:
    """Not accepted with any value."""

    old: str
    why: str
    mend: str


Entry = Renamed | TotalPerStep | NoEffect | Refused

_PACKED = "the PRM is served from its own process and batches by reward_model.max_num_batched_tokens"
_SCORED_BESIDE = "responses are scored beside the rollout unless reward_model.overlap_rollout=False"
_CHUNKED = "log-probs and entropy are always computed in chunks"
_ONE_TURN = "responses have one turn"
_WHOLE_CHECKPOINT = "a checkpoint always holds model, optimizer and extra; trainer.export_hf writes the HF format"
_OFF = (None, False)


def _sharding_keys(section: str) -> tuple[Entry, ...]:
    return (
        Renamed(f"{section}.fsdp_config.dtype", f"{section}.fsdp_config.mixed_precision.param_dtype"),
        NoEffect(f"{section}.fsdp_config.mixed_precision.buffer_dtype", "buffers keep their own type"),
        NoEffect(f"{section}.fsdp_config.wrap_policy.*", "every transformer layer is sharded on its own"),
        NoEffect(f"{section}.fsdp_config.use_orig_params", "FSDP2 always keeps the original parameters"),
        Renamed(f"{section}.fsdp_config.ulysses_sequence_parallel_size", f"{section}.ulysses_sequence_parallel_size"),
        NoEffect(f"{section}.entropy_from_logits_with_chunking", _CHUNKED),
        NoEffect(f"{section}.entropy_checkpointing", _CHUNKED),
        NoEffect(f"{section}.use_fused_kernels", _CHUNKED),
    )


_POLICY: tuple[Entry, ...] = (
    NoEffect(
        "actor_rollout_ref.hybrid_engine",
        f"{_ROLLOUT}.enable_resource_pool says whether rollout servers share the policy's devices",
        (True,),
        f"Set {_ROLLOUT}.enable_resource_pool=True and {_ROLLOUT}.n_gpus_per_node instead",
    ),
    NoEffect("actor_rollout_ref.ref.use_torch_compile", "the reference runs without torch.compile"),
    NoEffect("actor_rollout_ref.nccl_timeout", "waits have their own limits (timeout_s, start_timeout_s)"),
    NoEffect(f"{_MODEL}.use_shm", "models are read where they lie"),
    NoEffect(f"{_MODEL}.use_liger", _CHUNKED),
    NoEffect(f"{_MODEL}.use_fused_kernels", _CHUNKED),
    NoEffect(f"{_MODEL}.fused_kernel_options.*", _CHUNKED),
    NoEffect(f"{_MODEL}.exclude_modules", "target_modules says all", (None,), "Name the wanted ones in target_modules"),
    TotalPerStep(f"{_ACTOR}.ppo_micro_batch_size", f"{_ACTOR}.ppo_micro_batch_size_per_gpu"),
    Renamed(f"{_ACTOR}.use_remove_padding", f"{_MODEL}.use_remove_padding"),
    NoEffect(f"{_ACTOR}.checkpoint.async_save", "checkpoints are written before the next step", _OFF),
    NoEffect(f"{_ACTOR}.checkpoint.*", _WHOLE_CHECKPOINT),
    NoEffect(f"{_ACTOR}.loss_scale_factor", "it is data.max_response_length", (None,)),
    Renamed(f"{_ACTOR}.optim.warmup_style", f"{_ACTOR}.optim.lr_scheduler_type"),
    Renamed(f"{_ACTOR}.optim.clip_grad", f"{_ACTOR}.grad_clip"),
    NoEffect(f"{_ACTOR}.optim.total_training_steps", "the trainer counts the optimizer steps itself"),
    NoEffect(f"{_ACTOR}.optim.num_cycles", "cosine falls once", (0.5, None)),
    NoEffect(f"{_ACTOR}.optim.optimizer", "the optimizer is AdamW", ("AdamW", "adamw", "adam")),
    NoEffect(f"{_ACTOR}.optim.optimizer_impl", "the optimizer is AdamW", ("torch.optim",)),
    NoEffect(f"{_ACTOR}.policy_loss.loss_mode", "the loss is the clipped surrogate", ("vanilla",)),
    NoEffect(f"{_ACTOR}.policy_loss.*", "the loss is the clipped surrogate"),
    NoEffect(
        f"{_ACTOR}.tis_imp_ratio_cap",
        "it is algorithm.rollout_correction.rollout_is_threshold",
        (-1, 0, None),
        "Set algorithm.rollout_correction.rollout_is=token and rollout_is_threshold",
    ),
    NoEffect(f"{_ACTOR}.profiler.*", "there is no profiler section"),
    *_sharding_keys(_ACTOR),
    TotalPerStep(f"{_REF}.log_prob_micro_batch_size", f"{_REF}.log_prob_micro_batch_size_per_gpu"),
    NoEffect(f"{_REF}.strategy", "the reference model uses the actor's engine"),
    NoEffect(f"{_REF}.model", "the reference is the starting policy", (None,)),
    NoEffect(f"{_REF}.profiler.*", "there is no profiler section"),
    *_sharding_keys(_REF),
    TotalPerStep(f"{_ROLLOUT}.log_prob_micro_batch_size", f"{_ROLLOUT}.log_prob_micro_batch_size_per_gpu"),
    NoEffect(f"{_ROLLOUT}.mode", "rollout servers are always asynchronous", ("sync", "async")),
    NoEffect(f"{_ROLLOUT}.prompt_length", "it is data.max_prompt_length"),
    NoEffect(f"{_ROLLOUT}.response_length", "it is data.max_response_length"),
    NoEffect(f"{_ROLLOUT}.do_sample", "training always samples", (True,)),
    NoEffect(f"{_ROLLOUT}.calculate_log_probs", "the sampler's log-probs are always kept"),
    NoEffect(f"{_ROLLOUT}.use_fire_sampling", "not built", _OFF),
    NoEffect(f"{_ROLLOUT}.chat_scheduler", _ONE_TURN, (None,)),
    NoEffect(f"{_ROLLOUT}.multi_turn.enable", _ONE_TURN, _OFF, "Tool use is not built: set multi_turn.enable=False"),
    NoEffect(f"{_ROLLOUT}.multi_turn.*", _ONE_TURN),
    NoEffect(f"{_ROLLOUT}.agent.*", _ONE_TURN),
    NoEffect(f"{_ROLLOUT}.trace.*", "use trainer.rollout_data_dir to see rollouts"),
    NoEffect(f"{_ROLLOUT}.profiler.*", "there is no profiler section"),
    NoEffect(f"{_ROLLOUT}.layered_summon", "weights are always sent layer by layer"),
    NoEffect(f"{_ROLLOUT}.multi_stage_wake_up", "weights and KV cache wake up when they are needed"),
    NoEffect(f"{_ROLLOUT}.over_sample_rate", "not built", (0, 0.0, None)),
    NoEffect(f"{_ROLLOUT}.skip_rollout", "not built", _OFF),
    NoEffect(f"{_ROLLOUT}.skip_dump_dir", "rollouts are never skipped"),
    NoEffect(f"{_ROLLOUT}.cudagraph_capture_sizes", "set it in engine_kwargs.vllm", (None,)),
    NoEffect(f"{_ROLLOUT}.engine_kwargs.swap_space", "vLLM has no swap space any more"),
    NoEffect(f"{_ROLLOUT}.engine_kwargs.vllm.swap_space", "vLLM has no swap space any more"),
    Renamed(f"{_ROLLOUT}.engine_kwargs.vllm.*", f"{_ROLLOUT}.engine_kwargs.*"),
    Renamed(f"{_ROLLOUT}.engine_kwargs.sglang.*", f"{_ROLLOUT}.sglang.server_args.*"),
    NoEffect(f"{_ROLLOUT}.load_format", "servers read the model's files, then get every new version of the weights"),
    NoEffect(f"{_ROLLOUT}.disable_log_stats", "the trainer logs its own statistics of rollouts"),
    Renamed(f"{_ROLLOUT}.update_weights_bucket_megabytes", f"{_ROLLOUT}.weight_sync_bucket_mib"),
    NoEffect(f"{_ROLLOUT}.data_parallel_size", "servers are counted by devices / tensor_model_parallel_size", (1,)),
    NoEffect(f"{_ROLLOUT}.pipeline_model_parallel_size", "servers have no pipeline stages", (1,)),
    Refused("critic.*", "there is no critic: group-relative estimators need none", "Remove the critic.* keys"),
)

_DATA: tuple[Entry, ...] = (
    NoEffect("data.tokenizer", f"set {_MODEL}.tokenizer_path", (None,), f"Set {_MODEL}.tokenizer_path instead"),
    NoEffect("data.filter_overlong_prompts_workers", "prompts are tokenized once, in the driver"),
    NoEffect("data.use_shm", "files are read where they lie"),
    NoEffect("data.return_raw_input_ids", "scorers get text, so tokenizers may differ"),
    NoEffect("data.return_raw_chat", "the messages are always kept"),
    NoEffect("data.return_full_prompt", "the messages are always kept"),
    NoEffect("data.return_multi_modal_inputs", "prompts are text"),
    NoEffect("data.image_key", "prompts are text"),
    NoEffect("data.video_key", "prompts are text"),
    NoEffect("data.validation_shuffle", "validation keeps the order of the file", _OFF),
    NoEffect("data.custom_cls.path", "rows follow one schema", (None,), "Convert the rows to the DAPO schema"),
    NoEffect("data.custom_cls.name", "rows follow one schema"),
    NoEffect("data.datagen.*", "rows come from files"),
    NoEffect("data.sampler.class_path", "rows are drawn uniformly", (None,)),
    NoEffect("data.sampler.class_name", "rows are drawn uniformly"),
    NoEffect("data.gen_batch_size", "there is no dynamic sampling", (None,)),
    Renamed("data.trust_remote_code", f"{_MODEL}.trust_remote_code"),
)

_SERVING = "dtype enforce_eager gpu_memory_utilization max_num_batched_tokens max_num_seqs tensor_model_parallel_size"


def _reward_model_keys(section: str) -> tuple[Entry, ...]:
    """Entries for a section that was `reward_model` (0.4 to 0.6) or `reward.reward_model` (0.7 and later)."""
    served = tuple(Renamed(f"{section}.rollout.{name}", f"reward_model.{name}") for name in _SERVING.split())
    return (
        *served,
        Renamed(f"{section}.rollout.max_model_len", "reward_model.max_length"),
        Renamed(f"{section}.rollout.engine_kwargs.vllm.*", "reward_model.engine_kwargs.*"),
        NoEffect(f"{section}.rollout.*", "the PRM's serving keys stand in reward_model itself"),
        Renamed(f"{section}.model_path", "reward_model.model.path"),
        NoEffect(f"{section}.model_config.*", "the PRM is loaded natively"),
        NoEffect(f"{section}.model_type", "process_reward.adapter chooses the PRM family"),
        NoEffect(f"{section}.strategy", "the PRM is served, not sharded (reward_model.process_reward.backend)"),
        NoEffect(f"{section}.model.input_tokenizer", "the PRM gets text and uses its own tokenizer"),
        NoEffect(f"{section}.model.use_remove_padding", _PACKED),
        NoEffect(f"{section}.model.use_fused_kernels", _PACKED),
        NoEffect(f"{section}.model.trust_remote_code", "the PRM is loaded natively, its code is never run"),
        NoEffect(f"{section}.model.external_lib", "the PRM is loaded natively", (None,)),
        NoEffect(f"{section}.model.use_shm", "models are read where they lie"),
        NoEffect(f"{section}.model.override_config.*", "use reward_model.engine_kwargs"),
        NoEffect(f"{section}.model.fsdp_config.*", "the PRM is served, not sharded"),
        NoEffect(f"{section}.micro_batch_size", _PACKED),
        NoEffect(f"{section}.micro_batch_size_per_gpu", _PACKED),
        NoEffect(f"{section}.use_dynamic_bsz", _PACKED),
        Renamed(f"{section}.forward_max_token_len_per_gpu", "reward_model.max_num_batched_tokens"),
        NoEffect(f"{section}.ulysses_sequence_parallel_size", "use tensor_model_parallel_size", (1, None)),
        NoEffect(f"{section}.profiler.*", "there is no profiler section"),
    )


def _scoring_keys(section: str) -> tuple[Entry, ...]:
    return (
        Renamed(f"{section}.reward_kwargs.overlong_buffer_cfg.*", "reward_model.overlong_buffer.*"),
        NoEffect(f"{section}.reward_kwargs.max_resp_len", "it is data.max_response_length"),
        NoEffect(f"{section}.overlong_buffer.log", "the penalty is always logged"),
        NoEffect(f"{section}.launch_reward_fn_async", _SCORED_BESIDE),
        NoEffect(f"{section}.use_reward_loop", _SCORED_BESIDE),
        NoEffect(
            f"{section}.sandbox_fusion.url", "code is not run", (None,), "Rewards from running code are not built"
        ),
        NoEffect(f"{section}.sandbox_fusion.*", "code is not run"),
        Renamed(f"{section}.num_workers", "reward_model.num_verifier_workers"),
    )


_REWARD: tuple[Entry, ...] = (
    *_scoring_keys("reward_model"),
    *_reward_model_keys("reward_model"),
    *_scoring_keys("reward"),
    *_reward_model_keys("reward.reward_model"),
    Renamed("reward.reward_model.*", "reward_model.*"),
    Renamed("reward.custom_reward_function.*", "custom_reward_function.*"),
    Renamed("reward.reward_manager.name", "reward_model.reward_manager"),
    NoEffect("reward.reward_manager.*", "reward managers are built in"),
    Refused("reward.*", "this section is reward_model here", "See section reward_model in docs/configuration.md"),
)

_RUN: tuple[Entry, ...] = (
    NoEffect("algorithm.gamma", "group-relative estimators do not discount"),
    NoEffect("algorithm.lam", "there is no critic"),
    NoEffect("algorithm.use_pf_ppo", "not built", _OFF),
    NoEffect("algorithm.pf_ppo.*", "not built"),
    NoEffect("algorithm.filter_groups.enable", "dynamic sampling is not built", _OFF),
    NoEffect("algorithm.filter_groups.*", "dynamic sampling is not built"),
    Renamed(f"{_CORRECTION}.bypass_mode", f"{_CORRECTION}.bypass_old_log_probs"),
    NoEffect(f"{_CORRECTION}.rollout_rs", "use mask_low and mask_high", (None,), "Set mask_low and mask_high"),
    NoEffect(f"{_CORRECTION}.rollout_rs_threshold", "use mask_low and mask_high", (None,), "Set mask_high"),
    NoEffect(f"{_CORRECTION}.rollout_is_batch_normalize", "weights are not normalised", _OFF),
    NoEffect("trainer.critic_warmup", "there is no critic", (0,), "Set critic_warmup=0"),
    NoEffect("trainer.max_critic_ckpt_to_keep", "there is no critic"),
    NoEffect("trainer.default_hdfs_dir", "not built", (None,), "Checkpoints go to trainer.default_local_dir"),
    NoEffect("trainer.del_local_ckpt_after_load", "checkpoints stay", _OFF, "Use trainer.max_actor_ckpt_to_keep"),
    NoEffect("trainer.esi_redundant_time", "a checkpoint is written every trainer.save_freq steps"),
    NoEffect("trainer.use_legacy_worker_impl", "there is one worker"),
    NoEffect("trainer.log_val_generations", "trainer.validation_data_dir keeps every answer"),
    NoEffect("trainer.val_generations_to_log_to_wandb", "trainer.validation_data_dir keeps every answer"),
    Refused("trainer.remove_previous_ckpt_in_save", "is gone", "Use trainer.max_actor_ckpt_to_keep=1"),
    Renamed("ray_init.*", "ray_kwargs.ray_init.*"),
    NoEffect("ray_kwargs.timeline_json_file", "each stage of a step is timed in the metrics", (None,)),
    NoEffect("global_profiler.*", "there is no profiler section"),
    NoEffect("hydra.*", "Hydra writes no folders of its own here"),
)

_SUPERVISED: tuple[Entry, ...] = (
    Renamed("model.partial_pretrain", "model.path"),
    Renamed("model.fsdp_config.*", "fsdp_config.*"),
    NoEffect("model.strategy", "the engine is fsdp2", ("fsdp", "fsdp2")),
    Renamed("use_remove_padding", "model.use_remove_padding"),
    Renamed("data.micro_batch_size_per_gpu", "micro_batch_size_per_gpu"),
    Renamed("data.max_token_len_per_gpu", "max_token_len_per_gpu"),
    NoEffect("data.use_dynamic_bsz", "micro-batches are always formed under max_token_len_per_gpu"),
    Renamed("optim.warmup_steps_ratio", "optim.lr_warmup_steps_ratio"),
    Renamed("optim.lr_scheduler", "optim.lr_scheduler_type"),
    Renamed("optim.clip_grad", "grad_clip"),
)

_GENERATION: tuple[Entry, ...] = (
    Renamed("data.n_samples", "n_samples"),
    Renamed("data.output_path", "output"),
    Renamed("rollout.prompt_length", "data.max_prompt_length"),
    Renamed("rollout.response_length", "data.max_response_length"),
)

ENTRIES: tuple[Entry, ...] = (*_POLICY, *_DATA, *_REWARD, *_RUN, *_SUPERVISED, *_GENERATION)
"""The table."""

_SHORT_DTYPES = {"bf16": "bfloat16", "fp32": "float32", "fp16": "float16", "half": "float16", "float": "float32"}

_PRECISION_KEYS = ("model_dtype", "mixed_precision.param_dtype", "mixed_precision.reduce_dtype")
_DTYPE_KEYS = (
    *(
        f"{section}.dtype"
        for section in ("rollout", _ROLLOUT, "reward_model", f"{_ACTOR}.megatron", f"{_REF}.megatron")
    ),
    *(f"{section}fsdp_config.{name}" for section in (f"{_ACTOR}.", f"{_REF}.", "") for name in _PRECISION_KEYS),
)

VALUES: dict[str, dict[Any, Any]] = {
    **dict.fromkeys(_DTYPE_KEYS, _SHORT_DTYPES),
    f"{_ROLLOUT}.top_k": {0: -1},
    f"{_ROLLOUT}.val_kwargs.top_k": {0: -1},
    f"{_ACTOR}.optim.min_lr_ratio": {None: 0.0},
    f"{_ACTOR}.optim.lr_warmup_steps": {None: -1},
    "trainer.logger": {"file": "jsonl"},
    "reward_model.process_reward.step_separator": {r"\n\n": "\n\n", r"\n": "\n"},
}
"""Old values of present keys (for a list: of its items)."""
