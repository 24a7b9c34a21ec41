# SPDX-License-Identifier: Apache-2.0
"""Prepares DAPO-Math-17k: `python3 examples/data_preprocess/dapo_multiturn_w_tool.py --local_dir ~/data/dapo`.

Writes train.parquet and test.parquet. The hub set repeats every prompt about a hundred times; each is kept once.
"""

from __future__ import annotations

import argparse
from typing import Any

from common import BadRowError, RLRow, collect, hold_out, report, run_script, stream_hub, stream_local, write_parquet

from verl.data.rows import Row

HUB_NAME = "BytedTsinghua-SIA/DAPO-Math-17k"


def convert(row: Row) -> RLRow:
    """Check a DAPO row and add what the multi-turn tool agent reads.

    Args:
        row: A row of the data set.

    Returns:
        The row with `extra_info.need_tools_kwargs` and `extra_info.tools_kwargs`.

    Raises:
        BadRowError: A field is missing or of the wrong kind.
    """
    values = row.values
    truth = _mapping(values, "reward_model").get("ground_truth")
    if not isinstance(truth, str) or not truth.strip():
        raise BadRowError("'reward_model.ground_truth' must be a text that is not empty")
    if not isinstance(values.get("data_source"), str) or not values["data_source"]:
        raise BadRowError("'data_source' must be a text that is not empty")
    extra_info = {
        **_mapping(values, "extra_info"),
        "need_tools_kwargs": True,
        "tools_kwargs": {"code_interpreter": {"create_kwargs": {"ground_truth": truth}}},
    }
    if not extra_info.get("index"):
        extra_info["index"] = row.place
    return {
        "data_source": values["data_source"],
        "prompt": _messages(values.get("prompt")),
        "ability": values.get("ability") or "MATH",
        "reward_model": {"ground_truth": truth, "style": values["reward_model"].get("style") or "rule"},
        "extra_info": extra_info,
    }


def _mapping(values: dict[str, Any], name: str) -> dict[str, Any]:
    value = values.get(name)
    if name == "extra_info" and value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRowError(f"{name!r} must be a mapping")
    return value


def _messages(prompt: object) -> list[dict[str, str]]:
    if not isinstance(prompt, list) or not prompt:
        raise BadRowError("'prompt' must be a list of messages that is not empty")
    for message in prompt:
        texts = [message.get("role"), message.get("content")] if isinstance(message, dict) else [None]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise BadRowError("every message of 'prompt' must have a 'role' and a 'content' that are not empty")
    return [{"role": message["role"], "content": message["content"]} for message in prompt]


def main(arguments: argparse.Namespace) -> None:
    """Prepare the data set.

    Args:
        arguments: The command line.
    """
    local = arguments.local_dataset_path
    source = stream_local(local) if local else stream_hub(HUB_NAME, None, "train")
    rows, counts = collect(source, convert, arguments.limit)
    train, test = hold_out(rows, arguments.test_size, arguments.seed)
    files = {
        write_parquet(train, arguments.local_dir, "train.parquet"): len(train),
        write_parquet(test, arguments.local_dir, "test.parquet"): len(test),
    }
    report(counts, files)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local_dir", "--local_save_dir", default="~/data/dapo", help="folder for the two files")
    parser.add_argument(
        "--local_dataset_path", help=f"a JSONL or parquet file, or a folder of them, instead of {HUB_NAME}"
    )
    parser.add_argument("--test_size", type=float, default=0.02, help="test rows; below 1 a share (default: 0.02)")
    parser.add_argument("--seed", type=int, default=0, help="seed that draws the test rows (default: 0)")
    parser.add_argument("--limit", type=int, help="use only the first so many prompts")
    return parser


if __name__ == "__main__":
    run_script(main, build_parser())
