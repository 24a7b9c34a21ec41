# SPDX-License-Identifier: Apache-2.0
"""Entry point: `python3 -m verl.trainer.main_ppo KEY=VALUE ...`.

    command line -> configuration -> plan -> [a dry run ends here] -> files and models looked for -> data -> Ray -> fit

Whatever the user got wrong is said in one message before Ray starts; exit code 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from verl.algorithms import get_adv_estimator_fn
from verl.config import PPOTrainerConfig
from verl.config.hydra import LoadedConfig
from verl.config.plan import build_plan
from verl.config.problems import raise_all
from verl.config.weight_sync_checks import device_problems
from verl.data.rl_dataset import PromptSettings, RLDataset
from verl.data.sampler import LoaderSettings, build_dataloader
from verl.rewards.scores.registry import check_data_sources
from verl.trainer.entry_point import EntryPoint, run_entry_point
from verl.trainer.ppo.placement import ResourcePoolManager, connect_ray
from verl.trainer.ppo.ray_trainer import RayPPOTrainer
from verl.trainer.ppo.reward_setup import check_reward_model, custom_function
from verl.trainer.ppo.runtime import start_runtime
from verl.trainer.ppo.summary import closing_text, display_columns
from verl.utils.console import ConsoleDisplay
from verl.utils.device import resolve_device
from verl.utils.tokenizer import load_tokenizer
from verl.utils.tracking import MetricWriter, RunInfo, Tracker
from verl.workers.engine_checks import check_policy


class TaskRunner:
    """One run from a checked configuration to its last checkpoint.

    Example:
        >>> TaskRunner(loaded).run()
    """

    def __init__(self, loaded: LoadedConfig[PPOTrainerConfig]) -> None:
        """Remember the configuration.

        Args:
            loaded: What `load_config` gave.
        """
        self.loaded = loaded
        self.config = loaded.config
        self.console = Console()

    def run(self) -> None:
        """Prepare data, start everything, train, and say where the results are."""
        config = self.config
        train_loader, val_loader = self._data_loaders()
        total_steps = total_training_steps(config, len(train_loader))
        device = resolve_device(config.trainer.device).type
        raise_all(list(device_problems(config.actor_rollout_ref.rollout.weight_sync_backend, device)))
        with ExitStack() as stack:
            connect_ray(
                dict(config.ray_kwargs.ray_init), ResourcePoolManager(config, device).num_devices(), device, stack
            )
            runtime = start_runtime(config, device, total_steps, stack)
            tracker = self._tracker(total_steps)
            stack.callback(tracker.close)
            trainer = RayPPOTrainer(config, runtime, train_loader, val_loader, tracker)
            trainer.fit()
        self.console.print(closing_text(config), highlight=False, markup=False, soft_wrap=True)

    def _data_loaders(self) -> tuple[Any, Any]:
        config, data = self.config, self.config.data
        model = config.actor_rollout_ref.model
        tokenizer = load_tokenizer(model.tokenizer_path or model.path, model.trust_remote_code)
        if model.custom_chat_template:
            tokenizer.chat_template = model.custom_chat_template
        seed = config.trainer.seed if data.seed is None else data.seed
        train_set = RLDataset(PromptSettings.for_training(data, seed), tokenizer)
        train_loader = build_dataloader(
            train_set,
            LoaderSettings(data.train_batch_size, data.shuffle, seed, num_workers=data.dataloader_num_workers),
        )
        self._check_sources(train_set)
        if not data.val_files:
            return train_loader, None
        val_set = RLDataset(PromptSettings.for_validation(data), tokenizer)
        self._check_sources(val_set)
        settings = LoaderSettings(
            data.val_batch_size or len(val_set), shuffle=False, drop_last=False, batch_size_key="data.val_batch_size"
        )
        return train_loader, build_dataloader(val_set, settings)

    def _check_sources(self, dataset: RLDataset) -> None:
        """Every data source needs a rule scorer, unless the user's own function judges them all."""
        if self.config.custom_reward_function.path is None:
            check_data_sources(dataset.data_sources)

    def _tracker(self, total_steps: int) -> Tracker:
        trainer = self.config.trainer
        extra: list[MetricWriter] = []
        if "console" in trainer.logger:
            extra.append(ConsoleDisplay(display_columns(self.config), total_steps, console=self.console))
        run = RunInfo(
            Path(trainer.run_dir).expanduser(), trainer.project_name, trainer.experiment_name, self.loaded.resolved
        )
        return Tracker(trainer.logger, run, extra)


def total_training_steps(config: PPOTrainerConfig, batches_per_epoch: int) -> int:
    """Training steps of the run.

    Args:
        config: Names steps, or epochs.
        batches_per_epoch: Whole batches in one pass over the data.

    Returns:
        `trainer.total_training_steps` if given, else all batches of `trainer.total_epochs`.
    """
    trainer = config.trainer
    return trainer.total_training_steps or batches_per_epoch * trainer.total_epochs


def run_ppo(loaded: LoadedConfig[PPOTrainerConfig]) -> None:
    """Check what can be checked without devices, and train.

    Args:
        loaded: The configuration with its notices; its files have been looked for.

    Raises:
        UserError: A function, a model or a number is wrong.
    """
    config = loaded.config
    check_policy(config)
    get_adv_estimator_fn(config.algorithm.adv_estimator)
    custom_function(config)
    check_reward_model(config)
    TaskRunner(loaded).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: Command line without the program's name; None for `sys.argv`.

    Returns:
        Exit code: 0, or 2 when the user has to mend something.
    """
    entry = EntryPoint(
        "ppo_trainer", PPOTrainerConfig, lambda config: build_plan(config).text(), run_ppo, __doc__ or ""
    )
    return run_entry_point(entry, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
