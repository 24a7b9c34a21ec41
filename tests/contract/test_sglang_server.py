# SPDX-License-Identifier: Apache-2.0
"""A real SGLang server as a process: joined by its URL, killed, and orphaned; asked for with `-m sglang`."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.contract.test_rollout_engines import HEADS, TOLERANCE, largest_difference
from tests.helpers.sglang import real_settings
from tests.helpers.tiny_models import tiny_model
from verl.rollout.base import GenerationRequest, RolloutSpec, SamplingSettings
from verl.rollout.sglang_engine import SGLangEngine
from verl.rollout.sglang_weights import SGLangWeightChannel
from verl.weight_sync.bundle import WeightDigestError, write_bundle

pytestmark = [pytest.mark.sglang, pytest.mark.opt_in, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
Work = Callable[[SGLangEngine], Awaitable[Any]]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> RolloutSpec:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(True, 0, **HEADS).save_pretrained(folder)
    return RolloutSpec(
        model_path=str(folder), dtype="float32", max_model_len=64, kv_cache_bytes=1 << 24, server=real_settings()
    )


def request(max_new_tokens: int = 8) -> GenerationRequest:
    settings = SamplingSettings(max_new_tokens=max_new_tokens, temperature=0.0, ignore_eos=True)
    return GenerationRequest(request_id="r", prompt_token_ids=[5, 6, 7], sampling=settings)


def run(spec: RolloutSpec, work: Work) -> Any:
    async def whole() -> Any:
        engine = SGLangEngine(spec)
        try:
            await engine.start()
            assert shared_files() > before
            return await work(engine)
        finally:
            await engine.close()

    before = shared_files()
    result = asyncio.run(whole())
    assert shared_files() <= before
    return result


def shared_files() -> set[str]:
    """What SGLang servers have in shared memory; they take little of it away themselves."""
    return {path.name for path in Path("/dev/shm").glob("sgl*")}


def sglang_processes() -> list[psutil.Process]:
    """Processes of the server, which hold its own name, below this one."""
    found = psutil.Process().children(recursive=True)
    return [each for each in found if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_a_joined_server_takes_weights_and_goes_on(spec: RolloutSpec, tmp_path: Path) -> None:
    weights = list(tiny_model(True, 1, **HEADS).named_parameters())

    async def join(first: SGLangEngine) -> Any:
        before = await first.generate(request())
        assert spec.server is not None
        second = SGLangEngine(replace(spec, server=replace(spec.server, url=first._client.url)))
        await second.start()
        await second.init_transfer({})
        manifest, _ = write_bundle(weights, tmp_path / "bundle", with_digests=True)
        await second.start_update()
        await second.update(manifest.to_dict())
        await second.finish_update(1)
        joined = await second.generate(request())
        await second.close()
        return before, joined, await first.generate(request())

    before, joined, after = run(spec, join)
    assert joined.token_ids == after.token_ids != before.token_ids
    assert not sglang_processes()


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.v_proj.bias", "model.embed_tokens.weight"])
def test_a_weight_that_another_changed_is_found(name: str, spec: RolloutSpec, tmp_path: Path) -> None:
    weights = dict(tiny_model(True, 1, **HEADS).named_parameters())
    manifest, _ = write_bundle(weights.items(), tmp_path / "bundle", with_digests=True)
    spoiled = weights[name].detach().clone()
    spoiled.view(torch.int32).reshape(-1)[-1] ^= 1
    intruder, _ = write_bundle([(name, spoiled)], tmp_path / "intruder", with_digests=False)

    async def work(engine: SGLangEngine) -> None:
        await engine.init_transfer({})
        other = SGLangWeightChannel(engine._client)
        assert engine._shape is not None and engine._channel is not None
        await other.open(engine._shape)
        await engine.start_update()
        await engine.update(manifest.to_dict())  # agrees
        await other.send(intruder)
        with pytest.raises(WeightDigestError, match="on rank 0 of the SGLang server are not those that were sent"):
            await engine._channel.compare(manifest)
        await engine.update(manifest.to_dict())
        await engine.finish_update(1)
        await other.close()

    run(spec, work)


def test_killed_while_it_answers_and_while_it_takes_weights(spec: RolloutSpec, tmp_path: Path) -> None:
    manifest, _ = write_bundle(tiny_model(True, 1, **HEADS).named_parameters(), tmp_path / "bundle", False)

    def kill_the_scheduler() -> None:
        for each in sglang_processes():
            if "scheduler" in " ".join(each.cmdline()):
                each.kill()

    async def work(engine: SGLangEngine) -> None:
        await engine.init_transfer({})
        await engine.start_update()
        kill_the_scheduler()
        with pytest.raises(RuntimeError, match="SGLang"):
            await asyncio.wait_for(engine.update(manifest.to_dict()), 60)
        engine._gate.open()
        with pytest.raises(RuntimeError, match="(?s)the SGLang server has ended.*last lines of its log"):
            await asyncio.wait_for(engine.generate(request()), 60)

    run(spec, work)
    assert not sglang_processes()


def test_it_ends_with_a_holder_that_is_killed(spec: RolloutSpec, tmp_path: Path) -> None:
    program = (
        "import asyncio, pathlib, pickle, sys\n"
        "from verl.rollout.sglang_engine import SGLangEngine\n"
        "async def hold():\n"
        "    engine = SGLangEngine(pickle.loads(pathlib.Path(sys.argv[1]).read_bytes()))\n"
        "    await engine.start()\n"
        "    pathlib.Path(sys.argv[2]).touch()\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(hold())\n"
    )
    (tmp_path / "spec").write_bytes(pickle.dumps(spec))
    command = [sys.executable, "-c", program, str(tmp_path / "spec"), str(tmp_path / "up")]
    before = shared_files()
    holder = subprocess.Popen(command, cwd=ROOT)
    deadline = time.monotonic() + 200
    while not (tmp_path / "up").exists():
        assert holder.poll() is None and time.monotonic() < deadline
        time.sleep(0.5)
    family = psutil.Process(holder.pid).children(recursive=True)
    assert len(family) >= 3  # guard, server, scheduler
    holder.kill()
    holder.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert shared_files() <= before
    assert not [each for each in alive if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_two_ranks_of_one_server_take_weights(spec: RolloutSpec, tmp_path: Path) -> None:
    assert spec.server is not None
    env = spec.server.env
    if not torch.cuda.is_available():
        env = env | {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}  # SGLang wants cores for each rank
    elif torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs, or none")
    model = tiny_model(True, 1, **HEADS | {"num_key_value_heads": 2})
    tiny_model(True, 0, **HEADS | {"num_key_value_heads": 2}).save_pretrained(tmp_path)
    two = replace(spec, model_path=str(tmp_path), tensor_parallel_size=2, server=replace(spec.server, env=env))
    manifest, _ = write_bundle(model.named_parameters(), tmp_path / "bundle", with_digests=True)

    async def work(engine: SGLangEngine) -> Any:
        await engine.init_transfer({})
        await engine.start_update()
        await engine.update(manifest.to_dict())
        await engine.finish_update(1)
        return await engine.generate(request())

    answer = run(two, work)
    assert largest_difference(model, [([5, 6, 7], answer)], 0.0) < TOLERANCE
    assert not sglang_processes()
