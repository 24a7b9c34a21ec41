# SPDX-License-Identifier: Apache-2.0
"""The PRM replica without Ray: right backend, one life from start to close."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.helpers.prm import save_tiny_prm
from verl.rewards.prm.spec import PRMSpec
from verl.rewards.prm.types import ScoreRequest
from verl.utils.errors import UserError
from verl.workers.process_reward import ProcessRewardServer


def test_start_score_close(tmp_path):
    async def run():
        server = ProcessRewardServer("hf", PRMSpec(path=str(save_tiny_prm(tmp_path)), dtype="float32", device="cpu"))
        pid = await server.start()
        answer = await server.score(ScoreRequest("r", "1+1?", ("one", "two")))
        await server.close()
        return pid, answer

    pid, answer = asyncio.run(run())
    assert pid == os.getpid() and answer.logits.shape == (2, 2)


def test_unknown_backends_are_refused():
    with pytest.raises(UserError, match=r"backend='sglang': must be one of vllm, hf"):
        ProcessRewardServer("sglang", PRMSpec(path="p"))
