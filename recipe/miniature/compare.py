# SPDX-License-Identifier: Apache-2.0
"""Trains every method with every seed: `python3 -m recipe.miniature.compare ASSETS OUT_DIR` (compare.sh adds a report).

Each run is the real trainer in processes of its own, with its own Ray. Finished runs are kept; a run that ended early
is started anew; one that fails is told at the end and does not stop the others. Exit code 1 when any failed.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from rich.console import Console

from recipe.miniature.launcher import Launcher, Outcome
from recipe.miniature.methods import METHODS, MORE_METHODS
from recipe.miniature.provenance import digests, machine
from recipe.miniature.runs import COMPARISON_FILE, PlannedRun, Sizes, plan_runs, read_json, write_json
from verl.utils.errors import UserError

REPO = Path(__file__).resolve().parents[2]
_ASSETS = ("policy/model.safetensors", "prm/model.safetensors", "data/train.parquet", "data/test.parquet")
# MINIATURE_ARGS is a bash array, so bash puts the command line together
_LAUNCH = (
    'source recipe/miniature/settings.sh "$1" && exec bash "examples/grpo_trainer/$2" "${MINIATURE_ARGS[@]}" "${@:3}"'
)


def command_of(run: PlannedRun, assets: Path) -> list[str]:
    """Give the command of a run, to be called in the repository with OUTPUT_DIR set.

    Args:
        run: The run.
        assets: Folder that `make_assets.sh` wrote.

    Returns:
        Program and arguments.
    """
    return ["bash", "-euc", _LAUNCH, "compare", str(assets), run.method.script, *run.arguments]


def environment_of(run: PlannedRun) -> dict[str, str]:
    """Give the environment of a run: this one's, without a cluster to join, with this repository's code.

    Args:
        run: The run.

    Returns:
        The variables.
    """
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "EXPERIMENT_NAME")}
    return kept | {"OUTPUT_DIR": str(run.folder), "PYTHONPATH": os.pathsep.join([str(REPO), *_python_path(kept)])}


def record_comparison(assets: Path, out_dir: Path, runs: Sequence[PlannedRun], command: str) -> None:
    """Write what all runs share, next to what an earlier call left there.

    Args:
        assets: Folder that `make_assets.sh` wrote.
        out_dir: Where the comparison goes.
        runs: Its runs, at least one.
        command: The command line as it was called.

    Raises:
        UserError: Assets are missing, or the folder holds runs from other assets or of another size.
    """
    files = [assets / name for name in _ASSETS]
    missing = [str(path) for path in files if not path.exists()]
    if missing:
        raise UserError.for_key("ASSETS", str(assets), f"has no {missing[0]}", "Run recipe/miniature/make_assets.sh")
    path = out_dir / COMPARISON_FILE
    before = read_json(path)
    fixed = {"sizes": asdict(runs[0].sizes), "assets": digests(files)}
    for key, value in fixed.items():
        if before and before[key] != value:
            allowed = f"holds runs with {key} {before[key]}, these would have {value}"
            raise UserError.for_key("OUT_DIR", str(out_dir), allowed, "Name another folder")
    methods, seeds = [run.method.name for run in runs], [run.seed for run in runs]
    now = {
        "commands": list(dict.fromkeys([*before.get("commands", []), command])),
        "date": before.get("date", datetime.datetime.now(datetime.UTC).date().isoformat()),
        "machine": machine(),
        "methods": list(dict.fromkeys([*before.get("methods", []), *methods])),
        "seeds": list(dict.fromkeys([*before.get("seeds", []), *seeds])),
    }
    write_json(path, fixed | now)


def unfinished(runs: Sequence[PlannedRun], console: Console) -> list[PlannedRun]:
    """Leave out what is finished, and make room for the rest.

    Args:
        runs: All runs.
        console: Is told.

    Returns:
        The runs to be started.

    Raises:
        UserError: A finished run was made with other arguments.
    """
    left = []
    for run in runs:
        if run.is_finished:
            _check_same(run)
            console.print(f"{run.name}: finished before, kept", soft_wrap=True, highlight=False)
            continue
        # the trainer appends to metrics.jsonl
        shutil.rmtree(run.folder, ignore_errors=True)
        left.append(run)
    return left


def _check_same(run: PlannedRun) -> None:
    then = read_json(run.folder / "run.json").get("arguments")
    changed = sorted(set(run.arguments) ^ set(then or []))
    if changed:
        allowed = f"was finished with other arguments ({', '.join(changed)})"
        raise UserError.for_key("OUT_DIR", str(run.folder), allowed, "Delete this run or name another OUT_DIR")


def _python_path(environment: dict[str, str]) -> list[str]:
    entries = environment.get("PYTHONPATH", "").split(os.pathsep)
    return [entry for entry in entries if entry and entry != str(REPO)]


def _report(outcomes: Sequence[Outcome], console: Console) -> int:
    failed = [outcome for outcome in outcomes if outcome.failure]
    for outcome in failed:
        console.print(f"FAILED {outcome.run.name}: {outcome.failure}; see {outcome.log}", soft_wrap=True, markup=False)
        console.print(outcome.log_tail(), markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(outcomes) - len(failed)} runs finished now, {len(failed)} failed", highlight=False)
    return 1 if failed else 0


def exit_on_signal(number: int, frame: FrameType | None) -> None:
    """Leave through the `finally` that ends the runs; a plain SIGTERM would skip it, a second one cut it short.

    Args:
        number: The signal, ignored from now on.
        frame: Where it came; not read.
    """
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = Sizes()
    parser.add_argument("assets", type=Path, help="folder that make_assets.sh wrote")
    parser.add_argument("out_dir", type=Path, help="folder of the comparison")
    names, more = [method.name for method in METHODS], [method.name for method in MORE_METHODS]
    says = f"default: {' '.join(names)}; there are also: {' '.join(more)}"
    parser.add_argument("--methods", nargs="+", default=names, help=says)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="default: 1 2 3")
    for name, default, says in (
        ("jobs", 1, "runs at once"),
        ("steps", sizes.steps, "training steps of each run"),
        ("test_freq", sizes.test_freq, "validate every so many training steps"),
        ("val_samples", sizes.val_samples, "responses per test problem"),
        ("limit_minutes", 45, "a run that takes longer is ended and counts as failed"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{says} (default: %(default)s)")
    return parser


def run_comparison(arguments: argparse.Namespace, console: Console) -> int:
    """Do what the command line says.

    Args:
        arguments: Parsed.
        console: Is told of progress.

    Returns:
        Exit code: 0, or 1 when a run failed.
    """
    assets, out_dir = arguments.assets.absolute(), arguments.out_dir.absolute()
    for name in ("jobs", "steps", "test_freq", "val_samples", "limit_minutes"):
        if getattr(arguments, name) < 1:
            raise UserError.for_key(f"--{name}", getattr(arguments, name), "must be 1 or more", "Raise it")
    sizes = Sizes(arguments.steps, arguments.test_freq, arguments.val_samples)
    runs = plan_runs(out_dir, arguments.methods, arguments.seeds, sizes)
    # the folders' names are this machine's own
    options = [word for word in sys.argv[1:] if word not in (str(arguments.assets), str(arguments.out_dir))]
    command = shlex.join(["bash", "recipe/miniature/compare.sh", "ASSETS", "OUT_DIR", *options])
    record_comparison(assets, out_dir, runs, command)
    left = unfinished(runs, console)
    console.print(f"{len(left)} of {len(runs)} runs to do, {arguments.jobs} at once", highlight=False)
    started = time.monotonic()
    launcher = Launcher(
        lambda run: command_of(run, assets), environment_of, REPO, console, limit_s=60.0 * arguments.limit_minutes
    )
    outcomes = launcher.run_all(left, arguments.jobs)
    console.print(f"{(time.monotonic() - started) / 60:.1f} minutes", highlight=False)
    return _report(outcomes, console)


def main() -> int:
    """Run the program.

    Returns:
        Exit code: 0, 1 when a run failed, 2 when the user has to mend something.
    """
    signal.signal(signal.SIGTERM, exit_on_signal)
    arguments = _parser().parse_args()
    try:
        return run_comparison(arguments, Console())
    except UserError as error:
        Console(stderr=True).print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
