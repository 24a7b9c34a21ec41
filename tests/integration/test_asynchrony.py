# SPDX-License-Identifier: Apache-2.0
"""A run with vLLM servers on a pool of their own, one training step ahead of the policy: killed, and started again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.tiny_run import make_assets, read_rows, run_arguments, saved_weights, start, train
from verl.utils.tokenizer import decode_with_starts, load_tokenizer

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.vllm]
CORRECTION = "algorithm.rollout_correction"
ROLLOUT = "actor_rollout_ref.rollout"
NUM_STEPS, STEPS_PER_EPOCH = 7, 3
REWARD = (
    "def compute_score(data_source, solution_str, ground_truth, extra_info):\n    return float(len(solution_str))\n"
)


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="module")
def arguments(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    output = tmp_path_factory.mktemp("run")
    (output / "reward.py").write_text(REWARD)  # a random policy is always wrong: no rule would move it
    return [
        *run_arguments(assets, output),
        "data.train_max_samples=12",
        f"custom_reward_function.path={output}/reward.py",
        f"{ROLLOUT}.name=vllm",
        f"{ROLLOUT}.enable_resource_pool=True",
        f"{ROLLOUT}.n_gpus_per_node=1",
        f"{ROLLOUT}.val_kwargs.do_sample=False",
        f"{ROLLOUT}.val_kwargs.n=1",
        "algorithm.adv_estimator=grpo",
        "trainer.max_staleness=1",
        f"trainer.total_training_steps={NUM_STEPS}",
        "trainer.val_before_train=False",
        "trainer.test_freq=2",
        "trainer.save_freq=2",
        f"trainer.validation_data_dir={output}/validation",
    ]


@pytest.fixture(scope="module")
def killed(arguments: list[str]) -> tuple[Path, dict[int, list[dict[str, Any]]]]:
    """The first run, killed when it has written its third step: its folder, and the responses of its steps by then."""
    output = Path(arguments[-1].partition("=")[2]).parent
    log = output / "log"
    with log.open("w") as file:
        run = start([*arguments, f"{CORRECTION}.rollout_is=token"], file)
        metrics = output / "metrics.jsonl"
        while run.poll() is None and not (metrics.is_file() and '{"step": 3,' in metrics.read_text()):
            time.sleep(0.01)
        family = psutil.Process(run.pid).children(recursive=True) if run.poll() is None else []
        family = [each for each in family if not each.name().endswith("Agent")]  # Ray's own: end a minute later
        run.kill()
    run.wait()
    said = log.read_text()
    assert family, said[-3000:]
    assert "pool policy: 1 x 1 devices; pool rollout: 1 x 1 devices; 2 in all" in said and "weight sync proved" in said
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive  # neither Ray nor an engine outlives the driver
    return output, {step: read_rows(output / "rollouts" / f"{step}.jsonl") for step in (1, 2, 3)}


def test_until_it_is_killed_it_trains_on_batches_of_the_step_before(
    killed: tuple[Path, dict[int, list[dict[str, Any]]]],
) -> None:
    output, responses = killed
    rows = read_rows(output / "metrics.jsonl")[:3]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["staleness/max"] for row in rows] == [row["staleness/mean"] for row in rows] == [0, 1, 1]
    assert rows[0]["rollout/log_prob_diff/max"] < 1e-4  # sampled from the weights in training
    for row in rows[1:]:
        assert row["rollout/log_prob_diff/max"] > 1e-4  # and these from those before the last update
        assert 0.5 < row["rollout/ratio/mean"] < 2.0
    for row in rows:
        assert row["actor/grad_norm"] > 0 and row["weight_sync/bytes/sum"] > 0
        assert 0.0 <= row["rollout/exposed/share"] <= 1.0
    assert all(("val/acc/mean@1" in row) == (row["step"] == 2) for row in rows)
    for step, said in responses.items():
        # the sync before the first step made version 1; nobody waited for that of the step before
        assert {response["policy_version"] for response in said} == {max(1, step - 1)}
        assert len({response["uid"] for response in said}) == 4


def test_started_again_it_leaves_out_no_prompt_and_keeps_the_bound(
    arguments: list[str], assets: Path, killed: tuple[Path, dict[int, list[dict[str, Any]]]]
) -> None:
    output, before = killed
    resumed_at = int((output / "checkpoints" / "latest_checkpointed_iteration.txt").read_text())
    assert resumed_at in (2, 4)  # the fourth step may have been quick enough
    num_rows = len(read_rows(output / "metrics.jsonl"))
    done = train(
        [
            *arguments,
            f"{ROLLOUT}.in_flight_update=keep",
            f"{ROLLOUT}.max_num_seqs=1",  # so slow that a sync comes in the middle of a batch
            f"{CORRECTION}.bypass_old_log_probs=True",
            f"{CORRECTION}.rollout_is=sequence",
            f"{CORRECTION}.rollout_is_threshold=5",
            f"{CORRECTION}.mask_low=0.8",
            f"{CORRECTION}.mask_high=1.25",
        ]
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"at training step {resumed_at}" in done.stderr
    rows = read_rows(output / "metrics.jsonl")[num_rows:]
    assert [row["step"] for row in rows] == list(range(resumed_at + 1, NUM_STEPS + 1))
    assert [row["staleness/max"] for row in rows] == [0, *[1] * (len(rows) - 1)]
    assert rows[0]["actor/rollout_log_prob_diff"] < 1e-5 and rows[0]["actor/rollout_masked"] == 0.0
    for row in rows[1:]:
        assert row["actor/rollout_log_prob_diff"] > 1e-4 and 0.5 < row["actor/rollout_ratio"] < 2.0
    assert 0.0 < max(row["actor/rollout_masked"] for row in rows) < 1.0
    assert all(row["actor/grad_norm"] > 0 and row["timing_s/wait_for_in_flight"] < 0.1 for row in rows)
    assert max(row["timing_s/gen"] for row in rows[1:]) > 0.03  # nobody waited for these responses before the sync

    trained = {step: prompts(read_rows(output / "rollouts" / f"{step}.jsonl")) for step in range(1, NUM_STEPS + 1)}
    assert all(trained[step] == prompts(said) for step, said in before.items())
    for epoch in (1, STEPS_PER_EPOCH + 1):
        drawn = [prompt for step in range(epoch, epoch + STEPS_PER_EPOCH) for prompt in trained[step]]
        assert len(drawn) == len(set(drawn)) == 12


def test_validation_asks_the_weights_that_are_saved_with_it(
    assets: Path, killed: tuple[Path, dict[int, list[dict[str, Any]]]]
) -> None:
    output, _ = killed
    tokenizer = load_tokenizer(str(assets / "policy_init"))
    model = AutoModelForCausalLM.from_pretrained(assets / "policy_init", dtype=torch.float32)
    said = [greedy_answers(model, tokenizer, read_rows(output / "validation" / "2.jsonl"))]
    for step in (2, 6):
        rows = read_rows(output / "validation" / f"{step}.jsonl")
        model.load_state_dict(saved_weights(output / "checkpoints" / f"global_step_{step}"))
        said.append(greedy_answers(model, tokenizer, rows))
        assert said[-1] == [row["response"] for row in rows]
    assert len({json.dumps(answers) for answers in said}) == 3  # every step says something else


def prompts(responses: list[dict[str, Any]]) -> list[str]:
    """Rows of the data that a step was trained on."""
    return sorted({response["uid"].split("-")[-1] for response in responses})


def greedy_answers(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> list[str]:
    """What transformers answers to the prompts of a validation."""
    answers = []
    for row in rows:
        ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        said = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :]
        answers.append(decode_with_starts(tokenizer, said.tolist())[0])
    return answers
