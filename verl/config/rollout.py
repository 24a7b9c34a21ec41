# SPDX-License-Identifier: Apache-2.0
"""Section `actor_rollout_ref.rollout`: how prompts are answered. Does not know the trainer or the scorers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from verl.config.fields import free_mapping, limited
from verl.config.names import DType, InFlightUpdate, RolloutName, WeightSyncBackend
from verl.config.sglang import SGLangConfig


@dataclass(frozen=True, kw_only=True)
class ValKwargs:
    """Sampling in validation (training uses the keys one level up)."""

    n: int = limited(1, low=1)
    """Answers per validation prompt (mean@n, maj@n, pass@n). Unit: responses."""
    do_sample: bool = False
    """Sample with the settings here; off = greedy decoding."""
    temperature: float = limited(0.0, low=0.0)
    """Sampling temperature; 0 = greedy."""
    top_p: float = limited(1.0, above=0.0, high=1.0)
    """Nucleus sampling; 1 = off."""
    top_k: int = limited(-1, low=1, or_value=-1)
    """Sample from the k likeliest tokens; -1 = off."""


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """The engine that answers prompts, in training and in `main_generation` alike."""

    name: RolloutName = "vllm"
    """Engine: `vllm` or `sglang` servers, or `hf` (transformers generation, slow, for comparison)."""
    dtype: DType = "bfloat16"
    """Type of the served weights."""
    tensor_model_parallel_size: int = limited(1, low=1)
    """Devices per rollout server; must divide the `n_gpus_per_node` of its pool. Unit: devices."""
    gpu_memory_utilization: float = limited(0.5, above=0.0, high=1.0)
    """Share of each device's memory given to a rollout server (weights and KV cache)."""
    cpu_kvcache_gib: float = limited(1.0, above=0.0)
    """KV cache of one rollout server when it runs on a CPU. Unit: GiB."""
    max_num_batched_tokens: int = limited(8192, low=1)
    """Most tokens in one forward of the server. Unit: tokens."""
    max_model_len: int | None = limited(None, low=1)
    """Longest prompt plus response; null = `data.max_prompt_length + data.max_response_length`. Unit: tokens."""
    max_num_seqs: int = limited(1024, low=1)
    """Most sequences decoded at once by one server. Unit: sequences."""
    enable_chunked_prefill: bool = True
    """Let the server cut long prompts into pieces."""
    enable_prefix_caching: bool = True
    """Compute a prompt once for all its responses."""
    enforce_eager: bool = False
    """Do not capture CUDA graphs."""
    engine_kwargs: Mapping[str, Any] = free_mapping()
    """Extra arguments for vLLM as they are, e.g. `{block_size: 32}`; those of SGLang are `sglang.server_args`."""
    start_timeout_s: float = limited(900.0, above=0.0)
    """Longest wait for a server to load its model. Unit: seconds."""
    ignore_eos: bool = False
    """Go on after the end token up to `data.max_response_length` (throughput tests only)."""
    sglang: SGLangConfig = field(default_factory=SGLangConfig)
    """SGLang servers."""

    @property
    def joins_servers(self) -> bool:
        """Whether the servers run already, on devices of their own, and are only spoken to."""
        return self.name == "sglang" and bool(self.sglang.urls)

    def num_servers(self, num_devices: int) -> int:
        """Count the servers.

        Args:
            num_devices: Devices of the pool they stand in.

        Returns:
            As many as there are URLs to join, else as many as fit.
        """
        return len(self.sglang.urls) if self.joins_servers else num_devices // self.tensor_model_parallel_size


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(ServingConfig):
    """Rollout servers and sampling in training."""

    n: int = limited(1, low=1)
    """Responses per prompt: the size of a group. Unit: responses."""
    temperature: float = limited(1.0, above=0.0)
    """Sampling temperature in training; the trainer divides its logits by the same number."""
    top_p: float = limited(1.0, above=0.0, high=1.0)
    """Nucleus sampling in training; below 1 the trainer's log-probs do not match the sampler's, so that it needs
    `algorithm.rollout_correction` (`rollout_is`, or `bypass_old_log_probs`)."""
    top_k: int = limited(-1, low=1, or_value=-1)
    """Top-k sampling in training; other than -1 only with a correction, for the same reason."""
    enable_resource_pool: bool = False
    """Give the rollout servers devices of their own (`nnodes x n_gpus_per_node`, on top of the policy's); off = they
    share the policy's and take turns with the update."""
    nnodes: int = limited(1, low=1)
    """Nodes of the rollout servers' own pool. Unit: nodes."""
    n_gpus_per_node: int = limited(0, low=0)
    """Devices per node of the rollout servers' own pool; on a CPU a device is one process. Unit: devices."""
    free_cache_engine: bool = True
    """Free the KV cache (and weights) while the trainer uses the same GPUs. No effect on a CPU, nor with a pool of the
    servers' own."""
    in_flight_update: InFlightUpdate = "wait"
    """With `trainer.max_staleness` above 0, what new weights do to responses that are being sampled: `wait` until they
    are complete, so that each is of one policy version; `keep`: freeze them and go on with the new weights (`vllm`,
    `sglang`)."""
    log_prob_micro_batch_size_per_gpu: int | None = limited(None, low=1)
    """Old log-probs: most sequences in one forward on one rank; null = the actor's limit. Unit: sequences."""
    log_prob_use_dynamic_bsz: bool | None = None
    """Old log-probs: token budget on or off; null = as for the actor."""
    log_prob_max_token_len_per_gpu: int | None = limited(None, low=1)
    """Old log-probs: most tokens in one forward on one rank; null = the actor's budget. Unit: tokens."""
    weight_sync_backend: WeightSyncBackend = "auto"
    """How new weights reach the servers: `ipc` (the policy's GPUs), `nccl` (GPUs of their own), `shared_memory` (no
    GPU, same node), `gloo` (no GPU, any node); auto chooses by device and placement (docs/weight_sync.md)."""
    weight_sync_bucket_mib: int = limited(512, low=1)
    """Weights are sent in buckets; one ends with the tensor that makes it larger than this (`ipc`, `nccl`, `gloo`; two
    buckets are held at a time). Unit: MiB."""
    weight_sync_verify_every: int = limited(0, low=0)
    """Have the servers compare a digest of every tensor with the trainer's in every so many syncs; 0 = in the first
    sync only. Unit: syncs."""
    submit_longest_first: bool = False
    """Start the groups first whose responses are expected to be the longest: by `extra_info.expected_response_tokens`
    of a row where it has one, else by what its prompt's responses were so far (from the second epoch on)."""
    max_in_flight_groups: int = limited(0, low=0)
    """Most groups handed to one server at once; 0 = all of them. Unit: groups."""
    weight_sync_timeout_s: float = limited(600.0, above=0.0)
    """Longest wait for all servers to answer one message of a weight sync; then the run ends. Unit: seconds."""
    timeout_s: float = limited(3600.0, above=0.0)
    """Longest wait for all responses of a batch, from when its first one is asked for. Unit: seconds."""
    val_kwargs: ValKwargs = field(default_factory=ValKwargs)
    """Sampling in validation."""
