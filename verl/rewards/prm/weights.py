# SPDX-License-Identifier: Apache-2.0
"""Single tensors out of a checkpoint, and what its backbone is. Never loads a whole model, knows no family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import safe_open

from verl.rewards.prm.files import PATH_KEY, read_json, tensor_files
from verl.utils.errors import UserError

EMBEDDING = "embed_tokens.weight"
LM_HEAD = "lm_head.weight"
_BIN_INDEX = "pytorch_model.bin.index.json"


@dataclass(frozen=True)
class Backbone:
    """The part of a checkpoint below the head.

    Args:
        model_type: `model_type` of config.json: what `AutoModel` and vLLM choose the class by.
        causal_class: Name of the language model class of that type, such as `Qwen2ForCausalLM`.
        prefix: What the names of its tensors begin with: `model.`, `pretrained_model.model.` or nothing.
        hidden_size: Its width.
    """

    model_type: str
    causal_class: str
    prefix: str
    hidden_size: int


BACKBONES = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
"""Language model class by `model_type`: the backbones of all known families."""


def find_backbone(folder: str | Path, key: str = PATH_KEY) -> Backbone:
    """Find out what stands below the head, and under which names.

    Args:
        folder: The PRM's folder.
        key: Configuration key that `folder` came from, for the message.

    Raises:
        UserError: Its type is not served, or there are no such weights.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json", str(folder), key)
    kind = str(config.get("model_type", ""))
    if kind not in BACKBONES:
        raise UserError.for_key(
            key,
            str(folder),
            f"model_type {kind!r} in its config.json must be one of {', '.join(BACKBONES)}",
            "Name the folder of a PRM on such a backbone",
        )
    embedding = _embedding_name(weight_names(folder))
    if embedding is None:
        raise UserError.for_key(
            key, str(folder), f"must hold a backbone (...{EMBEDDING})", "Name the folder of a whole model"
        )
    return Backbone(kind, BACKBONES[kind], embedding.removesuffix(EMBEDDING), int(config["hidden_size"]))


def weight_names(folder: Path) -> tuple[str, ...]:
    """List a checkpoint's tensors.

    Args:
        folder: Model folder with safetensors, or else with pickled weights (`pytorch_model*.bin`).
    """
    by_file = tensor_files(folder)
    if by_file is not None:
        return tuple(name for names in by_file.values() for name in names)
    if (folder / _BIN_INDEX).is_file():
        return tuple(read_json(folder / _BIN_INDEX, str(folder))["weight_map"])
    return tuple(name for path in sorted(folder.glob("pytorch_model*.bin")) for name in load_pickled(path))


def read_tensors(
    folder: Path, names: Sequence[str], rows: Sequence[int] | None = None, key: str = PATH_KEY
) -> dict[str, torch.Tensor]:
    """Read a few tensors out of a checkpoint, from safetensors or else from pickled weights.

    Args:
        folder: Model folder.
        names: Tensors wanted.
        rows: Only these rows of each, in this order.
        key: Configuration key that `folder` came from, for the message.

    Returns:
        Tensors by name.

    Raises:
        UserError: One is not there.
    """
    by_file = tensor_files(folder)
    found: dict[str, torch.Tensor] = {}
    if by_file is not None:
        for file, held in by_file.items():
            wanted = [name for name in names if name in held]
            if wanted:
                found |= _read_safetensors(folder / file, wanted, rows)
    else:
        for path in sorted(folder.glob("pytorch_model*.bin")):
            state = load_pickled(path)
            found |= {name: _rows_of(path, name, state[name], rows) for name in names if name in state}
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError.for_key(
            key, str(folder), f"must hold {', '.join(missing)}", "Name the folder of a whole PRM of this family"
        )
    return found


def load_pickled(path: Path) -> dict[str, Any]:
    """Load a state dict without running code that came with it; what is not used stays on disk.

    Args:
        path: File written by `torch.save`.

    Returns:
        Tensors by name.

    Raises:
        UserError: It is damaged, or holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(state, dict):
            raise TypeError(type(state).__name__)
    except (UnpicklingError, RuntimeError, EOFError, TypeError) as err:
        raise UserError.for_key(
            PATH_KEY, str(path), f"cannot be read as a dict of tensors ({type(err).__name__})", "Download it again"
        ) from err
    return state


def lm_head_name(names: Iterable[str], config: Mapping[str, Any]) -> str:
    """Name the tensor that is the language model's head, which with tied weights is the embedding.

    Args:
        names: All tensors of the checkpoint.
        config: Its config.json.

    Returns:
        A name; not among `names` where the head is missing.
    """
    listed = tuple(names)
    own = next((name for name in listed if name == LM_HEAD or name.endswith("." + LM_HEAD)), None)
    if own is None and config.get("tie_word_embeddings", False):
        own = _embedding_name(listed)
    return own or LM_HEAD


def _embedding_name(names: Iterable[str]) -> str | None:
    return next((name for name in names if name == EMBEDDING or name.endswith("." + EMBEDDING)), None)


def _read_safetensors(path: Path, names: Sequence[str], rows: Sequence[int] | None) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        if rows is None:
            return {name: file.get_tensor(name) for name in names}
        slices = {name: file.get_slice(name) for name in names}
        for name, part in slices.items():
            _check_rows(path, name, part.get_shape()[0], rows)
        return {name: torch.cat([part[row : row + 1] for row in rows]) for name, part in slices.items()}


def _rows_of(path: Path, name: str, tensor: torch.Tensor, rows: Sequence[int] | None) -> torch.Tensor:
    if rows is None:
        return tensor.clone()
    _check_rows(path, name, len(tensor), rows)
    return tensor[list(rows)].clone()


def _check_rows(path: Path, name: str, held: int, rows: Sequence[int]) -> None:
    """Refuse rows beyond the end: sliced, they would come back as nothing."""
    if max(rows) >= held:
        allowed = f"must hold {name} with more than {max(rows)} rows, but it has {held}"
        raise UserError.for_key(PATH_KEY, str(path), allowed, "Use the tokenizer that the model came with")
