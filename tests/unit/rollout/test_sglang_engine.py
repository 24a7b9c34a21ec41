# SPDX-License-Identifier: Apache-2.0
"""The SGLang engine against a server that only looks like SGLang: what goes wrong there, and who may speak when.

The same engine with the real server is in tests/contract.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.helpers.sglang import double_settings
from verl.rollout.base import GenerationRequest, RolloutSpec, SamplingSettings
from verl.rollout.sglang_engine import SGLangEngine, check_server, generation, sampling_params
from verl.rollout.sglang_http import SGLangError
from verl.utils.errors import UserError
from verl.weight_sync.bundle import WeightDigestError, write_bundle

Work = Callable[[SGLangEngine], Awaitable[Any]]


def run(work: Work, behaviour: str = "", spec: dict[str, Any] | None = None, **changes: Any) -> Any:
    """Start an engine with its server, let `work` use it, close it, and see that nothing of it is left."""

    async def whole() -> Any:
        settings = double_settings(behaviour, **changes)
        common: dict[str, Any] = {"model_path": "m", "dtype": "float32", "max_model_len": 64, "server": settings}
        engine = SGLangEngine(RolloutSpec(**(common | (spec or {}))))
        try:
            await engine.start()
            return await work(engine)
        finally:
            await engine.close()

    before = children()
    result = asyncio.run(whole())
    assert children() <= before
    return result


def children() -> set[psutil.Process]:
    """Processes that this one started, and theirs: other tests may have left some that live as long as this one."""
    family = psutil.Process().children(recursive=True)
    return {child for child in family if child.status() != psutil.STATUS_ZOMBIE}


def request(name: str = "r", prompt: list[int] | None = None, **sampling: Any) -> GenerationRequest:
    settings = SamplingSettings(**({"max_new_tokens": 4, "stop_token_ids": (1,)} | sampling))
    return GenerationRequest(request_id=name, prompt_token_ids=prompt or [5, 6], sampling=settings)


def test_answers_are_read() -> None:
    async def work(engine: SGLangEngine) -> list[Any]:
        requests = [request("a"), request("b", ignore_eos=True), request("c", top_k=99)]
        return list(await asyncio.gather(*(engine.generate(each) for each in requests)))

    answers = run(work)
    assert [answer.request_id for answer in answers] == ["a", "b", "c"]
    assert [answer.finish_reason for answer in answers] == ["stop", "length", "abort"]
    assert answers[0].token_ids == [7, 7, 7, 1]
    assert answers[0].log_probs == [-0.5] * 4
    assert answers[0].policy_version == 0


def test_a_refused_request_is_an_error_and_the_next_one_is_answered() -> None:
    async def work(engine: SGLangEngine) -> Any:
        with pytest.raises(SGLangError, match="status 400: the prompt is too long"):
            await engine.generate(request(prompt=[5] * 60))
        return await engine.generate(request())

    assert run(work).finish_reason == "stop"


def test_weights_arrive_between_begin_and_end(tmp_path: Path) -> None:
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.full((4,), 0.5, dtype=torch.bfloat16)}

    async def work(engine: SGLangEngine) -> Any:
        await engine.init_transfer({})
        for version in (1, 2):
            manifest, _ = write_bundle(weights.items(), tmp_path / "bundle", with_digests=True)
            await engine.start_update()
            await engine.update(manifest.to_dict())
            await engine.finish_update(version)
        return await engine.generate(request()), await engine._client.get("/sums")

    answer, sums = run(work)
    assert answer.policy_version == 2
    assert sums == {"a": 15.0, "b": 2.0}


def test_weights_outside_an_update_are_an_error_though_the_server_says_200(tmp_path: Path) -> None:
    async def work(engine: SGLangEngine) -> None:
        await engine.init_transfer({})
        manifest, _ = write_bundle([("a", torch.ones(3))], tmp_path / "bundle", with_digests=False)
        with pytest.raises(SGLangError, match="failed at .*: must run between begin and end"):
            await engine.update(manifest.to_dict())
        with pytest.raises(AssertionError, match="an earlier update failed"):
            await engine.update(manifest.to_dict())

    run(work)


def test_spoiled_bytes_do_not_leave_this_process(tmp_path: Path) -> None:
    path = tmp_path / "bundle"

    async def work(engine: SGLangEngine) -> Any:
        await engine.init_transfer({})
        manifest, _ = write_bundle([("a", torch.ones(3)), ("b", torch.ones(3))], path, with_digests=True)
        raw = bytearray(path.read_bytes())
        raw[manifest.offsets[1]] ^= 1
        path.write_bytes(bytes(raw))
        await engine.start_update()
        with pytest.raises(WeightDigestError, match="'b'"):
            await engine.update(manifest.to_dict())
        return await engine._client.get("/sums")

    assert run(work) == {}


def test_bytes_that_the_server_holds_otherwise_end_the_sync(tmp_path: Path) -> None:
    weights = [("a", torch.ones(3)), ("b", torch.ones(2, 2, dtype=torch.bfloat16))]

    async def work(engine: SGLangEngine) -> None:
        await engine.init_transfer({})
        unasked, _ = write_bundle(weights, tmp_path / "first", with_digests=False)
        await engine.start_update()
        await engine.update(unasked.to_dict())
        await engine.finish_update(1)
        manifest, _ = write_bundle(weights, tmp_path / "second", with_digests=True)
        await engine.start_update()
        with pytest.raises(WeightDigestError, match="'a' on rank 0 of the SGLang server are not those that were sent"):
            await engine.update(manifest.to_dict())

    run(work, "spoil")


def test_frozen_responses_hold_up_no_update_even_where_they_have_all_connections(tmp_path: Path) -> None:
    async def work(engine: SGLangEngine) -> Any:
        await engine.init_transfer({})
        manifest, _ = write_bundle([("a", torch.ones(3))], tmp_path / "bundle", with_digests=True)
        before = [asyncio.create_task(engine.generate(request(name))) for name in "ab"]
        await asyncio.sleep(0.05)
        await engine.start_update()  # the double refuses it while a request runs that was not paused
        after = asyncio.create_task(engine.generate(request("c")))
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in (*before, after))
        await engine.update(manifest.to_dict())
        await engine.finish_update(3)
        answers = await asyncio.gather(*before, after)
        await engine.start_update()  # nobody is there to be frozen
        await engine.finish_update(4)
        return answers, await engine.generate(request("d"))

    answers, last = run(work, "slow", {"in_flight_update": "keep", "max_num_seqs": 1})
    assert [answer.policy_version for answer in (*answers, last)] == [0, 0, 3, 4]
    assert all(answer.finish_reason == "stop" for answer in answers)


def test_an_update_waits_for_responses_and_responses_wait_for_the_update(tmp_path: Path) -> None:
    async def work(engine: SGLangEngine) -> Any:
        await engine.init_transfer({})
        manifest, _ = write_bundle([("a", torch.ones(3))], tmp_path / "bundle", with_digests=False)
        before = asyncio.create_task(engine.generate(request("before")))
        await asyncio.sleep(0.05)  # it is on its way
        await engine.start_update()  # the server would refuse it while a request runs
        assert before.done()
        after = asyncio.create_task(engine.generate(request("after")))
        await engine.update(manifest.to_dict())
        assert not after.done()
        await engine.finish_update(3)
        return await before, await after

    before, after = run(work, "slow")
    assert (before.policy_version, after.policy_version) == (0, 3)


def test_a_server_that_dies_is_said_with_its_last_words() -> None:
    async def work(engine: SGLangEngine) -> None:
        await engine.generate(request())

    with pytest.raises(RuntimeError, match="(?s)the SGLang server has ended.*the double has seen enough"):
        run(work, "die_at_generate")


def test_a_server_that_dies_while_it_takes_weights(tmp_path: Path) -> None:
    async def work(engine: SGLangEngine) -> None:
        await engine.init_transfer({})
        manifest, _ = write_bundle([("a", torch.ones(3))], tmp_path / "bundle", with_digests=False)
        await engine.start_update()
        await asyncio.wait_for(engine.update(manifest.to_dict()), 30)

    with pytest.raises(RuntimeError, match="the SGLang server has ended"):
        run(work, "die_at_update")


def test_a_server_that_does_not_start() -> None:
    async def work(engine: SGLangEngine) -> None:
        raise AssertionError("it did start")

    with pytest.raises(RuntimeError, match="(?s)ended while it started.*does not want to start"):
        run(work, "no_start")


def test_an_interpreter_without_sglang() -> None:
    async def work(engine: SGLangEngine) -> None:
        raise AssertionError("it did start")

    with pytest.raises(RuntimeError, match="(?s)ended while it started.*No module named"):
        run(work, env={})


def test_nobody_at_the_url() -> None:
    async def work(engine: SGLangEngine) -> None:
        raise AssertionError("it did start")

    with pytest.raises(RuntimeError, match=r"(?s)did not answer in 0\.1 s.*joined by its URL"):
        run(work, url="http://127.0.0.1:9", start_timeout_s=0.1)


def test_replicas_are_refused() -> None:
    async def work(engine: SGLangEngine) -> None:
        raise AssertionError("it did start")

    with pytest.raises(UserError, match="has 2 data-parallel replicas"):
        run(work, "replicas")
    assert check_server("u", {"tp_size": 4, "dp_size": 1, "pp_size": 1, "quantization": None}) == 4
    with pytest.raises(UserError, match=r"quantizes its weights \(fp8\)"):
        check_server("u", {"tp_size": 1, "quantization": "fp8"})
    with pytest.raises(UserError, match="3 pipeline stages"):
        check_server("u", {"tp_size": 4, "pp_size": 3})


def test_a_joined_server_goes_on() -> None:
    async def work(first: SGLangEngine) -> Any:
        settings = double_settings(url=first._client.url)
        second = SGLangEngine(RolloutSpec(model_path="m", dtype="float32", max_model_len=64, server=settings))
        await second.start()
        joined = await second.generate(request())
        await second.close()
        return joined, await first.generate(request())

    joined, own = run(work)
    assert joined == own


def test_sampling_says_everything() -> None:
    settings = SamplingSettings(temperature=0.7, top_p=0.9, top_k=5, max_new_tokens=3, seed=11, stop_token_ids=(1, 2))
    said = sampling_params(settings)
    expected = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "max_new_tokens": 3, "sampling_seed": 11}
    assert said.items() >= (expected | {"stop_token_ids": [1, 2], "ignore_eos": False}).items()
    on = sampling_params(SamplingSettings(max_new_tokens=3, stop_token_ids=(1,), ignore_eos=True))
    assert (on["stop_token_ids"], on["ignore_eos"]) == ([], True)
    assert "sampling_seed" not in on


def test_an_answer_without_log_probs_is_refused() -> None:
    with pytest.raises(SGLangError, match="without log-probs"):
        generation("r", {"meta_info": {"finish_reason": {"type": "stop"}}}, 0)
