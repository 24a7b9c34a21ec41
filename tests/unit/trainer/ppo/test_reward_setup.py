# SPDX-License-Identifier: Apache-2.0
"""From the reward keys to a working loop, with PRM servers that look like actor handles and a fake verifier."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayActorError

from tests.helpers.configs import WITH_PRM, load
from tests.helpers.prm import TableScorer, save_tiny_prm
from tests.helpers.tiny_models import save_tiny_model
from verl.config import PPOTrainerConfig
from verl.rewards.prm.selftest import PROBES_FILE, PRMSelfTestError
from verl.rewards.prm.spec import PRMSpec
from verl.rewards.prm.types import ScoreRequest, StepLogits
from verl.rewards.rule_pool import RuleVerifierPool
from verl.rewards.types import RewardInput, RuleVerdict, ScoredResponse
from verl.trainer.ppo.reward_setup import build_reward_loop, check_reward_model, custom_function, prm_spec
from verl.utils.errors import UserError

PROCESS = "reward_model.process_reward"
TABLE = {"good": 2.0, "bad": -2.0}


def sigmoid(x: float) -> float:
    return 1 / (1 + float(np.exp(-x)))


class EngineDeadError(RuntimeError):
    """Has the name of vLLM's error; Ray hands it on under that name."""


class FakePrmServer:
    """An actor handle of `ProcessRewardServer`; from the moment `error` is set every call raises it."""

    def __init__(self, table: dict[str, float]) -> None:
        self.scorer = TableScorer(table)
        self.error: Exception | None = None
        self.calls = 0

    @property
    def score(self) -> FakePrmServer:
        """The remote method."""
        return self

    def remote(self, request: ScoreRequest) -> Awaitable[StepLogits]:
        return self._answer(request)

    async def _answer(self, request: ScoreRequest) -> StepLogits:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return await self.scorer(request)


class Verifier:
    """Right if the response ends with the ground truth; its number is unlike any `rule_range`."""

    async def verify(self, reward_input: RewardInput) -> RuleVerdict:
        return RuleVerdict(0.375, reward_input.response.endswith(reward_input.ground_truth))


def item(response: str, index: int = 0) -> RewardInput:
    starts = np.arange(len(response), dtype=np.int64)
    return RewardInput(
        "g", index, "t", [{"role": "user", "content": "2+2?"}], response, starts, len(response), False, "4"
    )


@pytest.fixture
def prm_folder(tmp_path: Path) -> Path:
    """A PRM's folder with one probe that the table can tell apart."""
    (tmp_path / PROBES_FILE).write_text(json.dumps({"problem": "p", "right": ["good"], "wrong": ["bad"]}))
    return tmp_path


def with_prm(folder: Path, *overrides: str) -> PPOTrainerConfig:
    return load(*WITH_PRM, f"reward_model.model.path={folder}", *overrides).config


async def score(
    config: PPOTrainerConfig, servers: list[FakePrmServer], response: str, broken: Exception | None = None
) -> ScoredResponse:
    """Build the loop and score one response; the first server breaks in between."""
    reward_loop = await build_reward_loop(config, Verifier(), servers)
    if broken is not None:
        servers[0].error = broken
    scoring = reward_loop.open_batch(["g"], 1)
    scoring.submit(item(response))
    return (await scoring.finish()).by_response["g", 0]


def test_prm_spec_takes_every_key() -> None:
    config = load(
        *WITH_PRM,
        "data.max_prompt_length=100",
        "data.max_response_length=300",
        "reward_model.max_length=2000",
        "reward_model.dtype=float16",
        "reward_model.gpu_memory_utilization=0.6",
        "reward_model.cpu_kvcache_gib=0.5",
        "reward_model.max_num_batched_tokens=4096",
        "reward_model.max_num_seqs=32",
        "reward_model.enforce_eager=True",
        "reward_model.engine_kwargs={block_size: 32}",
        "reward_model.tensor_model_parallel_size=2",
        f"{PROCESS}.adapter=qwen_math_prm",
        f"{PROCESS}.mode=scalar",
        f"{PROCESS}.step_separator=;",
        f"{PROCESS}.overlong=extend",
    ).config
    common: dict[str, Any] = {
        "path": "org/prm",
        "adapter": "qwen_math_prm",
        "mode": "scalar",
        "separator": ";",
        "overlong": "extend",
        "max_length": 2000,
        "longest_input": 800,
        "dtype": "float16",
        "tensor_parallel_size": 2,
        "gpu_memory_utilization": 0.6,
        "max_num_batched_tokens": 4096,
        "max_num_seqs": 32,
        "enforce_eager": True,
        "engine_kwargs": {"block_size": 32},
    }
    assert prm_spec(config, "cuda") == PRMSpec(**common, device="cuda", kv_cache_bytes=None)
    assert prm_spec(config, "cpu") == PRMSpec(**common, device="cpu", kv_cache_bytes=1 << 29)
    beside = ("enable_resource_pool=False", "n_gpus_per_node=0", "gpu_memory_utilization=0.3")
    config = load(*WITH_PRM, *(f"reward_model.{setting}" for setting in beside)).config
    assert prm_spec(config, "cuda").enable_sleep_mode and not prm_spec(config, "cpu").enable_sleep_mode


