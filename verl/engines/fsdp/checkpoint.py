# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a sharded model in torch's distributed format (DCP): written by all ranks, read by any number.

    <folder>/*.distcp, .metadata    weights and optimizer states, each rank its shards; beside adapters, no frozen ones
    <folder>/engine.json            optimizer steps done
    <folder>/rng_<rank>.pt          random states of one rank

Whether the folder becomes visible at once (rename) is the caller's business.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from verl.utils.device import rng_state, set_rng_state
from verl.utils.errors import UserError

logger = logging.getLogger(__name__)

# A resumed run may have new ones; the rate follows the schedule anyway.
_SETTINGS = ("weight_decay", "betas", "eps")


def save_checkpoint(
    folder: str, module: nn.Module, optimizer: Optimizer | None, num_steps: int, device: torch.device
) -> None:
    """Write a checkpoint; returns on every rank once all ranks have written.

    Args:
        folder: Where to; made if needed.
        module: The sharded module.
        optimizer: None for a frozen model.
        num_steps: Optimizer steps done.
        device: The engine's, whose random state is kept; offloaded parameters lie elsewhere.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    dcp.save(_state(module, optimizer), checkpoint_id=folder)
    torch.save(rng_state(device), path / f"rng_{dist.get_rank()}.pt")
    if dist.get_rank() == 0:
        (path / "engine.json").write_text(json.dumps({"num_steps": num_steps, "world_size": dist.get_world_size()}))
    dist.barrier()


def load_checkpoint(folder: str, module: nn.Module, optimizer: Optimizer | None, device: torch.device) -> int:
    """Read a checkpoint in place.

    Args:
        folder: What `save_checkpoint` wrote, on any number of ranks.
        module: The sharded module.
        optimizer: None reads the weights alone.
        device: The engine's.

    Returns:
        Optimizer steps done.

    Raises:
        UserError: The folder holds no complete checkpoint.
    """
    path = Path(folder)
    for name in (".metadata", "engine.json"):
        if not (path / name).is_file():
            raise UserError.for_key(
                "checkpoint folder", folder, f"must hold a complete checkpoint, and {name} is not there", "Name another"
            )
    state = _state(module, optimizer)
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(module, state["model"], options=StateDictOptions(strict=not _has_frozen_base(module)))
    if optimizer is not None:
        settings = [{name: group[name] for name in _SETTINGS} for group in optimizer.param_groups]
        set_optimizer_state_dict(module, optimizer, state["optimizer"])
        for group, own in zip(optimizer.param_groups, settings, strict=True):
            group.update(own)
    meta = json.loads((path / "engine.json").read_text())
    _restore_rng(path, device, int(meta["world_size"]))
    return int(meta["num_steps"])


def _has_frozen_base(module: nn.Module) -> bool:
    """Whether only a part is trained: the rest is in the model's own files already."""
    return len({parameter.requires_grad for parameter in module.parameters()}) == 2


def _state(module: nn.Module, optimizer: Optimizer | None) -> dict[str, Any]:
    model = get_model_state_dict(module)
    if _has_frozen_base(module):
        # torch's own switch for this keeps a frozen weight's second name, such as that of a tied output projection
        trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        model = {name: value for name, value in model.items() if name in trained}
    state: dict[str, Any] = {"model": model}
    if optimizer is not None:
        is_new = not optimizer.state
        state["optimizer"] = get_optimizer_state_dict(module, optimizer)
        if is_new:
            # DCP fills a fresh optimizer's states by a step of zero gradients at rate zero. That step must not count:
            # it would weaken the bias correction of the first real one.
            for entry in state["optimizer"]["state"].values():
                entry["step"].zero_()
    return state


def _restore_rng(path: Path, device: torch.device, saved_world_size: int) -> None:
    file = path / f"rng_{dist.get_rank()}.pt"
    if saved_world_size != dist.get_world_size() or not file.is_file():
        logger.info("%s was written on %d ranks: random states start anew", path, saved_world_size)
        return
    set_rng_state(device, torch.load(file, weights_only=True))
