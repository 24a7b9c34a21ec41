# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders of a run: written under a temporary name, renamed when complete, found again for resuming.

<checkpoint_dir>/global_step_20/          actor/ (sharded, by the engine), data.pt, trainer_state.json
<checkpoint_dir>/latest_checkpointed_iteration.txt
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from verl.config import TrainerConfig
from verl.utils.errors import UserError

logger = logging.getLogger(__name__)

_LATEST = "latest_checkpointed_iteration.txt"
_FOLDER = re.compile(r"global_step_(\d+)")


class CheckpointFolders:
    """Names and moves the folders; the content is written by others.

    Example:
        >>> folders = CheckpointFolders(config.trainer)
        >>> temporary = folders.begin(20)
        >>> # ... write into temporary ...
        >>> folders.commit(20)
    """

    def __init__(self, config: TrainerConfig) -> None:
        """Remember where and how many.

        Args:
            config: Reads the folder, the resume mode and the number of checkpoints to keep.
        """
        self._root = Path(config.checkpoint_dir).expanduser().absolute()
        self._keep = config.max_actor_ckpt_to_keep
        self._mode = config.resume_mode
        self._resume_from = config.resume_from_path

    def begin(self, step: int) -> Path:
        """Make an empty folder to write into.

        Args:
            step: Training step.

        Returns:
            A folder that `commit` will rename.
        """
        temporary = self._root / f"global_step_{step}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        return temporary

    def commit(self, step: int) -> Path:
        """Give the folder its name; from here on the checkpoint exists.

        Args:
            step: Training step given to `begin`.

        Returns:
            The complete checkpoint.
        """
        final = self._root / f"global_step_{step}"
        shutil.rmtree(final, ignore_errors=True)
        (self._root / f"global_step_{step}.tmp").rename(final)
        marker = self._root / f"{_LATEST}.tmp"
        marker.write_text(str(step))
        os.replace(marker, self._root / _LATEST)
        self._forget_old(step)
        return final

    def to_resume(self) -> Path | None:
        """Choose the checkpoint that the configuration asks for.

        Returns:
            A checkpoint folder, or None for a fresh start.

        Raises:
            UserError: `resume_mode=resume_path` names no checkpoint.
        """
        if self._mode == "disable":
            return None
        if self._mode == "resume_path":
            path = Path(self._resume_from or "").expanduser().absolute()
            if not (path / "trainer_state.json").is_file():
                raise UserError.for_key(
                    "trainer.resume_from_path",
                    self._resume_from,
                    "must be a checkpoint folder global_step_N with trainer_state.json",
                    "Correct the path, or set trainer.resume_mode=auto",
                )
            return path
        complete = self._complete()
        if not complete:
            return None
        # the one written last: a run that went back to an earlier checkpoint has left later ones behind
        marker = self._root / _LATEST
        last = int(marker.read_text()) if marker.is_file() else complete[-1]
        return self._root / f"global_step_{last if last in complete else complete[-1]}"

    def restart_hint(self) -> str:
        """Say what happens when a run that broke off is started again.

        Returns:
            A sentence; it names the newest checkpoint if there is one.
        """
        complete = self._complete()
        if not complete:
            return f"There is no checkpoint in {self._root} yet: started again, the run begins anew."
        newest = self._root / f"global_step_{complete[-1]}"
        return f"Started again with trainer.resume_mode=auto, the run goes on from {newest}."

    def _complete(self) -> list[int]:
        matches = (_FOLDER.fullmatch(path.name) for path in self._root.glob("global_step_*"))
        return sorted(int(match.group(1)) for match in matches if match)

    def _forget_old(self, just_written: int) -> None:
        if self._keep is None:
            return
        # a run that went back to an earlier checkpoint finds later ones here: its own new one must not fall to them
        others = [step for step in self._complete() if step != just_written]
        for step in others[: max(0, len(others) + 1 - self._keep)]:
            shutil.rmtree(self._root / f"global_step_{step}")
            logger.info("removed old checkpoint global_step_%d (trainer.max_actor_ckpt_to_keep)", step)


def write_trainer_state(folder: Path, state: Mapping[str, Any], data_state: Mapping[str, Any]) -> None:
    """Write the driver's part of a checkpoint.

    Args:
        folder: Checkpoint folder.
        state: Plain values: step, policy version, configuration.
        data_state: State of the data loader.
    """
    torch.save(dict(data_state), folder / "data.pt")
    (folder / "trainer_state.json").write_text(json.dumps(dict(state), indent=2))


def read_trainer_state(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what `write_trainer_state` wrote.

    Args:
        folder: Checkpoint folder.

    Returns:
        The state and the data loader's state.
    """
    state: dict[str, Any] = json.loads((folder / "trainer_state.json").read_text())
    # the data loader's state holds nested plain values and tensors, and random states of the standard library
    data_state: dict[str, Any] = torch.load(folder / "data.pt", weights_only=False)
    return state, data_state
