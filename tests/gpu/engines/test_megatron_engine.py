# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers.engine_cases import CASES, engine_spec, one_rank_group, plain_loop, train
from tests.helpers.tiny_models import save_tiny_model, tiny_model
from verl.engines.base import MegatronSpec, build_engine

parallel_state = pytest.importorskip("megatron.core.parallel_state", reason="megatron-core is not installed")
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("distributed_optimizer", [True, False])
@pytest.mark.parametrize("name", ["checkpointing", "bf16"])
def test_training_on_cuda_equals_the_plain_loop_on_the_cpu(
    name: str, distributed_optimizer: bool, tmp_path: Path
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    case, is_exact = CASES[name], name != "bf16"
    reference = plain_loop(tiny_model(), case)
    layout = MegatronSpec(distributed_optimizer=distributed_optimizer, grad_offload=True)
    spec = replace(engine_spec(save_tiny_model(tmp_path), case), device="cuda", strategy="megatron", megatron=layout)
    with one_rank_group(torch.device("cuda", 0)):
        engine = build_engine(spec)
        history = train(engine, case, range(2))
        engine.offload()
        engine.onload()
        history += train(engine, case, range(2, 5))
        parallel_state.destroy_model_parallel()
    tolerance = {"rel": 1e-3} if is_exact else {"rel": 0.05, "abs": 0.02}
    assert [m["actor/loss"] for m in history] == pytest.approx(reference["losses"], **tolerance)
    assert [m["actor/grad_norm"] for m in history] == pytest.approx(reference["norms"], rel=1e-3 if is_exact else 0.1)
