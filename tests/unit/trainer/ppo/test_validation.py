# SPDX-License-Identifier: Apache-2.0
"""Validation over servers that answer from a script and a verifier that compares texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.rollouts import FakeServer
from verl.config import ActorRolloutRefConfig, DataConfig, PPOTrainerConfig, RolloutConfig, TrainerConfig, ValKwargs
from verl.rewards.types import RewardInput, RuleVerdict
from verl.trainer.ppo.rollout_stream import RolloutStream
from verl.trainer.ppo.validation import Validator
from verl.utils.async_loop import BackgroundLoop

TRUTHS = ["2", "4", "6"]


class ExactVerifier:
    """The response is the answer; "?" cannot be judged."""

    def __init__(self) -> None:
        self.seen: list[RewardInput] = []
        self.opened: list[tuple[list[str], int]] = []

    def open_verifier(self, uids: Sequence[str], group_size: int) -> ExactVerifier:
        self.opened.append((list(uids), group_size))
        return self

    async def verify(self, item: RewardInput) -> RuleVerdict:
        self.seen.append(item)
        if item.response == "?":
            return RuleVerdict(0.0, False, None, "timeout", "too long")
        return RuleVerdict(1.0, item.response == item.ground_truth, item.response)


def batches() -> list[dict[str, Any]]:
    """Two batches of a loader: two prompts and one."""
    rows = [
        {
            "prompt_token_ids": [5, number],
            "raw_prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"p{number}"}],
            "data_source": "math" if number < 2 else "gsm8k",
            "ground_truth": truth,
            "extra_info": {},
            "index": number,
        }
        for number, truth in enumerate(TRUTHS)
    ]
    return [{key: [row[key] for row in part] for key in rows[0]} for part in (rows[:2], rows[2:])]


def answer(request: Any, index: int) -> str:
    """Prompt 0 is answered right, prompt 1 right in the second response only, prompt 2 not at all."""
    return {0: ["2", "2"], 1: ["5", "4"], 2: ["?", "8"]}[request.prompt_token_ids[1]][index]


@pytest.fixture
def loop() -> Iterator[BackgroundLoop]:
    loop = BackgroundLoop("test")
    yield loop
    loop.close()


def config(val: ValKwargs, **trainer: Any) -> PPOTrainerConfig:
    return PPOTrainerConfig(
        data=DataConfig(max_response_length=16),
        actor_rollout_ref=ActorRolloutRefConfig(rollout=RolloutConfig(temperature=1.0, val_kwargs=val)),
        trainer=TrainerConfig(seed=11, **trainer),
    )


def validator(settings: PPOTrainerConfig, loop: BackgroundLoop, server: FakeServer) -> Validator:
    return Validator(settings, loop, RolloutStream([server], 30.0), ExactVerifier())


SAMPLED = ValKwargs(n=2, do_sample=True, temperature=0.6, top_p=0.9, top_k=20)


def test_metrics_over_all_batches(loop: BackgroundLoop) -> None:
    metrics = validator(config(SAMPLED), loop, FakeServer(answer)).run(batches(), step=3, pad_token_id=0)
    assert metrics == {
        "val/math/acc/mean@2": 0.75,
        "val/math/acc/maj@2": 0.5,
        "val/math/acc/pass@2": 1.0,
        "val/gsm8k/acc/mean@2": 0.0,
        "val/gsm8k/acc/maj@2": 0.0,
        "val/gsm8k/acc/pass@2": 0.0,
        "val/acc/mean@2": 0.5,
        "val/acc/maj@2": pytest.approx(1 / 3),
        "val/acc/pass@2": pytest.approx(2 / 3),
        "val/response_length/mean": 2.0,
        "val/unjudged/share": pytest.approx(1 / 6),
    }


def test_a_batch_is_judged_as_the_manager_asks(loop: BackgroundLoop) -> None:
    verifier = ExactVerifier()
    Validator(config(SAMPLED), loop, RolloutStream([FakeServer(answer)], 30.0), verifier).run(batches(), 3, 0)
    expected = {(one.uid, one.index) for one in verifier.seen}
    assert {(uid, n) for uids, size in verifier.opened for uid in uids for n in range(size)} == expected
    assert [(len(uids), size) for uids, size in verifier.opened] == [(2, 2), (1, 2)]


def test_sampling_follows_val_kwargs_with_the_same_seeds_every_time(loop: BackgroundLoop) -> None:
    server = FakeServer(answer)
    chosen = validator(config(SAMPLED), loop, server)
    chosen.run(batches(), step=0, pad_token_id=0)
    first = [request.sampling for request in server.requests]
    assert [(s.temperature, s.top_p, s.top_k, s.max_new_tokens) for s in first] == [(0.6, 0.9, 20, 16)] * 3
    assert [s.seed for s in first] == [11, 13, 11]
    chosen.run(batches(), step=5, pad_token_id=0)
    assert [request.sampling for request in server.requests[3:]] == first


def test_without_do_sample_there_is_one_greedy_answer(loop: BackgroundLoop) -> None:
    server = FakeServer(answer)
    metrics = validator(config(ValKwargs(n=4, temperature=0.6)), loop, server).run(batches(), 0, 0)
    assert {(r.num_responses, r.sampling.temperature, r.sampling.seed) for r in server.requests} == {(1, 0.0, None)}
    assert metrics["val/acc/mean@1"] == pytest.approx(1 / 3)


def test_answers_are_dumped_and_kept_as_examples(loop: BackgroundLoop, tmp_path: Path) -> None:
    chosen = validator(config(SAMPLED, validation_data_dir=str(tmp_path / "val")), loop, FakeServer(answer))
    chosen.run(batches(), step=20, pad_token_id=0)
    rows = [json.loads(line) for line in (tmp_path / "val" / "20.jsonl").read_text().splitlines()]
    assert [(row["prompt"][-1]["content"], row["response"], row["is_correct"]) for row in rows] == chosen.examples
    assert chosen.examples[2:4] == [("p1", "5", False), ("p1", "4", True)]
    assert {key: rows[3][key] for key in ("index", "data_source", "ground_truth", "predicted", "num_tokens")} == {
        "index": 1,
        "data_source": "math",
        "ground_truth": "4",
        "predicted": "4",
        "num_tokens": 2,
    }
    assert len({(row["uid"], row["index"]) for row in rows}) == 6


def test_no_prompts_give_no_metrics(loop: BackgroundLoop) -> None:
    assert validator(config(SAMPLED), loop, FakeServer(answer)).run([], 0, 0) == {}
