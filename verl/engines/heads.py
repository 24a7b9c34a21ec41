# SPDX-License-Identifier: Apache-2.0
"""From packed tokens to numbers at the targets: the module that an engine shards as a whole. It knows no mesh.

The head runs inside this module's forward, so that a sharded engine's hooks have gathered the output weight when it is
used. Only tensors come out: the hooks look for tensors.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from verl.algorithms.log_probs import log_probs_from_hidden
from verl.engines.activation_offload import HostOffload
from verl.engines.adapters import Adapters
from verl.engines.attention import SequenceLayout
from verl.engines.base import HeadKind, HeadOutputs, HeadRequest
from verl.engines.packing import PackedSequences, padded_to_multiple
from verl.engines.sequence_parallel import SequenceParallel
from verl.utils.errors import UserError

PREFIX = "model."


class PackedModel(nn.Module):
    """A transformers model read at the targets of packed sequences.

    Args:
        model: A transformers model whose layers use the packed attention.
        kind: `log_probs` needs an output embedding; `classification` a module `score` over hidden states.
        chunk_size: Tokens whose logits exist at the same time.
        parallel: The ranks that share every sequence; None if each rank has its own.

    Attributes:
        adapters: Low-rank adapters inside the model, if it has any.
        offloads_activations: Keep what the backbone saves for the backward pass in host memory.

    Example:
        >>> PackedModel(model, "log_probs", 1024)(packed, HeadRequest())  # doctest: +SKIP
    """

    def __init__(
        self, model: nn.Module, kind: HeadKind, chunk_size: int, parallel: SequenceParallel | None = None
    ) -> None:
        super().__init__()
        # transformers' models answer more than nn.Module's type says.
        self.model: Any = model
        self.kind = kind
        self.chunk_size = chunk_size
        self.parallel = parallel
        self.adapters: Adapters | None = None
        self.offloads_activations = False
        self._check()

    def _check(self) -> None:
        if self.kind == "classification" and not isinstance(getattr(self.model, "score", None), nn.Module):
            raise UserError(f"{type(self.model).__name__} has no classification head named `score`")
        if self.kind == "log_probs":
            output = self.model.get_output_embeddings()
            if not isinstance(output, nn.Linear) or output.bias is not None:
                raise UserError(f"{type(self.model).__name__} has no plain output projection to read log-probs from")

    def forward(self, packed: PackedSequences, head: HeadRequest) -> tuple[torch.Tensor, ...]:
        """Run backbone and head.

        Args:
            packed: On the module's device.
            head: What is wanted.

        Returns:
            (log_probs [M],) or (log_probs [M], entropy [M]), or (logits [M, C],).
        """
        if self.parallel is None:
            hidden = self._hidden(packed, slice(None))[packed.logit_positions]
            return self._read(hidden, packed.target_ids, head)
        whole = padded_to_multiple(packed, self.parallel.size)
        mine = self.parallel.slice_of(whole.num_tokens)
        is_mine = (packed.logit_positions >= mine.start) & (packed.logit_positions < mine.stop)
        hidden = self._hidden(whole, mine)[packed.logit_positions[is_mine] - mine.start]
        owned = self._read(hidden, packed.target_ids[is_mine], head)
        return tuple(self.parallel.gather_owned(values, is_mine) for values in owned)

    def _hidden(self, packed: PackedSequences, tokens: slice) -> torch.Tensor:
        """Last hidden states [t, H] of some of the packed tokens; attention still spans all of them."""
        saves = self.offloads_activations and torch.is_grad_enabled()
        with HostOffload() if saves else nullcontext():
            states: torch.Tensor = self.model.base_model(
                input_ids=packed.input_ids[None, tokens],
                position_ids=packed.position_ids[None, tokens],
                layout=SequenceLayout.of(packed, self.parallel),
                use_cache=False,
            ).last_hidden_state[0]
        return states

    def _read(self, hidden: torch.Tensor, target_ids: torch.Tensor, head: HeadRequest) -> tuple[torch.Tensor, ...]:
        """The head's values at states [m, H]."""
        if self.kind == "classification":
            return (self.model.score(hidden).float(),)
        log_probs, entropy = log_probs_from_hidden(
            hidden,
            self.model.get_output_embeddings().weight,
            target_ids,
            head.temperature,
            head.with_entropy,
            self.chunk_size,
        )
        return (log_probs,) if entropy is None else (log_probs, entropy)

    def outputs(self, packed: PackedSequences, head: HeadRequest) -> HeadOutputs:
        """Run forward with every hook, and name the results.

        Args:
            packed: On the module's device.
            head: What is wanted.
        """
        if head.without_adapters and self.adapters is None:
            raise RuntimeError("this model has no adapters: it cannot answer without them")
        with self.adapters.left_out() if head.without_adapters and self.adapters else nullcontext():
            results = self(packed, head)
        if self.kind == "classification":
            return HeadOutputs(logits=results[0])
        return HeadOutputs(log_probs=results[0], entropy=results[1] if len(results) > 1 else None)
