# SPDX-License-Identifier: Apache-2.0
"""transformers generation behind the rollout interface, against plain forward passes of the same tiny model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.tiny_models import VOCAB_SIZE, save_tiny_model, tiny_model
from verl.rollout.base import Generation, GenerationRequest, RolloutSpec, SamplingSettings
from verl.rollout.hf_engine import HFEngine
from verl.weight_sync.bundle import write_bundle

EOS = 1
PROMPTS = ([5], [7, 0, 9, 3, 12, 4], [5, 6, 7])


def engine_at(path: Path | str, **settings: Any) -> HFEngine:
    return HFEngine(RolloutSpec(model_path=str(path), dtype="float32", max_model_len=64, **settings))


def run(engine: HFEngine, work: Callable[[], Awaitable[Any]]) -> Any:
    """Start the engine, do the work, close it; a request that is never answered fails instead of hanging."""

    async def whole() -> Any:
        await engine.start()
        try:
            return await asyncio.wait_for(work(), timeout=60)
        finally:
            await engine.close()

    return asyncio.run(whole())


async def sample(engine: HFEngine, prompts: Sequence[Sequence[int]], **sampling: Any) -> list[Generation]:
    settings = SamplingSettings(**{"max_new_tokens": 12, "temperature": 0.7} | sampling)
    requests = [
        GenerationRequest(request_id=str(number), prompt_token_ids=list(prompt), sampling=settings)
        for number, prompt in enumerate(prompts)
    ]
    return await asyncio.gather(*(engine.generate(request) for request in requests))


def expected_log_probs(
    model: torch.nn.Module, prompt: Sequence[int], generation: Generation, temperature: float
) -> list[float]:
    ids = torch.tensor([[*prompt, *generation.token_ids]])
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1].float()
    log_probs = torch.log_softmax(logits / temperature, dim=-1)
    return log_probs.gather(-1, ids[0, len(prompt) :, None])[:, 0].tolist()


def assert_samples_come_from(
    model: torch.nn.Module, prompts: Sequence[Sequence[int]], generations: list[Generation], temperature: float = 0.7
) -> None:
    for prompt, generation in zip(prompts, generations, strict=True):
        assert generation.token_ids
        expected = expected_log_probs(model, prompt, generation, temperature)
        assert generation.log_probs == pytest.approx(expected, abs=1e-4)


def test_log_probs_of_a_batch_of_unequal_prompts_are_those_of_plain_forward_passes(tmp_path: Path) -> None:
    engine = engine_at(save_tiny_model(tmp_path))
    prompts = [*PROMPTS, *PROMPTS]
    generations = run(engine, lambda: sample(engine, prompts))
    assert [generation.request_id for generation in generations] == [str(n) for n in range(6)]
    assert {len(generation.token_ids) for generation in generations} == {12}
    assert {generation.finish_reason for generation in generations} == {"length"}
    assert_samples_come_from(tiny_model(), prompts, generations)


def test_waiting_requests_share_a_batch_up_to_max_num_seqs(tmp_path: Path) -> None:
    engine = engine_at(save_tiny_model(tmp_path), max_num_seqs=3)
    sizes: list[int] = []

    async def work() -> None:
        count_batches(engine, sizes)
        await sample(engine, [[5]] * 7, max_new_tokens=2)

    run(engine, work)
    assert sizes == [3, 3, 1]


def test_requests_that_sample_differently_are_kept_apart_and_all_answered(tmp_path: Path) -> None:
    engine = engine_at(save_tiny_model(tmp_path))
    sizes: list[int] = []

    async def work() -> list[list[Generation]]:
        count_batches(engine, sizes)
        calls = (sample(engine, [[5], [6]], temperature=t, max_new_tokens=3) for t in (0.5, 2.0))
        return await asyncio.gather(*calls)

    cool, hot = run(engine, work)
    assert sizes == [2, 2]
    assert_samples_come_from(tiny_model(), [[5], [6]], cool, 0.5)
    assert_samples_come_from(tiny_model(), [[5], [6]], hot, 2.0)


def count_batches(engine: HFEngine, sizes: list[int]) -> None:
    """Note the number of rows of every batch the model generates."""
    generate = engine._model.generate

    def noted(**arguments: Any) -> Any:
        sizes.append(len(arguments["input_ids"]))
        return generate(**arguments)

    engine._model.generate = noted


def test_greedy_takes_the_likeliest_token_each_time(tmp_path: Path) -> None:
    engine = engine_at(save_tiny_model(tmp_path))
    generations = run(engine, lambda: sample(engine, PROMPTS, temperature=0.0, max_new_tokens=4))
    model = tiny_model()
    for prompt, generation in zip(PROMPTS, generations, strict=True):
        ids = list(prompt)
        for _ in range(4):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert generation.token_ids == ids[len(prompt) :]


def test_a_stop_token_ends_a_response_and_is_part_of_it(tmp_path: Path) -> None:
    engine = engine_at(save_tiny_model(tmp_path))
    stops = (EOS, 2, 3, 4)
    prompts = [[5 + n] for n in range(16)]
    generations = run(engine, lambda: sample(engine, prompts, temperature=2.0, stop_token_ids=stops))
    assert {generation.finish_reason for generation in generations} == {"stop", "length"}
    for generation in generations:
        places = [place for place, token in enumerate(generation.token_ids) if token in stops]
        assert places == ([len(generation.token_ids) - 1] if generation.finish_reason == "stop" else [])
        assert generation.finish_reason == "stop" or len(generation.token_ids) == 12
        assert len(generation.log_probs) == len(generation.token_ids)
    assert_samples_come_from(tiny_model(), prompts, generations, 2.0)


def test_ignore_eos_goes_on_to_the_limit(tmp_path: Path) -> None:
    engine = engine_at(save_tiny_model(tmp_path))
    everything = tuple(range(VOCAB_SIZE))
    generations = run(engine, lambda: sample(engine, PROMPTS, stop_token_ids=everything, ignore_eos=True))
    assert {(len(g.token_ids), g.finish_reason) for g in generations} == {(12, "length")}


def test_settings_of_the_model_folder_do_not_leak_in(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    of_the_folder = {
        "do_sample": True,
        "temperature": 0.2,
        "top_k": 2,
        "top_p": 0.5,
        "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 1,
        "eos_token_id": list(range(VOCAB_SIZE)),
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(of_the_folder))
    engine = engine_at(tmp_path)
    generations = run(engine, lambda: sample(engine, PROMPTS, temperature=1.0))
    assert {len(generation.token_ids) for generation in generations} == {12}
    assert_samples_come_from(tiny_model(), PROMPTS, generations, 1.0)


def test_top_k_and_top_p_leave_out_the_rest(tmp_path: Path) -> None:
    engine = engine_at(save_tiny_model(tmp_path))
    generations = run(engine, lambda: sample(engine, [[5]] * 8, top_k=1, temperature=1.5))
    assert len({tuple(generation.token_ids) for generation in generations}) == 1
    assert generations[0].log_probs == pytest.approx([0.0] * 12, abs=1e-6)


def test_a_seed_gives_the_same_response_again_and_leaves_others_alone(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)

    async def work(engine: HFEngine) -> list[list[int]]:
        first, other, again, free = [
            (await sample(engine, [[5]], seed=seed))[0].token_ids for seed in (17, 18, 17, None)
        ]
        return [first, other, again, free]

    first, other, again, free = run(engine := engine_at(folder, seed=3), lambda: work(engine))
    assert first == again != other
    # seeds of requests must not touch the engine's own stream of random numbers
    unseeded = run(fresh := engine_at(folder, seed=3), lambda: sample(fresh, [[5]]))
    assert free == unseeded[0].token_ids


def test_a_request_given_up_does_not_stop_the_engine(tmp_path: Path) -> None:
    engine = engine_at(save_tiny_model(tmp_path))

    async def work() -> list[Generation]:
        sizes: list[int] = []
        count_batches(engine, sizes)
        abandoned = asyncio.create_task(sample(engine, [[5], [6]]))
        while not sizes:  # until the model is at work on them
            await asyncio.sleep(0.001)
        abandoned.cancel()
        return await sample(engine, [[7]])

    assert len(run(engine, work)[0].token_ids) == 12


def test_an_error_of_the_model_reaches_the_caller_and_the_engine_goes_on(tmp_path: Path) -> None:
    engine = engine_at(save_tiny_model(tmp_path))

    async def work() -> list[Generation]:
        with pytest.raises(IndexError):
            await sample(engine, [[VOCAB_SIZE + 1]])
        return await sample(engine, [[7]])

    assert len(run(engine, work)[0].token_ids) == 12


# ---- new weights ----


async def send(engine: HFEngine, weights: Any, version: int, path: Path) -> None:
    manifest, _ = write_bundle(weights, path, with_digests=True)
    await engine.start_update()
    await engine.update(manifest.to_dict())
    await engine.finish_update(version)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_responses_follow_the_weights_that_were_sent(tied: bool, tmp_path: Path) -> None:
    engine = engine_at(save_tiny_model(tmp_path, tied, seed=0))
    second = tiny_model(tied, seed=1)

    async def work() -> tuple[list[Generation], list[Generation]]:
        before = await sample(engine, PROMPTS)
        await send(engine, second.named_parameters(), 7, tmp_path / "bundle")
        return before, await sample(engine, PROMPTS)

    before, after = run(engine, work)
    assert ({g.policy_version for g in before}, {g.policy_version for g in after}) == ({0}, {7})
    assert_samples_come_from(tiny_model(tied, seed=0), PROMPTS, before)
    assert_samples_come_from(second, PROMPTS, after)
    with pytest.raises(AssertionError):
        assert_samples_come_from(tiny_model(tied, seed=0), PROMPTS, after)


def test_the_engine_keeps_its_weights_when_the_bundle_is_gone(tmp_path: Path) -> None:
    engine = engine_at(save_tiny_model(tmp_path))
    second = tiny_model(seed=1)
    bundle = tmp_path / "bundle"

    async def work() -> list[Generation]:
        await send(engine, second.named_parameters(), 1, bundle)
        bundle.write_bytes(b"\0" * bundle.stat().st_size)
        bundle.unlink()
        return await sample(engine, PROMPTS)

    assert_samples_come_from(second, PROMPTS, run(engine, work))


def test_requests_wait_while_weights_are_replaced(tmp_path: Path) -> None:
    engine = engine_at(save_tiny_model(tmp_path))

    async def work() -> Generation:
        await engine.start_update()
        waiting = asyncio.create_task(sample(engine, [[5]], max_new_tokens=1))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await engine.finish_update(4)
        return (await waiting)[0]

    assert run(engine, work).policy_version == 4


@pytest.mark.parametrize(
    ("tied", "change", "named"),
    [
        (False, {"lm_head.weight": None}, "lm_head.weight"),
        (True, {"model.norm.weight": None}, "model.norm.weight"),
        (True, {"model.extra.weight": torch.zeros(2)}, "model.extra.weight"),
    ],
    ids=["no-head", "no-norm", "unknown"],
)
def test_an_incomplete_or_foreign_bundle_is_refused(
    tied: bool, change: dict[str, torch.Tensor | None], named: str, tmp_path: Path
) -> None:
    engine = engine_at(save_tiny_model(tmp_path, tied))
    weights = dict(tiny_model(tied, seed=1).named_parameters()) | change
    kept = [(name, tensor) for name, tensor in weights.items() if tensor is not None]

    async def work() -> None:
        with pytest.raises(RuntimeError, match=named):
            await send(engine, kept, 1, tmp_path / "bundle")

    run(engine, work)


def test_the_head_of_a_tied_model_may_be_named_too(tmp_path: Path) -> None:
    engine = engine_at(save_tiny_model(tmp_path, tied=True))
    second = tiny_model(tied=True, seed=1)

    async def work() -> list[Generation]:
        await send(engine, second.state_dict().items(), 1, tmp_path / "bundle")
        return await sample(engine, PROMPTS)

    assert_samples_come_from(second, PROMPTS, run(engine, work))
