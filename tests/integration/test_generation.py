# SPDX-License-Identifier: Apache-2.0
"""`main_generation` and `main_eval` from the command line: real Ray, real engines, a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from recipe.miniature.models import CONTEXT_TOKENS, build_policy
from recipe.miniature.tokenizer import build_tokenizer
from verl.data.rows import read_rows
from verl.trainer import main_eval, main_generation
from verl.utils.tokenizer import load_tokenizer

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PROMPTS = ("1+2", "3+4+5", "6")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    build_policy(0).save_pretrained(folder)
    build_tokenizer(CONTEXT_TOKENS).save_pretrained(folder)
    rows = [
        {"prompt": text, "ground_truth": "3", "data_source": "math_dapo", "id": n} for n, text in enumerate(PROMPTS)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def generate(model: Path, output: Path, *overrides: str) -> list[dict]:
    arguments = [
        f"model.path={model}",
        f"data.path={model}/prompts.jsonl",
        f"output={output}",
        "data.max_prompt_length=32",
        "data.max_response_length=12",
        "rollout.dtype=float32",
        "rollout.cpu_kvcache_gib=0.1",
        "rollout.max_num_seqs=8",
        "trainer.device=cpu",
    ]
    assert main_generation.main([*arguments, *overrides]) == 0
    return [row.values for row in read_rows([str(output)], "data.path", ())]


def check_rows(rows: list[dict], n_samples: int) -> None:
    assert [row["id"] for row in rows] == [0, 1, 2]
    for row, text in zip(rows, PROMPTS, strict=True):
        assert row["prompt"][-1] == {"role": "user", "content": text}
        assert len(row["responses"]) == len(row["finish_reasons"]) == len(row["num_response_tokens"]) == n_samples
        for reason, tokens in zip(row["finish_reasons"], row["num_response_tokens"], strict=True):
            assert (reason == "length" and tokens == 12) or (reason == "stop" and 1 <= tokens <= 12)


def test_hf_engine_to_parquet_the_same_again_and_graded(ray_cluster: str, model: Path, tmp_path: Path) -> None:
    first = generate(model, tmp_path / "first.parquet", "rollout.name=hf", "n_samples=2")
    again = generate(model, tmp_path / "again.jsonl", "rollout.name=hf", "n_samples=2", "trainer.n_gpus_per_node=2")
    check_rows(first, 2)
    assert again == first, "the seeds belong to the responses: neither file format nor number of servers matters"
    assert len({text for row in first for text in row["responses"]}) > 1
    evaluation = [f"data.path={tmp_path}/first.parquet", f"output={tmp_path}/eval.json", "verifier.num_workers=1"]
    assert main_eval.main(evaluation) == 0
    overall = json.loads((tmp_path / "eval.json").read_text())["overall"]
    assert (overall["num_prompts"], overall["num_responses"]) == (3, 6)
    assert 0.0 <= overall["mean@2"] <= overall["pass@2"] <= 1.0


def greedy_by_transformers(model: Path, chat: list[dict]) -> str:
    tokenizer, policy = load_tokenizer(str(model)), AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    stops = tokenizer.eos_token_id
    answer = policy.generate(ids, do_sample=False, max_new_tokens=12, eos_token_id=stops, pad_token_id=stops)
    return tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.vllm
def test_vllm_answers_greedily_as_transformers_does(ray_cluster: str, model: Path, tmp_path: Path) -> None:
    greedy = ("rollout.temperature=0", "data.system_message='1'")
    served = generate(model, tmp_path / "vllm.jsonl", "rollout.name=vllm", *greedy)
    check_rows(served, 1)
    assert served[0]["prompt"][0] == {"role": "system", "content": "1"}
    assert [row["responses"] for row in served] == [[greedy_by_transformers(model, row["prompt"])] for row in served]


def test_a_model_that_cannot_be_served_ends_the_program(
    ray_cluster: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"model.path={model}", f"data.path={model}/prompts.jsonl", f"output={tmp_path}/out.jsonl"]
    assert main_generation.main([*arguments, "trainer.device=cpu", "data.max_response_length=100000"]) == 2
    assert "exceeds the model's context" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
