# SPDX-License-Identifier: Apache-2.0
"""Prepares GSM8K: `python3 examples/data_preprocess/gsm8k.py --local_dir ~/data/gsm8k`."""

from __future__ import annotations

from benchmark import Benchmark, prepare
from common import BadRowError, text_field

from verl.data.rows import Row


def truth(row: Row) -> str:
    """Read the number after `####`.

    Args:
        row: A row of GSM8K.

    Returns:
        The number as written.

    Raises:
        BadRowError: The worked answer does not end that way.
    """
    _, mark, number = text_field(row, "answer").rpartition("####")
    if not mark or not number.strip():
        raise BadRowError("'answer' must end with '#### NUMBER'")
    return number.strip()


GSM8K = Benchmark(
    hub_name="openai/gsm8k",
    hub_config="main",
    splits={"train": "train", "test": "test"},
    problem="question",
    instruction='Let\'s think step by step and output the final answer after "####".',
    truth=truth,
    local_dir="~/data/gsm8k",
)

if __name__ == "__main__":
    prepare(GSM8K, __doc__)
