# SPDX-License-Identifier: Apache-2.0
"""What the data preparation scripts share: reading rows from the hub or from files, dropping repeats, holding out a
test split, writing parquet. Bad input ends the script with one message and exit code 2.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from verl.data.rows import Row, iter_rows
from verl.utils.errors import UserError

_LOCAL = "--local_dataset_path"
_SUFFIXES = (".parquet", ".jsonl", ".json", ".ndjson")
_SHOWN_BAD_ROWS = 10
_EXIT_USER_ERROR = 2

RLRow = dict[str, Any]


class BadRowError(ValueError):
    """A row that cannot be used; its text says why."""


@dataclass
class Counts:
    """What became of the rows read."""

    read: int = 0
    repeated: int = 0
    conflicting: int = 0
    kept: int = 0


def build_row(data_source: str, prompt: str, truth: str, index: str, split: str) -> RLRow:
    """Build one row of the published schema from a problem.

    Args:
        data_source: Name that chooses the scorer.
        prompt: The user's message.
        truth: The true answer.
        index: Name of the row in its data set.
        split: `train` or `test`.

    Returns:
        The row.
    """
    return {
        "data_source": data_source,
        "prompt": [{"role": "user", "content": prompt}],
        "ability": "MATH",
        "reward_model": {"ground_truth": truth, "style": "rule"},
        "extra_info": {"index": index, "split": split},
    }


def text_field(row: Row, name: str) -> str:
    """Read a field that must be a text with something in it.

    Args:
        row: The row.
        name: The field.

    Returns:
        The text, without outer spaces.

    Raises:
        BadRowError: It is missing, empty or not a text.
    """
    value = row.values.get(name)
    if not isinstance(value, str) or not value.strip():
        raise BadRowError(f"{name!r} must be a text that is not empty")
    return value.strip()


def local_files(path: str) -> list[str]:
    """List the data files of a file or folder.

    Args:
        path: A parquet or JSONL file, or a folder of such files.

    Returns:
        Their paths, sorted.

    Raises:
        UserError: There is none.
    """
    place = Path(path).expanduser()
    if not place.is_dir():
        return [path]
    files = sorted(str(file) for file in place.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
    if not files:
        raise UserError.for_key(_LOCAL, path, "this folder holds no parquet or JSONL file", "Name another")
    return files


def stream_local(path: str) -> Iterator[Row]:
    """Read a file, or all files of a folder, row by row.

    Args:
        path: The file or folder.

    Yields:
        The rows.
    """
    for file in local_files(path):
        yield from iter_rows(file, _LOCAL)


def stream_hub(name: str, config: str | None, split: str) -> Iterator[Row]:
    """Read a data set of the Hugging Face hub row by row, without keeping it on disk.

    Args:
        name: The data set.
        config: Its configuration, None for the only one.
        split: Its split.

    Yields:
        The rows.

    Raises:
        UserError: The hub cannot be reached, or does not have it.
    """
    try:
        for number, values in enumerate(datasets.load_dataset(name, config, split=split, streaming=True), start=1):
            yield Row(values, f"{name} {split} row {number}")
    except (OSError, ValueError, RuntimeError) as error:
        detail = f"could not be read from the hub ({type(error).__name__}: {str(error)[:200]})"
        raise UserError.for_key("data set", name, detail, f"Download it and give {_LOCAL} PATH") from error


def collect(rows: Iterable[Row], convert: Callable[[Row], RLRow], limit: int | None) -> tuple[list[RLRow], Counts]:
    """Convert rows, keeping each prompt once.

    Only kept rows and one short hash per prompt stay in memory. A prompt that comes with two different truths is not
    kept at all: one of them is wrong, and nobody knows which.

    Args:
        rows: The rows.
        convert: Makes a row of the published schema; raises `BadRowError` for one that cannot be used.
        limit: Stop after so many prompts; None for all.

    Returns:
        The rows kept, in order, and the counts.

    Raises:
        UserError: A row cannot be used; the message names the first ten. Or there is no row.
    """
    counts, bad = Counts(), []
    kept: dict[bytes, RLRow] = {}
    conflicting: set[bytes] = set()
    for row in rows:
        counts.read += 1
        try:
            converted = convert(row)
        except BadRowError as error:
            bad.append(f"{row.place}: {error}")
            continue
        key = _prompt_hash(converted)
        first = kept.setdefault(key, converted)
        if first is not converted:
            counts.repeated += 1
            if first["reward_model"]["ground_truth"] != converted["reward_model"]["ground_truth"]:
                conflicting.add(key)
        if limit is not None and len(kept) - len(conflicting) >= limit:
            break
    _refuse_bad(bad, counts.read)
    result = [row for key, row in kept.items() if key not in conflicting]
    counts.conflicting, counts.kept = len(conflicting), len(result)
    return result, counts


def hold_out(rows: list[RLRow], test_size: float, seed: int) -> tuple[list[RLRow], list[RLRow]]:
    """Split rows by seed.

    Args:
        rows: The rows.
        test_size: Number of test rows; below 1 the share of all rows, at least one row.
        seed: Seed of the draw.

    Returns:
        Training and test rows, each in the order read, with `extra_info.split` set.

    Raises:
        UserError: Nothing would be left to train on, or nothing to test on.
    """
    wanted = max(1, round(test_size * len(rows))) if 0 < test_size < 1 else test_size
    if not 0 < wanted < len(rows) or wanted != int(wanted):
        allowed = f"must leave both splits at least one of {len(rows)} rows: a whole number of rows, or a share below 1"
        raise UserError.for_key("--test_size", test_size, allowed, "Change it")
    drawn = set(random.Random(seed).sample(range(len(rows)), int(wanted)))
    splits: dict[str, list[RLRow]] = {"train": [], "test": []}
    for place, row in enumerate(rows):
        split = "test" if place in drawn else "train"
        splits[split].append({**row, "extra_info": {**row["extra_info"], "split": split}})
    return splits["train"], splits["test"]


def write_parquet(rows: list[RLRow], folder: str, name: str) -> Path:
    """Write rows, replacing an older file only when the new one is whole.

    Args:
        rows: The rows.
        folder: Where; it is made.
        name: File name.

    Returns:
        The file.

    Raises:
        UserError: The folder cannot be written to.
    """
    path = Path(folder).expanduser() / name
    unfinished = path.with_suffix(".unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), unfinished)
        unfinished.replace(path)
    except OSError as error:
        raise UserError.for_key("--local_dir", folder, f"cannot be written to: {error}", "Name another") from error
    return path


def report(counts: Counts, files: dict[Path, int]) -> None:
    """Print what was read and written.

    Args:
        counts: What became of the rows.
        files: Each file written, with its number of rows.
    """
    print(f"rows read                          {counts.read}")
    print(f"repeats of a prompt, dropped       {counts.repeated}")
    print(f"prompts with two truths, dropped   {counts.conflicting}")
    for path, count in files.items():
        print(f"written                            {count} to {path}")


def run_script(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Run a script; the user's mistakes become one message and exit code 2.

    Args:
        main: Takes the parsed arguments.
        parser: Parses them.
    """
    try:
        main(parser.parse_args())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(_EXIT_USER_ERROR)


def _prompt_hash(row: RLRow) -> bytes:
    text = json.dumps([[m["role"], m["content"].strip()] for m in row["prompt"]], ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _refuse_bad(bad: list[str], num_read: int) -> None:
    if bad:
        more = f"\n  and {len(bad) - _SHOWN_BAD_ROWS} more" if len(bad) > _SHOWN_BAD_ROWS else ""
        shown = "\n  ".join(bad[:_SHOWN_BAD_ROWS])
        raise UserError(f"{len(bad)} of {num_read} rows cannot be used:\n  {shown}{more}\nMend or remove them.")
    if num_read == 0:
        raise UserError("the data set has no rows. Give another one.")