def test_without_a_prm_the_rule_decides_alone() -> None:
    scored = asyncio.run(score(load(f"{PROCESS}.rule_range=[-0.5, 2.0]").config, [], "good 4"))
    assert (scored.rule_score, scored.prm_status, len(scored.step_scores)) == (2.0, "off", 0)
    scored = asyncio.run(score(load(f"{PROCESS}.rule_range=[-0.5, 2.0]").config, [], "good 5"))
    assert scored.rule_score == -0.5


def test_the_number_of_a_custom_function_is_kept() -> None:
    scored = asyncio.run(score(load("custom_reward_function.path=mine.py").config, [], "good 4"))
    assert scored.rule_score == 0.375


def test_steps_are_cut_scored_and_mapped_as_configured(prm_folder: Path) -> None:
    config = with_prm(prm_folder, f"{PROCESS}.step_separator=;", f"{PROCESS}.score_space=signed")
    server = FakePrmServer({"good;": 2.0, "bad": -2.0, "good": 2.0})
    scored = asyncio.run(score(config, [server], "good;bad"))
    assert server.scorer.requests[-1].steps == ("good;", "bad")
    assert scored.step_scores.tolist() == pytest.approx([2 * sigmoid(4) - 1, 2 * sigmoid(-4) - 1])
    assert scored.step_ends.tolist() == [4, 7]
    assert scored.prm_status == "scored"


def test_legacy_shows_the_prm_one_step(prm_folder: Path) -> None:
    (prm_folder / PROBES_FILE).write_text(json.dumps({"problem": "p", "right": ["a", "b"], "wrong": ["a", "c"]}))
    server = FakePrmServer(TABLE)
    asyncio.run(score(with_prm(prm_folder, f"{PROCESS}.mode=legacy"), [server], "good\n\nbad"))
    assert [request.steps for request in server.scorer.requests] == [("a\n\nb",), ("a\n\nc",), ("good\n\nbad",)]


def test_short_pieces_join_as_configured(prm_folder: Path) -> None:
    server = FakePrmServer(TABLE)
    asyncio.run(score(with_prm(prm_folder, f"{PROCESS}.min_step_chars=4"), [server], "good\n\nso\n\nbad!"))
    assert len(server.scorer.requests[-1].steps) == 2


@pytest.mark.parametrize("error", [RayActorError(), EngineDeadError("engine core died")], ids=["actor", "engine"])
def test_a_dead_replica_is_asked_no_more_and_another_takes_over(prm_folder: Path, error: Exception) -> None:
    servers = [FakePrmServer(TABLE), FakePrmServer(TABLE)]

    async def run() -> list[str]:
        reward_loop = await build_reward_loop(with_prm(prm_folder), Verifier(), servers)
        servers[0].error, servers[0].calls = error, 0
        scoring = reward_loop.open_batch(["g"], 6)
        for index in range(6):
            scoring.submit(item("good", index))
            await asyncio.sleep(0.01)  # one after the other: the first failure must be enough
        scored = (await scoring.finish()).by_response
        return [scored["g", index].prm_status for index in range(6)]

    assert asyncio.run(run()) == ["retried", *["scored"] * 5]
    assert servers[0].calls == 1


def test_a_failed_request_is_tried_as_often_as_configured(prm_folder: Path) -> None:
    server = FakePrmServer(TABLE)
    config = with_prm(prm_folder, "reward_model.max_retries=3", f"{PROCESS}.on_error=rule_only")
    scored = asyncio.run(score(config, [server], "good 4", broken=ConnectionError("busy")))
    assert (scored.prm_status, scored.rule_score) == ("failed", 1.0)
    assert server.calls == 2 + 1 + 3  # two of the self-test


