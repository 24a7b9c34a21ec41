# SPDX-License-Identifier: Apache-2.0
"""Move tensors to host memory and back without touching the objects that hold them. It knows no model.

Megatron's parameters and gradients are views of large buffers. Assigning new data would cut those views; giving the
memory of a storage back, and taking it again, leaves every view in place.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


class HostStash:
    """Storages that lie in host memory for a while.

    Example:
        >>> stash = HostStash()
        >>> weight = torch.ones(3)
        >>> stash.put_away([weight[:2], weight[1:]])
        >>> stash.bring_back()
        >>> weight
        tensor([1., 1., 1.])
    """

    def __init__(self) -> None:
        self._kept: list[tuple[torch.UntypedStorage, int, torch.Tensor | None]] = []

    @property
    def is_empty(self) -> bool:
        """Whether everything is in its place."""
        return not self._kept

    def put_away(self, tensors: Iterable[torch.Tensor], keeps_content: bool = True) -> None:
        """Free the memory of the tensors' storages, each once; what is empty or away already is left.

        Args:
            tensors: Any views.
            keeps_content: Copy to the host first; otherwise what comes back is zero.
        """
        for tensor in tensors:
            storage = tensor.untyped_storage()
            size = storage.nbytes()
            if size == 0:
                continue
            host = _bytes_of(storage).to("cpu", copy=True) if keeps_content else None
            storage.resize_(0)
            self._kept.append((storage, size, host))

    def bring_back(self) -> None:
        """Take the memory again and fill it."""
        for storage, size, host in self._kept:
            storage.resize_(size)
            content = _bytes_of(storage)
            if host is None:
                content.zero_()
            else:
                content.copy_(host)
        self._kept.clear()
