# SPDX-License-Identifier: Apache-2.0
"""One rank of supervised training, SFT or PRM: batches in, metrics out. It does not know the order of the steps."""

from __future__ import annotations

import importlib

import torch

from verl.engines.base import build_engine
from verl.engines.packing import LabelledSequences, PaddedSequences
from verl.engines.supervised_update import SupervisedBatch, evaluate_supervised, update_supervised
from verl.protocol import DataProto
from verl.single_controller import DataShare, Dispatch, Worker, WorkerPlace, register
from verl.utils.device import ensure_process_group, resolve_device
from verl.utils.tokenizer import load_tokenizer
from verl.workers.supervised_specs import SupervisedTrainerRoot, supervised_engine_spec, supervised_micro_batches


class SupervisedWorker(Worker):
    """A rank of the group that trains one model on labelled data.

    Example:
        >>> group = RayWorkerGroup(pool, WorkerSpec(SupervisedWorker, {"config": config, "device": "cpu"}))
        >>> group.init_model(total_steps=100)
        >>> group.update(batch)[0]["train/loss"]
    """

    def __init__(self, place: WorkerPlace, config: SupervisedTrainerRoot, device: str) -> None:
        """Remember the settings; nothing is loaded yet.

        Args:
            place: Where this rank stands.
            config: The run's configuration.
            device: `cuda` or `cpu`.
        """
        super().__init__(place)
        self._config = config
        self._device_name = device
        self._micro = supervised_micro_batches(config)

    @register(Dispatch.ONE_TO_ALL)
    def init_model(self, total_steps: int) -> None:
        """Load the model.

        Args:
            total_steps: Optimizer steps of the whole run.
        """
        if self._config.model.external_lib:
            importlib.import_module(self._config.model.external_lib)
        if self._device_name == "cpu":
            torch.set_num_threads(1)
        ensure_process_group(resolve_device(self._device_name, self.place.local_rank))
        torch.manual_seed(self._config.trainer.seed)
        self._engine = build_engine(supervised_engine_spec(self._config, self._device_name, total_steps))

    @register(Dispatch.ONE_TO_ALL)
    def data_shares(self) -> dict[str, DataShare]:
        """Which part of a batch this rank works on; the model must be loaded.

        Returns:
            `main` for the engine.
        """
        return {"main": DataShare(self._engine.dp_rank, self._engine.dp_size)}

    @register(Dispatch.DP_COMPUTE_METRIC)
    def update(self, batch: DataProto) -> dict[str, float]:
        """Make one optimizer step.

        Args:
            batch: This rank's rows, as `verl.trainer.supervised_batches` makes them.

        Returns:
            Metrics `train/...`, the same on every rank.
        """
        return update_supervised(self._engine, _decode(batch), self._micro)

    @register(Dispatch.DP_COMPUTE_METRIC)
    def evaluate(self, batch: DataProto) -> dict[str, float]:
        """Measure the loss without training.

        Args:
            batch: This rank's rows.

        Returns:
            Means over the targets of all ranks, and `num_targets`; the same on every rank.
        """
        metrics, num_targets = evaluate_supervised(self._engine, _decode(batch), self._micro)
        return metrics | {"num_targets": num_targets}

    @register(Dispatch.ONE_TO_ALL)
    def save_checkpoint(self, folder: str) -> None:
        """Write this rank's shards.

        Args:
            folder: Where to.
        """
        self._engine.save(folder)

    @register(Dispatch.ONE_TO_ALL)
    def load_checkpoint(self, folder: str) -> None:
        """Read what `save_checkpoint` wrote, on any number of ranks.

        Args:
            folder: Where from.
        """
        self._engine.load(folder)

    @register(Dispatch.ONE_TO_ALL)
    def export_hf(self, folder: str) -> None:
        """Write the model as transformers and vLLM load it, tokenizer included.

        Args:
            folder: Created when missing.
        """
        model = self._config.model
        self._engine.export_hf(folder)
        if self.place.rank == 0:
            tokenizer = load_tokenizer(model.tokenizer_path or model.path, model.trust_remote_code, "model.path")
            if model.custom_chat_template:
                tokenizer.chat_template = model.custom_chat_template
            tokenizer.save_pretrained(folder)


def _decode(batch: DataProto) -> SupervisedBatch:
    """Tell the two kinds of batches apart by their columns."""
    columns = batch.batch
    assert columns is not None
    kind: type[PaddedSequences] | type[LabelledSequences] = (
        PaddedSequences if "responses" in batch else LabelledSequences
    )
    return kind(**{name: columns[name] for name in kind.__dataclass_fields__})
