# SPDX-License-Identifier: Apache-2.0
"""Supervised training, the same loop for SFT and PRM: it talks to a worker group and knows no engine.

batch -> update -> metrics      every test_freq steps: validation      every save_freq steps: checkpoint
after the last step: validation, checkpoint, and the model in HF format with its tokenizer
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
from rich.console import Console

from verl.config import PRMTrainerConfig, SFTTrainerConfig
from verl.config.hydra import LoadedConfig
from verl.config.sft import SupervisedTrainerConfig
from verl.protocol import DataProto
from verl.single_controller import RayWorkerGroup, ResourcePool, WorkerSpec
from verl.trainer.ppo.placement import actor_environment, connect_ray
from verl.utils.console import ConsoleDisplay, DisplayColumn
from verl.utils.device import resolve_device
from verl.utils.timing import StageTimer
from verl.utils.tracking import MetricWriter, RunInfo, Tracker
from verl.workers.supervised import NUM_TARGETS, SupervisedWorker

logger = logging.getLogger(__name__)

_POOL_TIMEOUT_S = 120.0
_COLUMNS = (
    DisplayColumn("loss", "train/loss", ".4f"),
    DisplayColumn("accuracy", "train/accuracy"),
    DisplayColumn("held-out loss", "val/loss", ".4f"),
    DisplayColumn("held-out acc", "val/accuracy"),
    DisplayColumn("grad", "train/grad_norm", ".2f"),
    DisplayColumn("lr", "train/lr", ".1e"),
    DisplayColumn("s/step", "timing_s/step", ".2f"),
    DisplayColumn("tok/s", "perf/tokens_per_s", ".0f"),
)

Rows = Mapping[str, Sequence[Any]]
Encoder = Callable[[Rows, int], DataProto]


class Group(Protocol):
    """What the loop needs of a worker group; metrics come once per rank."""

    world_size: int

    def update(self, batch: DataProto) -> list[dict[str, float]]:
        """Make one optimizer step."""
        ...

    def evaluate(self, batch: DataProto) -> list[dict[str, float]]:
        """Measure the loss."""
        ...

    def save_checkpoint(self, folder: str) -> Any:
        """Write shards."""
        ...

    def export_hf(self, folder: str) -> Any:
        """Write the model in HF format."""
        ...


@dataclass(frozen=True)
class SupervisedData:
    """What is trained on.

    Args:
        train: One pass gives the batches of an epoch, as columns of rows; has a length.
        val: Batches of the held-out rows; None for none.
        encode: Turns columns of rows and the number of ranks into a batch.
    """

    train: Any
    val: Iterable[Rows] | None
    encode: Encoder


class SupervisedTrainer:
    """The loop.

    Example:
        >>> SupervisedTrainer(config.trainer, group, data, tracker, total_steps=100).fit()
    """

    def __init__(
        self,
        config: SupervisedTrainerConfig,
        group: Group,
        data: SupervisedData,
        tracker: MetricWriter,
        total_steps: int,
    ) -> None:
        """Remember the parts.

        Args:
            config: Frequencies and folders.
            group: The ranks, their model loaded.
            data: What is trained on.
            tracker: Where metrics go.
            total_steps: Optimizer steps of the run.
        """
        self._config = config
        self._group = group
        self._data = data
        self._tracker = tracker
        self._total_steps = total_steps
        self._run_dir = Path(config.run_dir).expanduser().absolute()

    def fit(self) -> None:
        """Train, validate, save and export."""
        batches = self._endless_batches()
        for step in range(1, self._total_steps + 1):
            is_last = step == self._total_steps
            timer = StageTimer()
            with timer("step"):
                metrics = self._group.update(self._data.encode(next(batches), self._group.world_size))[0]
            tokens = metrics.get("train/num_tokens", 0.0)
            metrics["perf/tokens_per_s"] = tokens / timer.seconds["step"]
            if self._data.val is not None and (is_last or _is_due(step, self._config.test_freq)):
                with timer("validation"):
                    metrics |= self.validate()
            if is_last or _is_due(step, self._config.save_freq):
                with timer("save_checkpoint"):
                    self._save(step)
            self._tracker.write(step, metrics | timer.as_metrics())
        self._group.export_hf(str(self._run_dir / "hf"))
        logger.info("model in HF format: %s", self._run_dir / "hf")

    def validate(self) -> dict[str, float]:
        """Measure the held-out rows.

        Returns:
            Metrics `val/...`, means over all targets.
        """
        sums: dict[str, float] = {}
        num_targets = 0.0
        for rows in self._data.val or ():
            metrics = self._group.evaluate(self._data.encode(rows, self._group.world_size))[0]
            count = metrics.pop(NUM_TARGETS)
            num_targets += count
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value * count
        return {f"val/{name}": total / max(num_targets, 1.0) for name, total in sums.items()}

    def _endless_batches(self) -> Iterator[Rows]:
        while True:
            yield from self._data.train

    def _save(self, step: int) -> None:
        """Write under a temporary name and rename: a folder without `.tmp` is complete."""
        final = self._run_dir / "checkpoints" / f"global_step_{step}"
        temporary = final.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        self._group.save_checkpoint(str(temporary))
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)


def run_supervised(loaded: LoadedConfig[Any], data: SupervisedData, name: str) -> None:
    """Start Ray and the ranks, and train.

    Args:
        loaded: The checked configuration, SFT's or PRM's.
        data: What is trained on.
        name: Name of the ranks, for messages.

    Raises:
        UserError: The cluster is too small.
    """
    config: SFTTrainerConfig | PRMTrainerConfig = loaded.config
    trainer = config.trainer
    total_steps = trainer.total_training_steps or trainer.total_epochs * len(data.train)
    device = resolve_device(trainer.device).type
    with ExitStack() as stack:
        connect_ray({}, trainer.num_devices, device)
        stack.callback(ray.shutdown)
        pool = ResourcePool(name, trainer.nnodes, trainer.n_gpus_per_node, device)
        pool.acquire(_POOL_TIMEOUT_S)
        stack.callback(pool.release)
        kwargs = {"config": config, "device": device}
        spec = WorkerSpec(SupervisedWorker, kwargs, actor_environment(device), name)
        group: Any = RayWorkerGroup(pool, spec, trainer.ray_wait_register_center_timeout)
        stack.callback(group.shutdown)
        group.init_model(total_steps)
        tracker = _tracker(loaded, total_steps)
        stack.callback(tracker.close)
        SupervisedTrainer(trainer, group, data, tracker, total_steps).fit()


def _tracker(loaded: LoadedConfig[Any], total_steps: int) -> Tracker:
    trainer = loaded.config.trainer
    run = RunInfo(Path(trainer.run_dir).expanduser(), trainer.project_name, trainer.experiment_name, loaded.resolved)
    extra: list[MetricWriter] = []
    if "console" in trainer.logger:
        extra.append(ConsoleDisplay(_COLUMNS, total_steps, console=Console()))
    return Tracker(trainer.logger, run, extra)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
