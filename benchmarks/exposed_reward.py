# SPDX-License-Identifier: Apache-2.0
"""Which share of a training step waits for PRM scores, with scoring beside the rollout and with scoring after it.

Runs the real examples/grpo_trainer/qwen_reasonflux_dapo.sh on the miniature, once per setting of
`reward_model.overlap_rollout`, and reads `reward/exposed/share` from its metrics.jsonl. The PRM has a process of its
own; give it a core of its own too: nothing else may run on the machine.

    bash recipe/miniature/make_assets.sh .cache/miniature
    python3 benchmarks/exposed_reward.py --assets .cache/miniature
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import record

MODES = {"beside the rollout": True, "after the rollout": False}
COLUMNS = {
    "exposed share": "reward/exposed/share",
    "waited s": "timing_s/wait_for_scores",
    "rollout s": "timing_s/gen",
    "step s": "timing_s/step",
}
_GRACE_S = 30.0
_LAUNCH = (
    'source recipe/miniature/settings.sh "$1" && '
    'exec bash examples/grpo_trainer/qwen_reasonflux_dapo.sh "${MINIATURE_ARGS[@]}" "${@:2}"'
)


def command(assets: str, steps: int, overlaps: bool, further: Sequence[str]) -> list[str]:
    """Give the command of one run, to be called in the repository with OUTPUT_DIR set.

    Args:
        assets: Folder that `make_assets.sh` wrote.
        steps: Training steps.
        overlaps: Value of `reward_model.overlap_rollout`.
        further: KEY=VALUE arguments of the trainer; they win.
    """
    arguments = [
        f"reward_model.overlap_rollout={overlaps}",
        "reward_model.score_cache_entries=0",  # an untrained policy repeats itself; a real one hardly does
        f"trainer.total_training_steps={steps}",
        "trainer.val_before_train=False",
        "trainer.test_freq=0",
        "trainer.save_freq=0",
        "trainer.export_hf=False",
        'trainer.logger=["jsonl"]',
    ]
    return ["bash", "-euc", _LAUNCH, "exposed_reward", assets, *arguments, *further]


def read_metrics(path: Path, skip: int) -> list[dict[str, float]]:
    """Read the training steps of a run.

    Args:
        path: Its metrics.jsonl.
        skip: First steps left out: engines and caches warm up in them.

    Raises:
        ValueError: No step is left.
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["step"] > skip and COLUMNS["exposed share"] in row]
    if not rows:
        raise ValueError(f"{path} has no training step behind the first {skip}")
    return rows


def summarise(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Take medians over training steps, and the share of all waiting in all time.

    Args:
        rows: Metrics of the steps.
    """
    medians = {name: statistics.median(row[key] for row in rows) for name, key in COLUMNS.items()}
    waited_s, all_s = (sum(row[COLUMNS[name]] for row in rows) for name in ("waited s", "step s"))
    return medians | {"exposed share of all time": waited_s / all_s, "steps": float(len(rows))}


def train(arguments: argparse.Namespace, overlaps: bool) -> list[dict[str, float]]:
    """Run the trainer once.

    Args:
        arguments: See `parse`.
        overlaps: Whether scoring runs beside the rollout.

    Returns:
        Metrics of its counted steps.

    Raises:
        RuntimeError: It failed, or took longer than it may.
    """
    with tempfile.TemporaryDirectory(prefix="exposed-") as folder:
        kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment = kept | {"OUTPUT_DIR": folder, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        call = command(arguments.assets, arguments.steps, overlaps, arguments.further)
        log = Path(folder) / "train.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                call, cwd=record.REPO, env=environment, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                process.wait(arguments.limit_s)
                failure = f"exit code {process.returncode}" if process.returncode else ""
            except subprocess.TimeoutExpired:
                failure = f"not done after {arguments.limit_s:g} s"
            finally:
                _end(process)
        if failure:
            tail = log.read_text(encoding="utf-8", errors="replace")[-4000:]
            raise RuntimeError(f"the trainer: {failure}\n{tail}")
        return read_metrics(Path(folder) / "metrics.jsonl", arguments.skip)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a trainer that still runs, with everything it started: politely first, so that it can stop its Ray."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run every setting `repeats` times, in turns.

    Args:
        arguments: See `parse`.

    Returns:
        The content of the result file.
    """
    head = record.describe_run("exposed_reward", vars(arguments))
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in MODES}
    for _ in range(arguments.repeats):
        for name, overlaps in MODES.items():
            rows[name] += train(arguments, overlaps)
    return head | {"results": {name: summarise(each) for name, each in rows.items()}}


def show(result: Mapping[str, Any]) -> str:
    """Lay a result out for reading.

    Args:
        result: From `run`.
    """
    lines = []
    for name, each in result["results"].items():
        shares = [f"{each[key]:.2%}" for key in ("exposed share", "exposed share of all time")]
        seconds = [f"{each[key]:.3f}" for key in ("waited s", "rollout s", "step s")]
        lines.append([name, *shares, *seconds, f"{each['steps']:.0f}"])
    head = ["PRM scores", "exposed, median", "of all time", "waited s", "rollout s", "step s", "steps"]
    machine = result["machine"]
    about = f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_before']} before"
    return f"{about}\n\n{record.table(head, lines)}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        arguments: Of the program; None for `sys.argv`.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", required=True, help="folder that recipe/miniature/make_assets.sh wrote")
    parser.add_argument("--steps", type=int, default=15, help="training steps of a run")
    parser.add_argument("--skip", type=int, default=3, help="first steps that are not counted")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each setting")
    parser.add_argument("--limit_s", type=float, default=1800.0, help="longest time of one run, seconds")
    parser.add_argument("--out", help="result file; default: a dated one in outputs/benchmarks/")
    parser.add_argument("further", nargs="*", help="KEY=VALUE arguments of the trainer")
    parsed = parser.parse_args(arguments)
    parsed.assets = str(Path(parsed.assets).expanduser().absolute())
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show and write.

    Args:
        arguments: Of the program; None for `sys.argv`.
    """
    parsed = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a run in progress is ended too
    return record.conclude(parsed, run, show)


if __name__ == "__main__":
    sys.exit(main())
