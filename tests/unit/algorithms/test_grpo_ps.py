# SPDX-License-Identifier: Apache-2.0
"""GRPO with process supervision against hand-worked numbers and a loop over tokens."""

from __future__ import annotations

import dataclasses
import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl.algorithms.grpo import grpo_outcome
from verl.algorithms.grpo_ps import grpo_process
from verl.algorithms.inputs import AdvantageInputs, pad_steps


def inputs_of(steps, rules, lengths, groups, **settings) -> AdvantageInputs:
    """Build from `steps`: per response a list of (score, end)."""
    width = max([1, *lengths])
    scores, ends, mask = pad_steps(
        [np.array([score for score, _ in row], np.float32) for row in steps],
        [np.array([end for _, end in row], np.int64) for row in steps],
    )
    response_mask = torch.tensor([[int(position < length) for position in range(width)] for length in lengths])
    return AdvantageInputs(
        torch.zeros(len(steps), width),
        response_mask,
        torch.tensor(groups),
        step_scores=scores,
        step_ends=ends,
        step_mask=mask,
        rule_scores=torch.tensor(rules, dtype=torch.float32),
        **settings,
    )


def scaled_by_loop(value, members, inputs):
    if len(members) < 2:
        return 0.0
    centred = value - math.fsum(members) / len(members)
    if not inputs.norm_adv_by_std:
        return centred
    std = statistics.stdev(members)
    return centred / (std + inputs.epsilon) if std >= inputs.epsilon else 0.0


def process_by_loop(steps, rules, lengths, groups, scored, inputs) -> list[list[float]]:
    """One token at a time, Python floats only."""
    table = []
    for number, length in enumerate(lengths):
        group = [other for other in range(len(groups)) if groups[other] == groups[number]]
        beta = inputs.beta if all(scored[other] for other in group) else 0.0
        pool = [score for other in group for score, _ in steps[other]]
        outcome = scaled_by_loop(rules[number], [rules[other] for other in group], inputs)
        row = []
        for token in range(inputs.response_mask.shape[1]):
            later = sum(scaled_by_loop(score, pool, inputs) for score, end in steps[number] if end >= token)
            row.append(beta * later + (1 - beta) * outcome if token < length else 0.0)
        table.append(row)
    return table


def test_hand_worked_pair_with_ragged_steps():
    # R = {1, 3, 2}: mean 2, deviation 1, so z = -1, +1 | 0. Outcome +1 / -1: mean 0, deviation sqrt 2.
    inputs = inputs_of([[(1.0, 0), (3.0, 2)], [(2.0, 1)]], [1.0, -1.0], [4, 2], [5, 5], beta=0.5)
    advantages, returns = grpo_process(inputs)
    out = 0.5 / math.sqrt(2)
    expected = [[0.0 + out, 0.5 + out, 0.5 + out, out], [-out, -out, 0.0, 0.0]]
    assert advantages.tolist() == [pytest.approx(row, abs=2e-6) for row in expected]
    assert returns.tolist() == [[2.5, 2.0, 2.0, 0.5], [0.5, 0.5, 0.0, 0.0]]


def test_beta_one_is_the_paper_and_beta_zero_is_outcome_supervision():
    steps, rules = [[(0.2, 0), (0.9, 1)], [(0.4, 1)]], [1.0, -1.0]
    paper, _ = grpo_process(inputs_of(steps, rules, [3, 3], [0, 0], beta=1.0))
    assert paper[:, 2].tolist() == [0.0, 0.0] and paper[0, 1] > 0 > paper[1, 0]
    outcome_only = inputs_of(steps, rules, [3, 3], [0, 0], beta=0.0)
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    reference = grpo_outcome(AdvantageInputs(rewards, outcome_only.response_mask, outcome_only.group_index))[0]
    assert torch.equal(grpo_process(outcome_only)[0], reference)


def test_saturated_scores_leave_the_outcome_alone():
    steps = [[(0.9995, 0), (0.9995, 1)], [(0.9995, 1)]]
    advantages, _ = grpo_process(inputs_of(steps, [1.0, -1.0], [2, 2], [0, 0], beta=0.75))
    out = 0.25 / math.sqrt(2)
    assert advantages.tolist() == [pytest.approx([out, out], abs=1e-6), pytest.approx([-out, -out], abs=1e-6)]


def test_all_right_leaves_the_process_part_alone():
    advantages, _ = grpo_process(inputs_of([[(0.0, 0)], [(1.0, 0)]], [1.0, 1.0], [1, 1], [0, 0], beta=0.75))
    assert advantages.flatten().tolist() == pytest.approx([-0.75 / math.sqrt(2), 0.75 / math.sqrt(2)], abs=1e-5)


