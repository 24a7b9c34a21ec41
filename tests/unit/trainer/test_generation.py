# SPDX-License-Identifier: Apache-2.0
"""From rows to requests and back, with a stream that answers by arithmetic."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.tokenizers import byte_tokenizer
from verl.config import GenerationConfig
from verl.config.hydra import load_config
from verl.rollout.base import Generation
from verl.rollout.to_batch import RolloutOutput
from verl.trainer.generation import answer, answered_row, group_requests, read_prompts
from verl.trainer.main_generation import main
from verl.utils.errors import UserError
from verl.workers.rollout_server import GroupRequest

SYSTEM = "Please reason step by step, and put your final answer in \\boxed{}."


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    byte_tokenizer().save_pretrained(folder)
    return folder


def write(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(model: Path, path: str, *overrides: str) -> GenerationConfig:
    required = [f"model.path={model}", f"data.path={path}", "output=out.jsonl"]
    return load_config("generation", [*required, *overrides], GenerationConfig).config


def shown(ids: list[int]) -> str:
    return byte_tokenizer().decode(ids)


def test_prompts_are_texts_or_chats_with_a_system_message_where_none_is(model, tmp_path):
    own = [{"role": "system", "content": "Own."}, {"role": "user", "content": "3?"}]
    rows = [{"prompt": "1?", "id": 5}, {"prompt": [{"role": "user", "content": "2?"}]}, {"prompt": own}]
    path = write(tmp_path / "rows.jsonl", *rows)
    first, second, third = read_prompts(config(model, path, f"data.system_message='{SYSTEM}'"))
    system = {"role": "system", "content": SYSTEM}
    assert first.values == {"prompt": [system, {"role": "user", "content": "1?"}], "id": 5}
    assert second.values["prompt"] == [system, {"role": "user", "content": "2?"}]
    assert third.values["prompt"] == own
    assert shown(first.token_ids) == (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n"
    )
    (plain,) = read_prompts(config(model, path, "data.max_samples=1"))
    assert plain.values["prompt"] == [{"role": "user", "content": "1?"}]


def test_an_own_chat_template_and_its_arguments_are_used(model, tmp_path):
    path = write(tmp_path / "rows.jsonl", {"q": "1?"})
    template = "{{ messages[0].content }}{{ mark }}"
    overrides = [f"model.custom_chat_template='{template}'", "data.apply_chat_template_kwargs={mark: '!'}"]
    (prompt,) = read_prompts(config(model, path, "data.prompt_key=q", *overrides))
    assert shown(prompt.token_ids) == "1?!"


def test_long_prompts_stop_or_are_cut(model, tmp_path):
    path = write(tmp_path / "rows.jsonl", {"prompt": "1?"}, {"prompt": "x" * 200})
    with pytest.raises(UserError, match=r"data\.max_prompt_length=64: the prompt of .* line 2 has"):
        read_prompts(config(model, path, "data.max_prompt_length=64"))
    short, cut = read_prompts(config(model, path, "data.max_prompt_length=64", "data.truncation=left"))
    assert len(cut.token_ids) == 64 and shown(cut.token_ids).endswith("<|im_start|>assistant\n")
    assert len(short.token_ids) < 64


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "1?"}, "has no column 'prompt'"),
        ({"prompt": 3}, "must be a text, or a list of messages"),
        ({"prompt": "1?", "responses": ["old"]}, "it has the column responses already"),
    ],
)
def test_rows_that_cannot_be_answered_are_refused(model, tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        read_prompts(config(model, write(tmp_path / "rows.jsonl", row)))


def test_every_response_has_a_seed_of_its_own_and_greedy_has_none(model, tmp_path):
    path = write(tmp_path / "rows.jsonl", *({"prompt": f"{n}?"} for n in range(3)))
    sampled = config(model, path, "n_samples=4", "trainer.seed=7", "rollout.top_p=0.9", "data.max_response_length=5")
    requests = group_requests(sampled, read_prompts(sampled))
    seeds = [request.sampling.seed + index for request in requests for index in range(request.num_responses)]
    assert seeds == list(range(7, 19))
    assert requests[0].sampling.top_p == 0.9 and requests[0].sampling.max_new_tokens == 5
    greedy = config(model, path, "rollout.temperature=0")
    assert {request.sampling.seed for request in group_requests(greedy, read_prompts(greedy))} == {None}


def output(request: GroupRequest, index: int) -> RolloutOutput:
    generation = Generation(
        request_id=f"{request.uid}-{index}",
        token_ids=list(range(index + 1)),
        log_probs=[0.0] * (index + 1),
        finish_reason="length" if index else "stop",
        policy_version=0,
    )
    return RolloutOutput(request.uid, index, generation, f"{request.uid}.{index}", np.zeros(index + 1, np.int64))


class Stream:
    """Answers later prompts earlier, and counts how many it has at a time."""

    def __init__(self, failing: str | None = None) -> None:
        self.running = self.most_running = 0
        self.failing = failing

    async def generate(self, requests: list[GroupRequest], on_response: Any) -> list[list[RolloutOutput]]:
        (request,) = requests
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(0.02 / (1 + int(request.uid)))
            if request.uid == self.failing:
                raise RuntimeError(f"rollout failed: {request.uid}")
            outputs = [output(request, index) for index in range(request.num_responses)]
            for each in outputs:
                on_response(each)
            return [outputs]
        finally:
            self.running -= 1


def requests_for(model: Path, tmp_path: Path, count: int) -> list[GroupRequest]:
    made = config(model, write(tmp_path / "rows.jsonl", *({"prompt": f"{n}?"} for n in range(count))), "n_samples=2")
    return group_requests(made, read_prompts(made))


def test_answers_keep_the_order_of_the_prompts_and_few_are_in_flight(model, tmp_path):
    stream, seen = Stream(), []
    groups = asyncio.run(answer(stream, requests_for(model, tmp_path, 9), 3, seen.append))
    assert [[each.text for each in group] for group in groups] == [[f"{n}.0", f"{n}.1"] for n in range(9)]
    assert stream.most_running == 3 and len(seen) == 18


def test_a_failing_server_ends_the_run(model, tmp_path):
    stream = Stream(failing="2")
    with pytest.raises(RuntimeError, match="rollout failed: 2"):
        asyncio.run(answer(stream, requests_for(model, tmp_path, 9), 2, lambda _: None))
    assert stream.running == 0


def test_rows_get_their_responses(model, tmp_path):
    path = write(tmp_path / "rows.jsonl", {"prompt": "1?", "id": 5})
    made = config(model, path, "n_samples=2")
    (prompt,) = read_prompts(made)
    (request,) = group_requests(made, [prompt])
    row = answered_row(prompt, [output(request, 0), output(request, 1)])
    assert row == {
        "prompt": [{"role": "user", "content": "1?"}],
        "id": 5,
        "responses": ["0.0", "0.1"],
        "finish_reasons": ["stop", "length"],
        "num_response_tokens": [1, 2],
        "num_prompt_tokens": len(prompt.token_ids),
    }


def test_a_dry_run_prints_the_plan(capsys):
    arguments = ["model.path=org/model", "data.path=prompts.parquet", "output=out.parquet", "n_samples=4"]
    arguments += ["trainer.n_gpus_per_node=8", "rollout.tensor_model_parallel_size=2", "trainer.dry_run=True"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "servers: 4 x vllm, 2 device(s) each" in printed
    assert "responses: 4 per prompt, up to 4096 tokens, temperature 1, top_p 1" in printed


def test_mistakes_end_with_code_2(model, tmp_path, capsys):
    assert main(["rollout.temprature=1"]) == 2
    assert "Did you mean rollout.temperature" in capsys.readouterr().err
    assert main([f"model.path={model}", f"data.path={tmp_path}/nothing.jsonl", "output=out.jsonl"]) == 2
    said = capsys.readouterr().err
    assert "there is no such file" in said and "no config.json" in said
