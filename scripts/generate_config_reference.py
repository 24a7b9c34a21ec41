# SPDX-License-Identifier: Apache-2.0
"""Writes the reference of all configuration keys: verl/trainer/config/*.yaml and docs/configuration.md.

Run it after a change in verl/config or in an example script; `--check` only says whether the files are up to date.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from verl.config import (  # noqa: E402
    EvaluationConfig,
    GenerationConfig,
    PPOTrainerConfig,
    PRMTrainerConfig,
    SFTTrainerConfig,
)
from verl.config.hydra import LoadedConfig, load_config  # noqa: E402
from verl.config.reference import render_table, render_yaml  # noqa: E402

EXAMPLES = REPO / "examples" / "grpo_trainer"
EXAMPLE_NAMES = (
    "qwen_rulebased_dapo",
    "qwen_reasonflux_dapo",
    "qwen_qwen-prm_dapo",
    "deepseek_rulebased_dapo",
    "deepseek_reasonflux_dapo",
)
ROOTS = {
    "ppo_trainer": (PPOTrainerConfig, "Every key of verl.trainer.main_ppo with its default."),
    "sft_trainer": (SFTTrainerConfig, "Every key of verl.trainer.sft_trainer with its default."),
    "prm_trainer": (PRMTrainerConfig, "Every key of PRM training with its default."),
    "generation": (GenerationConfig, "Every key of verl.trainer.main_generation with its default."),
    "evaluation": (EvaluationConfig, "Every key of verl.trainer.main_eval with its default."),
}
# Prints nothing but its own arguments: stands in for python3 while an example script runs.
_ARGUMENT_DUMP = '#!/bin/sh\nexec "{python}" -c "import json, sys; print(json.dumps(sys.argv[1:]))" "$@"\n'


def example_arguments(
    script: Path, extra: tuple[str, ...] = (), environment: dict[str, str] | None = None
) -> list[str]:
    """Run an example script with a stand-in for python3 and collect what it would call.

    Args:
        script: The shell script.
        extra: Arguments given to the script.
        environment: Variables on top of PATH and HOME (the caller's own variables are not passed on).

    Returns:
        Arguments of python3, e.g. ["-m", "verl.trainer.main_ppo", "data.train_files=...", ...].
    """
    with tempfile.TemporaryDirectory() as folder:
        stand_in = Path(folder) / "python3"
        stand_in.write_text(_ARGUMENT_DUMP.format(python=sys.executable))
        stand_in.chmod(0o755)
        variables = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "HOME": "~", **(environment or {})}
        done = subprocess.run(
            ["bash", str(script), *extra],
            env=variables,
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    arguments: list[str] = json.loads(done.stdout.strip().splitlines()[-1])
    return arguments


def load_example(
    name: str, extra: tuple[str, ...] = (), environment: dict[str, str] | None = None
) -> LoadedConfig[PPOTrainerConfig]:
    """Compose an example script's real command line.

    Args:
        name: Name of the script without suffix.
        extra: Arguments given to the script.
        environment: Variables given to the script.

    Returns:
        The checked configuration.
    """
    arguments = example_arguments(EXAMPLES / f"{name}.sh", extra, environment)
    if arguments[:2] != ["-m", "verl.trainer.main_ppo"]:
        raise ValueError(f"{name}.sh calls python3 {arguments[:2]}, expected -m verl.trainer.main_ppo")
    return load_config("ppo_trainer", arguments[2:], PPOTrainerConfig)


_INTRODUCTION = """# Configuration

Made by `scripts/generate_config_reference.py` from the dataclasses in `verl/config`; do not edit.

Every key of `python3 -m verl.trainer.main_ppo KEY=VALUE ...`, with the values that the example scripts in
`examples/grpo_trainer` set (an empty cell is the default). Two rules about units: `data.train_batch_size` and
`ppo_mini_batch_size` count **prompts**, every `*_micro_batch_size_per_gpu` counts **sequences** on one rank.
A mistyped key or value is refused with the nearest name; old verl spellings are mapped with a notice
(`verl/config/legacy.py`). `trainer.dry_run=True` prints the plan of a run and stops.
"""


def render_document() -> str:
    """Write docs/configuration.md."""
    # The default of the paths hangs on the machine's home folder; here it reads ~.
    columns = {}
    for name in EXAMPLE_NAMES:
        text = json.dumps(load_example(name).resolved)
        columns[name] = json.loads(text.replace(str(Path.home()) + "/", "~/"))
    parts = [_INTRODUCTION, "## `main_ppo`\n", render_table(PPOTrainerConfig, columns)]
    parts += ["## `sft_trainer`\n", render_table(SFTTrainerConfig, {})]
    parts += ["## PRM training\n", render_table(PRMTrainerConfig, {})]
    parts += ["## `main_generation`\n", render_table(GenerationConfig, {})]
    parts += ["## `main_eval`\n", render_table(EvaluationConfig, {})]
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Write or check the files; returns 1 if a checked file is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if a file is out of date")
    check = parser.parse_args(arguments).check
    stale: list[Path] = []
    targets = {f"verl/trainer/config/{name}.yaml": render_yaml(root, title) for name, (root, title) in ROOTS.items()}
    for name, text in targets.items():  # first, since the examples below compose on top of them
        stale += _update(REPO / name, text, check)
    if not check or not stale:
        stale += _update(REPO / "docs" / "configuration.md", render_document(), check)
    for path in stale:
        print(f"{'out of date' if check else 'written'}: {path.relative_to(REPO)}")
    return 1 if check and stale else 0


def _update(path: Path, text: str, check: bool) -> list[Path]:
    if path.is_file() and path.read_text() == text:
        return []
    if not check:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [path]


if __name__ == "__main__":
    sys.exit(main())
