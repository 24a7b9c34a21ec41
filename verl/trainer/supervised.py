# SPDX-License-Identifier: Apache-2.0
"""Supervised training, the same loop for SFT and PRM: it talks to a worker group and knows no engine.

batch -> update -> metrics      every test_freq steps: validation      every save_freq steps: checkpoint
after the last step: validation, checkpoint, and the model in HF format with its tokenizer
gradients that are no numbers, too often in a row: the model as it stands, and an error
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from verl.config.sft import SupervisedTrainerConfig
from verl.protocol import DataProto
from verl.trainer.ppo.skipped_steps import SkippedSteps
from verl.utils.timing import StageTimer
from verl.utils.tracking import MetricWriter

logger = logging.getLogger(__name__)

_ADVICE = (
    "Look at train/grad_norm and train/loss in metrics.jsonl and at the rows of those steps; a smaller optim.lr and "
    "float32 help most often"
)
Rows = Mapping[str, Sequence[Any]]
Encoder = Callable[[Rows, int], DataProto]


class Group(Protocol):
    """What the loop needs of a worker group; metrics come once per data-parallel rank."""

    @property
    def dp_size(self) -> int:
        """Ranks over which a batch is cut."""
        ...

    def update(self, batch: DataProto) -> list[dict[str, float]]:
        """Make one optimizer step."""
        ...

    def evaluate(self, batch: DataProto) -> list[dict[str, float]]:
        """Measure the loss; `num_targets` says over how many targets."""
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
        encode: Turns columns of rows and the number of data-parallel ranks into a batch.
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
        """Train, validate, save and export.

        Raises:
            UserError: Too many steps in a row had gradients that are not finite; the model is in `hf_stopped` then.
        """
        skipped = SkippedSteps(self._config.max_skipped_steps, "train", _ADVICE)
        batches = self._endless_batches()
        for step in range(1, self._total_steps + 1):
            is_last = step == self._total_steps
            timer = StageTimer()
            with timer("step"):
                metrics = self._group.update(self._data.encode(next(batches), self._group.dp_size))[0]
            tokens = metrics.get("train/num_tokens", 0.0)
            metrics["perf/tokens_per_s"] = tokens / timer.seconds["step"]
            if self._data.val is not None and (is_last or _is_due(step, self._config.test_freq)):
                with timer("validation"):
                    metrics |= self.validate()
            if is_last or _is_due(step, self._config.save_freq):
                with timer("save_checkpoint"):
                    self._save(step)
            self._tracker.write(step, metrics | skipped.count(metrics) | timer.as_metrics())
            if skipped.is_stuck:
                self._export("hf_stopped")
            skipped.raise_if_stuck()
        self._export("hf")

    def validate(self) -> dict[str, float]:
        """Measure the held-out rows.

        Returns:
            Metrics `val/...`, means over all targets.
        """
        sums: dict[str, float] = {}
        num_targets = 0.0
        for rows in self._data.val or ():
            metrics = self._group.evaluate(self._data.encode(rows, self._group.dp_size))[0]
            count = metrics.pop("num_targets")
            num_targets += count
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value * count
        return {f"val/{name}": total / max(num_targets, 1.0) for name, total in sums.items()}

    def _endless_batches(self) -> Iterator[Rows]:
        while True:
            yield from self._data.train

    def _export(self, name: str) -> None:
        self._group.export_hf(str(self._run_dir / name))
        logger.info("model in HF format: %s", self._run_dir / name)

    def _save(self, step: int) -> None:
        """Write under a temporary name and rename: a folder without `.tmp` is complete."""
        final = self._run_dir / "checkpoints" / f"global_step_{step}"
        temporary = final.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        self._group.save_checkpoint(str(temporary))
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
