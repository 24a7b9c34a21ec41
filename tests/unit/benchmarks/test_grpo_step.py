# SPDX-License-Identifier: Apache-2.0
"""The comparison with TRL: names of runs, commands that both sides accept, rates and ratios from their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.grpo_sides import (
    PEERS,
    Run,
    Step,
    Work,
    read_trl,
    read_verl,
    trl_command,
    trl_settings,
    verl_command,
)
from benchmarks.grpo_step import compare, parse, show, summarise
from benchmarks.peers.digit_reward import compute_score
from benchmarks.record import describe_run
from tests.helpers.configs import load

WORK = Work("org/policy", "prompts.jsonl", 4, 2, 16, 24, equal=True, steps=3)


def test_a_run_is_read_from_its_name() -> None:
    run = Run.parse("trl:bfloat16:2x1")
    assert run == Run("trl", "bfloat16", 2, 1) and Run.parse(run.name) == run
    assert [each.side for each in parse([]).runs] == ["verl", "verl", "trl", "trl", "trl"]


@pytest.mark.parametrize(
    "name", ["trl:float32", "trl:float32:0x1", "ours:float32:1x1", "verl:float32:1x2", "trl:f:axb"]
)
def test_a_name_that_is_no_run_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=name):
        Run.parse(name)
    with pytest.raises(SystemExit):
        parse(["--runs", name])
    assert name in capsys.readouterr().err


def test_our_trainer_accepts_the_command() -> None:
    call = verl_command(WORK, Run("verl", "bfloat16", 2, 1), Path("out"), ["data.seed=5"])
    config = load(*call[3:], required=()).config
    rollout, actor = config.actor_rollout_ref.rollout, config.actor_rollout_ref.actor
    assert (config.data.train_batch_size, rollout.n, config.data.max_response_length) == (4, 2, 24)
    assert rollout.ignore_eos and rollout.dtype == "bfloat16"
    assert actor.fsdp_config.mixed_precision.param_dtype == "bfloat16"
    assert config.trainer.num_devices == 2 and config.data.seed == 5 and not config.needs_reference


def test_more_than_one_process_of_trl_is_launched_by_torch(tmp_path: Path) -> None:
    one = trl_command(Path("py"), Run("trl", "float32", 1, 2), tmp_path)
    two = trl_command(Path("py"), Run("trl", "float32", 2, 1), tmp_path)
    assert one[:2] == ["py", str(PEERS / "trl_grpo.py")] and "--nproc_per_node=2" in two
    assert trl_settings(WORK, Run("trl", "float32", 1, 2), tmp_path)["threads"] == 2


def test_steps_of_both_sides_are_read(tmp_path: Path) -> None:
    ours = {"step": 1, "timing_s/step": 2.0, "perf/samples_per_s": 4.0, "response/length/mean": 10.0}
    stages = ("gen", "old_log_prob", "wait_for_scores", "adv", "update_actor", "update_weights")
    ours |= {f"timing_s/{name}": 0.25 for name in stages}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(ours) + "\n")
    assert read_verl(tmp_path / "metrics.jsonl")[0].tokens == 80.0
    row = {"step_s": 4.0, "generation_s": 1.0, "tokens": 80, "responses": 8}
    (tmp_path / "steps.json").write_text(json.dumps({"versions": {"trl": "1.16.0"}, "steps": [row]}))
    steps, versions = read_trl(tmp_path / "steps.json")
    assert steps == [Step(4.0, 8, 80, {"rollout": 1.0, "everything else": 3.0})] and versions == {"trl": "1.16.0"}


def test_rates_leave_the_first_steps_out() -> None:
    steps = [
        Step(100.0, 8, 80, {"rollout": 90.0}),
        Step(1.0, 8, 80, {"rollout": 0.5}),
        Step(3.0, 8, 40, {"rollout": 2}),
    ]
    found = summarise(steps, skip=1)
    assert (found["samples_per_s"], found["tokens_per_s"], found["tokens_per_response"]) == (4.0, 30.0, 7.5)
    assert found["step_s"] == 2.0 and found["stages_s"] == {"rollout": 1.25}
    with pytest.raises(ValueError, match="first 3 do not count"):
        summarise(steps, skip=3)


def test_the_best_spread_of_each_side_is_compared() -> None:
    rates = {"verl:float32:2x1": 30.0, "verl:bfloat16:2x1": 60.0, "trl:float32:1x1": 5.0, "trl:float32:2x1": 10.0}
    results = {name: {"tokens_per_s": rate} for name, rate in rates.items()}
    assert compare(results) == {"float32": 3.0, "best": 6.0}


def test_a_result_is_laid_out() -> None:
    found = summarise([Step(2.0, 8, 80, {"rollout": 0.5})], skip=0)
    work = {"prompts": 4, "samples": 2, "max_prompt": 16, "max_response": 24}
    result = describe_run("grpo_step", {"lengths": "equal", "shape": "tiny"}) | {"work": work}
    shown = show(result | {"results": {"verl:float32:1x1": found}, "ratios": {"best": 3.0}})
    assert (
        "rollout 0.500 s (25%)" in shown and "verl / TRL, best: 3.00x" in shown and "| 40 |" in shown.replace("  ", "")
    )


def test_the_reward_is_the_share_of_digits() -> None:
    assert compute_score("", "a1b2", "") == 0.5 and compute_score("", "", "") == 0.0
