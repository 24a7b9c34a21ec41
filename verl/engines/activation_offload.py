# SPDX-License-Identifier: Apache-2.0
"""Activations that wait for the backward pass in host memory. It knows no model.

Together with gradient checkpointing these are the inputs of the layers: T * H numbers per layer, the part of the
activations that checkpointing leaves on the device.
"""

from __future__ import annotations

import torch
from torch.autograd.graph import saved_tensors_hooks

_Host = tuple[torch.device, torch.Tensor]


class HostOffload(saved_tensors_hooks):
    """While active, whatever the graph saves is copied to host memory, and back when the backward pass reads it.

    Copies to and from a GPU go through pinned memory on the current stream: later kernels on that stream wait for
    them, the host does not.

    Attributes:
        num_bytes: Copied so far.

    Example:
        >>> with HostOffload():
        ...     hidden = layer(hidden)
    """

    def __init__(self) -> None:
        super().__init__(self._to_host, self._to_device)
        self.num_bytes = 0

    def _to_host(self, saved: torch.Tensor) -> _Host:
        on_gpu = saved.device.type == "cuda"
        host = torch.empty(saved.shape, dtype=saved.dtype, device="cpu", pin_memory=on_gpu)
        host.copy_(saved, non_blocking=on_gpu)
        self.num_bytes += host.numel() * host.element_size()
        return saved.device, host

    def _to_device(self, packed: _Host) -> torch.Tensor:
        device, host = packed
        return host.to(device, non_blocking=device.type == "cuda")
