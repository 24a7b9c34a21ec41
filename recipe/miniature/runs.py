# SPDX-License-Identifier: Apache-2.0
"""The runs of a comparison and the files they leave: which there are, which are finished, what belongs to which.

OUT_DIR/comparison.json            what all runs share
OUT_DIR/<method>/seed_<n>/         run.json (what it is), metrics.jsonl and validation/ (the trainer's), train.log
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.miniature.methods import BY_NAME, Method
from verl.utils.errors import UserError

COMPARISON_FILE, RUN_FILE, METRICS_FILE = "comparison.json", "run.json", "metrics.jsonl"
VALIDATION_FOLDER = "validation"


@dataclass(frozen=True)
class Sizes:
    """What all runs share beside the assets.

    Args:
        steps: Training steps of each run.
        test_freq: Validate every so many training steps.
        val_samples: Responses per validation prompt.
    """

    steps: int = 100
    test_freq: int = 10
    val_samples: int = 4


@dataclass(frozen=True)
class PlannedRun:
    """One run.

    Args:
        method: What is trained.
        seed: `trainer.seed`: order of the prompts and all sampling, so runs of one seed see the same prompts.
        folder: Where it goes; absolute.
        sizes: What all runs share.
    """

    method: Method
    seed: int
    folder: Path
    sizes: Sizes

    @property
    def name(self) -> str:
        """How people are told of it."""
        return f"{self.method.name} seed {self.seed}"

    @property
    def arguments(self) -> list[str]:
        """Give the arguments that come after those of `settings.sh`."""
        return [
            *self.method.overrides,
            f"trainer.seed={self.seed}",
            f"trainer.total_training_steps={self.sizes.steps}",
            f"trainer.test_freq={self.sizes.test_freq}",
            f"actor_rollout_ref.rollout.val_kwargs.n={self.sizes.val_samples}",
            f"trainer.validation_data_dir={self.folder / VALIDATION_FOLDER}",
            "trainer.rollout_data_dir=null",
            "trainer.save_freq=0",
            "trainer.export_hf=False",
            'trainer.logger=["console"]',
            # a Ray of its own, whoever else has one running here
            "ray_kwargs.ray_init.address=local",
        ]

    @property
    def last_step(self) -> int:
        """The last training step that was recorded, -1 where none was."""
        rows = read_metrics(self.folder)
        return int(rows[-1]["step"]) if rows else -1

    @property
    def is_finished(self) -> bool:
        """Whether its last step is recorded, with the validation that closes a run."""
        rows = read_metrics(self.folder)
        return bool(rows) and rows[-1]["step"] == self.sizes.steps and any(key.startswith("val/") for key in rows[-1])


def plan_runs(out_dir: Path, methods: Sequence[str], seeds: Sequence[int], sizes: Sizes) -> list[PlannedRun]:
    """List the runs: all methods of the first seed, then of the next, so that a part of them is a table too.

    Args:
        out_dir: Where the comparison goes.
        methods: Names from `methods.py`.
        seeds: Seeds.
        sizes: What all runs share.

    Returns:
        The runs, in order.

    Raises:
        UserError: A name is unknown.
    """
    unknown = sorted(set(methods) - set(BY_NAME))
    if unknown:
        raise UserError.for_key("--methods", unknown, f"known are {', '.join(BY_NAME)}", "Take some of these")
    root = out_dir.absolute()
    return [
        PlannedRun(BY_NAME[name], seed, root / name / f"seed_{seed}", sizes)
        for seed in dict.fromkeys(seeds)
        for name in dict.fromkeys(methods)
    ]


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the metrics of a run.

    Args:
        folder: The run's folder.

    Returns:
        One mapping per recorded step; empty where nothing was recorded. A last line cut short is left out.
    """
    path = folder / METRICS_FILE
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.

    Returns:
        The object; empty where there is no file.
    """
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people and programs, whole or not at all.

    Args:
        path: The file; its folder is made.
        content: What JSON can hold.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
