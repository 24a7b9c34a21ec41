# SPDX-License-Identifier: Apache-2.0
"""Scores answers with a process reward model, reasoning step by reasoning step.

  python3 Application/score.py --input answers.jsonl --output scored.jsonl --prm Gen-Verse/ReasonFlux-PRM-7B

Reads JSON Lines or parquet, writes either. Every row keeps its columns and its place and gets

  step_scores   one number per reasoning step
  traj_score    score of the whole answer (that of its last step)
  prm_score     agg(step_scores) + alpha * traj_score            Eq. 11 of arXiv 2506.18896
  num_steps     reasoning steps
  prm_flags     empty, one_step, escaped, windowed, extended, cut, retried
  prm_error     why the row could not be scored; null where it was

A row that cannot be scored stays in the output with its reason. An interrupted run goes on where it was when the same
command is given again. OUTPUT.report.json beside the output says what was done.
"""

from __future__ import annotations

import argparse
import sys

from prm_tools.program import run_program, show_table
from prm_tools.score_job import score_file
from prm_tools.score_options import add_column_options, job_of
from prm_tools.scoring import add_eq11_options, add_prm_options


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, metavar="FILE", help="JSON Lines or parquet")
    parser.add_argument("--output", required=True, metavar="FILE", help="JSON Lines or parquet")
    add_column_options(parser)
    parser.add_argument("--prefix", default="", help="put before the names of the added columns")
    parser.add_argument("--write-steps", action="store_true", help="add a column `steps` with the reasoning steps")
    parser.add_argument("--overwrite", action="store_true", help="replace the output, forget an interrupted run")
    parser.add_argument("--batch-rows", type=int, metavar="N", help="rows per batch (default: 128 per worker)")
    add_eq11_options(parser)
    add_prm_options(parser, is_required=True)
    return parser


def main(args: argparse.Namespace) -> None:
    """Score a file and say what came of it."""
    job = job_of(args, args.input, args.output)
    print(f"problem: {job.columns.problem!r}, response: {job.columns.responses or job.columns.response!r}")
    report = score_file(job)
    if report.get("was_complete"):
        print(f"{args.output} is complete: nothing to do")
    shown = ("rows", "scored", "failed", "steps", "mean_score", "std_score")
    rows = [(name, report[name]) for name in shown if report[name] is not None]
    rows += [(f"failed: {reason}", count) for reason, count in report["reasons"].items()]
    rows += [(f"flagged: {flag}", count) for flag, count in report["flags"].items()]
    show_table(args.output, ("", ""), rows)


if __name__ == "__main__":
    sys.exit(run_program(main, build_parser()))
