# SPDX-License-Identifier: Apache-2.0
"""From packed tokens to numbers at the targets: the module that an engine shards as a whole. It knows no mesh.

The head runs inside this module's forward, so that a sharded engine's hooks have gathered the output weight when it is
used. Only tensors come out: the hooks look for tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from verl.algorithms.log_probs import log_probs_from_hidden
from verl.engines.attention import SequenceLayout
from verl.engines.base import HeadKind, HeadOutputs, HeadRequest
from verl.engines.packing import PackedSequences
from verl.utils.errors import UserError

PREFIX = "model."


class PackedModel(nn.Module):
    """A transformers model read at the targets of packed sequences.

    Args:
        model: A transformers model whose layers use the packed attention.
        kind: `log_probs` needs an output embedding; `classification` a module `score` over hidden states.
        chunk_size: Tokens whose logits exist at the same time.

    Example:
        >>> PackedModel(model, "log_probs", 1024)(packed, HeadRequest())  # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, kind: HeadKind, chunk_size: int) -> None:
        super().__init__()
        # transformers' models answer more than nn.Module's type says.
        self.model: Any = model
        self.kind = kind
        self.chunk_size = chunk_size
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
        hidden = self.model.base_model(
            input_ids=packed.input_ids[None],
            position_ids=packed.position_ids[None],
            layout=SequenceLayout.of(packed),
            use_cache=False,
        ).last_hidden_state[0]
        hidden = hidden[packed.logit_positions]
        if self.kind == "classification":
            return (self.model.score(hidden).float(),)
        log_probs, entropy = log_probs_from_hidden(
            hidden,
            self.model.get_output_embeddings().weight,
            packed.target_ids,
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
        results = self(packed, head)
        if self.kind == "classification":
            return HeadOutputs(logits=results[0])
        return HeadOutputs(log_probs=results[0], entropy=results[1] if len(results) > 1 else None)
