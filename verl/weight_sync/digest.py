# SPDX-License-Identifier: Apache-2.0
"""Digests of tensors: what was sent and what arrived are the same bytes, or an error names the tensor.

Knows no backend. A tensor on a device is copied to the host for its digest, which is why digests are for the first
sync and for every n-th one, not for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import xxhash

from verl.weight_sync.base import NamedWeights


class WeightDigestError(RuntimeError):
    """A received tensor's bytes differ from the sent ones."""


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Bytes of a tensor in row-major order, on the host; not copied when they lie there like that already.

    Args:
        tensor: Of any dtype, device and layout.

    Returns:
        A view that keeps the bytes alive.
    """
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    raw: Any = flat.view(torch.uint8).numpy()
    return memoryview(raw)


def digest_of(tensor: torch.Tensor) -> str:
    """Compute xxh3-64 of a tensor's bytes as a hex text; dtype and shape are not part of it.

    Args:
        tensor: Of any dtype, device and layout.
    """
    return xxhash.xxh3_64_hexdigest(bytes_of(tensor))


def check_digests(weights: NamedWeights, digests: Mapping[str, str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass tensors on whose bytes are those that were sent.

    Args:
        weights: As received.
        digests: Digest of every tensor that was sent, by name.

    Yields:
        The same pairs.

    Raises:
        WeightDigestError: A tensor's bytes differ, or its name was not sent.
    """
    for name, tensor in weights:
        if name not in digests:
            raise WeightDigestError(f"weight sync: {name!r} was received but not sent")
        if digest_of(tensor) != digests[name]:
            raise WeightDigestError(f"weight sync: the bytes of {name!r} are not those that were sent")
        yield name, tensor


class CheckedModel:
    """Stands in for a model while it loads: every tensor is checked on its way in.

    Example:
        >>> model = CheckedModel(vllm_model, {"model.norm.weight": "9f3a..."})
        >>> model.load_weights(received)
    """

    def __init__(self, model: Any, digests: Mapping[str, str]) -> None:
        """Remember both.

        Args:
            model: Has `load_weights`.
            digests: Digest of every tensor that was sent, by name.
        """
        self._model, self._digests = model, digests
        self.num_checked = 0

    def load_weights(self, weights: NamedWeights) -> Any:
        """Load what passes; raises `WeightDigestError` for the first tensor that does not.

        Args:
            weights: As received.
        """
        return self._model.load_weights(self._counted(weights))

    def raise_if_some_are_missing(self) -> None:
        """Refuse a transfer in which fewer tensors arrived than were sent.

        Raises:
            WeightDigestError: The model asked for fewer tensors than there are digests.
        """
        if self.num_checked < len(self._digests):
            raise WeightDigestError(f"weight sync: {len(self._digests)} tensors were sent, {self.num_checked} arrived")

    def _counted(self, weights: NamedWeights) -> Iterator[tuple[str, torch.Tensor]]:
        for pair in check_digests(weights, self._digests):
            self.num_checked += 1
            yield pair


@contextmanager
def checked(engine: Any, names: Sequence[str], digests: Sequence[str]) -> Iterator[None]:
    """Put a model that compares digests in the place of an engine's model, for one transfer.

    Args:
        engine: Has `model`, which has `load_weights`.
        names: Of the tensors of the transfer.
        digests: One for each name; nothing happens when there are none.

    Raises:
        WeightDigestError: Another tensor arrived than was sent, or fewer.
    """
    if not digests:
        yield
        return
    model = engine.model
    stand_in = engine.model = CheckedModel(model, dict(zip(names, digests, strict=True)))
    try:
        yield
        stand_in.raise_if_some_are_missing()
    finally:
        engine.model = model
