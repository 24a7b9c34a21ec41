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

_ALIGNMENT_BYTES = 64  # a cache line; also enough for every torch dtype


class WeightDigestError(RuntimeError):
    """A received tensor's bytes differ from the sent ones."""


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
    manifest = WeightManifest(str(path), [], [], [], [], [])
    num_bytes = 0
    try:
        with path.open("wb") as file:
            for name, tensor in weights:
                num_bytes += _append(file, manifest, name, tensor, with_digests)
    except OSError as error:
        free_bytes = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        path.unlink(missing_ok=True)
        raise OSError(
            f"weight sync could not write {path} ({num_bytes} bytes so far, {free_bytes} bytes free there): "
            f"{error}. Give the container a larger shared memory (docker: --shm-size)"
        ) from error
    return manifest, num_bytes


def read_bundle(manifest: WeightManifest) -> Iterator[tuple[str, torch.Tensor]]:
    """Map the file and yield its tensors without copying.

    Args:
        manifest: As returned by `write_bundle`.

    Yields:
        `(name, tensor)`; the tensors share the mapping and must not be written to.

    Raises:
        WeightDigestError: The manifest carries digests and one differs.
    """
    mapped = np.memmap(manifest.path, dtype=np.uint8, mode="c")
    for index, name in enumerate(manifest.names):
        dtype = getattr(torch, manifest.dtypes[index])
        num_bytes = int(np.prod(manifest.shapes[index], dtype=np.int64)) * dtype.itemsize
        raw: Any = mapped[manifest.offsets[index] : manifest.offsets[index] + num_bytes]
        if manifest.digests and xxhash.xxh3_64_hexdigest(raw) != manifest.digests[index]:
            raise WeightDigestError(
                f"weight sync: the bytes of {name!r} in {manifest.path} are not those that were sent"
            )
        yield name, torch.from_numpy(raw).view(dtype).reshape(manifest.shapes[index])


def _append(file: BinaryIO, manifest: WeightManifest, name: str, tensor: torch.Tensor, with_digest: bool) -> int:
    """Write one tensor at the next border and note where; returns its bytes."""
    raw = _as_bytes(tensor)
    file.write(b"\0" * (-file.tell() % _ALIGNMENT_BYTES))
    manifest.names.append(name)
    manifest.dtypes.append(str(tensor.dtype).removeprefix("torch."))
    manifest.shapes.append(list(tensor.shape))
    manifest.offsets.append(file.tell())
    if with_digest:
        manifest.digests.append(xxhash.xxh3_64_hexdigest(raw))
    file.write(raw)
    return len(raw)


def _as_bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    raw: Any = flat.view(torch.uint8).numpy()
    return memoryview(raw)
