# SPDX-License-Identifier: Apache-2.0
"""Prepares AIME 2024: `python3 examples/data_preprocess/aime24.py --local_dir ~/data/aime24`."""

from __future__ import annotations

from benchmark import BOXED, Benchmark, prepare
from common import text_field

AIME24 = Benchmark(
    hub_name="HuggingFaceH4/aime_2024",
    hub_config=None,
    splits={"test": "train"},
    problem="problem",
    instruction=BOXED,
    truth=lambda row: text_field(row, "answer"),
    local_dir="~/data/aime24",
)

if __name__ == "__main__":
    prepare(AIME24, __doc__)
