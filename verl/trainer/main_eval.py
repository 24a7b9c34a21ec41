# SPDX-License-Identifier: Apache-2.0
"""Grading a file of responses: `python3 -m verl.trainer.main_eval data.path=responses.parquet [output=eval.json] ...`.

Reads what `main_generation` writes, or any rows with responses and a true answer (`data.response_key`,
`data.ground_truth_key`, and `data.data_source=math500` for rows that do not name their rule scorer). Prints mean@n,
pass@k (unbiased) and maj@k. All keys with their defaults are in verl/trainer/config/evaluation.yaml.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from verl.config import EvaluationConfig
from verl.config.hydra import LoadedConfig
from verl.data.row_file import write_rows
from verl.trainer.entry_point import EntryPoint, run_entry_point
from verl.trainer.evaluation import evaluate, grade, read_answered


def run_evaluation(loaded: LoadedConfig[EvaluationConfig]) -> None:
    """Read, grade, print and write.

    Args:
        loaded: A checked configuration, its files looked for.

    Raises:
        UserError: A row is not as needed, or the user's function cannot be loaded.
    """
    config = loaded.config
    graded = asyncio.run(grade(config, read_answered(config)))
    numbers = {"data": list(config.data.path)} | evaluate(graded)
    Console().print(results_table(numbers))
    if config.output:
        path = Path(config.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    if config.graded_output:
        write_rows(Path(config.graded_output), [entry.as_values() for entry in graded], "graded_output")


def results_table(numbers: Mapping[str, Any]) -> Table:
    """Lay the numbers out, a column per data source and one over all.

    Args:
        numbers: What `evaluate` gives.

    Returns:
        A rich table.
    """
    sources: dict[str, Mapping[str, float | int]] = dict(numbers["sources"])
    columns = sources if len(sources) == 1 else sources | {"overall": numbers["overall"]}
    table = Table(box=None, pad_edge=False)
    for title in ("", *columns):
        table.add_column(title, justify="right" if title else "left")
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        table.add_row(name, *(_cell(column.get(name)) for column in columns.values()))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: Command line without the program's name; None for `sys.argv`.

    Returns:
        Exit code: 0, or 2 when the user has to mend something.
    """
    return run_entry_point(EntryPoint("evaluation", EvaluationConfig, None, run_evaluation, __doc__ or ""), arguments)


def _cell(value: float | int | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4f}"


if __name__ == "__main__":
    raise SystemExit(main())
