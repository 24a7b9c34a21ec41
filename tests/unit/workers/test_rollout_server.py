# SPDX-License-Identifier: Apache-2.0
"""The rollout server without Ray: a plain object around an engine and a tokenizer."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from tests.helpers.tiny_models import VOCAB_SIZE, tiny_model
from tests.helpers.tokenizers import byte_tokenizer
from verl.rollout.base import RolloutSpec, SamplingSettings
from verl.rollout.to_batch import RolloutOutput
from verl.utils.errors import UserError
from verl.workers.rollout_server import GroupRequest, RolloutServer, stop_token_ids


class NamedEos:
    """The one thing that is read of a tokenizer."""

    def __init__(self, eos_token_id: int | None) -> None:
        self.eos_token_id = eos_token_id


@pytest.mark.parametrize(
    ("eos", "configured", "expected"),
    [
        (7, None, (7,)),
        (7, {"eos_token_id": 7}, (7,)),
        (7, {"eos_token_id": 3}, (3, 7)),
        (7, {"eos_token_id": [9, 3, 7]}, (3, 7, 9)),
        (7, {"temperature": 0.7, "do_sample": True}, (7,)),
        (0, None, (0,)),  # id 0 is a token as any other
        (None, {"eos_token_id": 5}, (5,)),
    ],
)
def test_stop_tokens_of_tokenizer_and_model_folder(
    eos: int | None, configured: dict[str, object] | None, expected: tuple[int, ...], tmp_path: Path
) -> None:
    if configured is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(configured))
    assert stop_token_ids(str(tmp_path), NamedEos(eos)) == expected


@pytest.mark.parametrize("configured", [None, {"temperature": 0.7, "do_sample": True}], ids=["no-file", "no-eos"])
def test_no_stop_token_at_all_is_refused(configured: dict[str, object] | None, tmp_path: Path) -> None:
    if configured is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(configured))
    with pytest.raises(UserError, match=r"actor_rollout_ref\.model\.path.*EOS"):
        stop_token_ids(str(tmp_path), NamedEos(None))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A policy over bytes with its tokenizer; `<|im_end|>` ends a response."""
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = byte_tokenizer()
    tiny_model(vocab_size=max(VOCAB_SIZE, len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def answer(folder: str, sampling: SamplingSettings, num_responses: int = 6) -> list[RolloutOutput]:
    async def run() -> list[RolloutOutput]:
        server = RolloutServer("hf", RolloutSpec(model_path=folder, dtype="float32", max_model_len=64), folder)
        assert await server.start() > 0
        request = GroupRequest(uid="g", prompt_token_ids=[5, 6], num_responses=num_responses, sampling=sampling)
        try:
            return [output async for output in server.generate_group(request)]
        finally:
            await server.close()

    return asyncio.run(run())


def test_every_response_of_a_group_arrives_once_with_its_text(model_folder: str) -> None:
    outputs = answer(model_folder, SamplingSettings(max_new_tokens=8))
    assert sorted(output.index for output in outputs) == list(range(6))
    tokenizer = byte_tokenizer()
    for output in outputs:
        assert output.uid == "g"
        tokens = output.generation.token_ids
        assert output.text == tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert len(output.token_starts) == len(tokens)
        assert output.generation.request_id == f"g-{output.index}"


def test_each_response_has_a_seed_of_its_own_counted_from_the_groups(model_folder: str) -> None:
    def tokens(seed: int) -> list[list[int]]:
        outputs = answer(model_folder, SamplingSettings(max_new_tokens=8, seed=seed), num_responses=3)
        return [output.generation.token_ids for output in sorted(outputs, key=lambda output: output.index)]

    first, later = tokens(40), tokens(41)
    assert len({tuple(row) for row in first}) == 3
    assert first[1:] == later[:2]


def test_the_models_stop_tokens_hold_unless_the_request_names_others(model_folder: str, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(model_folder, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(300))}))
    short = answer(str(folder), SamplingSettings(max_new_tokens=8))
    assert {(len(o.generation.token_ids), o.generation.finish_reason) for o in short} == {(1, "stop")}
    long = answer(str(folder), SamplingSettings(max_new_tokens=8, stop_token_ids=(299,)))
    assert {(len(o.generation.token_ids), o.generation.finish_reason) for o in long} == {(8, "length")}
