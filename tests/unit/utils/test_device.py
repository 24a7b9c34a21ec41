# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from verl.utils.device import dist_backend, memory_stats, resolve_device, rng_state, set_rng_state
from verl.utils.errors import UserError

CPU = torch.device("cpu")


def test_auto_takes_a_gpu_only_where_there_is_one() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == CPU


def test_unknown_and_absent_devices_are_user_errors() -> None:
    with pytest.raises(UserError, match="trainer.device='tpu'"):
        resolve_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="trainer.device='cuda'.*trainer.device=cpu"):
            resolve_device("cuda")


def test_both_backends_exist_beside_a_gpu_so_that_offloaded_tensors_can_be_combined() -> None:
    assert dist_backend(CPU) == "gloo"
    assert dist_backend(torch.device("cuda", 0)) == "cpu:gloo,cuda:nccl"


def test_random_state_goes_back_to_where_it_was() -> None:
    state = rng_state(CPU)
    first = torch.rand(3)
    set_rng_state(CPU, state)
    assert torch.rand(3).equal(first)


def test_the_cpu_has_no_memory_statistics() -> None:
    assert memory_stats(CPU) == {}
