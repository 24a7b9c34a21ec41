# SPDX-License-Identifier: Apache-2.0
"""What the engines know of low-rank adapters without the package that puts them in: size, names, and merging.

This file knows no mesh; `verl.engines.lora` has the adapters themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class LoraSpec:
    """Which layers get adapters, and how large.

    Args:
        rank: Rows of A and columns of B.
        alpha: The product B A is scaled by alpha / rank.
        target_modules: Ends of module names, or `all-linear` alone for every `Linear` below the output projection.
        key: The configuration key of `target_modules`, for messages.
    """

    rank: int
    alpha: int = 16
    target_modules: tuple[str, ...] = ("all-linear",)
    key: str = "actor_rollout_ref.model.target_modules"


@dataclass(frozen=True)
class AdapterPair:
    """The two matrices that change one weight.

    Args:
        down: Name of A, [rank, in].
        up: Name of B, [out, rank].
        scale: Factor of B A.
    """

    down: str
    up: str
    scale: float


class Adapters(Protocol):
    """Adapters inside a model."""

    pairs: dict[str, AdapterPair]

    def left_out(self) -> AbstractContextManager[None]:
        """Run the model without them."""
        ...

    def write_config(self, folder: str, base_model: str) -> None:
        """Describe them for peft."""
        ...


def plain_name(name: str) -> str:
    """Turn a parameter's name in a model with adapters into its name in the model without.

    Args:
        name: As the model with adapters has it.
    """
    return name.replace(".base_layer.", ".")


def merge(weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """Compute W + scale * B A.

    Args:
        weight: [out, in], W.
        down: [rank, in], A.
        up: [out, rank], B.
        scale: alpha / rank.

    Returns:
        [out, in] float32.
    """
    return weight.float() + (up.float() @ down.float()) * scale


def peft_names(pairs: Mapping[str, AdapterPair]) -> Iterator[tuple[str, str]]:
    """Name the adapters as peft's files do.

    Args:
        pairs: Of a model.

    Yields:
        (name of the parameter in the model, name in `adapter_model.safetensors`).
    """
    for pair in pairs.values():
        for name in (pair.down, pair.up):
            owner, _, _ = name.rpartition(".weight")
            yield name, f"base_model.model.{owner.rpartition('.')[0]}.weight"
