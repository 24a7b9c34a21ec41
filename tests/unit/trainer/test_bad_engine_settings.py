# SPDX-License-Identifier: Apache-2.0
"""Engine settings that cannot work, at the command line: one message and exit code 2, before Ray starts.

Everything that the configuration and a local `config.json` can tell is said by a dry run already.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from transformers import AutoConfig

from tests.helpers.tiny_models import VOCAB_SIZE, tiny_model
from tests.helpers.tokenizers import byte_tokenizer
from verl.trainer import main_ppo, prm_trainer, sft_trainer

ACTOR, REF, ROLLOUT = (f"actor_rollout_ref.{section}" for section in ("actor", "ref", "rollout"))
MEGATRON = (f"{ACTOR}.strategy=megatron", "trainer.n_gpus_per_node=4")


@pytest.fixture(autouse=True)
def no_ray() -> Iterator[None]:
    was_running = ray.is_initialized()
    yield
    assert ray.is_initialized() == was_running


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of 4 query heads, 2 key heads and 2 layers, models of other families, and rows."""
    folder = tmp_path_factory.mktemp("files")
    tokenizer = byte_tokenizer()
    for name in ("policy", "llama", "bloom", "unknown"):
        tokenizer.save_pretrained(folder / name)
    tiny_model(vocab_size=max(VOCAB_SIZE, len(tokenizer))).save_pretrained(folder / "policy")
    for name in ("llama", "bloom"):
        AutoConfig.for_model(name).save_pretrained(folder / name)
    (folder / "unknown" / "config.json").write_text('{"model_type": "qwen99"}')
    row = {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": "1+1?"}],
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"index": 0},
    }
    (folder / "train.jsonl").write_text((json.dumps(row) + "\n") * 8)
    (folder / "sft.jsonl").write_text((json.dumps({"prompt": "1+1?", "response": "2"}) + "\n") * 8)
    steps = {"prompt": "1+1?", "completions": ["2"], "labels": [True]}
    (folder / "prm.jsonl").write_text((json.dumps(steps) + "\n") * 8)
    return folder


def ppo(files: Path, model: str, *overrides: str) -> list[str]:
    return [
        f"data.train_files={files / 'train.jsonl'}",
        f"actor_rollout_ref.model.path={files / model}",
        "data.train_batch_size=8",
        "data.max_prompt_length=64",
        "data.max_response_length=32",
        f"{ACTOR}.ppo_mini_batch_size=8",
        f"{ROLLOUT}.n=3",
        "trainer.device=cpu",
        "trainer.n_gpus_per_node=1",
        "trainer.val_before_train=False",
        *overrides,
    ]


def said_by(capfd: pytest.CaptureFixture[str], code: int) -> str:
    said = capfd.readouterr().err
    assert code == 2, said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([f"{ACTOR}.ppo_max_token_len_per_gpu=95"], "one full sequence has 96 tokens"),
        ([f"{ROLLOUT}.log_prob_max_token_len_per_gpu=50"], f"{ROLLOUT}.log_prob_max_token_len_per_gpu=50"),
        (
            [f"{REF}.log_prob_max_token_len_per_gpu=50", f"{ACTOR}.use_kl_loss=True"],
            f"{REF}.log_prob_max_token_len_per_gpu=50",
        ),
        ([f"{ACTOR}.fsdp_config.fsdp_size=3", "trainer.n_gpus_per_node=4"], "must divide the 4 policy ranks"),
        ([f"{ACTOR}.ulysses_sequence_parallel_size=3", "trainer.n_gpus_per_node=4"], "must divide the 4 policy ranks"),
        (
            [f"{ACTOR}.ulysses_sequence_parallel_size=8", "trainer.n_gpus_per_node=8"],
            "must divide the model's 4 attention heads",
        ),
        (
            [f"{ROLLOUT}.tensor_model_parallel_size=8", "trainer.n_gpus_per_node=8"],
            "must divide the model's 4 attention heads",
        ),
        ([f"{ROLLOUT}.tensor_model_parallel_size=3", "trainer.n_gpus_per_node=4"], "must divide"),
        ([*MEGATRON, f"{ACTOR}.megatron.tensor_model_parallel_size=3"], "must divide the 4 policy ranks"),
        (
            [*MEGATRON, f"{ACTOR}.megatron.tensor_model_parallel_size=4"],
            "must divide the model's 2 key-value heads",
        ),
        ([*MEGATRON, f"{ACTOR}.megatron.pipeline_model_parallel_size=4"], "must divide the model's 2 layers"),
        (
            ["data.train_batch_size=7", f"{ACTOR}.ppo_mini_batch_size=7", "trainer.n_gpus_per_node=2"],
            "must be a multiple",
        ),
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_sizes_of_a_policy(
    overrides: list[str], said: str, dry_run: bool, files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = ppo(files, "policy", *overrides, f"trainer.dry_run={dry_run}")
    assert said in said_by(capfd, main_ppo.main(line))


def test_a_dry_run_of_what_fits_passes(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sizes = [f"{ACTOR}.megatron.tensor_model_parallel_size=2", f"{ACTOR}.megatron.pipeline_model_parallel_size=2"]
    assert main_ppo.main(ppo(files, "policy", *MEGATRON, *sizes, "trainer.dry_run=True")) == 0
    shared = [f"{ACTOR}.ulysses_sequence_parallel_size=4", "trainer.n_gpus_per_node=4"]
    assert main_ppo.main(ppo(files, "policy", *shared, "trainer.dry_run=True")) == 0
    assert capfd.readouterr().out.count("Plan of the run") == 2


@pytest.mark.parametrize(
    ("model", "overrides", "said"),
    [
        ("llama", MEGATRON, "holds a 'llama' model; strategy=megatron trains Qwen2"),
        ("bloom", (), "holds a 'bloom' model, which lets no other attention be put in"),
        ("unknown", (), "qwen99"),
        (
            "policy",
            ("actor_rollout_ref.model.lora_rank=4", "actor_rollout_ref.model.target_modules=[nowhere]"),
            "nowhere",
        ),
    ],
)
def test_models_that_an_engine_cannot_train(
    model: str, overrides: tuple[str, ...], said: str, files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert said in said_by(capfd, main_ppo.main(ppo(files, model, *overrides)))


@pytest.mark.parametrize("program", ["sft", "prm"])
@pytest.mark.parametrize(
    ("model", "overrides", "said"),
    [
        ("policy", ["max_token_len_per_gpu=63"], "one full sequence has data.max_length=64 tokens"),
        ("policy", ["fsdp_config.fsdp_size=3", "trainer.n_gpus_per_node=4"], "must divide the 4 ranks"),
        ("policy", ["ulysses_sequence_parallel_size=3", "trainer.n_gpus_per_node=4"], "must divide the 4 ranks"),
        (
            "policy",
            ["ulysses_sequence_parallel_size=8", "trainer.n_gpus_per_node=8"],
            "must divide the model's 4 attention heads",
        ),
        ("bloom", [], "'bloom' model"),
    ],
)
def test_supervised_runs(
    program: str, model: str, overrides: list[str], said: str, files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = [
        f"model.path={files / model}",
        f"data.train_files={files / f'{program}.jsonl'}",
        "data.train_batch_size=8",
        "data.max_length=64",
        "trainer.device=cpu",
        "trainer.n_gpus_per_node=1",
        *overrides,
    ]
    main = {"sft": sft_trainer.main, "prm": prm_trainer.main}[program]
    assert said in said_by(capfd, main(line))
