# SPDX-License-Identifier: Apache-2.0
"""Is this folder a PRM that we can run? Asked of config, safetensors headers and tokenizer, before anything starts.

Reads no weights: a safetensors file begins with a list of its tensors. Which way the head points is for `selftest`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from verl.rewards.prm.spec import PATH_KEY, PRMSpec, load_adapter
from verl.utils.errors import UserError

_MAX_HEADER_BYTES = 100 << 20


@dataclass(frozen=True)
class PRMFacts:
    """What was found.

    Args:
        folder: Where the PRM lies.
        adapter: Name of its adapter.
        hidden_size: Width of the backbone.
        context_tokens: Its own context.
        max_tokens: Longest input its engine will take.
        notices: What the user should know, one sentence each.
    """

    folder: Path
    adapter: str
    hidden_size: int
    context_tokens: int
    max_tokens: int
    notices: tuple[str, ...]


def check_prm(spec: PRMSpec, max_prompt_tokens: int = 0, max_response_tokens: int = 0) -> PRMFacts:
    """Check a PRM before Ray or an engine starts.

    Args:
        spec: The PRM and how it is to be run.
        max_prompt_tokens: Longest prompt of the data.
        max_response_tokens: Longest response.

    Returns:
        Facts and notices.

    Raises:
        UserError: The folder is no PRM of a known family, or cannot be run as asked.
    """
    folder = find_folder(spec.path)
    config = _read_json(folder / "config.json", spec.path)
    loaded = load_adapter(spec)
    hidden_size = int(config.get("hidden_size") or 0)
    notices = [f"PRM adapter {loaded.name}: {loaded.reason}"]
    shapes = tensor_shapes(folder)
    if shapes is None:
        notices.append(f"{folder} holds no safetensors file: its head is checked only when it is loaded")
    else:
        check_head(shapes, hidden_size, spec.path)
    longest = max_prompt_tokens + max_response_tokens
    if longest > loaded.context_tokens:
        what = {
            "window": "longer ones are scored in overlapping windows",
            "extend": f"longer ones are run beyond it, up to {loaded.max_tokens} tokens",
            "error": "longer ones have no score, and on_error decides",
        }[spec.overlong]
        notices.append(
            f"prompt and response can have {longest} tokens, the PRM's context is {loaded.context_tokens}: {what} "
            f"(reward_model.process_reward.overlong={spec.overlong})"
        )
    return PRMFacts(folder, loaded.name, hidden_size, loaded.context_tokens, loaded.max_tokens, tuple(notices))


def find_folder(path: str) -> Path:
    """Find a model's folder, downloading it from the hub where `path` is a hub name and not in the cache.

    Args:
        path: Folder or hub name.

    Raises:
        UserError: There is neither.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if not path or path.startswith(("/", ".", "~")) or path.count("/") != 1:
        raise UserError.for_key(PATH_KEY, path, "must be an existing folder or a hub name", "Correct the path")
    try:
        return Path(snapshot_download(path))
    except (OSError, HFValidationError) as err:
        raise UserError.for_key(
            PATH_KEY, path, f"is neither a folder nor to be had from the hub ({type(err).__name__})", "Correct the path"
        ) from err


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """Read names and shapes of all tensors from the headers of a folder's safetensors files.

    Args:
        folder: Model folder, with one file or an index of several.

    Returns:
        Shapes by name, None where there is no safetensors file.

    Raises:
        UserError: A file is missing or damaged.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_read_json(index, str(folder))["weight_map"].values()))
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:
        shapes |= _header_shapes(folder / name)
    return shapes if names else None


def check_head(shapes: Mapping[str, Sequence[int]], hidden_size: int, path: str) -> None:
    """Check that a two-way score head of the right width is there.

    Args:
        shapes: Tensor shapes by name.
        hidden_size: Width of the backbone.
        path: For the message.

    Raises:
        UserError: It is missing or has another shape.
    """
    wanted = {"score.0.weight": (hidden_size, hidden_size), "score.2.weight": (2, hidden_size)}
    for name, shape in wanted.items():
        found = shapes.get(name)
        if found is None or tuple(found) != shape:
            what = "is missing" if found is None else f"has shape {list(found)}"
            raise UserError.for_key(
                PATH_KEY,
                path,
                f"must hold a process reward head, {name} of shape {list(shape)}, but it {what}",
                "Name the folder of a PRM (Qwen2ForProcessRewardModel), not of a policy or another reward model",
            )


def _header_shapes(path: Path) -> dict[str, tuple[int, ...]]:
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


def _read_json(path: Path, model: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise UserError.for_key(
            PATH_KEY, model, f"must hold a readable {path.name} ({type(err).__name__})", "Name a whole model's folder"
        ) from err
    return found
