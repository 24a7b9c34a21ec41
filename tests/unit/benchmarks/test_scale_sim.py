# SPDX-License-Identifier: Apache-2.0
"""The simulated cluster: its clock, its engines against sums by hand, and what the placements must give."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scale_sim import PLACEMENTS, Layout, main, parse, read_lengths, simulate
from benchmarks.simulated import SimulatedPRM, SimulatedServer, Times, log_normal_lengths, measured_lengths
from benchmarks.virtual_time import VirtualTimeLoop
from verl.rewards.prm.types import ScoreRequest
from verl.rollout.base import SamplingSettings
from verl.workers.rollout_server import GroupRequest

SMALL = ["--gpus", "16", "--per_gpu", "4", "--samples", "4", "--steps", "4"]


def on_virtual_time(work: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)


def test_the_clock_jumps() -> None:
    async def work() -> tuple[float, bool]:
        loop = asyncio.get_running_loop()
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(7200))
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 100)
        except TimeoutError:
            return loop.time(), True
        return loop.time(), False

    assert on_virtual_time(work()) == (pytest.approx(7300), True)


def test_a_deadlock_is_told() -> None:
    with pytest.raises(RuntimeError, match="stands still"):
        on_virtual_time(asyncio.Event().wait())


def decode(times: Times, lengths: list[int]) -> tuple[list[tuple[int, float]], float]:
    async def work() -> tuple[list[tuple[int, float]], float]:
        server = SimulatedServer(times, itertools.cycle(lengths))
        sampling = SamplingSettings(max_new_tokens=1000)
        request = GroupRequest(uid="g", prompt_token_ids=[], num_responses=len(lengths), sampling=sampling)
        ends = []
        async for reference in server.remote(request):
            output = await reference
            ends.append((len(output.generation.token_ids), asyncio.get_running_loop().time()))
        return ends, server.busy_s

    found: tuple[list[tuple[int, float]], float] = on_virtual_time(work())
    return found


def test_decoding_slows_down_with_company() -> None:
    # both run for 10 steps of 3 s, the longer one alone for 10 more of 2 s
    ends, busy_s = decode(Times(decode_base_s=1.0, decode_per_sequence_s=1.0), [10, 20])
    assert ends == [(10, pytest.approx(30.0)), (20, pytest.approx(50.0))] and busy_s == pytest.approx(50.0)


def test_a_full_server_lets_the_others_wait() -> None:
    ends, _ = decode(Times(decode_base_s=1.0, decode_per_sequence_s=0.0, max_running=1), [10, 5])
    assert ends == [(10, pytest.approx(10.0)), (5, pytest.approx(15.0))]


def test_a_prm_scores_one_after_the_other() -> None:
    async def work() -> float:
        replica = SimulatedPRM(Times(prm_tokens_per_s=10.0, prm_fixed_s=1.0))
        await asyncio.gather(*(replica(ScoreRequest(str(n), "", ("step",), 20)) for n in range(3)))
        return asyncio.get_running_loop().time()

    assert on_virtual_time(work()) == pytest.approx(3 * (1 + 20 / 10))


def test_lengths() -> None:
    drawn = list(itertools.islice(log_normal_lengths(1000, 0.8, 10**9), 20_000))
    assert sum(drawn) / len(drawn) == pytest.approx(1000, rel=0.03)
    assert max(itertools.islice(log_normal_lengths(1000, 0.8, 1500), 500)) == 1500
    assert set(itertools.islice(measured_lengths([5, 90], 50), 100)) == {5, 50}


def test_rollout_files_give_lengths(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text('{"num_tokens": 4}\n{"num_tokens": 7}\n')
    assert read_lengths(str(tmp_path / "*.jsonl")) == [4, 7]
    with pytest.raises(ValueError, match="no rollouts"):
        read_lengths(str(tmp_path / "*.none"))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_layout_uses_every_gpu_once(placement: str) -> None:
    layout = Layout.of(placement, 64, parse([]))
    policy = layout.rollout_gpus if placement == "colocated" else layout.rollout_gpus + layout.train_gpus
    assert policy + layout.prm_gpus == 64 and layout.rollout_gpus % layout.server_gpus == 0


def test_a_step_ahead_is_faster_than_waiting_for_each_other() -> None:
    arguments = parse([*SMALL, "--sigma", "0", "--mean", "1000", "--update_tokens_per_s", "1000"])
    split, ahead = (simulate(placement, 16, arguments) for placement in ("split", "one_step"))
    # four servers share 64 responses: a decoding step of 0.006 s and 0.00003 s for each of 16 responses
    decode_s = 1000 * (0.006 + 16 * 0.00003)
    tokens = 64 * (1000 + 256)
    train_s = tokens / 6 / 32_000 + tokens / 6 / 1000 + 2 * 1.0
    assert split["step_s"] == pytest.approx(decode_s + train_s + 2.0, rel=1e-3)
    assert ahead["step_s"] == pytest.approx(max(decode_s, train_s) + 2.0, rel=1e-3)
    assert ahead["busy"]["policy"] > split["busy"]["policy"]
    assert all(0 < share <= 1 for found in (split, ahead) for share in found["busy"].values())


def test_a_frozen_server_does_nothing() -> None:
    async def work() -> tuple[list[float], float]:
        server = SimulatedServer(Times(decode_base_s=1.0, decode_per_sequence_s=0.0), itertools.cycle([10, 20]))
        loop = asyncio.get_running_loop()
        loop.call_later(4.0, server.freeze)
        loop.call_later(104.0, server.thaw)
        request = GroupRequest(
            uid="g", prompt_token_ids=[], num_responses=2, sampling=SamplingSettings(max_new_tokens=99)
        )
        ends = []
        async for reference in server.remote(request):
            await reference
            ends.append(loop.time())
        return ends, server.busy_s

    assert on_virtual_time(work()) == ([pytest.approx(110.0), pytest.approx(120.0)], pytest.approx(20.0))


def test_keeping_responses_in_flight_helps_where_a_few_are_long() -> None:
    arguments = parse([*SMALL, "--sigma", "1.2", "--mean", "1000", "--steps", "8"])
    waits, keeps = (simulate(placement, 16, arguments) for placement in ("one_step", "keep"))
    assert keeps["step_s"] < 0.9 * waits["step_s"]
    # nobody waits for anybody: the slower side sets the pace, here the training's 2 x 1 s, its tokens and the sync
    pace = simulate("keep", 16, parse([*SMALL, "--sigma", "0", "--mean", "100", "--steps", "8"]))
    tokens = 64 * (100 + 256)
    assert pace["step_s"] == pytest.approx(tokens / 6 / 32_000 + tokens / 6 / 10_800 + 2 * 1.0 + 2.0, rel=1e-3)


def test_a_slow_prm_is_waited_for_and_a_fast_one_is_not() -> None:
    slow = simulate("colocated", 16, parse([*SMALL, "--prm_tokens_per_s", "100"]))
    fast = simulate("colocated", 16, parse([*SMALL, "--prm_tokens_per_s", "1e9"]))
    assert slow["exposed_share"] > 0.3 and fast["exposed_s"] == 0.0
    assert slow["step_s"] - fast["step_s"] == pytest.approx(slow["exposed_s"], rel=0.01)


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    assert main([*SMALL, "--out", str(out)]) == 0
    assert len(json.loads(out.read_text())["results"]) == len(PLACEMENTS) and "modelled" in capsys.readouterr().out
