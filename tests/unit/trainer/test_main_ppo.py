# SPDX-License-Identifier: Apache-2.0
"""The entry point up to the border of Ray: what the user got wrong is said in one message, exit code 2."""

from __future__ import annotations

import faulthandler
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.helpers.configs import load
from tests.helpers.prm import save_tiny_prm
from tests.helpers.tiny_models import VOCAB_SIZE, tiny_model
from tests.helpers.tokenizers import byte_tokenizer
from verl.trainer.main_ppo import main, total_training_steps

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """No test starts Ray (another module's may run); `main` sets fault handler and signal, both are put back."""
    was_running, handler = ray.is_initialized(), signal.getsignal(signal.SIGTERM)
    yield
    assert ray.is_initialized() == was_running
    faulthandler.enable(sys.__stderr__)
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with a byte tokenizer, and three rows of data."""
    folder = tmp_path_factory.mktemp("files")
    tokenizer = byte_tokenizer()
    tiny_model(vocab_size=max(VOCAB_SIZE, len(tokenizer))).save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    rows = [
        {
            "data_source": "math_dapo",
            "prompt": [{"role": "user", "content": f"{n}+1?"}],
            "reward_model": {"style": "rule", "ground_truth": str(n + 1)},
            "extra_info": {"index": n},
        }
        for n in range(3)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def arguments(files: Path, *overrides: str) -> list[str]:
    """A run of two prompts a step on one CPU rank that has everything it needs; a later override wins."""
    return [
        f"data.train_files={files / 'train.jsonl'}",
        f"actor_rollout_ref.model.path={files / 'policy'}",
        "data.train_batch_size=2",
        "data.max_prompt_length=64",
        "data.max_response_length=32",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "actor_rollout_ref.rollout.n=2",
        "trainer.device=cpu",
        "trainer.n_gpus_per_node=1",
        "trainer.val_before_train=False",
        *overrides,
    ]


def refusal(capfd: pytest.CaptureFixture[str], *line: str) -> str:
    """Run `main`, which must refuse; returns what it said."""
    assert main(line) == 2
    said = capfd.readouterr().err.strip()
    assert said
    assert "Traceback" not in said
    return said


def test_a_typo_in_a_key_is_answered_with_the_nearest_key(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = refusal(capfd, *arguments(files, "data.trian_batch_size=4"))
    assert "data.trian_batch_size" in said and "data.train_batch_size" in said
    assert len(said.splitlines()) == 1


def test_all_mistakes_are_said_at_once(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = refusal(capfd, *arguments(files, "data.train_batch_size=-1", "trainer.device=tpu", "no.such.key=1"))
    for key in ("data.train_batch_size", "trainer.device", "no.such.key"):
        assert key in said


def test_an_option_with_dashes_is_answered_with_how_to_write_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert "data.seed=3" in refusal(capfd, "--data.seed=3")


def test_a_missing_data_file(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = refusal(capfd, *arguments(files, f"data.train_files={files / 'trian.jsonl'}"))
    assert "data.train_files" in said and "trian.jsonl" in said
    assert str(files / "train.jsonl") in said  # the nearest name there is


def test_a_missing_policy(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = refusal(capfd, *arguments(files, f"actor_rollout_ref.model.path={files / 'nothing'}"))
    assert "actor_rollout_ref.model.path" in said and "nothing" in said


def prm_overrides(path: Path) -> tuple[str, ...]:
    pool = ("reward_model.enable_resource_pool=True", "reward_model.n_gpus_per_node=1")
    return ("reward_model.enable=True", f"reward_model.model.path={path}", *pool)


def test_a_missing_prm(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "reward_model.model.path" in refusal(capfd, *arguments(files, *prm_overrides(files / "nothing")))


def test_a_policy_given_as_prm(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = refusal(capfd, *arguments(files, *prm_overrides(files / "policy")))
    assert "reward_model.process_reward.adapter" in said and "Qwen2ForCausalLM" in said


def test_a_prm_without_its_head(files: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # the weights of a policy under the config of a PRM: the architecture is right, the head is not there
    folder = save_tiny_prm(tmp_path / "prm")
    (folder / "model.safetensors").write_bytes((files / "policy" / "model.safetensors").read_bytes())
    said = refusal(capfd, *arguments(files, *prm_overrides(folder)))
    assert "reward_model.model.path" in said and "score" in said


@pytest.mark.parametrize("text", [None, "def other():\n    pass\n", "def compute_score(:\n"], ids=str)
def test_a_reward_function_that_is_not_there(
    text: str | None, files: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "reward.py"
    if text is not None:
        path.write_text(text)
    assert "custom_reward_function" in refusal(capfd, *arguments(files, f"custom_reward_function.path={path}"))


def test_too_few_rows_for_one_batch(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    four = ("data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=4")
    said = refusal(capfd, *arguments(files, *four))
    assert "data.train_batch_size" in said and "3" in said


def test_rows_without_the_prompt_column(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = refusal(capfd, *arguments(files, "data.prompt_key=question"))
    assert "'question'" in said and "train.jsonl" in said


def test_a_dry_run_prints_the_plan_and_needs_no_files(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    pool = ("reward_model.enable_resource_pool=True", "reward_model.n_gpus_per_node=3")
    prm = ("reward_model.enable=True", "reward_model.model.path=org/prm", *pool)
    assert main([*arguments(absent, "trainer.n_gpus_per_node=2", *prm), "trainer.dry_run=True"]) == 0
    plan = capfd.readouterr().out
    assert "Plan of the run" in plan
    for part in ("2 prompts", "data-parallel ranks", "pool policy: 1 x 2", "pool prm: 1 x 3", "5 in all"):
        assert part in plan
    assert not absent.exists()


def test_help_says_how_to_call(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "verl.trainer.main_ppo KEY=VALUE" in capfd.readouterr().out


def test_the_real_command_exits_with_2_and_one_message() -> None:
    line = [sys.executable, "-m", "verl.trainer.main_ppo", "data.trian_files=x"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "data.train_files" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize(("overrides", "steps"), [((), 21), (("trainer.total_training_steps=5",), 5)])
def test_total_steps(overrides: tuple[str, ...], steps: int) -> None:
    assert total_training_steps(load("trainer.total_epochs=3", *overrides).config, batches_per_epoch=7) == steps


def test_rows_no_rule_can_judge_are_refused(files: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = (files / "train.jsonl").read_text().replace("math_dapo", "poetry")
    (tmp_path / "poems.jsonl").write_text(text)
    said = refusal(capfd, *arguments(files, f"data.train_files={tmp_path / 'poems.jsonl'}"))
    assert "poetry" in said and "math_dapo" in said
