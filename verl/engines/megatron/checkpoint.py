# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a Megatron model, written by all ranks.

    <folder>/weights/             Megatron's distributed format: weights, the plain optimizer's states; for any layout
    <folder>/optimizer_<rank>.pt  the distributed optimizer's share of one rank, for the same layout only
    <folder>/engine.json          optimizer steps done, and the layout
    <folder>/rng_<rank>.pt        random states of one rank

Megatron 0.16's own resharding of the distributed optimizer needs Transformer Engine, so that optimizer goes on with
the sizes it was written with. Whether the folder becomes visible at once (rename) is the caller's business.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.optimizer import (
    get_param_id_to_sharded_param_map,
    make_sharded_optimizer_tensor,
)

from verl.engines.megatron.model import PackedGPT
from verl.engines.megatron.optimizer import MOMENTS, MegatronAdamW
from verl.engines.megatron.parallel import ParallelLayout
from verl.utils.device import rng_state, set_rng_state
from verl.utils.errors import UserError

logger = logging.getLogger(__name__)

_KEY = "checkpoint folder"
_DISTRIBUTED = "actor_rollout_ref.actor.megatron.use_distributed_optimizer"


@dataclass(frozen=True)
class CheckpointParts:
    """What a checkpoint holds.

    Args:
        module: This rank's model.
        optimizer: None for a frozen model.
        layout: This rank's place.
        device: Whose random state is kept.
    """

    module: PackedGPT
    optimizer: MegatronAdamW | None
    layout: ParallelLayout
    device: torch.device

    def sizes(self) -> dict[str, int]:
        """Sizes of the layout, by name."""
        layout = self.layout
        return {
            "tensor_parallel": layout.tp_size,
            "pipeline_parallel": layout.pp_size,
            "data_parallel": layout.dp_size,
        }

    def sharded_state(self, with_moments: bool) -> dict[str, Any]:
        """Describe this rank's tensors as parts of whole ones, Megatron's way.

        Args:
            with_moments: Whether the plain optimizer's states belong to it.
        """
        model = self.module.sharded_state_dict()
        state: dict[str, Any] = {"model": model}
        if not with_moments or self.optimizer is None:
            return state
        entries = list(self.optimizer.entries())
        parts = get_param_id_to_sharded_param_map(model, (entry.parameter for entry in entries))
        for number, entry in enumerate(entries):
            tensors = {name: entry.state[name] for name in MOMENTS} | {"master": entry.master}
            for name, tensor in tensors.items():
                part = make_sharded_optimizer_tensor(parts[number], tensor, prefix=f"optimizer.{name}")
                state.setdefault(name, {})[number] = part
        return state


def save_checkpoint(folder: str, parts: CheckpointParts) -> None:
    """Write a checkpoint; returns on every rank once all ranks have written.

    Args:
        folder: Where to; made if needed.
        parts: What to write.
    """
    path = Path(folder)
    (path / "weights").mkdir(parents=True, exist_ok=True)
    optimizer = parts.optimizer
    num_steps = optimizer.num_steps if optimizer is not None else 0
    is_sharded = optimizer is not None and optimizer.is_sharded
    state = parts.sharded_state(with_moments=num_steps > 0 and not is_sharded)
    dist_checkpointing.save(state, str(path / "weights"))
    rank = dist.get_rank()
    if optimizer is not None and is_sharded:
        torch.save(optimizer.rank_state(), path / f"optimizer_{rank}.pt")
    torch.save(rng_state(parts.device), path / f"rng_{rank}.pt")
    if rank == 0:
        meta = {"num_steps": num_steps, "distributed_optimizer": is_sharded, "sizes": parts.sizes()}
        (path / "engine.json").write_text(json.dumps(meta))
    dist.barrier()


def load_checkpoint(folder: str, parts: CheckpointParts) -> None:
    """Read a checkpoint in place.

    Args:
        folder: What `save_checkpoint` wrote.
        parts: What to fill.

    Raises:
        UserError: The folder holds no complete checkpoint of this engine, or one that this layout cannot go on from.
    """
    path = Path(folder)
    if not (path / "engine.json").is_file() or not (path / "weights").is_dir():
        allowed = "must hold a complete checkpoint of strategy=megatron, and engine.json or weights/ is not there"
        raise UserError.for_key(_KEY, folder, allowed, "Name another")
    meta = json.loads((path / "engine.json").read_text())
    _check_layout(folder, meta, parts)
    optimizer, num_steps = parts.optimizer, int(meta["num_steps"])
    has_moments = optimizer is not None and not optimizer.is_sharded and num_steps > 0
    if optimizer is not None and has_moments:
        optimizer.start_state()
    state = dist_checkpointing.load(parts.sharded_state(has_moments), str(path / "weights"))
    parts.module.load_state_dict(state["model"])
    if optimizer is not None:
        if has_moments:
            _fill_moments(optimizer, state)
        elif num_steps > 0:
            file = path / f"optimizer_{dist.get_rank()}.pt"
            optimizer.load_rank_state(torch.load(file, map_location="cpu", weights_only=True))
        optimizer.resume_at(num_steps)
    _restore_rng(path, parts, meta["sizes"])


@torch.no_grad()
def _fill_moments(optimizer: MegatronAdamW, state: dict[str, Any]) -> None:
    for number, entry in enumerate(optimizer.entries()):
        entry.master.copy_(state["master"][number])
        for name in MOMENTS:
            entry.state[name].copy_(state[name][number])


def _check_layout(folder: str, meta: dict[str, Any], parts: CheckpointParts) -> None:
    if parts.optimizer is None:
        return
    was_sharded = bool(meta["distributed_optimizer"])
    if was_sharded != parts.optimizer.is_sharded:
        allowed = f"was written with {_DISTRIBUTED}={was_sharded}, and states are not carried over"
        raise UserError.for_key(_KEY, folder, allowed, f"Set {_DISTRIBUTED}={was_sharded}")
    if was_sharded and meta["sizes"] != parts.sizes():
        written = ", ".join(f"{name}={size}" for name, size in meta["sizes"].items())
        here = ", ".join(f"{name}={size}" for name, size in parts.sizes().items())
        allowed = (
            f"was written by the distributed optimizer on {written}, which only resumes on the same sizes; here {here}"
        )
        mend = f"Use the same sizes, or train with {_DISTRIBUTED}=False, whose checkpoints any layout reads"
        raise UserError.for_key(_KEY, folder, allowed, mend)


def _restore_rng(path: Path, parts: CheckpointParts, saved_sizes: dict[str, int]) -> None:
    file = path / f"rng_{dist.get_rank()}.pt"
    if saved_sizes != parts.sizes() or not file.is_file():
        logger.info("%s was written on another layout: random states start anew", path)
        return
    set_rng_state(parts.device, torch.load(file, weights_only=True))
