# SPDX-License-Identifier: Apache-2.0
"""A whole run with vLLM servers on a pool of their own, one training step ahead of the policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.tiny_run import make_assets, read_rows, run_arguments, train

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.vllm]


def test_rollout_servers_of_their_own_run_one_step_ahead(tmp_path: Path) -> None:
    assets = make_assets(tmp_path / "assets")
    done = train(
        [
            *run_arguments(assets, tmp_path),
            "actor_rollout_ref.rollout.name=vllm",
            "actor_rollout_ref.rollout.enable_resource_pool=True",
            "actor_rollout_ref.rollout.n_gpus_per_node=1",
            "actor_rollout_ref.actor.entropy_coeff=0.1",  # a random policy is always wrong: no advantage moves it
            "algorithm.adv_estimator=grpo",
            "algorithm.rollout_correction.rollout_is=token",
            "trainer.max_staleness=1",
            "trainer.total_training_steps=4",
            "trainer.val_before_train=False",
            "trainer.test_freq=2",
        ]
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "pool policy: 1 x 1 devices; pool rollout: 1 x 1 devices; 2 in all" in done.stderr
    assert "weight sync proved" in done.stderr

    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["staleness/max"] for row in rows] == [row["staleness/mean"] for row in rows] == [0, 1, 1, 1]
    assert rows[0]["rollout/log_prob_diff/max"] < 1e-4  # sampled from the weights in training
    for row in rows[1:]:
        assert row["rollout/log_prob_diff/max"] > 1e-4  # and these from those before the last update
        assert 0.5 < row["rollout/ratio/mean"] < 2.0
    for row in rows:
        assert row["actor/grad_norm"] > 0 and row["weight_sync/bytes/sum"] > 0
        assert 0.0 <= row["rollout/exposed/share"] <= 1.0
    assert all(("val/acc/mean@2" in row) == (row["step"] % 2 == 0) for row in rows)
    for step in (1, 2, 3, 4):
        responses = read_rows(tmp_path / "rollouts" / f"{step}.jsonl")
        # the sync before the first step made version 1; nobody waited for that of the step before
        assert {response["policy_version"] for response in responses} == {max(1, step - 1)}
        assert len({response["uid"] for response in responses}) == 4
