# SPDX-License-Identifier: Apache-2.0
"""Base of every rank: who it is and how it finds the others. Knows no Ray."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from verl.single_controller.base.decorator import MAIN_ROLE, DataShare, Dispatch, register


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """Where a rank stands.

    Attributes:
        rank: Global rank.
        world_size: Number of ranks.
        local_rank: Rank on its node.
        node_index: Index of the node in the pool.
    """

    rank: int
    world_size: int
    local_rank: int
    node_index: int

    @property
    def is_node_leader(self) -> bool:
        """Whether this is the first rank of its node."""
        return self.local_rank == 0


class Worker:
    """A rank of a worker group. Subclasses offer methods marked with `register`."""

    def __init__(self, place: WorkerPlace) -> None:
        """Remember the place.

        Args:
            place: Where this rank stands.
        """
        self.place = place

    @register(Dispatch.ONE_TO_ALL)
    def data_shares(self) -> dict[str, DataShare]:
        """Which part of a batch this rank works on; asked once, before the first call that cuts a batch.

        Returns:
            By role (see `register`); here every rank of the group gets a part of its own.
        """
        return {MAIN_ROLE: DataShare(self.place.rank, self.place.world_size)}

    @register(Dispatch.ONE_TO_ALL)
    def find_free_port(self) -> tuple[str, int]:
        """Address at which the other ranks can reach this one.

        Returns:
            This host's address and a free TCP port.
        """
        with socket.socket() as probe:
            probe.bind(("", 0))
            return _host_address(), int(probe.getsockname()[1])

    @register(Dispatch.ONE_TO_ALL)
    def set_rendezvous(self, address: str, port: int) -> None:
        """Set the variables from which torch.distributed finds the group.

        Args:
            address: Host of rank 0.
            port: Port of rank 0.
        """
        os.environ.update(
            MASTER_ADDR=address,
            MASTER_PORT=str(port),
            RANK=str(self.place.rank),
            WORLD_SIZE=str(self.place.world_size),
            LOCAL_RANK="0" if os.environ.get("CUDA_VISIBLE_DEVICES") else str(self.place.local_rank),
        )


def _host_address() -> str:
    """The address other nodes see; the loopback address on a machine without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a documentation address: no packet is sent
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
