# SPDX-License-Identifier: Apache-2.0
"""A set of named tensors as one memory-mapped file plus a manifest. Knows nothing of engines.

The file holds the raw bytes of every tensor, each at a 64-byte border; the manifest (a plain dict of lists, so that it
crosses any RPC) says where each tensor lies. A reader maps the file and sees the tensors without a copy.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import xxhash

from verl.weight_sync.base import NamedWeights
from verl.weight_sync.digest import WeightDigestError, bytes_of
from verl.weight_sync.sent import SentWeights

_ALIGNMENT_BYTES = 64  # a cache line; also enough for every torch dtype


@dataclass(frozen=True, slots=True)
class WeightManifest:
    """Where each tensor lies in the bundle file.

    Attributes:
        path: The file.
        names: Parameter names, in file order.
        dtypes: torch dtype names without the `torch.` prefix.
        shapes: Full shapes.
        offsets: Byte offsets into the file.
        digests: xxh3-64 hex digest of each tensor's bytes; empty when not asked for.
    """

    path: str
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    offsets: list[int]
    digests: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for the wire."""
        return asdict(self)


def bundle_directory() -> Path:
    """Folder for bundle files: the node's shared memory when there is one, else the temporary folder.

    Returns:
        An existing, writable folder.
    """
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def write_bundle(weights: NamedWeights, path: Path, with_digests: bool) -> tuple[WeightManifest, int]:
    """Write tensors to `path`.

    Args:
        weights: `(name, tensor)` pairs; tensors of any dtype and device.
        path: File to create; an existing one is replaced.
        with_digests: Also compute a digest per tensor.

    Returns:
        The manifest and the number of payload bytes.

    Raises:
        OSError: The folder has not enough room; the partial file is removed.
    """
    sent = SentWeights(weights, with_digests)
    return write_sent(sent, path), sent.num_bytes


def write_sent(sent: SentWeights, path: Path) -> WeightManifest:
    """Write the tensors of one sync to `path`; see `write_bundle`.

    Args:
        sent: The weights.
        path: File to create.
    """
    manifest = WeightManifest(str(path), [], [], [], [], [])
    try:
        with path.open("wb") as file:
            for name, tensor in sent:
                _append(file, manifest, name, tensor)
    except OSError as error:
        free_bytes = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        path.unlink(missing_ok=True)
        raise OSError(
            f"weight sync could not write {path} ({sent.num_bytes} bytes so far, {free_bytes} bytes free there): "
            f"{error}. Give the container a larger shared memory (docker: --shm-size)"
        ) from error
    manifest.digests.extend(sent.digests.values())
    return manifest


def read_bundle(manifest: WeightManifest) -> Iterator[tuple[str, torch.Tensor]]:
    """Map the file and yield its tensors without copying.

    Args:
        manifest: As returned by `write_bundle`.

    Yields:
        `(name, tensor)`; the tensors share the mapping and must not be written to.

    Raises:
        WeightDigestError: The manifest carries digests and one differs.
        FileNotFoundError: There is no such file on this machine.
    """
    try:
        mapped = np.memmap(manifest.path, dtype=np.uint8, mode="c")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"weight sync: {manifest.path} is not on this machine. A server on another node than the trainer's needs "
            f"actor_rollout_ref.rollout.weight_sync_backend=nccl, or gloo without GPUs"
        ) from error
    for index, name in enumerate(manifest.names):
        dtype = getattr(torch, manifest.dtypes[index])
        num_bytes = int(np.prod(manifest.shapes[index], dtype=np.int64)) * dtype.itemsize
        raw: Any = mapped[manifest.offsets[index] : manifest.offsets[index] + num_bytes]
        if manifest.digests and xxhash.xxh3_64_hexdigest(raw) != manifest.digests[index]:
            raise WeightDigestError(
                f"weight sync: the bytes of {name!r} in {manifest.path} are not those that were sent"
            )
        yield name, torch.from_numpy(raw).view(dtype).reshape(manifest.shapes[index])


def _append(file: BinaryIO, manifest: WeightManifest, name: str, tensor: torch.Tensor) -> None:
    """Write one tensor at the next border and note where."""
    file.write(b"\0" * (-file.tell() % _ALIGNMENT_BYTES))
    manifest.names.append(name)
    manifest.dtypes.append(str(tensor.dtype).removeprefix("torch."))
    manifest.shapes.append(list(tensor.shape))
    manifest.offsets.append(file.tell())
    file.write(bytes_of(tensor))