@pytest.mark.parametrize(("entries", "calls", "share"), [(8, 2, 0.5), (0, 4, None)], ids=["cache", "off"])
def test_identical_responses_are_scored_once_where_a_cache_is_configured(
    prm_folder: Path, entries: int, calls: int, share: float | None
) -> None:
    server = FakePrmServer(TABLE)

    async def run() -> dict[str, float]:
        config = with_prm(prm_folder, f"reward_model.score_cache_entries={entries}")
        reward_loop = await build_reward_loop(config, Verifier(), [server])
        server.calls = 0
        scoring = reward_loop.open_batch(["g"], 4)
        for index, response in enumerate(("good 4", "bad 4", "good 4", "bad 4")):
            scoring.submit(item(response, index))
        return dict((await scoring.finish()).metrics)

    metrics = asyncio.run(run())
    assert server.calls == calls
    assert metrics.get("prm/cache_hits/share") == share
    assert metrics["prm/retries/count"] == 0.0


def test_a_prm_that_prefers_wrong_steps_is_refused_before_the_first_rollout(prm_folder: Path) -> None:
    backwards = FakePrmServer({"good": -2.0, "bad": 2.0})
    with pytest.raises(PRMSelfTestError, match=r"reward_model\.model\.path"):
        asyncio.run(build_reward_loop(with_prm(prm_folder), Verifier(), [backwards]))


def test_the_length_penalty_follows_the_buffer() -> None:
    config = load(
        "data.max_response_length=10",
        "reward_model.reward_manager=dapo",
        "reward_model.overlong_buffer.enable=True",
        "reward_model.overlong_buffer.len=4",
        "reward_model.overlong_buffer.penalty_factor=2.0",
    ).config
    # nine tokens: three of the four of the buffer, so 3/4 of 2
    assert asyncio.run(score(config, [], "xxxxxxxx4")).overlong_penalty == -1.5
    assert asyncio.run(score(config, [], "xxxxx4")).overlong_penalty == 0.0


# ---- the user's own function ----

ONE = "def compute_score(data_source, solution_str, ground_truth, extra_info): return 1\n"
STEPS = (
    "def compute_score(data_source, solution_str, ground_truth, extra_info):\n"
    "    return {'score': 0.5, 'step_scores': [len(step) for step in extra_info['reasoning_steps']]}\n"
)


def test_the_function_is_checked_as_its_manager_calls_it(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(ONE)
    one = f"custom_reward_function.path={tmp_path / 'one.py'}"
    spec = custom_function(load(one).config)
    assert spec is not None and not spec.takes_batch
    with pytest.raises(UserError, match="must take .data_sources"):
        custom_function(load(one, "reward_model.reward_manager=batch").config)
    (tmp_path / "many.py").write_text("def compute_score(data_sources, **rest): return [1] * len(data_sources)\n")
    many = load(f"custom_reward_function.path={tmp_path / 'many.py'}", "reward_model.reward_manager=batch")
    spec = custom_function(many.config)
    assert spec is not None and spec.takes_batch
    assert custom_function(load().config) is None


def test_a_function_gives_step_scores_without_any_prm(tmp_path: Path) -> None:
    """The whole way: configuration, worker process, loop."""
    (tmp_path / "steps.py").write_text(STEPS)
    config = load(
        f"custom_reward_function.path={tmp_path / 'steps.py'}",
        "reward_model.reward_manager=process",
        "algorithm.adv_estimator=grpo_ps",
    ).config

    async def run() -> ScoredResponse:
        async with RuleVerifierPool(1, 30.0, custom_function(config)) as pool:
            scoring = (await build_reward_loop(config, pool, [])).open_batch(["g"], 1)
            scoring.submit(item("first\n\nand 4"))
            return (await scoring.finish()).by_response["g", 0]

    scored = asyncio.run(run())
    assert (scored.step_scores.tolist(), scored.step_ends.tolist()) == ([7.0, 5.0], [6, 11])
    assert (scored.prm_status, scored.rule_score) == ("scored", 0.5)


# ---- the PRM's files, before Ray starts ----


def test_no_prm_no_check() -> None:
    check_reward_model(load("reward_model.model.path=/nowhere/at/all").config)


def test_a_policy_is_no_prm(tmp_path: Path) -> None:
    save_tiny_prm(tmp_path / "prm")
    policy = tmp_path / "policy"
    save_tiny_model(policy)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (policy / name).write_bytes((tmp_path / "prm" / name).read_bytes())
    with pytest.raises(UserError, match=r"reward_model.process_reward.adapter.*plain language model"):
        check_reward_model(with_prm(policy))


def test_a_prm_passes_and_its_adapter_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_tiny_prm(tmp_path / "prm")
    with caplog.at_level(logging.INFO):
        check_reward_model(with_prm(folder, "data.max_prompt_length=512", "data.max_response_length=1000"))
    assert "adapter" in caplog.text
    assert "context is 1024" in caplog.text  # longer inputs are scored in windows, and that is said
