# SPDX-License-Identifier: Apache-2.0
"""vLLM's own receivers of the backends `ipc` and `nccl`, with digests compared where the sender gives some.

Untested on a GPU: the part that compares (`checked`) knows no device and is tested, the transfers are vLLM's.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field

from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine, IPCWeightTransferUpdateInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferUpdateInfo

from verl.weight_sync.digest import checked


@dataclass
class CheckedIPCUpdateInfo(IPCWeightTransferUpdateInfo):
    """vLLM's, with a digest for each name; empty when not asked for.

    The handles come as bytes: they name torch classes, and vLLM sends none to its engine process unless everything may
    be pickled (`VLLM_ALLOW_INSECURE_SERIALIZATION`). These are pickled by our own sender.
    """

    digests: list[str] = field(default_factory=list)
    handles: bytes | None = None

    def __post_init__(self) -> None:
        """Unpack the handles, and let vLLM check the rest."""
        if self.handles is not None:
            self.ipc_handles, self.handles = pickle.loads(self.handles), None
        super().__post_init__()


@dataclass
class CheckedNCCLUpdateInfo(NCCLWeightTransferUpdateInfo):
    """vLLM's, with a digest for each name; empty when not asked for."""

    digests: list[str] = field(default_factory=list)


class CheckedIPCWeightTransferEngine(IPCWeightTransferEngine):
    """vLLM's IPC receiver; raises `WeightDigestError` where bytes differ from those sent."""

    update_info_cls = CheckedIPCUpdateInfo

    def receive_weights(self, update_info: CheckedIPCUpdateInfo) -> None:
        """Receive and load one chunk."""
        with checked(self, update_info.names, update_info.digests):
            super().receive_weights(update_info)


class CheckedNCCLWeightTransferEngine(NCCLWeightTransferEngine):
    """vLLM's NCCL receiver; raises `WeightDigestError` where bytes differ from those sent."""

    update_info_cls = CheckedNCCLUpdateInfo

    def receive_weights(self, update_info: CheckedNCCLUpdateInfo) -> None:
        """Receive and load one bucket."""
        with checked(self, update_info.names, update_info.digests):
            super().receive_weights(update_info)
