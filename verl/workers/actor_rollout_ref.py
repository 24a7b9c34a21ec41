# SPDX-License-Identifier: Apache-2.0
"""One policy rank: trains the actor, answers for the reference, sends weights to the rollout servers.

The engine is chosen by configuration; there is one worker class for all of them.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from transformers.utils import logging as transformers_logging

from verl.config import PPOTrainerConfig
from verl.engines.base import EngineSpec, HeadRequest, TrainEngine, build_engine
from verl.engines.micro_batches import MicroBatchSpec
from verl.engines.packing import PaddedSequences
from verl.engines.policy_update import PolicyBatch, update_policy
from verl.engines.token_log_probs import compute_log_probs
from verl.protocol import DataProto
from verl.single_controller import DataShare, Dispatch, Worker, WorkerPlace, register
from verl.utils.device import ensure_process_group, release_memory, resolve_device
from verl.utils.tokenizer import load_tokenizer
from verl.weight_sync.base import SyncReport, WeightSender, WeightStream
from verl.workers.engine_specs import (
    actor_engine_spec,
    idle_offload,
    log_prob_micro_batches,
    policy_update_spec,
    ref_engine_spec,
)
from verl.workers.weight_senders import build_sender


class ActorRolloutRefWorker(Worker):
    """A rank of the policy group.

    Example:
        >>> group = RayWorkerGroup(pool, WorkerSpec(ActorRolloutRefWorker, {"config": config, "device": "cpu"}))
        >>> group.init_model(total_optimizer_steps=100)
    """

    def __init__(self, place: WorkerPlace, config: PPOTrainerConfig, device: str) -> None:
        """Remember the settings; nothing is loaded yet.

        Args:
            place: Where this rank stands.
            config: The run's configuration.
            device: `cuda` or `cpu`.
        """
        super().__init__(place)
        self._config = config
        self._device_name = device
        self._ref: TrainEngine | None = None
        self._sender: WeightSender | None = None

    @register(Dispatch.ONE_TO_ALL)
    def node_devices(self) -> tuple[str, str]:
        """Where this rank runs.

        Returns:
            Ray node id, and the value of CUDA_VISIBLE_DEVICES (empty on the CPU).
        """
        return ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES", "")

    @register(Dispatch.ONE_TO_ALL)
    def init_model(self, total_optimizer_steps: int) -> None:
        """Load the actor and, when a KL term is on, the reference: beside adapters that is the actor without them.

        Args:
            total_optimizer_steps: Of the whole run; end of the learning-rate schedule.
        """
        if self._device_name == "cpu":
            torch.set_num_threads(1)
        device = resolve_device(self._device_name, self.place.local_rank)
        ensure_process_group(device)
        if self._config.actor_rollout_ref.model.external_lib:
            importlib.import_module(self._config.actor_rollout_ref.model.external_lib)
        transformers_logging.disable_progress_bar()  # its bars would end up in the driver's log, line by line
        torch.manual_seed(self._config.trainer.seed)
        self._actor = self._build(actor_engine_spec(self._config, self._device_name, total_optimizer_steps))
        if self._config.needs_reference and not self._config.actor_rollout_ref.model.lora_rank:
            self._ref = self._build(ref_engine_spec(self._config, self._device_name))
        self._offload_idle()

    @register(Dispatch.ONE_TO_ALL)
    def data_shares(self) -> dict[str, DataShare]:
        """Which part of a batch each engine of this rank works on; the models must be loaded.

        Returns:
            `main` for the actor, `ref` for the reference.
        """
        engines = {"main": self._actor, "ref": self._ref or self._actor}
        return {name: DataShare(engine.dp_rank, engine.dp_size) for name, engine in engines.items()}

    @register(Dispatch.ONE_TO_ALL)
    def init_weight_sync(self, backend: str, servers: Sequence[Any]) -> None:
        """Connect to the rollout servers.

        Args:
            backend: `shared_memory`, `ipc`, `nccl` or `gloo`.
            servers: Server handles by node index of their pool: `servers[node]` is the list of that node's servers.
        """
        self._sender = build_sender(backend, self.place, servers, self._config.actor_rollout_ref.rollout)

    @register(Dispatch.DP_COMPUTE_PROTO)
    def compute_log_prob(self, batch: DataProto) -> DataProto:
        """Log-probs of the responses under the present policy.

        Args:
            batch: This rank's rows with the columns of stages 1 and 2.

        Returns:
            The column `old_log_probs` [S, R], and `entropys` [S, R] for metrics.
        """
        head = HeadRequest(self._temperature, with_entropy=True)
        result = self._log_probs(self._actor, batch, log_prob_micro_batches(self._config, is_ref=False), head)
        assert result.entropy is not None
        return DataProto.from_dict(tensors={"old_log_probs": result.log_probs, "entropys": result.entropy})

    @register(Dispatch.DP_COMPUTE_PROTO, role="ref")
    def compute_ref_log_prob(self, batch: DataProto) -> DataProto:
        """Log-probs of the responses under the reference.

        Args:
            batch: This rank's rows with the columns of stages 1 and 2.

        Returns:
            The column `ref_log_prob` [S, R].
        """
        head = HeadRequest(self._temperature, without_adapters=self._ref is None)
        result = self._log_probs(
            self._ref or self._actor, batch, log_prob_micro_batches(self._config, is_ref=True), head
        )
        return DataProto.from_dict(tensors={"ref_log_prob": result.log_probs})

    @register(Dispatch.DP_COMPUTE_METRIC)
    def update_actor(self, batch: DataProto, training_step: int) -> dict[str, float]:
        """Train on this rank's rows.

        Args:
            batch: Rows after stage 6.
            training_step: Gives every epoch of every step an order of its own, the same after a resume.

        Returns:
            Metrics, the same on every rank.
        """
        columns = batch.batch
        policy_batch = PolicyBatch(
            prompts=columns["prompts"],
            prompt_mask=columns["prompt_mask"],
            responses=columns["responses"],
            response_mask=columns["response_mask"],
            old_log_probs=columns.get("old_log_probs", None),
            advantages=columns["advantages"],
            ref_log_prob=columns.get("ref_log_prob", None),
            rollout_is_weights=columns.get("rollout_is_weights", None),
            rollout_log_probs=columns["rollout_log_probs"],
        )
        seed = self._config.trainer.seed + training_step * self._config.actor_rollout_ref.actor.ppo_epochs
        spec = policy_update_spec(self._config, seed)
        self._actor.onload()
        metrics = update_policy(self._actor, policy_batch, spec)
        self._offload_idle()
        return metrics

    @register(Dispatch.ONE_TO_ALL)
    def sync_weights(self, version: int, verify: bool) -> SyncReport:
        """Send the actor's weights to the rollout servers.

        Args:
            version: Policy version after the sync.
            verify: Compare a digest of every tensor.

        Returns:
            The cost on this rank.
        """
        assert self._sender is not None, "init_weight_sync() was not called"
        self._actor.onload(optimizer=False)
        dtype = getattr(torch, self._config.actor_rollout_ref.rollout.dtype)
        report = self._sender.send(WeightStream(lambda: self._actor.named_weights(dtype)), version, verify)
        self._offload_idle()
        return report

    @register(Dispatch.ONE_TO_ALL)
    def save_checkpoint(self, folder: str) -> None:
        """Write this rank's shards.

        Args:
            folder: Checkpoint folder; the engine writes below `actor/`.
        """
        self._actor.onload()
        self._actor.save(str(Path(folder) / "actor"))
        self._offload_idle()

    @register(Dispatch.ONE_TO_ALL)
    def load_checkpoint(self, folder: str) -> None:
        """Read what `save_checkpoint` wrote, on any number of ranks.

        Args:
            folder: Checkpoint folder.
        """
        self._actor.onload()
        self._actor.load(str(Path(folder) / "actor"))
        self._offload_idle()

    @register(Dispatch.ONE_TO_ALL)
    def export_hf(self, folder: str) -> None:
        """Write the policy as transformers and vLLM load it, tokenizer included.

        Args:
            folder: Created when missing.
        """
        model = self._config.actor_rollout_ref.model
        self._actor.onload(optimizer=False)
        dtype = getattr(torch, self._config.actor_rollout_ref.rollout.dtype)
        self._actor.export_hf(folder, dtype)
        self._offload_idle()
        if self.place.rank == 0:
            load_tokenizer(model.tokenizer_path or model.path, model.trust_remote_code).save_pretrained(folder)
            generation_config = Path(model.path) / "generation_config.json"
            if generation_config.is_file():
                shutil.copy(generation_config, folder)

    def _build(self, spec: EngineSpec) -> TrainEngine:
        return build_engine(spec)

    @property
    def _temperature(self) -> float:
        return self._config.actor_rollout_ref.rollout.temperature

    def _log_probs(self, engine: TrainEngine, batch: DataProto, micro: MicroBatchSpec, head: HeadRequest) -> Any:
        columns = batch.batch
        sequences = PaddedSequences(
            columns["prompts"], columns["prompt_mask"], columns["responses"], columns["response_mask"]
        )
        engine.onload(optimizer=False)
        result = compute_log_probs(engine, sequences, micro, head)
        self._offload_idle()
        return result

    def _offload_idle(self) -> None:
        """Hand device memory back between uses, as far as the configuration asks for it."""
        actor, ref = (idle_offload(self._config, is_ref) for is_ref in (False, True))
        if actor.is_on:
            self._actor.offload(weights=actor.weights, optimizer=actor.optimizer)
        if self._ref is not None and ref.is_on:
            self._ref.offload(optimizer=False)
        if self._actor.device.type == "cuda":  # rollout servers share the GPU; collecting garbage on a CPU only costs
            release_memory(self._actor.device)
