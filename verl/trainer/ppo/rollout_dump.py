# SPDX-License-Identifier: Apache-2.0
"""Rollouts as JSON lines for people and reports: steps with their scores, the verdict, the advantages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from verl.protocol import DataProto
from verl.rewards.types import ScoredResponse


def dump_rollouts(folder: Path, step: int, batch: DataProto, scored: Sequence[ScoredResponse]) -> Path:
    """Write one training step's responses.

    Args:
        folder: Created when missing.
        step: Training step; names the file.
        batch: [S] rows after stage 6.
        scored: S records in the same order.

    Returns:
        The file, `<folder>/<step>.jsonl`, one row per response.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{step}.jsonl"
    # what a custom function calls the answer may hold half a character pair: it is written as JSON's own escape
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for row, record in enumerate(scored):
            file.write(json.dumps(_row(step, batch, row, record), ensure_ascii=False) + "\n")
    return path


def _row(step: int, batch: DataProto, row: int, record: ScoredResponse) -> dict[str, Any]:
    objects, columns = batch.non_tensor_batch, batch.batch
    text = str(objects["response_text"][row])
    mask = columns["response_mask"][row].bool()
    return {
        "step": step,
        "uid": record.uid,
        "index": record.index,
        "data_source": objects["data_source"][row],
        "prompt": _plain(objects["raw_prompt"][row]),
        "response": text,
        "ground_truth": objects["ground_truth"][row],
        "predicted": record.verdict.predicted,
        "is_correct": record.verdict.is_correct,
        "rule_status": record.verdict.status,
        "rule_detail": record.verdict.detail,
        "rule_score": _number(record.rule_score),
        "rule_metrics": dict(record.verdict.metrics),
        "overlong_penalty": record.overlong_penalty,
        "prm_status": record.prm_status,
        "traj_score": _number(record.traj_score),
        "steps": _steps(text, columns["advantages"][row], columns["token_level_scores"][row], record),
        "num_repeated_steps": record.num_repeated_steps,
        "flags": list(record.flags),
        "finish_reason": objects["finish_reason"][row],
        "num_tokens": int(mask.sum()),
        "policy_version": int(columns["policy_version"][row]),
        "reward": float(columns["token_level_rewards"][row].sum()),
        "advantage_mean": float(columns["advantages"][row][mask].mean()) if bool(mask.any()) else 0.0,
    }


def _steps(text: str, advantages: torch.Tensor, scores: torch.Tensor, record: ScoredResponse) -> list[dict[str, Any]]:
    """The reasoning steps; where the PRM gave no scores (`prm_status` failed) there is their text alone."""
    texts = [text[start:end] for start, end in record.step_spans]
    if not len(record.step_ends):
        nothing = dict.fromkeys(("score", "end_token", "reward", "advantage"))
        return [{"text": piece, **nothing} for piece in texts]
    return [
        {
            "text": piece,
            "score": _number(score),
            "end_token": int(token),
            "reward": float(scores[token]),
            "advantage": float(advantages[token]),
        }
        for piece, score, token in zip(texts, record.step_scores, record.step_ends, strict=True)
    ]


def _number(value: Any) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value
