# SPDX-License-Identifier: Apache-2.0
"""The reward stage: scores in row order, dropped groups, ReMax's baselines, and the rewards on the tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.configs import build
from verl.protocol import DataProto, object_array
from verl.rewards.loop import ScoredBatch
from verl.rewards.types import RuleVerdict, ScoredResponse
from verl.trainer.ppo.reward_stage import RewardStage, responses_of, without_rows


def scored(uid: str, index: int, rule_score: float, steps: tuple[float, ...], traj: float) -> ScoredResponse:
    return ScoredResponse(
        uid=uid,
        index=index,
        verdict=RuleVerdict(rule_score, rule_score > 0),
        rule_score=rule_score,
        step_ends=np.arange(len(steps), dtype=np.int64) * 2,
        step_scores=np.array(steps, dtype=np.float32),
        traj_score=traj,
        prm_status="scored",
    )


RESPONSES = [scored("a", 0, 1.0, (0.5, 0.7), 0.7), scored("a", 1, -1.0, (0.1,), 0.1)]
GREEDY = scored("a", 2, 1.0, (0.9, 0.3, 0.6), 0.6)


def batch_in_order(indices: list[int]) -> DataProto:
    return DataProto.from_dict(
        tensors={"response_mask": torch.ones(len(indices), 6, dtype=torch.int64)},
        non_tensors={"uid": object_array(["a"] * len(indices)), "sample_index": object_array(indices)},
    )


def scores_of(responses: list[ScoredResponse], dropped: frozenset[str] = frozenset()) -> ScoredBatch:
    return ScoredBatch({(one.uid, one.index): one for one in responses}, dropped, {})


def test_rows_get_their_own_scores_and_their_sum_is_equation_12() -> None:
    stage = RewardStage(build("reward_model.process_reward.beta=0.75", "reward_model.process_reward.alpha=1.0"))
    batch, scores = batch_in_order([1, 0]), scores_of(RESPONSES)
    columns = stage.score_columns(batch, scores, training_step=1)
    assert columns.batch["rule_scores"].tolist() == [-1.0, 1.0]
    assert [list(row) for row in columns.non_tensor_batch["step_ends"]] == [[0], [0, 2]]
    assert responses_of(batch, scores) == [RESPONSES[1], RESPONSES[0]]

    rewards, metrics = stage.place(batch.union(columns), training_step=1)
    # 0.25 * r_out + 0.75 * (mean of the steps + s_traj)
    wanted = [0.25 * -1.0 + 0.75 * (0.1 + 0.1), 0.25 * 1.0 + 0.75 * (0.6 + 0.7)]
    assert rewards.batch["token_level_rewards"].sum(dim=1).tolist() == pytest.approx(wanted)
    assert rewards.batch["token_level_rewards"][1, 0] == pytest.approx(0.75 * 0.25)
    assert metrics == {}


def test_the_schedule_counts_training_steps_from_one() -> None:
    stage = RewardStage(build("reward_model.process_reward.beta_schedule=[[0,0.0],[10,1.0]]"))
    assert [stage.beta(step) for step in (1, 6, 11, 99)] == pytest.approx([0.0, 0.5, 1.0, 1.0])


def test_a_greedy_answer_gives_the_baseline_of_all_rows_of_its_prompt() -> None:
    stage = RewardStage(build("algorithm.adv_estimator=remax", "actor_rollout_ref.rollout.n=2"))
    columns = stage.score_columns(batch_in_order([0, 1]), scores_of([*RESPONSES, GREEDY]), training_step=1)
    assert columns.batch["reward_baselines"].tolist() == pytest.approx([0.25 + 0.75 * (0.6 + 0.6)] * 2)
    assert len(columns.batch["rule_scores"]) == 2


def test_rows_of_a_dropped_group_lose_their_tokens_and_the_others_do_not() -> None:
    stage = RewardStage(build())
    columns = stage.score_columns(batch_in_order([0, 1]), scores_of(RESPONSES, frozenset({"a"})), training_step=1)
    assert columns.batch["is_dropped"].tolist() == [True, True]
    batch = batch_in_order([0, 1])
    used = without_rows(batch, torch.tensor([True, False]))
    assert used.batch["response_mask"].sum(dim=1).tolist() == [0, 6]
    assert without_rows(batch, torch.tensor([False, False])) is batch
