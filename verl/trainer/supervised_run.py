# SPDX-License-Identifier: Apache-2.0
"""From a command line to a supervised run, for SFT and PRM training alike: configuration, plan, files, data, Ray, loop.

Whatever the user got wrong is said in one message before Ray starts; exit code 2.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from verl.config import PRMTrainerConfig, SFTTrainerConfig
from verl.config.hydra import LoadedConfig
from verl.config.plan import supervised_plan_text
from verl.single_controller import RayWorkerGroup, ResourcePool, WorkerSpec
from verl.trainer.entry_point import EntryPoint, run_entry_point
from verl.trainer.ppo.placement import actor_environment, connect_ray
from verl.trainer.supervised import SupervisedData, SupervisedTrainer
from verl.utils.console import ConsoleDisplay, DisplayColumn
from verl.utils.device import resolve_device
from verl.utils.tracking import MetricWriter, RunInfo, Tracker
from verl.workers.engine_checks import check_supervised
from verl.workers.supervised import SupervisedWorker

logger = logging.getLogger(__name__)

_POOL_TIMEOUT_S = 120.0
_COLUMNS = (
    DisplayColumn("loss", "train/loss", ".4f"),
    DisplayColumn("accuracy", "train/accuracy"),
    DisplayColumn("held-out loss", "val/loss", ".4f", is_news=True),
    DisplayColumn("held-out acc", "val/accuracy"),
    DisplayColumn("grad", "train/grad_norm", ".2f"),
    DisplayColumn("lr", "train/lr", ".1e"),
    DisplayColumn("s/step", "timing_s/step", ".2f"),
    DisplayColumn("tok/s", "perf/tokens_per_s", ".0f"),
)


@dataclass(frozen=True)
class Program:
    """What tells the two entry points apart.

    Args:
        name: Shown in messages.
        config_name: Its YAML file.
        root: Its configuration.
        read_data: Reads the data sets that a checked configuration names.
        help_text: Shown for --help.
    """

    name: str
    config_name: str
    root: type[Any]
    read_data: Callable[[Any], SupervisedData]
    help_text: str


def run_main(program: Program, arguments: Sequence[str] | None) -> int:
    """Run an entry point.

    Args:
        program: Which.
        arguments: Command line without the program's name; None for `sys.argv`.

    Returns:
        Exit code: 0, or 2 when the user has to mend something.
    """

    def run(loaded: LoadedConfig[Any]) -> None:
        run_supervised(loaded, program.read_data(loaded.config), program.name)

    entry = EntryPoint(program.config_name, program.root, supervised_plan_text, run, program.help_text)
    return run_entry_point(entry, arguments)


def run_supervised(loaded: LoadedConfig[Any], data: SupervisedData, name: str) -> None:
    """Start Ray and the ranks, and train.

    Args:
        loaded: The checked configuration, SFT's or PRM's.
        data: What is trained on.
        name: Name of the ranks, for messages.

    Raises:
        UserError: The engine cannot train the model, or the cluster is too small.
    """
    config: SFTTrainerConfig | PRMTrainerConfig = loaded.config
    trainer = config.trainer
    check_supervised(config)
    total_steps = trainer.total_training_steps or trainer.total_epochs * len(data.train)
    device = resolve_device(trainer.device).type
    with ExitStack() as stack:
        connect_ray({}, trainer.num_devices, device, stack)
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
