# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from verl.config import EvaluationConfig, GenerationConfig
from verl.config.files import check_files
from verl.config.hydra import load_config
from verl.utils.errors import UserError

REQUIRED = ("model.path=org/model", "data.path=prompts.jsonl", "output=out.parquet")


def load(*overrides: str) -> GenerationConfig:
    return load_config("generation", [*REQUIRED, *overrides], GenerationConfig).config


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(*overrides)
    return str(caught.value)


def test_defaults() -> None:
    config = load()
    assert config.data.path == ("prompts.jsonl",)
    assert (config.n_samples, config.rollout.name, config.rollout.temperature) == (1, "vllm", 1.0)
    assert config.rollout.gpu_memory_utilization == 0.9


def test_what_is_required_is_said_all_at_once() -> None:
    with pytest.raises(UserError) as caught:
        load_config("generation", [], GenerationConfig)
    assert all(key in str(caught.value) for key in ("model.path", "data.path", "output"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["output=out.csv"], "must be a file name ending in .parquet or .jsonl"),
        (["n_samples=2", "rollout.temperature=0"], "greedy decoding gives the same answer every time"),
        (["n_samples=0"], "n_samples=0: must be at least 1"),
        (["rollout.name=sglang", "rollout.engine_kwargs={a: 1}"], "rollout.engine_kwargs={'a': 1}: goes to vLLM"),
        (["rollout.sglang.urls=[http://a:1]"], "is read with rollout.name=sglang only, not vllm"),
        (["rollout.tensor_model_parallel_size=2"], "is larger than trainer.n_gpus_per_node=1"),
        (["rollout.max_model_len=100"], "must hold data.max_prompt_length + data.max_response_length"),
        (["rollout.n=4"], "unknown key"),
        (["n_sample=4"], "Did you mean n_samples"),
    ],
)
def test_mistakes_are_named(overrides: list[str], said: str) -> None:
    assert said in refusal(*overrides)


def test_files_and_models_are_looked_for(tmp_path) -> None:
    (tmp_path / "prompts.jsonl").write_text("{}\n")
    check_files(load(f"data.path={tmp_path}/prompts.jsonl"))
    with pytest.raises(UserError, match="data.path"):
        check_files(load(f"data.path={tmp_path}/prompt.jsonl"))
    with pytest.raises(UserError, match="Name a folder in HF format"):
        check_files(load(f"data.path={tmp_path}/prompts.jsonl", f"model.path={tmp_path}"))


def test_the_models_context_must_hold_prompt_and_response(tmp_path) -> None:
    (tmp_path / "prompts.jsonl").write_text("{}\n")
    (tmp_path / "config.json").write_text(
        '{"model_type": "qwen2", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 8, '
        '"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096}'
    )
    paths = [f"data.path={tmp_path}/prompts.jsonl", f"model.path={tmp_path}"]
    with pytest.raises(UserError, match="exceeds the model's context of 4096 tokens.*Set it to 3072 or less"):
        check_files(load(*paths))
    check_files(load(*paths, "data.max_response_length=3072"))


def test_evaluation_needs_a_file_and_looks_for_the_users_function(tmp_path) -> None:
    with pytest.raises(UserError, match="data.path"):
        load_config("evaluation", [], EvaluationConfig)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    own = f"custom_reward_function.path={tmp_path}/own.py"
    config = load_config("evaluation", [f"data.path={tmp_path}/rows.jsonl", own], EvaluationConfig).config
    with pytest.raises(UserError, match="custom_reward_function.path"):
        check_files(config)


def test_old_names_of_verl_are_mapped() -> None:
    old = ["data.n_samples=4", "data.output_path=o.jsonl", "rollout.prompt_length=7", "rollout.response_length=9"]
    loaded = load_config("generation", ["model.path=org/m", "data.path=p.jsonl", *old], GenerationConfig)
    config = loaded.config
    assert (config.n_samples, config.output) == (4, "o.jsonl")
    assert (config.data.max_prompt_length, config.data.max_response_length) == (7, 9)
    assert sum(" is read as " in notice for notice in loaded.notices) == 4


def test_the_documented_command_says_what_it_means(tmp_path) -> None:
    """Quotes for the shell, quotes for Hydra, and a backslash: the model must get exactly this message."""
    document = (Path(__file__).resolve().parents[3] / "docs" / "prm_usage.md").read_text()
    (command,) = re.findall(r"```bash\n(python3 -m verl\.trainer\.main_generation.*?)```", document, flags=re.DOTALL)
    arguments = subprocess.run(
        ["bash", "-c", f"python3() {{ printf '%s\\0' \"$@\"; }}\n{command}"], capture_output=True, text=True, check=True
    ).stdout.split("\0")[2:-1]
    config = load_config("generation", arguments, GenerationConfig).config
    assert config.data.system_message == "Please reason step by step, and put your final answer in \\boxed{}."
    assert config.data.prompt_key == "problem" and config.rollout.temperature == 0.0
