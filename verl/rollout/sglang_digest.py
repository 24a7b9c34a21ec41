# SPDX-License-Identifier: Apache-2.0
"""Whether an SGLang server holds the weights that were sent: its own digests of its parameters, and ours of the bundle.

SGLang says with `/weights_checker` a 64-bit digest of every parameter as each of its ranks holds it: projections of a
block joined, rows and columns cut over the ranks, the vocabulary padded. The same is made here from what was sent.
Source: SGLang 0.5.23, `srt/utils/weight_checker.py`, `srt/managers/mm_utils.py` (`tensor_hash`),
`kernels/ops/memory/gpu_tensor_hash.py`. Knows no server; a model's parameters are known by their names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from verl.weight_sync.digest import WeightDigestError, bytes_of

_JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_KEY_HEADS = ("k_proj", "v_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_VOCABULARY = ("embed_tokens", "lm_head")
_CUT = ("q_proj", "o_proj", *_KEY_HEADS, *_MLP, *_VOCABULARY)
_CUT_BY_COLUMNS = ("o_proj", "down_proj")
_VOCABULARY_MULTIPLE = 64
_CPU_MLP_MULTIPLE = 32

_TILE_WORDS = 8192
_CHUNK_TILES = 8  # 256 KiB of words: the intermediate numbers of a chunk stay in the cache
_SEED = 0x243F6A88
_WORD = 0xFFFFFFFF
_SEEDS = (_SEED, (_SEED * 0x9E3779B1 ^ 0xDEADBEEF) & _WORD)
_POSITION_FACTORS = (0x27D4EB2D, 0x165667B1)
_POSITION_TURNS = (15, 13)


@dataclass(frozen=True, slots=True)
class ServerShape:
    """What decides how a server lays out its parameters, and how it computes their digests.

    Attributes:
        device: `cuda`, or anything else for a server on a CPU, which pads more and digests otherwise.
        num_ranks: Tensor-parallel ranks.
        num_key_heads: Key and value heads of the model.
    """

    device: str
    num_ranks: int
    num_key_heads: int


def compare_with_server(
    weights: Mapping[str, torch.Tensor], ranks: Sequence[Mapping[str, Any]], shape: ServerShape
) -> int:
    """Compare what was sent with what a server says it holds.

    Args:
        weights: All tensors of a sync, by their Hugging Face names.
        ranks: `ranks` of the answer of `/weights_checker`, in the order of the tensor-parallel ranks.
        shape: Of the server.

    Returns:
        Parameters compared, over all ranks.

    Raises:
        WeightDigestError: A parameter is not what was sent, or a tensor that was sent is part of none.
    """
    if len(ranks) != shape.num_ranks:
        raise WeightDigestError(f"weight sync: {len(ranks)} of {shape.num_ranks} SGLang ranks said their digests")
    num_compared = 0
    for rank, said in enumerate(ranks):
        unseen = set(weights)
        for name, digest in said["checksums"].items():
            sources = sources_of(name, weights)
            if not sources:
                continue  # not of the trainer's making, e.g. a table that the server computes
            if server_digest(parameter_of(sources, weights, rank, shape), shape.device) != digest:
                raise WeightDigestError(
                    f"weight sync: the bytes of {name!r} on rank {rank} of the SGLang server are not those that were "
                    f"sent as {', '.join(sources)}, or it keeps them in another dtype or layout"
                )
            unseen.difference_update(sources)
            num_compared += 1
        if unseen:
            raise WeightDigestError(
                f"weight sync: {len(unseen)} tensors were sent that rank {rank} of the SGLang server has nowhere, or "
                f"in a parameter of which we do not know how it is made: {', '.join(sorted(unseen)[:3])}"
            )
    return num_compared


def sources_of(name: str, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors of which a server's parameter is made.

    Args:
        name: Of the parameter.
        weights: All tensors that were sent.

    Returns:
        Its sources in order; none where it is not made of what was sent.
    """
    if name in weights:
        return [name]
    block, stem, leaf = ("", *name.rsplit(".", 2))[-3:]
    sources = [f"{block}.{each}.{leaf}" for each in _JOINED.get(stem, ())]
    return sources if all(source in weights for source in sources) else []


