# SPDX-License-Identifier: Apache-2.0
"""Where metrics go: a JSONL file always; console, TensorBoard and wandb by name. Knows no metric's meaning."""

from __future__ import annotations

import importlib
import json
import logging
import math
import netrc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

logger = logging.getLogger(__name__)


class MetricWriter(Protocol):
    """One place that metrics go to."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one training step."""

    def close(self) -> None:
        """Flush and release."""


@dataclass(frozen=True)
class RunInfo:
    """What a writer may want to know of the run.

    Args:
        run_dir: Folder of the run.
        project: Project name.
        experiment: Run name.
        config: The resolved configuration, as plain values.
    """

    run_dir: Path
    project: str
    experiment: str
    config: Mapping[str, Any] = field(default_factory=dict)


class JsonlWriter:
    """One JSON object per training step in `metrics.jsonl`; NaN and infinity become null."""

    def __init__(self, run: RunInfo) -> None:
        """Open the file for appending, so that a resumed run goes on in it.

        Args:
            run: The run.
        """
        run.run_dir.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = (run.run_dir / "metrics.jsonl").open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `MetricWriter.write`."""
        # float(): a number of numpy or torch among the metrics must not end a run
        row = {"step": step} | {key: float(value) if math.isfinite(value) else None for key, value in metrics.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """See `MetricWriter.close`."""
        self._file.close()


class TensorBoardWriter:
    """Scalars below `<run_dir>/tensorboard`."""

    def __init__(self, run: RunInfo) -> None:
        """Open the event file.

        Args:
            run: The run.
        """
        summary_writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = summary_writer(log_dir=str(run.run_dir / "tensorboard"))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `MetricWriter.write`."""
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        """See `MetricWriter.close`."""
        self._writer.close()


class WandbWriter:
    """A wandb run; offline with a notice when no key is set, and never a question at the prompt."""

    def __init__(self, run: RunInfo) -> None:
        """Start the run.

        Args:
            run: The run.
        """
        mode = os.environ.get("WANDB_MODE")
        if mode is None and not has_wandb_key():
            mode = "offline"
            logger.warning(
                "wandb: no API key (WANDB_API_KEY or netrc), so this run is recorded offline in %s; "
                "upload it later with `wandb sync`",
                run.run_dir / "wandb",
            )
        run.run_dir.mkdir(parents=True, exist_ok=True)
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=run.project,
            name=run.experiment,
            dir=str(run.run_dir),
            config=dict(run.config),
            mode=mode,
            settings=wandb.Settings(silent=True),
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `MetricWriter.write`."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """See `MetricWriter.close`."""
        self._run.finish()


WRITERS: dict[str, type[Any]] = {"tensorboard": TensorBoardWriter, "wandb": WandbWriter}
"""By their name in `trainer.logger`; `console` is the trainer's own display."""


class Tracker:
    """All writers of a run.

    Example:
        >>> tracker = Tracker(("tensorboard",), RunInfo(Path("outputs/run"), "verl", "run"))
        >>> tracker.write(1, {"actor/loss": 0.5})
        >>> tracker.close()
    """

    def __init__(self, names: Sequence[str], run: RunInfo, extra: Sequence[MetricWriter] = ()) -> None:
        """Open the writers.

        Args:
            names: Keys of `WRITERS`; unknown ones are ignored, the configuration has checked them.
            run: The run.
            extra: Further writers, such as the console display.
        """
        chosen: list[MetricWriter] = [WRITERS[name](run) for name in names if name in WRITERS]
        self._writers: list[MetricWriter] = [JsonlWriter(run), *chosen, *extra]

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand the metrics of one training step to every writer.

        Args:
            step: Training step.
            metrics: Metric name to value.
        """
        for writer in self._writers:
            writer.write(step, metrics)

    def close(self) -> None:
        """Close every writer."""
        for writer in self._writers:
            writer.close()


def has_wandb_key() -> bool:
    """Whether wandb could log in without asking: a key in the environment or in the netrc file.

    Returns:
        True when there is one.
    """
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(str(path)).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
