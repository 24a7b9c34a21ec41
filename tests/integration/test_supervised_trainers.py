# SPDX-License-Identifier: Apache-2.0
"""SFT and PRM training from the command line: real Ray, two ranks, and what they leave behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipe.miniature.models import CONTEXT_TOKENS, build_policy, build_prm
from recipe.miniature.tokenizer import build_tokenizer
from verl.rewards.prm.model import Qwen2ForProcessRewardModel
from verl.trainer import prm_trainer, sft_trainer

pytestmark = [pytest.mark.ray, pytest.mark.slow]

COMMON = [
    "data.train_batch_size=32",
    "optim.lr=2e-3",
    "model.enable_gradient_checkpointing=False",
    "fsdp_config.mixed_precision.param_dtype=float32",
    "trainer.device=cpu",
    "trainer.n_gpus_per_node=2",
    "trainer.total_training_steps=6",
    "trainer.logger=[]",
]


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("miniature")
    tokenizer = build_tokenizer(CONTEXT_TOKENS)
    for name, model in (("policy", build_policy(0)), ("prm", build_prm(0))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    sums = [(i % 7, i % 5) for i in range(64)]
    _write(
        folder / "sft.jsonl",
        [{"prompt": f"{a}+{b}", "response": f"{a}+{b}={a + b}\n\nAnswer: {a + b}"} for a, b in sums],
    )
    steps = [
        {"prompt": f"{a}+{b}", "completions": [f"{a}+{b}={a + b + wrong}", "Answer: 1"], "labels": [not wrong, False]}
        for wrong in (0, 1)
        for a, b in sums
    ]
    _write(folder / "prm.jsonl", steps)
    _write(folder / "prm_test.jsonl", steps[:33])
    return folder


def _write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_sft_learns_and_leaves_a_model_with_its_tokenizer(assets: Path) -> None:
    out = assets / "sft_run"
    arguments = [f"model.path={assets}/policy", f"data.train_files={assets}/sft.jsonl"]
    assert sft_trainer.main([*arguments, "data.max_length=128", f"trainer.default_local_dir={out}", *COMMON]) == 0
    losses = [row["train/loss"] for row in _metrics(out)]
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.5
    model = AutoModelForCausalLM.from_pretrained(out / "hf")
    assert AutoTokenizer.from_pretrained(out / "hf").eos_token_id == model.config.eos_token_id
    before = AutoModelForCausalLM.from_pretrained(assets / "policy")
    assert not model.model.embed_tokens.weight.equal(before.model.embed_tokens.weight)
    assert (out / "checkpoints" / "global_step_6" / ".metadata").is_file()


def test_prm_training_validates_on_an_odd_number_of_rows_and_exports_a_prm(assets: Path) -> None:
    out = assets / "prm_run"
    arguments = [
        f"model.path={assets}/prm",
        f"data.train_files={assets}/prm.jsonl",
        f"data.val_files={assets}/prm_test.jsonl",
    ]
    assert prm_trainer.main([*arguments, "data.max_length=160", f"trainer.default_local_dir={out}", *COMMON]) == 0
    last = _metrics(out)[-1]
    assert 0.0 < last["val/loss"] < 1.0
    assert 0.0 <= last["val/accuracy"] <= 1.0
    exported = Qwen2ForProcessRewardModel.from_pretrained(out / "hf")
    assert exported.dtype == torch.float32
    assert exported.config.architectures == ["Qwen2ForProcessRewardModel"]


def test_a_mistake_stops_before_ray_with_exit_code_2(assets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"model.path={assets}/nowhere", f"data.train_files={assets}/sft.jsonl"]
    assert sft_trainer.main([*arguments, *COMMON]) == 2
    assert "model.path" in capsys.readouterr().err
