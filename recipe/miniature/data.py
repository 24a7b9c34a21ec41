# SPDX-License-Identifier: Apache-2.0
"""Writes the miniature's data: `python3 -m recipe.miniature.data --out DIR --seed 0`.

    train.parquet, test.parquet   prompts for reinforcement learning, in the DAPO row schema; no problem is in both
    sft.parquet                   demonstrations, a share of whose steps is wrong, of the training problems' kind
    prm.parquet, prm_test.parquet solutions with one label per step (prompt, completions, labels)

No problem of test.parquet is in any other file. The same seed gives the same files.
"""

from __future__ import annotations

import argparse
import logging
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from recipe.miniature.problems import ERROR_KINDS, ErrorKind, Problem, check_steps, draw_problem, solve
from verl.utils.errors import UserError

logger = logging.getLogger(__name__)

DATA_SOURCE = "math_dapo"
# What a badly taught policy does; the PRM's solutions hold every kind.
SFT_KINDS: tuple[ErrorKind, ...] = ("arithmetic", "arithmetic", "carry")
# Error rates of the PRM's solutions, drawn in turn: right ones, nearly right ones, and hopeless ones.
PRM_ERROR_RATES = (0.0, 0.15, 0.3, 0.5)


@dataclass(frozen=True)
class Sizes:
    """How many rows are written, and how bad the demonstrations are.

    Args:
        train: Training prompts.
        test: Test prompts.
        sft: Demonstrations.
        prm: Labelled solutions for training.
        prm_test: Labelled solutions for testing.
        wrong_steps: Probability that a demonstrated step is wrong.

    Raises:
        UserError: A number below 1, or `wrong_steps` outside 0 to 1.
    """

    train: int = 4096
    test: int = 256
    sft: int = 32_000
    prm: int = 32_000
    prm_test: int = 512
    wrong_steps: float = 0.2

    def __post_init__(self) -> None:
        """Refuse impossible sizes."""
        for name in ("train", "test", "sft", "prm", "prm_test"):
            if getattr(self, name) < 1:
                raise UserError.for_key(f"--{name}", getattr(self, name), "must be 1 or more", "Change it")
        if not 0 <= self.wrong_steps < 1:
            raise UserError.for_key("--wrong_steps", self.wrong_steps, "must be from 0 to below 1", "Change it")


def build(sizes: Sizes, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Draw all rows.

    Args:
        sizes: How many.
        seed: Seed of everything drawn.

    Returns:
        File name (without suffix) to its rows.
    """
    rng = random.Random(seed)
    held_out = _distinct(sizes.test + sizes.prm_test, set(), rng)
    test, prm_test = held_out[: sizes.test], held_out[sizes.test :]
    kept_apart = {problem.text for problem in held_out}
    train = _distinct(sizes.train, kept_apart, rng)
    taught = _others(sizes.sft, kept_apart, rng)
    labelled = _others(sizes.prm, kept_apart, rng)
    return {
        "train": [_prompt_row(problem, place, "train") for place, problem in enumerate(train)],
        "test": [_prompt_row(problem, place, "test") for place, problem in enumerate(test)],
        "sft": [_demonstration(problem, sizes.wrong_steps, rng) for problem in taught],
        "prm": [_labelled(problem, place, rng) for place, problem in enumerate(labelled)],
        "prm_test": [_labelled(problem, place, rng) for place, problem in enumerate(prm_test)],
    }


def write(rows: dict[str, list[dict[str, Any]]], folder: str) -> None:
    """Write all files.

    Args:
        rows: As `build` gives them.
        folder: Where; it is made.
    """
    place = Path(folder).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    for name, file_rows in rows.items():
        unfinished = place / f"{name}.unfinished"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(file_rows), unfinished)
        unfinished.replace(place / f"{name}.parquet")
        logger.info("%d rows in %s", len(file_rows), place / f"{name}.parquet")


def _prompt_row(problem: Problem, place: int, split: str) -> dict[str, Any]:
    """One prompt in the DAPO row schema."""
    return {
        "data_source": DATA_SOURCE,
        "prompt": [{"role": "user", "content": problem.text}],
        "ability": "MATH",
        "reward_model": {"ground_truth": str(problem.answer), "style": "rule"},
        "extra_info": {"index": f"{split}-{place}", "split": split},
    }


def _demonstration(problem: Problem, wrong_steps: float, rng: random.Random) -> dict[str, Any]:
    solution = solve(problem, rng, wrong_steps, SFT_KINDS)
    return {"prompt": problem.text, "response": solution.text}


def _labelled(problem: Problem, place: int, rng: random.Random) -> dict[str, Any]:
    """A solution with the labels that `check_steps` gives."""
    solution = solve(problem, rng, PRM_ERROR_RATES[place % len(PRM_ERROR_RATES)], ERROR_KINDS)
    return {
        "prompt": problem.text,
        "completions": list(solution.steps),
        "labels": check_steps(problem.text, solution.text),
        "errors": [kind or "" for kind in solution.kinds],
    }


def _distinct(count: int, excluded: set[str], rng: random.Random) -> list[Problem]:
    """Draw problems, no two alike and none of those excluded."""
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = draw_problem(rng)
        if problem.text not in excluded:
            found[problem.text] = problem
    return list(found.values())


def _others(count: int, excluded: set[str], rng: random.Random) -> list[Problem]:
    """Draw problems, none of those excluded; two may be alike."""
    found: list[Problem] = []
    while len(found) < count:
        problem = draw_problem(rng)
        if problem.text not in excluded:
            found.append(problem)
    return found


def main() -> None:
    """Write the data."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder for the files")
    parser.add_argument("--seed", type=int, default=0)
    for name, value in vars(Sizes()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"default {value}")
    arguments = vars(parser.parse_args())
    out, seed = arguments.pop("out"), arguments.pop("seed")
    try:
        write(build(Sizes(**arguments), seed), out)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
