# SPDX-License-Identifier: Apache-2.0
"""Selects training trajectories by their process reward: the offline selection of ReasonFlux-PRM (arXiv 2506.18896).

  python3 Application/select_data.py --input scored.jsonl --output train.parquet --top-k 1000
  python3 Application/select_data.py --input raw.parquet --prm Gen-Verse/ReasonFlux-PRM-7B --output train.parquet \\
      --per-prompt 1 --quota math=800 --quota code=200

Takes rows scored by score.py, or scores them first (into OUTPUT.scored-0.jsonl, resumable). Limits work one after
the other: --threshold, --per-prompt, --quota, --top-k; of equal scores the first row is kept. A row without a score is
never kept, and counted.

The output keeps the order and the columns of the input, and has what `verl.trainer.sft_trainer` reads: `prompt` (a
text or chat messages) and `response` (a text); `selection_score` is the score that was used. Beside it
OUTPUT.report.json and OUTPUT.histogram.png: scores by source, all and kept.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prm_tools.charts import draw_histograms
from prm_tools.columns import (
    PROBLEM_COLUMNS,
    RESPONSE_COLUMNS,
    UnusableRowError,
    answer_of,
    choose_column,
    problem_text,
)
from prm_tools.program import beside, run_program, show_table, write_json
from prm_tools.score_job import score_file
from prm_tools.score_options import add_column_options, job_of
from prm_tools.scoring import add_eq11_options, add_prm_options, eq11, eq11_rule
from prm_tools.tables import Record, check_output, first_values, read_table, write_table

from verl.rewards.credit import CreditRule
from verl.rewards.selection import Selection, SelectionRule, select
from verl.utils.errors import UserError

SOURCE_COLUMNS = ("data_source", "source")
SCORE_COLUMN = "selection_score"


@dataclass(frozen=True)
class Reader:
    """How the rows of one scored file are read.

    Args:
        file: The file.
        problem: Column of the problem.
        response: Column of the response.
        source: Column of the source, None where the file's name is the source.
        score: Column of a score to be taken as it is, None for Eq. 11 over `step_scores` and `traj_score`.
        prefix: What score.py has put before its columns.
        rule: alpha and aggregation of Eq. 11.
        separator: Put between reasoning steps when a list of them becomes a text.
    """

    file: str
    problem: str
    response: str
    source: str | None
    score: str | None
    prefix: str
    rule: CreditRule
    separator: str

    def records(self) -> Iterator[Record]:
        """Read the file."""
        return read_table(self.file, "--input")

    def score_of(self, values: Mapping[str, Any]) -> float:
        """Score of a row, NaN where there is none."""
        if self.score is not None:
            value = values.get(self.score)
            if isinstance(value, bool) or not isinstance(value, int | float):
                return math.nan
            return float(value)
        steps, whole = values.get(f"{self.prefix}step_scores"), values.get(f"{self.prefix}traj_score")
        return eq11(steps, whole, self.rule) if steps and whole is not None else math.nan

    def source_of(self, values: Mapping[str, Any]) -> str:
        """Name of a row's source."""
        name = values.get(self.source) if self.source else Path(self.file).stem
        return "(none)" if name is None else str(name)

    def row_for_training(self, values: Mapping[str, Any], score: float) -> dict[str, Any]:
        """A row with the columns of supervised training."""
        answer = answer_of(values, self.response)
        if not isinstance(answer, str):  # pieces that still end in their separators are joined as they are
            is_exact = any(step != step.rstrip() for step in answer[:-1])
            answer = ("" if is_exact else self.separator).join(answer)
        row = {"prompt": values[self.problem], **values, SCORE_COLUMN: score}
        if self.response == "response" or not isinstance(row.get("response"), str):
            row["response"] = answer
        return row


@dataclass(frozen=True)
class Survey:
    """What selection looks at, for all rows of all files: score, problem, source."""

    scores: np.ndarray
    prompts: list[str]
    sources: list[str]


