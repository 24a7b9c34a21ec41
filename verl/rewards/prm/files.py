# SPDX-License-Identifier: Apache-2.0
"""The files of a PRM: its folder, its config.json, and names and shapes of its tensors. Reads no weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from verl.utils.errors import UserError

PATH_KEY = "reward_model.model.path"
REWARD_HEAD_FILE = "reward_head.pt"
"""Where ReasonFlux-PRM-1.5B keeps its head."""
_MAX_HEADER_BYTES = 100 << 20
Shapes = dict[str, tuple[int, ...]]


def find_folder(path: str, key: str = PATH_KEY) -> Path:
    """Find a model's folder, downloading it from the hub where `path` is a hub name and not in the cache.

    Args:
        path: Folder or hub name.
        key: Configuration key that `path` came from, for the message.

    Raises:
        UserError: There is neither.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if not path or path.startswith(("/", ".", "~")) or path.count("/") != 1:
        raise UserError.for_key(key, path, "must be an existing folder or a hub name", "Correct the path")
    try:
        return Path(snapshot_download(path))
    except (OSError, HFValidationError) as err:
        raise UserError.for_key(
            key, path, f"is neither a folder nor to be had from the hub ({type(err).__name__})", "Correct the path"
        ) from err


def read_json(path: Path, model: str, key: str = PATH_KEY) -> dict[str, Any]:
    """Read a JSON object out of a model's folder.

    Args:
        path: The file.
        model: The model as configured, for the message.
        key: Configuration key that `model` came from.

    Raises:
        UserError: It is missing or damaged.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise UserError.for_key(
            key, model, f"must hold a readable {path.name} ({type(err).__name__})", "Name a whole model's folder"
        ) from err
    return found


def tensor_files(folder: Path) -> dict[str, tuple[str, ...]] | None:
    """Say which safetensors file holds which tensors.

    Args:
        folder: Model folder, with one file or an index of several.

    Returns:
        Names of tensors by file, None where there is no safetensors file.

    Raises:
        UserError: A file is missing or damaged.
    """
    found = _shapes_by_file(folder)
    return {name: tuple(shapes) for name, shapes in found.items()} if found else None


def tensor_shapes(folder: Path) -> Shapes | None:
    """Read names and shapes of all tensors from the headers of a folder's safetensors files.

    Args:
        folder: Model folder, with one file or an index of several.

    Returns:
        Shapes by name, None where there is no safetensors file.

    Raises:
        UserError: A file is missing or damaged.
    """
    found = _shapes_by_file(folder)
    return {name: shape for shapes in found.values() for name, shape in shapes.items()} if found else None


def _shapes_by_file(folder: Path) -> dict[str, Shapes]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(read_json(index, str(folder))["weight_map"].values())
    else:
        names = {path.name for path in folder.glob("*.safetensors")}
    return {name: _header_shapes(folder / name) for name in sorted(names)}


def _header_shapes(path: Path) -> Shapes:
    """Read one safetensors header: 8 bytes of length (little endian), then JSON."""
    if not path.is_file():
        raise UserError.for_key(PATH_KEY, str(path), "this file of the PRM is missing", "Download the model again")
    with path.open("rb") as file:
        prefix = file.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER_BYTES + 1
        raw = file.read(size) if size <= _MAX_HEADER_BYTES else b""
    try:
        header = json.loads(raw)
    except ValueError as err:
        raise UserError.for_key(
            PATH_KEY, str(path), "is no safetensors file (its header cannot be read)", "Download the model again"
        ) from err
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
