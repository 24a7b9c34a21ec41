# SPDX-License-Identifier: Apache-2.0
"""Writes the PRM's own self-test: `python3 -m recipe.miniature.probes --out FOLDER_OF_THE_PRM`.

The framework refuses a PRM that does not prefer right reasoning steps to wrong ones. Its shipped probes are English;
the miniature PRM reads nothing but sums, so it brings probes in its own language.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from recipe.miniature.problems import check_steps, draw_problem, solve
from verl.rewards.prm.selftest import PROBES_FILE


def draw_probes(count: int, seed: int) -> list[dict[str, object]]:
    """Draw pairs of solutions whose last steps differ in being right.

    Args:
        count: Number of pairs.
        seed: Seed of everything drawn.

    Returns:
        Rows with `problem`, `right` and `wrong`.
    """
    rng = random.Random(seed)
    probes: list[dict[str, object]] = []
    while len(probes) < count:
        problem = draw_problem(rng)
        right = solve(problem, rng, 0.0).steps
        place = rng.randrange(len(right) - 1)
        wrong = solve(problem, rng, 1.0, ("arithmetic",)).steps[place]
        cut = [*right[:place], wrong]
        if not check_steps(problem.text, "\n\n".join(cut))[-1]:
            probes.append({"problem": problem.text, "right": list(right[: place + 1]), "wrong": cut})
    return probes


def main() -> None:
    """Write the probes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="the PRM's folder")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    lines = [json.dumps(probe) for probe in draw_probes(16, arguments.seed)]
    (Path(arguments.out).expanduser() / PROBES_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