def survey(readers: Sequence[Reader]) -> Survey:
    """Read all rows once.

    Args:
        readers: The files.

    Returns:
        Scores (NaN for a row that cannot be used), problems and sources.
    """
    scores, prompts, sources = [], [], []
    for reader in readers:
        for record in reader.records():
            try:
                problem = problem_text(record.values, reader.problem)
                answer_of(record.values, reader.response)
                scores.append(reader.score_of(record.values))
            except UnusableRowError:
                problem = ""
                scores.append(math.nan)
            prompts.append(problem)
            sources.append(reader.source_of(record.values))
    return Survey(np.array(scores, dtype=np.float64), prompts, sources)


def kept_rows(readers: Sequence[Reader], found: Survey, selection: Selection) -> Iterator[dict[str, Any]]:
    """Read the files again and give the rows that were kept.

    Args:
        readers: The files.
        found: Their scores.
        selection: Which rows.

    Yields:
        Rows for training.
    """
    kept = set(selection.kept.tolist())
    records = ((reader, record) for reader in readers for record in reader.records())
    for place, (reader, record) in enumerate(records):
        if place in kept:
            yield reader.row_for_training(record.values, float(found.scores[place]))


def by_source(found: Survey, places: np.ndarray) -> dict[str, np.ndarray]:
    """Collect scores by source.

    Args:
        found: Scores and sources.
        places: Which rows; those without a score are left out.
    """
    sources = np.array(found.sources, dtype=object)[places]
    scores = found.scores[places]
    grouped = {source: scores[sources == source] for source in sorted(set(sources))}
    return {source: values[~np.isnan(values)] for source, values in grouped.items()}


def read_rule(args: argparse.Namespace) -> SelectionRule:
    """Read the limits from the command line.

    Args:
        args: Its arguments.

    Raises:
        UserError: There is no limit, or one makes no sense.
    """
    quota: dict[str, int] = {}
    default: int | None = None
    for text in args.quota:
        source, _, number = text.rpartition("=")
        if not number.isdigit():
            raise UserError.for_key("--quota", text, "must be K or SOURCE=K", "Give a number of rows")
        if source:
            quota[source] = int(number)
        else:
            default = int(number)
    if args.threshold is None and args.per_prompt is None and args.top_k is None and not args.quota:
        raise UserError("nothing limits the selection. Give --top-k, --per-prompt, --quota or --threshold.")
    try:
        return SelectionRule(args.threshold, args.per_prompt, quota, default, args.top_k)
    except ValueError as error:
        raise UserError(f"the limits make no sense: {error}. Give positive numbers.") from error


def open_reader(args: argparse.Namespace, file: str) -> Reader:
    """Find the columns of a scored file.

    Args:
        args: Command line.
        file: The file.

    Raises:
        UserError: A column is missing.
    """
    values = first_values(file, "--input")
    if args.score_column is None and f"{args.prefix}step_scores" not in values:
        has = f"{file} has no column '{args.prefix}step_scores'; it has {', '.join(map(repr, values))}"
        raise UserError(f"{has}. Give --prm to score it first, or name a column with --score-column.")
    source = next((name for name in SOURCE_COLUMNS if name in values), None)
    if args.score_column is not None:
        choose_column(values, args.score_column, (), file, "--score-column")
    return Reader(
        file=file,
        problem=choose_column(values, args.problem_column, PROBLEM_COLUMNS, file, "--problem-column"),
        response=choose_column(values, args.response_column, RESPONSE_COLUMNS, file, "--response-column"),
        source=choose_column(values, args.source_column, (), file, "--source-column") if args.source_column else source,
        score=args.score_column,
        prefix=args.prefix,
        rule=eq11_rule(args),
        separator=args.separator,
    )


