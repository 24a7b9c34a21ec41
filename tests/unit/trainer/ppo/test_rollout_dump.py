# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from verl.protocol import DataProto
from verl.rewards.types import RuleVerdict, ScoredResponse
from verl.trainer.ppo.rollout_dump import dump_rollouts

TEXT = "Añ\n\nso 2"


def batch() -> DataProto:
    """A scored response of four tokens and an unscored one of two, both with a row of padding numbers."""
    return DataProto.from_dict(
        tensors={
            "response_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]),
            "token_level_scores": torch.tensor([[0.0, 0.25, 0.0, 1.5, 0.0], [0.0, -1.0, 0.0, 0.0, 0.0]]),
            "token_level_rewards": torch.tensor([[0.0, 0.25, 0.0, 1.25, 0.0], [0.0, -1.0, 0.0, 0.0, 0.0]]),
            "advantages": torch.tensor([[1.0, 2.0, 3.0, 6.0, 99.0], [-1.0, -1.0, 99.0, 99.0, 99.0]]),
            "policy_version": torch.tensor([4, 5]),
        },
        non_tensors={
            "response_text": [TEXT, "no"],
            "data_source": ["math_dapo", "gsm8k"],
            "ground_truth": ["2", "4"],
            "finish_reason": ["stop", "length"],
            "raw_prompt": [np.array([{"role": "user", "content": "1+1?"}], dtype=object), [{"role": "user"}]],
        },
    )


def scored(**changes: Any) -> list[ScoredResponse]:
    first = {
        "uid": "s-0",
        "index": 1,
        "verdict": RuleVerdict(1.0, True, "2", metrics={"format": 0.5}),
        "rule_score": 1.0,
        "step_spans": ((0, 4), (4, 8)),
        "step_ends": np.array([1, 3]),
        "step_scores": np.array([0.25, 0.75], np.float32),
        "traj_score": 0.75,
        "prm_status": "retried",
        "num_repeated_steps": 1,
        "flags": ("windowed",),
    } | changes
    verdict = RuleVerdict(0.0, False, None, "timeout", "10 s")
    return [ScoredResponse(**first), ScoredResponse("s-1", 0, verdict, -1.0, overlong_penalty=-0.5)]


def read(path: Path) -> list[dict[str, Any]]:
    def refuse(name: str) -> float:
        raise ValueError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_row_holds_the_response_with_its_steps(tmp_path: Path) -> None:
    path = dump_rollouts(tmp_path / "new" / "rollouts", 7, batch(), scored())
    assert path == tmp_path / "new" / "rollouts" / "7.jsonl"
    first, second = read(path)
    assert first == {
        "step": 7,
        "uid": "s-0",
        "index": 1,
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": "1+1?"}],
        "response": TEXT,
        "ground_truth": "2",
        "predicted": "2",
        "is_correct": True,
        "rule_status": "scored",
        "rule_detail": "",
        "rule_score": 1.0,
        "rule_metrics": {"format": 0.5},
        "overlong_penalty": 0.0,
        "prm_status": "retried",
        "traj_score": 0.75,
        "steps": [
            {"text": "Añ\n\n", "score": 0.25, "end_token": 1, "reward": 0.25, "advantage": 2.0},
            {"text": "so 2", "score": 0.75, "end_token": 3, "reward": 1.5, "advantage": 6.0},
        ],
        "num_repeated_steps": 1,
        "flags": ["windowed"],
        "finish_reason": "stop",
        "num_tokens": 4,
        "policy_version": 4,
        "reward": 1.5,
        "advantage_mean": 3.0,
    }
    assert (second["steps"], second["prm_status"], second["rule_status"]) == ([], "off", "timeout")
    assert (second["num_tokens"], second["advantage_mean"], second["overlong_penalty"]) == (2, -1.0, -0.5)
    assert "ñ" in path.read_text(encoding="utf-8")


def test_steps_of_a_response_without_prm_scores_are_shown_as_text(tmp_path: Path) -> None:
    # what the reward loop gives for a failed PRM: the spans are known, the scores are not
    nothing = np.zeros(0, dtype=np.int64)
    records = scored(prm_status="failed", step_ends=nothing, step_scores=nothing.astype(np.float32), traj_score=0.0)
    first, _ = read(dump_rollouts(tmp_path, 1, batch(), records))
    assert [step["text"] for step in first["steps"]] == ["Añ\n\n", "so 2"]
    assert {step["score"] for step in first["steps"]} == {None}
    assert {step["end_token"] for step in first["steps"]} == {None}


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    records = scored(rule_score=float("nan"), traj_score=float("inf"))
    first, _ = read(dump_rollouts(tmp_path, 1, batch(), records))
    assert first["rule_score"] is None and first["traj_score"] is None


def test_a_response_without_tokens_has_no_mean(tmp_path: Path) -> None:
    rows = batch()
    rows.batch["response_mask"][1] = 0
    _, second = read(dump_rollouts(tmp_path, 1, rows, scored()))
    assert (second["num_tokens"], second["advantage_mean"]) == (0, 0.0)


def test_steps_and_ends_that_disagree_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        dump_rollouts(tmp_path, 1, batch(), scored(step_ends=np.array([1])))


def test_half_a_character_pair_ends_no_run(tmp_path: Path) -> None:
    """A custom function may call anything the answer; UTF-8 cannot hold this, JSON can."""
    path = dump_rollouts(tmp_path, 1, batch(), scored(verdict=RuleVerdict(1.0, True, "2\ud800")))
    assert read(path)[0]["predicted"] == "2\ud800"
