# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest

from tests.helpers.configs import WITH_PRM, load
from verl.config import EvaluationConfig, GenerationConfig, PPOTrainerConfig, PRMTrainerConfig, SFTTrainerConfig

HEAVY = {"torch", "ray", "transformers", "vllm", "numpy", "tensordict", "pandas", "pyarrow"}


@pytest.mark.parametrize("module", ["verl.config", "verl.config.hydra", "verl.config.plan", "verl.config.files"])
def test_loads_nothing_heavy(module: str) -> None:
    source = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, timeout=120)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert not loaded & HEAVY


def test_dataclasses_do_not_need_hydra() -> None:
    source = "import json, sys, verl.config; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, timeout=120)
    assert not {"hydra", "omegaconf"} & set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "root", [PPOTrainerConfig, SFTTrainerConfig, PRMTrainerConfig, GenerationConfig, EvaluationConfig]
)
def test_roots_travel_in_a_pickle(root: type) -> None:
    assert pickle.loads(pickle.dumps(root())) == root()


def test_loaded_config_travels_in_a_pickle() -> None:
    loaded = load(*WITH_PRM, "actor_rollout_ref.rollout.engine_kwargs={vllm:{block_size:32}}")
    assert pickle.loads(pickle.dumps(loaded)) == loaded
