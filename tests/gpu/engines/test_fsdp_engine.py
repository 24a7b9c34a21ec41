# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers.engine_cases import CASES, engine_spec, one_rank_group, plain_loop, train
from tests.helpers.tiny_models import save_tiny_model, tiny_model
from verl.engines.fsdp.engine import FSDPEngine

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["plain", "bf16", "cpu_offload"])
def test_training_on_cuda_equals_the_plain_loop_on_the_cpu(name: str, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    case, is_exact = CASES[name], name != "bf16"
    reference = plain_loop(tiny_model(), case)
    with one_rank_group(torch.device("cuda", 0)):
        engine = FSDPEngine(replace(engine_spec(save_tiny_model(tmp_path), case), device="cuda"))
        engine.offload()
        engine.onload()
        history = train(engine, case, range(3))
        engine.save(str(tmp_path / "checkpoint"))
        assert torch.load(tmp_path / "checkpoint" / "rng_0.pt").keys() == {"cpu", "cuda"}
        train(engine, case, range(1))
        engine.load(str(tmp_path / "checkpoint"))
        history += train(engine, case, range(3, 5))
    tolerance = {"rel": 1e-3} if is_exact else {"rel": 0.05, "abs": 0.02}
    assert [m["actor/loss"] for m in history] == pytest.approx(reference["losses"], **tolerance)
    assert [m["actor/grad_norm"] for m in history] == pytest.approx(reference["norms"], rel=1e-3 if is_exact else 0.1)
