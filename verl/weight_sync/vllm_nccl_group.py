# SPDX-License-Identifier: Apache-2.0
"""The trainer's end of the `nccl` backend's process group; the engines' end is vLLM's own NCCL transfer engine.

Untested until run on a machine with two GPUs and vLLM.
"""

from __future__ import annotations

import socket
from typing import Any

import torch
from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
from vllm.distributed.weight_transfer.nccl_common import stateless_init_process_group

# vLLM's receiver cuts what one message announces into broadcasts of this size: one message is one broadcast here.
_ONE_BROADCAST = 1 << 62


class NCCLDoor:
    """Where trainer and engines meet.

    Example:
        >>> door = NCCLDoor("10.0.0.1", torch.cuda.current_device())
        >>> info = door.init_info(world_size=3)
        >>> group = door.enter(world_size=3)
    """

    def __init__(self, address: str, device: int) -> None:
        """Remember the place.

        Args:
            address: This machine, as the engines' machines reach it.
            device: Index of this rank's GPU; the thread that enters may see another one as the current one.
        """
        self._address, self._port, self._device = address, 0, device

    def init_info(self, world_size: int) -> dict[str, Any]:
        """See `GroupDoor.init_info`."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((self._address, 0))
            self._port = probe.getsockname()[1]
        return {
            "master_address": self._address,
            "master_port": self._port,
            "world_size": world_size,
            "packed": True,
            "packed_buffer_size_bytes": _ONE_BROADCAST,
        }

    def enter(self, world_size: int) -> NCCLGroup:
        """See `GroupDoor.enter`."""
        torch.cuda.set_device(self._device)
        return NCCLGroup(stateless_init_process_group(self._address, self._port, 0, world_size, self._device))

    def close(self) -> None:
        """See `GroupDoor.close`; NCCL cannot give up waiting, the thread that does ends with the process."""


class NCCLGroup:
    """The group, as rank 0."""

    def __init__(self, communicator: PyNcclCommunicator) -> None:
        """Remember the communicator.

        Args:
            communicator: vLLM's.
        """
        self._communicator = communicator
        self._stream = torch.cuda.Stream()

    def broadcast(self, flat: torch.Tensor) -> NCCLSending:
        """See `BroadcastGroup.broadcast`.

        Args:
            flat: [B] uint8, on this rank's GPU or on the host.
        """
        on_gpu = flat if flat.is_cuda else flat.to(torch.device("cuda", torch.cuda.current_device()))
        self._stream.wait_stream(torch.cuda.current_stream())  # the bucket is packed there
        self._communicator.broadcast(on_gpu, src=0, stream=self._stream)
        event = torch.cuda.Event()
        event.record(self._stream)
        return NCCLSending(event, on_gpu)

    def close(self) -> None:
        """See `BroadcastGroup.close`."""
        self._communicator.destroy()


class NCCLSending:
    """A broadcast under way."""

    def __init__(self, event: torch.cuda.Event, flat: torch.Tensor) -> None:
        """Watch a broadcast.

        Args:
            event: Comes after it on its stream.
            flat: What is sent; kept until this object is gone.
        """
        self._event, self._flat = event, flat

    def is_done(self) -> bool:
        """See `Sending.is_done`."""
        return self._event.query()
