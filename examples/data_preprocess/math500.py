# SPDX-License-Identifier: Apache-2.0
"""Prepares MATH-500: `python3 examples/data_preprocess/math500.py --local_dir ~/data/math500`."""

from __future__ import annotations

from benchmark import BOXED, Benchmark, prepare
from common import text_field

MATH500 = Benchmark(
    hub_name="HuggingFaceH4/MATH-500",
    hub_config=None,
    splits={"test": "test"},
    problem="problem",
    instruction=BOXED,
    truth=lambda row: text_field(row, "answer"),
    local_dir="~/data/math500",
)

if __name__ == "__main__":
    prepare(MATH500, __doc__)
