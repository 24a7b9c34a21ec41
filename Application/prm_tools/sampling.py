# SPDX-License-Identifier: Apache-2.0
"""Candidates sampled by an engine: runs `verl.trainer.main_generation` as a process of its own, once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prm_tools.columns import choose_column
from prm_tools.program import USER_ERROR, beside, write_json
from prm_tools.tables import first_values
from verl.utils.errors import UserError

PROMPT_COLUMNS = ("prompt", "problem", "question", "query")


@dataclass(frozen=True)
class Sampling:
    """What is sampled.

    Args:
        prompts: JSON Lines or parquet.
        prompt_column: Column of the prompt, None to look for it.
        policy: Folder or hub name of the model that answers.
        num_samples: Answers per prompt.
        overrides: Further KEY=VALUE arguments of main_generation.
    """

    prompts: str
    prompt_column: str | None
    policy: str
    num_samples: int
    overrides: Sequence[str] = ()

    def arguments(self, output: Path) -> list[str]:
        """Command line of main_generation.

        Args:
            output: File it writes.

        Raises:
            UserError: The prompts cannot be read, or lack the column.
        """
        values = first_values(self.prompts, "--prompts")
        column = choose_column(values, self.prompt_column, PROMPT_COLUMNS, self.prompts, "--problem-column")
        return [
            f"model.path={_quoted(self.policy)}",
            f"data.path=[{_quoted(self.prompts)}]",
            f"data.prompt_key={_quoted(column)}",
            f"n_samples={self.num_samples}",
            f"output={_quoted(str(output))}",
            *self.overrides,
        ]


def sample_candidates(sampling: Sampling, output: Path, overwrite: bool) -> None:
    """Sample, unless the same command has already done so.

    Args:
        sampling: What.
        output: File to be written; what was asked for lies beside it.
        overwrite: Whether to sample again.

    Raises:
        UserError: main_generation refuses, or `output` is of another command.
        RuntimeError: main_generation failed.
    """
    arguments = sampling.arguments(output)
    record = beside(output, "run.json")
    if output.exists() and not overwrite:
        if record.is_file() and json.loads(record.read_text(encoding="utf-8"))["arguments"] == arguments:
            return
        raise UserError.for_key(
            "--output", str(output), "these candidates were sampled otherwise", "Give --overwrite or another folder"
        )
    done = subprocess.run([sys.executable, "-m", "verl.trainer.main_generation", *arguments], check=False)
    if done.returncode == USER_ERROR:
        raise UserError("no candidates were sampled, for the reason above. Change --generate or the other options.")
    if done.returncode != 0:
        raise RuntimeError(f"main_generation ended with exit code {done.returncode}")
    write_json(record, {"arguments": arguments})


def _quoted(value: str) -> str:
    """A value of the command line as Hydra reads it, whatever characters are in it."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
