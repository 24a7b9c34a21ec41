# SPDX-License-Identifier: Apache-2.0
"""The slice of the vocabulary that one rank holds. Sums over the vocabulary are sums over the ranks of one number per
token, so no rank ever has another's logits. It knows no model; the head itself is `verl.algorithms.log_probs`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist

from verl.algorithms.log_probs import VocabSlice

_OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


@dataclass(frozen=True)
class RankVocabSlice(VocabSlice):
    """This rank's rows of the output weight.

    Args:
        group: The ranks that hold all rows together.
    """

    group: dist.ProcessGroup

    def reduce(self, values: torch.Tensor, op: Literal["sum", "max"]) -> torch.Tensor:
        """Combine over the ranks, in place; returns its argument."""
        if self.group.size() > 1:
            dist.all_reduce(values, op=_OPS[op], group=self.group)
        return values
