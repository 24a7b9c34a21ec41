# SPDX-License-Identifier: Apache-2.0
"""Whole weights out of a sharded model, one at a time, adapters merged in. It knows no file and no receiver."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from verl.engines.adapters import merge, peft_names, plain_name
from verl.engines.fsdp.gathering import gather_whole
from verl.engines.heads import PREFIX, PackedModel


def named_full_weights(module: PackedModel, dtype: torch.dtype | None) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter whole on every rank; all ranks must run the iterator to its end together.

    Shards are converted before they are gathered, so that 16-bit weights cost 16-bit traffic. Small parameters are
    gathered some together (`gather_whole`), large ones one at a time. A weight with adapters is gathered as it is
    stored, merged in float32, and converted then: small changes survive as far as the wanted dtype can hold them.

    Args:
        module: The sharded model, its shards in place (not gathered).
        dtype: Dtype wanted; None for the shards' own.

    Yields:
        HF name and detached tensor, which may share memory with the parameter where one rank holds it whole. A tied
        output projection does not appear beside the embedding it is tied to.
    """
    parameters = {name.removeprefix(PREFIX): parameter for name, parameter in module.named_parameters()}
    pairs = module.adapters.pairs if module.adapters is not None else {}
    adapters = {name for pair in pairs.values() for name in (pair.down, pair.up)}
    own = [name for name in parameters if name not in adapters]

    def pieces() -> Iterator[tuple[str, torch.Tensor]]:
        for name in own:
            if name not in pairs:
                yield name, parameters[name].detach() if dtype is None else parameters[name].detach().to(dtype)
                continue
            for part in (name, pairs[name].down, pairs[name].up):
                yield part, parameters[part]

    whole = gather_whole(pieces())
    for name, weight in whole:
        if name in pairs:
            (_, down), (_, up) = next(whole), next(whole)
            weight = merge(weight, down, up, pairs[name].scale).to(dtype or up.dtype)
        yield plain_name(name), weight


def named_full_adapters(module: PackedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every adapter whole on every rank, as above.

    Args:
        module: The sharded model, with adapters.

    Yields:
        Name in peft's files, detached tensor in the shards' dtype.
    """
    assert module.adapters is not None
    parameters = dict(module.named_parameters())
    names = peft_names(module.adapters.pairs)
    yield from gather_whole((peft_name, parameters[PREFIX + name]) for name, peft_name in names)
