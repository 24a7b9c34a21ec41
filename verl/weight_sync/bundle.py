# SPDX-License-Identifier: Apache-2.0
"""A set of named tensors as one memory-mapped file plus a manifest. Knows nothing of engines.

The file holds the raw bytes of every tensor, each at a 64-byte border; the manifest (a plain dict of lists, so that it
crosses any RPC) says where each tensor lies. A reader maps the file and sees the tensors without a copy. Writer and
readers may keep their mappings for the next sync: fresh pages cost several times what copying into old ones does.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
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


class KeptBundle:
    """A bundle that is written again and again at the same place, where its readers have it mapped.

    The file has a name only until every reader has opened it; its memory is free when the last process that maps it
    ends, however it ends.

    Example:
        >>> bundle = KeptBundle(Path("/dev/shm/weights-1.bin"))
        >>> manifest = bundle.write(sent)
        >>> bundle.hide()
    """

    def __init__(self, path: Path) -> None:
        """Remember the place; nothing is written yet.

        Args:
            path: File to create; no other bundle may ever have had this name.
        """
        self._path = path
        self._manifest: WeightManifest | None = None
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def write(self, sent: SentWeights) -> WeightManifest:
        """Write the tensors of one sync; no reader may be reading.

        Args:
            sent: The weights; after the first time with the same names, dtypes and shapes in the same order.

        Returns:
            The manifest.

        Raises:
            OSError: The folder has not enough room.
            RuntimeError: The weights are not those of the first time.
        """
        if self._manifest is None:
            self._manifest = write_sent(sent, self._path)
            if sent.num_bytes:
                self._bytes = torch.from_numpy(np.memmap(self._path, dtype=np.uint8, mode="r+"))
            return self._manifest
        known = self._manifest
        for index, (name, tensor) in enumerate(sent):
            if index >= len(known.names) or not _is_same(known, index, name, tensor):
                raise RuntimeError(f"weight sync: {name!r} is not what was sent in the first sync at its place")
            place = self._bytes[known.offsets[index] :][: tensor.numel() * tensor.element_size()]
            place.view(tensor.dtype).view(tensor.shape).copy_(tensor.detach())
        if sent.num_tensors < len(known.names):
            raise RuntimeError(
                f"weight sync: {sent.num_tensors} of the {len(known.names)} tensors of the first sync came"
            )
        return replace(known, digests=list(sent.digests.values()))

    def hide(self) -> None:
        """Take the file's name away; who has it mapped keeps it."""
        self._path.unlink(missing_ok=True)


def read_bundle(manifest: WeightManifest) -> Iterator[tuple[str, torch.Tensor]]:
    """Map the file and yield its tensors without copying; this process keeps the mapping until it reads another file.

    Args:
        manifest: As returned by `write_bundle`.

    Yields:
        `(name, tensor)`; the tensors share the mapping, must not be written to, and change with the next sync.

    Raises:
        WeightDigestError: The manifest carries digests and one differs.
        FileNotFoundError: There is no such file on this machine.
    """
    mapped = _map(manifest.path)
    for index, name in enumerate(manifest.names):
        dtype = getattr(torch, manifest.dtypes[index])
        num_bytes = int(np.prod(manifest.shapes[index], dtype=np.int64)) * dtype.itemsize
        raw: Any = mapped[manifest.offsets[index] : manifest.offsets[index] + num_bytes]
        if manifest.digests and xxhash.xxh3_64_hexdigest(raw) != manifest.digests[index]:
            raise WeightDigestError(
                f"weight sync: the bytes of {name!r} in {manifest.path} are not those that were sent"
            )
        yield name, torch.from_numpy(raw).view(dtype).reshape(manifest.shapes[index])


_KEPT: dict[str, tuple[int, Any]] = {}
"""The file that this process has mapped, if any: path to its inode and its bytes."""


def _map(path: str) -> Any:
    """The file's bytes; a file that has lost its name is known by the mapping that was kept."""
    inode = os.stat(path).st_ino if os.path.exists(path) else None
    kept = _KEPT.get(path)
    if kept is not None and inode in (None, kept[0]):
        return kept[1]
    if inode is None:
        raise FileNotFoundError(
            f"weight sync: {path} is not on this machine. A server on another node than the trainer's needs "
            f"actor_rollout_ref.rollout.weight_sync_backend=nccl, or gloo without GPUs"
        )
    _KEPT.clear()
    _KEPT[path] = (inode, np.memmap(path, dtype=np.uint8, mode="r+"))
    return _KEPT[path][1]


def _is_same(manifest: WeightManifest, index: int, name: str, tensor: torch.Tensor) -> bool:
    found = (name, _dtype_name(tensor), list(tensor.shape))
    return found == (manifest.names[index], manifest.dtypes[index], manifest.shapes[index])


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _append(file: BinaryIO, manifest: WeightManifest, name: str, tensor: torch.Tensor) -> None:
    """Write one tensor at the next border and note where."""
    file.write(b"\0" * (-file.tell() % _ALIGNMENT_BYTES))
    manifest.names.append(name)
    manifest.dtypes.append(_dtype_name(tensor))
    manifest.shapes.append(list(tensor.shape))
    manifest.offsets.append(file.tell())
    file.write(bytes_of(tensor))
