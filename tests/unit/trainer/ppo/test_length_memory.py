# SPDX-License-Identifier: Apache-2.0
"""What is expected of prompts that were and were not seen."""

from __future__ import annotations

from verl.trainer.ppo.length_memory import LengthMemory


def test_a_prompt_is_expected_to_be_as_long_as_it_was_and_a_new_one_as_all_were() -> None:
    memory = LengthMemory()
    assert memory.expected([1, 2]) == 0.0
    memory.observe([1, 2], 100.0)
    assert memory.expected([1, 2]) == 100.0
    assert memory.expected([9]) == 100.0
    memory.observe([9], 20.0)
    assert memory.expected([9]) == 20.0
    assert memory.expected([1, 2]) == 100.0
    assert memory.expected([3]) == 60.0


def test_newer_lengths_count_more() -> None:
    memory = LengthMemory()
    for length in (100.0, 200.0, 400.0):
        memory.observe([1], length)
    assert memory.expected([1]) == 275.0  # 100 -> 150 -> 275; the plain mean would be 233


def test_what_the_data_state_counts_alone() -> None:
    memory = LengthMemory()
    memory.observe([1], 100.0)
    assert memory.expected([1], stated=7) == 7.0
    assert memory.expected([2], stated=7) == 7.0
    assert memory.expected([1], stated=None) == 100.0