def parameter_of(
    sources: Sequence[str], weights: Mapping[str, torch.Tensor], rank: int, shape: ServerShape
) -> torch.Tensor:
    """Make the parameter that a rank should hold.

    Args:
        sources: Names of the tensors of which it is made.
        weights: All tensors that were sent.
        rank: Tensor-parallel rank.
        shape: Of the server.

    Returns:
        The parameter; a view of the source where nothing has to be joined or padded.
    """
    parts = [_own_part(source, weights[source], rank, shape) for source in sources]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def server_digest(tensor: torch.Tensor, device: str) -> str:
    """Compute the digest that SGLang computes of a parameter with these bytes.

    Args:
        tensor: Of any dtype, on the host.
        device: `cuda`: the mixing function of its GPU kernel; else the first 64 bits of SHA-256.

    Returns:
        16 hex digits.
    """
    if device != "cuda":
        return hashlib.sha256(bytes_of(tensor)).hexdigest()[:16]
    return f"{_word_digest(bytes_of(tensor)):016x}"


def _own_part(name: str, tensor: torch.Tensor, rank: int, shape: ServerShape) -> torch.Tensor:
    """A rank's piece of one tensor, with the zeros that pad it."""
    stem = name.split(".")[-2] if "." in name else ""
    axis = 1 if stem in _CUT_BY_COLUMNS else 0
    if stem not in _CUT or axis >= tensor.ndim:  # an output's bias is whole on every rank
        return tensor
    copies = 1
    if stem in _KEY_HEADS and shape.device == "cuda":
        copies = max(1, shape.num_ranks // shape.num_key_heads)  # several ranks hold the same heads
    size = _padded_size(stem, tensor.shape[axis], shape) * copies // shape.num_ranks
    first = min(rank // copies * size, tensor.shape[axis])
    piece = tensor.narrow(axis, first, min(size, tensor.shape[axis] - first))
    missing = list(piece.shape)
    missing[axis] = size - piece.shape[axis]
    return torch.cat([piece, piece.new_zeros(missing)], dim=axis) if missing[axis] else piece


def _padded_size(stem: str, size: int, shape: ServerShape) -> int:
    """Length of the whole axis that is cut over the ranks; Source: `pad_vocab_size`, `configs/update_config.py`."""
    if stem in _VOCABULARY:
        padded = _up_to(size, _VOCABULARY_MULTIPLE)
        return padded if padded % shape.num_ranks == 0 else _up_to(size, _VOCABULARY_MULTIPLE * shape.num_ranks)
    if shape.device == "cuda":
        return size
    if stem in _MLP:
        return _up_to(size, _CPU_MLP_MULTIPLE * shape.num_ranks)
    return _up_to(shape.num_key_heads, shape.num_ranks) * (size // shape.num_key_heads)


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _word_digest(raw: memoryview) -> int:
    """Digest by SGLang's GPU kernel: words are mixed with their positions, summed by tile, and the tiles summed."""
    whole = len(raw) // 4 * 4
    words = np.frombuffer(raw[:whole], dtype="<u4")
    if whole < len(raw):
        words = np.append(words, np.uint32(int.from_bytes(raw[whole:], "little")))
    if not len(words):
        return 0
    total = sum(_tile_sums(words, start) for start in range(0, len(words), _CHUNK_TILES * _TILE_WORDS))
    mask = (1 << 64) - 1
    mixed = total & mask
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & mask
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & mask
    return mixed ^ mixed >> 31


def _tile_sums(words: Any, start: int) -> int:
    """Sum of the digests of some tiles."""
    chunk = words[start : start + _CHUNK_TILES * _TILE_WORDS]
    places = np.arange(start, start + len(chunk), dtype=np.uint32)
    num_bytes = np.uint32(len(words) * 4 & _WORD)
    borders = np.arange(0, len(chunk), _TILE_WORDS)
    halves = []
    for factor, seed, turn in zip(_POSITION_FACTORS, _SEEDS, _POSITION_TURNS, strict=True):
        position = (places * np.uint32(factor) + np.uint32(seed)) ^ (
            places << np.uint32(turn) | places >> np.uint32(32 - turn)
        )
        sums = np.add.reduceat(_mixed(chunk ^ position), borders, dtype=np.uint32)
        halves.append(_mixed(sums ^ num_bytes).astype(np.uint64))
    return int((halves[0] << np.uint64(32) | halves[1]).sum(dtype=np.uint64))


def _mixed(words: Any) -> Any:
    """MurmurHash3's finalizer of 32-bit words; Source: A. Appleby, `fmix32`."""
    words = words ^ words >> np.uint32(16)
    words *= np.uint32(0x85EBCA6B)
    words ^= words >> np.uint32(13)
    words *= np.uint32(0xC2B2AE35)
    words ^= words >> np.uint32(16)
    return words