def scored_inputs(args: argparse.Namespace, output: Path) -> list[str]:
    """Score the inputs where a PRM is given.

    Args:
        args: Command line.
        output: File to be written; scored files lie beside it.

    Returns:
        Scored files.
    """
    if args.prm is None:
        return list(args.input)
    files = [str(beside(output, f"scored-{number}.jsonl")) for number in range(len(args.input))]
    for file, scored in zip(args.input, files, strict=True):
        report = score_file(job_of(args, file, scored))
        print(f"{file}: {report['scored']} of {report['rows']} rows scored, {report['failed']} failed -> {scored}")
    return files


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, nargs="+", metavar="FILE", help="JSON Lines or parquet")
    parser.add_argument("--output", required=True, metavar="FILE", help="parquet (or JSON Lines)")
    limits = parser.add_argument_group("what is kept (at least one limit)")
    limits.add_argument("--top-k", type=int, metavar="K", help="the best of all")
    limits.add_argument("--per-prompt", type=int, metavar="K", help="the best of each prompt")
    limits.add_argument("--threshold", type=float, metavar="X", help="rows with at least this score")
    limits.add_argument(
        "--quota",
        action="append",
        default=[],
        metavar="[SOURCE=]K",
        help="the best of each source, or of the one named; may be given several times",
    )
    add_column_options(parser)
    parser.add_argument("--source-column", metavar="NAME", help="default: data_source or source, else the file's name")
    parser.add_argument("--score-column", metavar="NAME", help="take this number instead of Eq. 11 over step_scores")
    parser.add_argument("--prefix", default="", help="what score.py --prefix has put before its columns")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument("--batch-rows", type=int, metavar="N", help="rows per batch of scoring")
    add_eq11_options(parser)
    add_prm_options(parser, is_required=False)
    return parser


def main(args: argparse.Namespace) -> None:
    """Select, write, and say what was kept."""
    rule = read_rule(args)
    output = check_output(args.output, "--output")
    if output.exists() and not args.overwrite:
        raise UserError.for_key("--output", args.output, "this file is there already", "Give --overwrite to replace it")
    readers = [open_reader(_without_columns(args), file) for file in scored_inputs(args, output)]
    found = survey(readers)
    selection = select(found.scores, found.prompts, found.sources, rule)
    if not len(selection.kept):
        lost = ", ".join(f"{name} {count}" for name, count in selection.dropped.items())
        raise UserError(f"none of {len(found.scores)} rows is left (dropped by limit: {lost}). Loosen the limits.")
    write_table(output, lambda: kept_rows(readers, found, selection), "--output")
    every, kept = by_source(found, np.arange(len(found.scores))), by_source(found, selection.kept)
    picture = beside(output, "histogram.png")
    draw_histograms(picture, every, kept, f"{len(selection.kept)} of {len(found.scores)} rows kept")
    report = _report(args, found, selection, every, kept)
    write_json(beside(output, "report.json"), report)
    columns = ("source", "rows", "scored", "kept", "mean", "mean kept", "least kept")
    show_table(f"{output}  ({picture.name})", columns, [tuple(row.values()) for row in report["sources"]])
    dropped = ", ".join(f"{name} {count}" for name, count in selection.dropped.items())
    print(f"kept {len(selection.kept)} of {len(found.scores)}; dropped: {dropped}")


def _without_columns(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments for reading what score.py has written from a file with lists: its column is called `response`."""
    if args.prm is None or args.responses_column is None:
        return args
    return argparse.Namespace(**{**vars(args), "response_column": "response"})


def _report(
    args: argparse.Namespace,
    found: Survey,
    selection: Selection,
    every: Mapping[str, np.ndarray],
    kept: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    def mean(values: np.ndarray) -> float | None:
        return float(values.mean()) if len(values) else None

    nothing = np.zeros(0)
    return {
        "input": list(args.input),
        "output": args.output,
        "limits": {name: getattr(args, name) for name in ("threshold", "per_prompt", "quota", "top_k")},
        "score": args.score_column or {"alpha": args.alpha, "aggregation": args.aggregation},
        "prm": args.prm,
        "rows": len(found.scores),
        "kept": len(selection.kept),
        "dropped": dict(selection.dropped),
        "sources": [
            {
                "source": source,
                "rows": found.sources.count(source),
                "scored": len(scores),
                "kept": len(kept.get(source, nothing)),
                "mean": mean(scores),
                "mean_kept": mean(kept.get(source, nothing)),
                "least_kept": float(kept[source].min()) if len(kept.get(source, nothing)) else None,
            }
            for source, scores in every.items()
        ],
    }


if __name__ == "__main__":
    sys.exit(run_program(main, build_parser()))
