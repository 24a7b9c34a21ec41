# SPDX-License-Identifier: Apache-2.0
"""Every check across sections: refused with key and mend, and its nearest accepted neighbour accepted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.configs import REQUIRED, build, fault
from verl.config import PPOTrainerConfig
from verl.utils.errors import UserError

ACTOR = "actor_rollout_ref.actor"
ROLLOUT = "actor_rollout_ref.rollout"
REF = "actor_rollout_ref.ref"
CORRECTION = "algorithm.rollout_correction"


@pytest.mark.parametrize(
    ("refused", "said", "accepted"),
    [
        # batch sizes
        (
            ["data.train_batch_size=128"],
            f"{ACTOR}.ppo_mini_batch_size=256: must not exceed data.train_batch_size=128",
            ["data.train_batch_size=128", f"{ACTOR}.ppo_mini_batch_size=128"],
        ),
        (
            ["data.train_batch_size=96", f"{ACTOR}.ppo_mini_batch_size=64"],
            "must divide data.train_batch_size=96",
            ["data.train_batch_size=96", f"{ACTOR}.ppo_mini_batch_size=48"],
        ),
        (
            ["data.train_batch_size=10", f"{ACTOR}.ppo_mini_batch_size=10", f"{ROLLOUT}.n=2"],
            "10 prompts x rollout.n=2 = 20 sequences must be a multiple of the 8 data-parallel ranks. Use e.g. 12",
            ["data.train_batch_size=12", f"{ACTOR}.ppo_mini_batch_size=12", f"{ROLLOUT}.n=2"],
        ),
        (
            ["data.train_batch_size=32", f"{ACTOR}.ppo_mini_batch_size=2", f"{ROLLOUT}.n=2"],
            f"{ACTOR}.ppo_mini_batch_size=2: 2 prompts x rollout.n=2 = 4 sequences must be a multiple of the 8",
            ["data.train_batch_size=32", f"{ACTOR}.ppo_mini_batch_size=4", f"{ROLLOUT}.n=2"],
        ),
        # ranks
        ([f"{ACTOR}.fsdp_config.fsdp_size=3"], "must divide the 8", [f"{ACTOR}.fsdp_config.fsdp_size=2"]),
        (
            [f"{ACTOR}.fsdp_config.offload_policy=True", f"{ACTOR}.fsdp_config.param_offload=True"],
            "already keeps weights",
            [f"{ACTOR}.fsdp_config.offload_policy=True"],
        ),
        # micro-batches
        (
            [f"{ACTOR}.use_dynamic_bsz=False"],
            f"without a token budget {ACTOR}.ppo_micro_batch_size_per_gpu is required",
            [f"{ACTOR}.use_dynamic_bsz=False", f"{ACTOR}.ppo_micro_batch_size_per_gpu=2"],
        ),
        (
            [f"{ACTOR}.ppo_max_token_len_per_gpu=1000"],
            "one full sequence has 1024 tokens",
            [f"{ACTOR}.ppo_max_token_len_per_gpu=1024"],
        ),
        (
            [f"{ROLLOUT}.log_prob_max_token_len_per_gpu=1000"],
            f"{ROLLOUT}.log_prob_max_token_len_per_gpu=1000: one full sequence has 1024 tokens",
            [f"{ROLLOUT}.log_prob_max_token_len_per_gpu=1024"],
        ),
        (
            [f"{REF}.log_prob_max_token_len_per_gpu=1000", f"{ACTOR}.use_kl_loss=True"],
            "one full sequence has 1024 tokens",
            [f"{REF}.log_prob_max_token_len_per_gpu=1000"],  # no KL term, no reference model
        ),
        (
            [f"{ROLLOUT}.log_prob_use_dynamic_bsz=False"],
            f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu is required",
            [f"{ROLLOUT}.log_prob_use_dynamic_bsz=False", f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=4"],
        ),
        (
            [f"{ACTOR}.use_dynamic_bsz=False", f"{ACTOR}.ppo_micro_batch_size_per_gpu=257"],
            "must not exceed a rank's share of a mini-batch, 256 sequences",
            [f"{ACTOR}.use_dynamic_bsz=False", f"{ACTOR}.ppo_micro_batch_size_per_gpu=256"],
        ),
        # rollout servers
        (
            [f"{ROLLOUT}.tensor_model_parallel_size=16"],
            "tensor_model_parallel_size=16: is larger than trainer.n_gpus_per_node=8",
            [f"{ROLLOUT}.tensor_model_parallel_size=8"],
        ),
        (
            [f"{ROLLOUT}.tensor_model_parallel_size=3"],
            "must divide trainer.n_gpus_per_node=8",
            [f"{ROLLOUT}.tensor_model_parallel_size=2"],
        ),
        (
            [f"{ROLLOUT}.name=hf", f"{ROLLOUT}.tensor_model_parallel_size=2"],
            "tensor_model_parallel_size=2: hf has one device per server",
            [f"{ROLLOUT}.name=hf"],
        ),
        ([f"{ROLLOUT}.max_model_len=1000"], "= 1024 tokens", [f"{ROLLOUT}.max_model_len=1024"]),
        (
            [f"{ROLLOUT}.enable_chunked_prefill=False", f"{ROLLOUT}.max_num_batched_tokens=1000"],
            "a whole sequence of 1024 tokens must fit",
            [f"{ROLLOUT}.enable_chunked_prefill=False", f"{ROLLOUT}.max_num_batched_tokens=1024"],
        ),
        # sampling
        ([f"{ROLLOUT}.top_p=0.95"], "whose log-probs the trainer cannot compute", [f"{ROLLOUT}.val_kwargs.top_p=0.95"]),
        ([f"{ROLLOUT}.top_k=50"], "whose log-probs the trainer cannot compute", [f"{ROLLOUT}.val_kwargs.top_k=50"]),
        (
            [f"{ROLLOUT}.top_p=0.95", f"{CORRECTION}.mask_low=0.5"],  # leaves tokens out, but weighs none
            f"or {CORRECTION}.rollout_is=token",
            [f"{ROLLOUT}.top_p=0.95", f"{CORRECTION}.rollout_is=token"],
        ),
        (
            [f"{ROLLOUT}.top_k=50"],
            "whose log-probs the trainer cannot compute",
            [f"{ROLLOUT}.top_k=50", f"{CORRECTION}.bypass_old_log_probs=True"],
        ),
        (
            [f"{CORRECTION}.mask_low=1", f"{CORRECTION}.mask_high=1"],
            "no token would be left",
            [f"{CORRECTION}.mask_low=0.5", f"{CORRECTION}.mask_high=5"],
        ),
        ([f"{CORRECTION}.mask_low=1.5"], "at most 1", [f"{CORRECTION}.mask_low=1"]),
        ([f"{CORRECTION}.rollout_is=word"], "token | sequence", [f"{CORRECTION}.rollout_is=sequence"]),
        ([f"{ROLLOUT}.temperature=0"], "must be above 0", [f"{ROLLOUT}.temperature=0.6"]),
        (
            [f"{ROLLOUT}.val_kwargs.n=4"],
            "greedy decoding gives the same answer every time",
            [f"{ROLLOUT}.val_kwargs.{rest}" for rest in ("n=4", "do_sample=True", "temperature=1.0")],
        ),
        (
            [f"{ROLLOUT}.val_kwargs.n=4", f"{ROLLOUT}.val_kwargs.do_sample=True"],
            "val_kwargs.temperature above 0",
            [f"{ROLLOUT}.val_kwargs.do_sample=True"],
        ),
        # run
        (
            ["trainer.resume_mode=resume_path"],
            "needs trainer.resume_from_path",
            ["trainer.resume_mode=resume_path", "trainer.resume_from_path=x/global_step_3"],
        ),
        (["trainer.resume_from_path=x"], "Set trainer.resume_mode=resume_path", ["trainer.resume_mode=disable"]),
        (["trainer.logger=[console,console]"], "names a logger twice", ["trainer.logger=[console,jsonl]"]),
    ],
)
def test_checks(refused: list[str], said: str, accepted: list[str]) -> None:
    message = fault(*refused)
    assert said in message
    assert len(message.splitlines()) == 1
    build(*accepted)


@pytest.mark.parametrize("missing", range(4))
def test_required_keys(missing: int) -> None:
    key = REQUIRED[missing].split("=")[0]
    rest = tuple(line for index, line in enumerate(REQUIRED) if index != missing)
    assert fault(required=rest).startswith(key)


def test_validation_files_are_not_needed_without_validation() -> None:
    rest = tuple(line for line in REQUIRED if not line.startswith("data.val_files"))
    build("trainer.val_before_train=False", required=rest)
    assert "data.val_files" in fault("trainer.val_before_train=False", "trainer.test_freq=5", required=rest)


def test_check_raises_for_a_root_built_by_hand() -> None:
    config = build()
    config.check()
    with pytest.raises(UserError, match="train_files"):
        replace(config, data=replace(config.data, train_files=())).check()
    with pytest.raises(UserError, match="mistakes"):
        PPOTrainerConfig().check()
