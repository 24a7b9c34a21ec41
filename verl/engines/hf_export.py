# SPDX-License-Identifier: Apache-2.0
"""A stream of named weights written as a folder that transformers and vLLM load. It knows no mesh and no tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from verl.engines.adapters import Adapters

MAX_SHARD_BYTES = 4 * 1024**3


def write_hf_folder(
    folder: str,
    model: Any,
    weights: Iterator[tuple[str, torch.Tensor]],
    dtype: torch.dtype,
    is_writer: bool,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write config, generation config and weights; every rank runs the stream to its end, one writes.

    At most one file's worth of weights is in host memory.

    Args:
        folder: Where to; made if needed.
        model: The transformers model that the weights belong to; its configs are written.
        weights: Names and whole tensors.
        dtype: Their dtype, noted in the config.
        is_writer: Whether this rank writes.
        max_shard_bytes: Size after which a new file is begun.
    """
    if not is_writer:
        for _ in weights:
            pass
        return
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    config = deepcopy(model.config)
    config.dtype = dtype
    config.architectures = [type(model).__name__]
    config.save_pretrained(path)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(path)
    _write_weights(path, weights, max_shard_bytes)


def write_adapters(folder: str, adapters: Adapters, base_model: str, weights: dict[str, torch.Tensor]) -> None:
    """Write adapters as peft loads them, beside the model they belong to.

    Args:
        folder: Where to; made if needed.
        adapters: Describe themselves.
        base_model: Path or hub id of the frozen model.
        weights: By peft's names.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    adapters.write_config(folder, base_model)
    on_host = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
    save_file(on_host, path / "adapter_model.safetensors", metadata={"format": "pt"})


def _write_weights(path: Path, weights: Iterator[tuple[str, torch.Tensor]], max_shard_bytes: int) -> None:
    shard_names: list[list[str]] = []
    pending: dict[str, torch.Tensor] = {}
    total_bytes, pending_bytes = 0, 0

    def flush() -> None:
        save_file(pending, path / _part(len(shard_names)), metadata={"format": "pt"})
        shard_names.append(list(pending))

    for name, tensor in weights:
        size = tensor.numel() * tensor.element_size()
        if pending and pending_bytes + size > max_shard_bytes:
            flush()
            pending, pending_bytes = {}, 0
        pending[name] = tensor.cpu().contiguous()
        pending_bytes += size
        total_bytes += size
    flush()
    _rename_parts(path, shard_names, total_bytes)


def _part(number: int) -> str:
    return f"part-{number}.safetensors.tmp"


def _rename_parts(path: Path, shard_names: list[list[str]], total_bytes: int) -> None:
    """Give the files their final names, which hold their number, and write the index if there are several."""
    count = len(shard_names)
    if count == 1:
        (path / _part(0)).rename(path / "model.safetensors")
        return
    weight_map = {}
    for number, names in enumerate(shard_names):
        final = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        (path / _part(number)).rename(path / final)
        weight_map.update(dict.fromkeys(names, final))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
