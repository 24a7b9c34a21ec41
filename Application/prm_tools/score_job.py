# SPDX-License-Identifier: Apache-2.0
"""Scoring a whole file: rows in, the same rows with scores out, and a journal in between so that no work is lost."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from prm_tools.columns import Columns, UnusableRowError, problem_and_answer, read_responses
from prm_tools.journal import Journal, fingerprint
from prm_tools.program import beside, write_json
from prm_tools.scoring import ItemScorer, PRMOptions, Scored, eq11, open_scorer
from prm_tools.tables import Record, check_fit, check_output, write_table
from verl.rewards.credit import CreditRule
from verl.utils.errors import UserError

ADDED = ("step_scores", "traj_score", "prm_score", "num_steps", "prm_flags", "prm_error")
"""Columns that scoring adds, in this order; `steps` comes on demand."""

_BATCH_ROWS = 128
_ERROR_CHARS = 300


@dataclass(frozen=True)
class ScoreJob:
    """One file to be scored.

    Args:
        input: JSON Lines or parquet.
        output: The same.
        columns: Where problem and response are.
        prm: The PRM.
        rule: alpha and aggregation of Eq. 11.
        prefix: Put before the names of the added columns.
        writes_steps: Whether the reasoning steps are written too.
        overwrite: Whether to replace what an earlier run has left.
        batch_rows: Rows per call of the PRM and per entry in the journal; None for 128 per worker.
    """

    input: str
    output: str
    columns: Columns
    prm: PRMOptions
    rule: CreditRule
    prefix: str = ""
    writes_steps: bool = False
    overwrite: bool = False
    batch_rows: int | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What step scores depend on; runs that differ in it are never mixed."""
        return {
            "input": fingerprint(self.input),
            "columns": asdict(self.columns),
            "writes_steps": self.writes_steps,
            **self.prm.that_change_scores(),
        }

    @property
    def record(self) -> dict[str, Any]:
        """What the output depends on."""
        return self.identity | {
            "alpha": self.rule.alpha,
            "aggregation": self.rule.aggregation,
            "prefix": self.prefix,
        }


def score_file(job: ScoreJob) -> dict[str, Any]:
    """Score every row of a file; goes on where an interrupted run has stopped.

    Args:
        job: What to do.

    Returns:
        The report, which is also written beside the output.

    Raises:
        UserError: Input, output or PRM are not as needed.
    """
    output = check_output(job.output, "--output")
    if output.exists() and output.samefile(Path(job.input).expanduser()):
        raise UserError.for_key("--output", job.output, "this is the input", "Name another file")
    report_file, journal_file = beside(output, "report.json"), output.with_name(f"{output.name}.journal")
    done = _finished_report(job, output, report_file, journal_file)
    if done is not None:
        return done
    total = _check_rows(job, output)
    started_s = time.monotonic()
    with Journal(journal_file, job.identity, "--output", job.overwrite) as journal:
        already = len(journal.results)
        _score_missing(job, journal, total)
        write_table(output, lambda: _output_rows(job, journal.results), "--output")
        report = _report(job, journal.results, total) | {
            "rows_of_earlier_runs": already,
            "seconds": round(time.monotonic() - started_s, 3),
        }
        write_json(report_file, report)
        journal.remove()
    return report


def _finished_report(job: ScoreJob, output: Path, report_file: Path, journal_file: Path) -> dict[str, Any] | None:
    """Return the report of an earlier run that has done just this; refuse to touch the output of any other."""
    if job.overwrite or not output.exists() or journal_file.exists():
        return None
    report = read_report(report_file)
    if report is not None and report["run"] == job.record:
        return report | {"was_complete": True}
    raise UserError.for_key(
        "--output",
        job.output,
        "this file is there already, and not from this very run",
        "Name another file, or give --overwrite to replace it",
    )


