# SPDX-License-Identifier: Apache-2.0
"""SGLang servers: every mistake refused with key and mend, its nearest neighbour accepted; where the environment is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.helpers.configs import build, fault
from verl.config.sglang import PYTHON_VARIABLE, SGLangConfig
from verl.config.sglang_checks import interpreter_problems

ROLLOUT = "actor_rollout_ref.rollout"
SGLANG = f"{ROLLOUT}.sglang"
NAME = f"{ROLLOUT}.name=sglang"
URLS = f"{SGLANG}.urls=[http://a:1,http://b:1]"
POOL = (f"{ROLLOUT}.enable_resource_pool=True", f"{ROLLOUT}.n_gpus_per_node=2")


@pytest.mark.parametrize(
    ("refused", "said", "accepted"),
    [
        ([f"{SGLANG}.urls=[http://a:1]"], "is read with actor_rollout_ref.rollout.name=sglang only, not vllm", [NAME]),
        ([f"{SGLANG}.python=p"], "only, not vllm", [NAME]),
        ([f"{SGLANG}.env.A=b"], "only, not vllm", [NAME]),
        ([NAME, f"{SGLANG}.urls=[nodex:3]"], "must be like http://host:port", [f"{SGLANG}.urls=[http://nodex:3]"]),
        ([NAME, f"{SGLANG}.urls=[http://a:65536]"], "must be like http://host:port", [f"{SGLANG}.urls=[http://a:65535]"]),
        ([NAME, f"{SGLANG}.urls=[http://a:1,http://a:1]"], "names a server twice", [URLS]),
        ([NAME, URLS, f"{SGLANG}.env.A=b"], "and these are joined", [f"{SGLANG}.urls=[]"]),
        ([NAME, URLS, f"{SGLANG}.server_args.a=1"], "and these are joined", [f"{SGLANG}.urls=[]"]),
        ([NAME, f"{ROLLOUT}.engine_kwargs.a=1"], f"Set {SGLANG}.server_args instead", [f"{ROLLOUT}.name=vllm"]),
        ([NAME, f"{ROLLOUT}.top_p=0.9", "algorithm.rollout_correction.rollout_is=token"], "before the cut",
         [f"{ROLLOUT}.name=vllm"]),
        ([NAME, f"{ROLLOUT}.top_k=5", "algorithm.rollout_correction.rollout_is=token"], "before the cut",
         [f"{ROLLOUT}.top_k=-1"]),
        ([NAME, "trainer.device=cuda"], "does not hand its memory back", [f"{ROLLOUT}.free_cache_engine=False"]),
        ([NAME, "trainer.device=cuda"], "does not hand its memory back", [URLS]),
        ([NAME, "trainer.device=cuda"], "does not hand its memory back", POOL),
        ([NAME, URLS, *POOL], "have devices of their own already", [f"{SGLANG}.urls=[]"]),
        ([NAME, *POOL, f"{ROLLOUT}.nnodes=2"], "reaches sglang servers on the policy's own", [f"{ROLLOUT}.nnodes=1"]),
        ([NAME, f"{ROLLOUT}.tensor_model_parallel_size=3"], "must divide trainer.n_gpus_per_node=8", [URLS]),
        ([NAME, f"{ROLLOUT}.weight_sync_backend=ipc"], "sglang servers take weights by shared_memory",
         [f"{ROLLOUT}.weight_sync_backend=shared_memory"]),
    ],
)  # fmt: skip
def test_refused_and_accepted(refused: list[str], said: str, accepted: list[str]) -> None:
    assert said in fault(*refused)
    build(*refused, *accepted)


def test_arguments_are_named_without_dashes() -> None:
    assert "Write attention_backend" in fault(NAME, f"{SGLANG}.server_args.--attention-backend=fa3")


def test_servers_are_counted() -> None:
    rollout = build(NAME, f"{ROLLOUT}.tensor_model_parallel_size=2").actor_rollout_ref.rollout
    assert (rollout.joins_servers, rollout.num_servers(8)) == (False, 4)
    joined = build(NAME, URLS).actor_rollout_ref.rollout
    assert (joined.joins_servers, joined.num_servers(8)) == (True, 2)


def test_the_environment_is_looked_for(tmp_path: Path) -> None:
    missing = build(NAME, f"{SGLANG}.python={tmp_path}/python").actor_rollout_ref.rollout
    (problem,) = interpreter_problems(missing, ROLLOUT)
    assert "bash scripts/setup_sglang_env.sh" in problem.line()
    (tmp_path / "python").write_text("not a program")
    assert list(interpreter_problems(missing, ROLLOUT))
    for fine in ([NAME, f"{SGLANG}.python={sys.executable}"], [NAME, URLS], [f"{ROLLOUT}.name=vllm"]):
        assert not list(interpreter_problems(build(*fine).actor_rollout_ref.rollout, ROLLOUT))


def test_the_environment_by_key_by_variable_and_beside_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    beside = Path(SGLangConfig().interpreter)
    assert beside.parts[-3:] == (".venv-sglang", "bin", "python")
    assert (beside.parents[2] / "verl").is_dir()
    monkeypatch.setenv(PYTHON_VARIABLE, "/by/variable")
    assert SGLangConfig().interpreter == "/by/variable"
    assert SGLangConfig(python="/by/key").interpreter == "/by/key"
