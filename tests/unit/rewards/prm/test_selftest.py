# SPDX-License-Identifier: Apache-2.0
"""A PRM that points the wrong way, or scores otherwise than known, is refused."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from tests.helpers.prm import TableScorer
from verl.rewards.prm.selftest import (
    SHIPPED_PROBES,
    Golden,
    PRMSelfTestError,
    Probe,
    check_golden,
    check_orientation,
    load_probes,
    self_test,
)
from verl.utils.errors import UserError

KNOWS = TableScorer({probe.right[-1]: 2.0 for probe in SHIPPED_PROBES} | {p.wrong[-1]: -2.0 for p in SHIPPED_PROBES})
REVERSED = TableScorer({text: -value for text, value in KNOWS.table.items()})


def test_shipped_probes_differ_in_the_last_step_alone():
    for probe in SHIPPED_PROBES:
        assert probe.right[:-1] == probe.wrong[:-1] and probe.right[-1] != probe.wrong[-1]


def test_a_right_pointing_prm_passes_with_its_margin():
    margin = asyncio.run(check_orientation(KNOWS))
    assert margin == pytest.approx(np.tanh(2.0), abs=1e-5)


@pytest.mark.parametrize("scorer", [REVERSED, TableScorer({})], ids=["reversed", "indifferent"])
def test_a_prm_that_does_not_prefer_right_steps_is_refused(scorer):
    with pytest.raises(PRMSelfTestError, match="scores wrong steps at least as high as right ones"):
        asyncio.run(check_orientation(scorer))


def test_golden_scores():
    scorer = TableScorer({"a": 0.0, "b": 1.0})
    right = Golden("p", ("a", "b"), (0.5, 1 / (1 + np.exp(-2))))
    assert asyncio.run(check_golden(scorer, [right])) < 1e-6
    with pytest.raises(PRMSelfTestError, match=r"came out as \[0.5, 0.8808\]"):
        asyncio.run(check_golden(scorer, [Golden("p", ("a", "b"), (0.5, 0.8))]))


def test_a_prm_brings_its_own_probes(tmp_path):
    rows = [
        {"problem": "1+1=", "right": ["1+1=2"], "wrong": ["1+1=3"]},
        {"problem": "1+1=", "steps": ["1+1=2"], "scores": [0.88], "tolerance": 0.01},
    ]
    (tmp_path / "prm_probes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    scorer = TableScorer({"1+1=2": 1.0, "1+1=3": -1.0})
    assert asyncio.run(self_test(scorer, str(tmp_path))) > 0.7
    assert {request.problem for request in scorer.requests} == {"1+1="}
    assert load_probes(tmp_path / "prm_probes.jsonl")[0] == [Probe("1+1=", ("1+1=2",), ("1+1=3",))]
    with pytest.raises(PRMSelfTestError):
        asyncio.run(self_test(scorer, str(tmp_path / "other")))  # the shipped probes say nothing to it


def test_legacy_asks_for_whole_solutions_and_tells_a_bad_margin(tmp_path, caplog):
    rows = [
        {"problem": "p", "right": ["a", "b"], "wrong": ["a", "c"]},
        {"problem": "p", "steps": ["a", "b"], "scores": [0.1, 0.2]},
    ]
    (tmp_path / "prm_probes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    scorer = TableScorer({"a|b": 1.0, "a|c": -1.0})
    assert asyncio.run(self_test(scorer, str(tmp_path), "|")) == pytest.approx(np.tanh(1.0))
    assert {request.steps for request in scorer.requests} == {("a|b",), ("a|c",)}
    assert not caplog.records
    assert asyncio.run(self_test(TableScorer({"a|c": 1.0}), str(tmp_path), "|")) < 0
    assert "at its last token" in caplog.text


@pytest.mark.parametrize(
    "line",
    [
        '{"problem": "p"}',
        "[]",
        "x",
        '{"problem": "p", "right": [], "wrong": ["x"]}',
        '{"problem": "p", "steps": ["a"], "scores": []}',
    ],
)
def test_bad_lines_are_named(tmp_path, line):
    path = tmp_path / "probes.jsonl"
    path.write_text('{"problem": "p", "right": ["a"], "wrong": ["b"]}\n\n' + line)
    with pytest.raises(UserError, match=r"probes\.jsonl:3: must be an object"):
        load_probes(path)
