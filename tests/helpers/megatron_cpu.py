# SPDX-License-Identifier: Apache-2.0
"""Lets Megatron-core run on CPU tensors and gloo groups, for tests on machines without a GPU.

Megatron-core asks for CUDA by name in some twenty places (devices of small buffers, random states, type checks by
string). Product code does not know this file, and the file refuses to work where there is a GPU: what it proves is our
wiring, not Megatron's kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import megatron.core.tensor_parallel.random as megatron_random
import torch
from torch.overrides import TorchFunctionMode


class CudaNamesMeanCPU(TorchFunctionMode):
    """Reads `cuda` as `cpu` where tensors are made, moved or asked for their type; holds for the entering thread."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = torch.device("cpu")
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return func(*args, **kwargs)


class CPURandomStates:
    """Named random states, as Megatron's tracker keeps them, of the CPU's generator."""

    def __init__(self) -> None:
        self.states_: dict[str, torch.Tensor] = {}

    def is_initialized(self) -> bool:
        return bool(self.states_)

    def reset(self) -> None:
        self.states_ = {}

    def get_states(self) -> dict[str, torch.Tensor]:
        return dict(self.states_)

    def set_states(self, states: dict[str, torch.Tensor]) -> None:
        self.states_ = dict(states)

    def add(self, name: str, seed: int) -> None:
        kept = torch.get_rng_state()
        torch.manual_seed(seed)
        self.states_[name] = torch.get_rng_state()
        torch.set_rng_state(kept)

    @contextmanager
    def fork(self, name: str = "model-parallel-rng") -> Iterator[None]:
        kept = torch.get_rng_state()
        torch.set_rng_state(self.states_[name])
        try:
            yield
        finally:
            self.states_[name] = torch.get_rng_state()
            torch.set_rng_state(kept)


@contextmanager
def megatron_on_cpu() -> Iterator[None]:
    """Run the block with Megatron-core on the CPU, in this thread."""
    assert not torch.cuda.is_available(), "support for tests without a GPU; on a GPU Megatron runs as it is"
    random = {
        "_CUDA_RNG_STATE_TRACKER": CPURandomStates(),
        "_CUDA_RNG_STATE_TRACKER_INITIALIZED": True,
        "_get_cuda_rng_state": lambda *_, **__: torch.get_rng_state(),
        "_set_cuda_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
    }
    with ExitStack() as stack:
        stack.enter_context(mock.patch("torch.cuda.current_device", lambda: torch.device("cpu")))
        stack.enter_context(mock.patch("torch.cuda.synchronize", lambda *_: None))
        stack.enter_context(mock.patch.multiple(megatron_random, **random))
        stack.enter_context(CudaNamesMeanCPU())
        yield
