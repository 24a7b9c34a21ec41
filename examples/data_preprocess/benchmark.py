# SPDX-License-Identifier: Apache-2.0
"""What the small benchmark scripts (gsm8k, math500, aime24) share: a problem field, an answer field, an instruction."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from common import (
    Counts,
    RLRow,
    build_row,
    collect,
    local_files,
    report,
    run_script,
    stream_hub,
    stream_local,
    text_field,
    write_parquet,
)

from verl.data.rows import Row
from verl.utils.errors import UserError

BOXED = "Let's think step by step and output the final answer within \\boxed{}."


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Args:
        hub_name: The data set on the hub; also the rows' `data_source`.
        hub_config: Its configuration.
        splits: Name of each file written to the hub's split.
        problem: Field of the problem.
        instruction: What is asked of the model, after the problem.
        truth: Reads the true answer from a row.
        local_dir: Default folder.
    """

    hub_name: str
    hub_config: str | None
    splits: Mapping[str, str]
    problem: str
    instruction: str
    truth: Callable[[Row], str]
    local_dir: str

    def convert(self, row: Row, split: str) -> RLRow:
        """Make a row of the published schema.

        Args:
            row: A row of the benchmark.
            split: Its split.

        Returns:
            The row.

        Raises:
            BadRowError: A field is missing or empty.
        """
        prompt = f"{text_field(row, self.problem)} {self.instruction}"
        return build_row(self.hub_name, prompt, self.truth(row), row.place.rsplit("/", 1)[-1], split)


def prepare(benchmark: Benchmark, description: str) -> None:
    """Run the script of a benchmark.

    Args:
        benchmark: The benchmark.
        description: Text for `--help`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local_dir", default=benchmark.local_dir, help="folder for the files")
    parser.add_argument(
        "--local_dataset_path",
        help="a JSONL or parquet file (written as test.parquet), or a folder whose files are named after their split, "
        f"instead of {benchmark.hub_name}",
    )
    run_script(lambda arguments: _main(benchmark, arguments), parser)


def _main(benchmark: Benchmark, arguments: argparse.Namespace) -> None:
    total, files = Counts(), {}
    for split in benchmark.splits:
        source = _source(benchmark, arguments.local_dataset_path, split)
        if source is None:
            continue
        rows, counts = collect(source, lambda row, split=split: benchmark.convert(row, split), None)
        files[write_parquet(rows, arguments.local_dir, f"{split}.parquet")] = len(rows)
        total = Counts(*(getattr(total, name) + value for name, value in vars(counts).items()))
    if not files:
        allowed = f"this folder has no file named after a split ({', '.join(benchmark.splits)})"
        raise UserError.for_key("--local_dataset_path", arguments.local_dataset_path, allowed, "Rename the files")
    report(total, files)


def _source(benchmark: Benchmark, local: str | None, split: str) -> Iterator[Row] | None:
    """Rows of a split; None where the local path has none. A single file is the test split."""
    if local is None:
        return stream_hub(benchmark.hub_name, benchmark.hub_config, benchmark.splits[split])
    if not Path(local).expanduser().is_dir():
        return stream_local(local) if split == "test" else None
    paths = [file for file in local_files(local) if Path(file).stem.startswith(split)]
    return chain.from_iterable(map(stream_local, paths)) if paths else None
