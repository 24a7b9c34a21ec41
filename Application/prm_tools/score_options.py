# SPDX-License-Identifier: Apache-2.0
"""The command line of scoring, for every program that can score: which columns, and the job made of all options."""

from __future__ import annotations

import argparse

from prm_tools.columns import find_columns
from prm_tools.score_job import ScoreJob
from prm_tools.scoring import PRMOptions, eq11_rule
from verl.utils.errors import UserError


def add_column_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the columns of a file to be scored.

    Args:
        parser: Gets them.
    """
    group = parser.add_argument_group("columns of the input")
    group.add_argument(
        "--problem-column",
        metavar="NAME",
        help="a text or chat messages (default: problem, question, prompt or query, whichever is there first)",
    )
    group.add_argument(
        "--response-column",
        metavar="NAME",
        help="a text or a list of reasoning steps (default: response, completion, output or answer)",
    )
    group.add_argument(
        "--responses-column",
        metavar="NAME",
        help="a list of whole responses: the output has a row for each (default: responses, where there is no "
        "response column)",
    )


def job_of(args: argparse.Namespace, file: str, output: str) -> ScoreJob:
    """Build a job from the command line.

    Args:
        args: Parsed by a parser with the options of columns, Eq. 11 and the PRM.
        file: File to be scored.
        output: File to be written.

    Raises:
        UserError: An option makes no sense, or the input lacks a column.
    """
    if args.batch_rows is not None and args.batch_rows < 1:
        raise UserError.for_key("--batch-rows", args.batch_rows, "must be at least 1", "Leave it out")
    prm = PRMOptions.of(args)
    return ScoreJob(
        input=file,
        output=output,
        columns=find_columns(file, "--input", args.problem_column, args.response_column, args.responses_column),
        prm=prm,
        rule=eq11_rule(args, prm.score_space),
        prefix=getattr(args, "prefix", ""),
        writes_steps=getattr(args, "write_steps", False),
        overwrite=args.overwrite,
        batch_rows=args.batch_rows,
    )
