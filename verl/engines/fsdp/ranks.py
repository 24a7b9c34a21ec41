# SPDX-License-Identifier: Apache-2.0
"""Which ranks share a sequence and which share the batch. It knows no weights: those are spread over all ranks anyway.

Neighbours share a sequence, since they talk in every layer: with 8 ranks and 2 per sequence

    sequence groups       (0 1) (2 3) (4 5) (6 7)
    data-parallel groups  (0 2 4 6) (1 3 5 7)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from verl.engines.sequence_parallel import SequenceParallel
from verl.utils.errors import UserError

_KEY = "actor_rollout_ref.actor.ulysses_sequence_parallel_size"


@dataclass(frozen=True)
class RankGroups:
    """This rank's place.

    Args:
        dp_rank: Which share of a batch it works on.
        dp_size: How many shares there are.
        dp_group: Ranks that hold different shares, one of each; None for all ranks.
        parallel: Ranks that work on the same share; None if there are no others.
    """

    dp_rank: int
    dp_size: int
    dp_group: dist.ProcessGroup | None
    parallel: SequenceParallel | None


def split_ranks(sequence_parallel: int) -> RankGroups:
    """Make the process groups; collective over all ranks.

    Args:
        sequence_parallel: Ranks that share one sequence.

    Returns:
        This rank's groups.

    Raises:
        UserError: The number does not divide the number of ranks.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if sequence_parallel == 1:
        return RankGroups(rank, world_size, None, None)
    if world_size % sequence_parallel:
        raise UserError.for_key(
            _KEY, sequence_parallel, f"must divide the number of ranks ({world_size})", "Choose a divisor"
        )
    dp_size = world_size // sequence_parallel
    sharing = [range(first, first + sequence_parallel) for first in range(0, world_size, sequence_parallel)]
    across = [range(place, world_size, sequence_parallel) for place in range(sequence_parallel)]
    # every rank has to take part in the making of every group
    sequence_groups, dp_groups = ([dist.new_group(list(ranks)) for ranks in all_of] for all_of in (sharing, across))
    dp_rank, place = divmod(rank, sequence_parallel)
    parallel = SequenceParallel(sequence_groups[dp_rank], place, sequence_parallel)
    return RankGroups(dp_rank, dp_size, dp_groups[place], parallel)


def check_heads(model: Any, sequence_parallel: int) -> None:
    """Refuse a model whose heads cannot be shared equally.

    Args:
        model: A transformers model.
        sequence_parallel: Ranks that share one sequence.

    Raises:
        UserError: Its query heads do not divide. Key and value heads are repeated where that is needed.
    """
    heads = model.config.num_attention_heads
    if heads % sequence_parallel:
        raise UserError.for_key(
            _KEY, sequence_parallel, f"must divide the model's {heads} attention heads", "Choose a divisor"
        )