def test_an_empty_response_gets_its_outcome_part_only():
    steps = [[], [(0.0, 0), (1.0, 1)]]
    advantages, returns = grpo_process(inputs_of(steps, [-1.0, 1.0], [1, 2], [0, 0], beta=0.5))
    assert advantages[0].tolist() == pytest.approx([-0.5 / math.sqrt(2), 0.0], abs=1e-6)
    assert returns[0].tolist() == [-0.5, 0.0]


def test_a_lone_response_is_compared_by_its_steps_but_not_by_its_outcome():
    advantages, _ = grpo_process(inputs_of([[(0.0, 0), (2.0, 1)]], [1.0], [2], [0], beta=0.5))
    z = 1 / math.sqrt(2)
    assert advantages[0].tolist() == pytest.approx([0.0, 0.5 * z], abs=1e-6)
    lone_step, _ = grpo_process(inputs_of([[(0.7, 0)]], [1.0], [2], [0], beta=0.5))
    assert lone_step.tolist() == [[0.0, 0.0]]


def test_one_unscored_response_puts_its_whole_group_on_the_rule_alone():
    steps = [[], [(0.0, 0), (1.0, 1)], [(0.5, 0), (0.9, 1)], [(0.1, 0)]]
    rules = [1.0, -1.0, 1.0, -1.0]
    scored = torch.tensor([False, True, True, True])
    inputs = inputs_of(steps, rules, [2, 2, 2, 2], [0, 0, 1, 1], beta=0.5, is_scored=scored)
    advantages, returns = grpo_process(inputs)
    full = 1 / math.sqrt(2)
    assert advantages[:2].tolist() == [pytest.approx([full] * 2, abs=1e-6), pytest.approx([-full] * 2, abs=1e-6)]
    assert returns[:2].tolist() == [[1.0, 1.0], [-1.0, -1.0]]
    alone = inputs_of(steps[2:], rules[2:], [2, 2], [1, 1], beta=0.5)
    assert torch.allclose(advantages[2:], grpo_process(alone)[0], atol=1e-6)


def test_what_the_step_mask_hides_does_not_matter():
    inputs = inputs_of([[(0.0, 0), (1.0, 1)], [(0.5, 0)]], [1.0, -1.0], [2, 2], [0, 0])
    scores, ends = inputs.step_scores.clone(), inputs.step_ends.clone()
    scores[1, 1], ends[1, 1] = float("nan"), 77
    spoiled = dataclasses.replace(inputs, step_scores=scores, step_ends=ends)
    for found, expected in zip(grpo_process(spoiled), grpo_process(inputs), strict=True):
        assert torch.equal(found, expected)


def test_a_missing_column_is_named():
    inputs = AdvantageInputs(torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([0]))
    with pytest.raises(ValueError, match="step_scores.*rule_scores"):
        grpo_process(inputs)


@st.composite
def responses(draw):
    num_rows = draw(st.integers(1, 6))
    lengths, steps = [], []
    for _ in range(num_rows):
        length = draw(st.integers(0, 6))
        ends = sorted(draw(st.sets(st.integers(0, length - 1)))) if length else []
        score = st.sampled_from([-1.0, 0.0, 0.3, 0.9995, 1.0])
        lengths.append(length)
        steps.append([(draw(score), end) for end in ends])
    return {
        "steps": steps,
        "rules": [draw(st.sampled_from([-1.0, 1.0, 0.5])) for _ in range(num_rows)],
        "lengths": lengths,
        "groups": [draw(st.integers(0, 2)) for _ in range(num_rows)],
        "scored": [draw(st.integers(0, 5)) > 0 for _ in range(num_rows)],
    }


@given(responses(), st.booleans(), st.sampled_from([0.0, 0.75, 1.0]))
def test_equals_the_loop_over_tokens(batch, by_std, beta):
    parts = {name: batch[name] for name in ("steps", "rules", "lengths", "groups")}
    inputs = inputs_of(**parts, is_scored=torch.tensor(batch["scored"]), norm_adv_by_std=by_std, beta=beta)
    found, _ = grpo_process(inputs)
    expected = process_by_loop(**parts, scored=batch["scored"], inputs=inputs)
    assert found.tolist() == [pytest.approx(row, abs=1e-4) for row in expected]


@given(responses(), st.randoms(use_true_random=False))
def test_permuted_rows_give_permuted_advantages(batch, random):
    names = ("steps", "rules", "lengths", "groups")
    order = list(range(len(batch["rules"])))
    random.shuffle(order)
    width = max([1, *batch["lengths"]])
    straight, _ = grpo_process(inputs_of(*[batch[name] for name in names]))
    moved, _ = grpo_process(inputs_of(*[[batch[name][row] for row in order] for name in names]))
    assert straight.shape[1] == width
    assert torch.allclose(moved, straight[order], atol=1e-5)