def read_report(path: Path) -> dict[str, Any] | None:
    """Read the report beside an output.

    Args:
        path: Its file.

    Returns:
        The report, None where there is none.
    """
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _check_rows(job: ScoreJob, output: Path) -> int:
    """Refuse to write over a column of the input, and rows that the output cannot hold; returns their number."""
    names = {f"{job.prefix}{name}" for name in (*ADDED, *(["steps"] if job.writes_steps else []))}
    total = 0
    for record in read_responses(job.input, "--input", job.columns):
        total += 1
        there = sorted(names & record.values.keys())
        if there:
            has = f"{record.place} already has {', '.join(there)}"
            raise UserError.for_key("--prefix", job.prefix, has, "Give another prefix")
    check_fit(output, (record.values for record in read_responses(job.input, "--input", job.columns)), "--output")
    return total


def _score_missing(job: ScoreJob, journal: Journal, total: int) -> None:
    """Score what the journal lacks."""
    faults: dict[int, dict[str, Any]] = {}
    num_left = 0
    for row, record in _rows_left(job, journal):
        try:
            problem_and_answer(record, job.columns)
            num_left += 1
        except UnusableRowError as error:
            faults[row] = _entry(Scored([], None, [], [], str(error)[:_ERROR_CHARS]), job.writes_steps)
    with ExitStack() as stack:
        scorer = stack.enter_context(open_scorer(job.prm)) if num_left else None
        journal.add(faults)  # not before the PRM is loaded: a run that never began leaves nothing behind
        if scorer is not None:
            bar = stack.enter_context(tqdm(total=total, initial=total - num_left, desc="scored", unit="row"))
            _score_rows(job, journal, scorer, bar)


def _rows_left(job: ScoreJob, journal: Journal) -> Iterator[tuple[int, Record]]:
    for row, record in enumerate(read_responses(job.input, "--input", job.columns)):
        if row not in journal.results:
            yield row, record


def _score_rows(job: ScoreJob, journal: Journal, scorer: ItemScorer, bar: tqdm) -> None:
    """Score batch by batch; a batch that is in the journal is never scored again."""
    for batch in _batches(job, journal):
        results = scorer.score([item for _, item in batch])
        journal.add({row: _entry(result, job.writes_steps) for (row, _), result in zip(batch, results, strict=True)})
        bar.update(len(batch))
        bar.set_postfix(failed=sum(1 for result in journal.results.values() if result["error"]))


def _batches(job: ScoreJob, journal: Journal) -> Iterator[list[tuple[int, Any]]]:
    size = job.batch_rows or _BATCH_ROWS * job.prm.workers
    rows = ((row, problem_and_answer(record, job.columns)) for row, record in _rows_left(job, journal))
    while batch := list(islice(rows, size)):
        yield batch


def _entry(result: Scored, writes_steps: bool) -> dict[str, Any]:
    """One row of the journal."""
    entry = asdict(result) | {"num_steps": len(result.steps)}
    return entry if writes_steps else {name: value for name, value in entry.items() if name != "steps"}


def _output_rows(job: ScoreJob, results: dict[int, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The input's rows in their order, each with its scores."""
    for row, record in enumerate(read_responses(job.input, "--input", job.columns)):
        result = results[row]
        scored = result["error"] is None
        added = {
            "step_scores": result["step_scores"],
            "traj_score": result["traj_score"],
            "prm_score": eq11(result["step_scores"], result["traj_score"], job.rule) if scored else None,
            "num_steps": result["num_steps"],
            "prm_flags": result["flags"],
            "prm_error": result["error"],
        }
        if job.writes_steps:
            added["steps"] = result["steps"]
        yield {**record.values, **{f"{job.prefix}{name}": value for name, value in added.items()}}


def _report(job: ScoreJob, results: dict[int, dict[str, Any]], total: int) -> dict[str, Any]:
    """Count what was done."""
    good = [result for result in results.values() if result["error"] is None]
    scores = [eq11(result["step_scores"], result["traj_score"], job.rule) for result in good]
    reasons = Counter(result["error"] for result in results.values() if result["error"] is not None)
    flags = Counter(flag for result in results.values() for flag in result["flags"])
    return {
        "run": job.record,
        "input": job.input,
        "output": job.output,
        "workers": job.prm.workers,
        "rows": total,
        "scored": len(good),
        "failed": total - len(good),
        "reasons": dict(reasons.most_common(20)),
        "flags": dict(flags.most_common()),
        "steps": sum(result["num_steps"] for result in good),
        "mean_score": float(np.mean(scores)) if scores else None,
        "std_score": float(np.std(scores)) if scores else None,
    }
