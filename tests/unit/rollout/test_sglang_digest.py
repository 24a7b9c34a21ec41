# SPDX-License-Identifier: Apache-2.0
"""Digests as SGLang computes them, of parameters as its ranks hold them."""

from __future__ import annotations

import hashlib
import random

import pytest
import torch

from verl.rollout.sglang_digest import ServerShape, compare_with_server, server_digest
from verl.weight_sync.digest import WeightDigestError

BLOCK = "model.layers.0"
HIDDEN, HEAD, QUERY_HEADS, INNER = 8, 4, 4, 12


def bundle(num_key_heads: int, vocabulary: int = 61) -> dict[str, torch.Tensor]:
    """A block, the vocabulary and its head, as Hugging Face names them."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "model.embed_tokens.weight": (vocabulary, HIDDEN),
        f"{BLOCK}.self_attn.q_proj.weight": (QUERY_HEADS * HEAD, HIDDEN),
        f"{BLOCK}.self_attn.q_proj.bias": (QUERY_HEADS * HEAD,),
        f"{BLOCK}.self_attn.k_proj.weight": (num_key_heads * HEAD, HIDDEN),
        f"{BLOCK}.self_attn.k_proj.bias": (num_key_heads * HEAD,),
        f"{BLOCK}.self_attn.v_proj.weight": (num_key_heads * HEAD, HIDDEN),
        f"{BLOCK}.self_attn.v_proj.bias": (num_key_heads * HEAD,),
        f"{BLOCK}.self_attn.o_proj.weight": (HIDDEN, QUERY_HEADS * HEAD),
        f"{BLOCK}.mlp.gate_proj.weight": (INNER, HIDDEN),
        f"{BLOCK}.mlp.up_proj.weight": (INNER, HIDDEN),
        f"{BLOCK}.mlp.down_proj.weight": (HIDDEN, INNER),
        f"{BLOCK}.mlp.down_proj.bias": (HIDDEN,),
        f"{BLOCK}.input_layernorm.weight": (HIDDEN,),
        "lm_head.weight": (vocabulary, HIDDEN),
    }
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


def rows(tensor: torch.Tensor, first: int, end: int) -> torch.Tensor:
    """Rows of a tensor, zeros after its last."""
    return torch.stack([tensor[row] if row < len(tensor) else torch.zeros_like(tensor[0]) for row in range(first, end)])


def held(weights: dict[str, torch.Tensor], rank: int, shape: ServerShape) -> dict[str, torch.Tensor]:
    """What a rank holds, laid out head by head; on a CPU further heads and rows of zeros fill it up."""
    num_ranks, on_cpu = shape.num_ranks, shape.device == "cpu"
    num_key_heads = shape.num_key_heads
    group = QUERY_HEADS // num_key_heads
    if on_cpu:
        num_key_heads = -(-num_key_heads // num_ranks) * num_ranks
    per_rank = group * num_key_heads // num_ranks if on_cpu else QUERY_HEADS // num_ranks
    inner = -(-INNER // (32 * num_ranks)) * 32 if on_cpu else INNER // num_ranks
    query_heads = range(rank * per_rank, (rank + 1) * per_rank)
    key_heads = sorted({head // group for head in query_heads})
    padded = 64 // num_ranks
    attention, mlp = f"{BLOCK}.self_attn", f"{BLOCK}.mlp"

    def joined(leaf: str) -> torch.Tensor:
        parts = [(f"{attention}.q_proj.{leaf}", head) for head in query_heads]
        parts += [(f"{attention}.{stem}.{leaf}", head) for stem in ("k_proj", "v_proj") for head in key_heads]
        return torch.cat([rows(weights[name], head * HEAD, (head + 1) * HEAD) for name, head in parts])

    cut = (rank * inner, (rank + 1) * inner)
    columns = (rank * per_rank * HEAD, (rank + 1) * per_rank * HEAD)
    return {
        "model.embed_tokens.weight": rows(weights["model.embed_tokens.weight"], rank * padded, (rank + 1) * padded),
        f"{attention}.qkv_proj.weight": joined("weight"),
        f"{attention}.qkv_proj.bias": joined("bias"),
        f"{attention}.o_proj.weight": rows(weights[f"{attention}.o_proj.weight"].T, *columns).T,
        f"{mlp}.gate_up_proj.weight": torch.cat(
            [rows(weights[f"{mlp}.{each}_proj.weight"], *cut) for each in ("gate", "up")]
        ),
        f"{mlp}.down_proj.weight": rows(weights[f"{mlp}.down_proj.weight"].T, *cut).T,
        f"{mlp}.down_proj.bias": weights[f"{mlp}.down_proj.bias"],
        f"{BLOCK}.input_layernorm.weight": weights[f"{BLOCK}.input_layernorm.weight"],
        "lm_head.weight": rows(weights["lm_head.weight"], rank * padded, (rank + 1) * padded),
        "model.rotary.table": torch.ones(3),  # of the server's own making
    }


def said(parameters: dict[str, torch.Tensor], device: str = "cpu") -> dict[str, dict[str, str]]:
    """What a rank says of its parameters."""
    return {"checksums": {name: server_digest(tensor, device) for name, tensor in parameters.items()}}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("num_ranks", "num_key_heads"), [(1, 1), (1, 2), (2, 2), (4, 4), (2, 1), (4, 2)])
def test_every_rank_is_compared_in_its_own_layout(device: str, num_ranks: int, num_key_heads: int) -> None:
    weights = bundle(num_key_heads)
    shape = ServerShape(device, num_ranks, num_key_heads)
    ranks = [held(weights, rank, shape) for rank in range(num_ranks)]
    assert compare_with_server(weights, [said(rank, device) for rank in ranks], shape) == 9 * num_ranks
    for name in ranks[-1].keys() - {"model.rotary.table"}:
        spoiled = {each: tensor.contiguous().clone() for each, tensor in ranks[-1].items()}
        spoiled[name].view(torch.int16).reshape(-1)[-1] ^= 1
        told = [said(rank, device) for rank in (*ranks[:-1], spoiled)]
        with pytest.raises(WeightDigestError, match=f"'{name}' on rank {num_ranks - 1}"):
            compare_with_server(weights, told, shape)


def test_a_large_vocabulary_is_padded_to_its_multiple() -> None:
    weights = {"model.embed_tokens.weight": torch.randn(130, 2)}
    for num_ranks, size in ((1, 192), (2, 96), (3, 64), (5, 64)):  # 192 rows, of which 5 ranks cannot have a fifth: 320
        table = weights["model.embed_tokens.weight"]
        ranks = [
            {"model.embed_tokens.weight": rows(table, rank * size, rank * size + size)} for rank in range(num_ranks)
        ]
        assert (
            compare_with_server(weights, [said(rank) for rank in ranks], ServerShape("cpu", num_ranks, 1)) == num_ranks
        )


def test_what_was_sent_must_be_somewhere() -> None:
    weights = bundle(1)
    parameters = held(weights, 0, ServerShape("cpu", 1, 1))
    del parameters[f"{BLOCK}.mlp.gate_up_proj.weight"]
    parameters[f"{BLOCK}.mlp.experts.w13_weight"] = torch.ones(2)
    with pytest.raises(WeightDigestError, match=f"2 tensors were sent.*has nowhere.*{BLOCK}.mlp.gate_proj.weight"):
        compare_with_server(weights, [said(parameters)], ServerShape("cpu", 1, 1))
    with pytest.raises(WeightDigestError, match="1 of 2 SGLang ranks"):
        compare_with_server(weights, [said(parameters)], ServerShape("cpu", 2, 1))


# by the Triton kernels of SGLang 0.5.23 in Triton's interpreter, of random.Random(n).randbytes(n)
BY_THE_KERNEL = {
    1: "b8b5cff37fd7f33a",
    3: "442782746ac1f339",
    4: "780410987b00513b",
    6: "0d5bf4ccb3c80d08",
    100: "f1da14b887dcc00e",
    32768: "bcbefe3ef3bc6e5d",
    32770: "9dc55de44ca5e409",
    98305: "ff2414790d1ea681",
    280002: "63847640e3397d60",
}


@pytest.mark.parametrize("num_bytes", BY_THE_KERNEL)
def test_digests_of_its_gpu_kernel(num_bytes: int) -> None:
    raw = bytearray(random.Random(num_bytes).randbytes(num_bytes))
    tensor = torch.frombuffer(raw, dtype=torch.uint8)
    assert server_digest(tensor, "cuda") == BY_THE_KERNEL[num_bytes]
    assert server_digest(tensor, "cpu") == hashlib.sha256(raw).hexdigest()[:16]
    assert server_digest(tensor.new_empty(0), "cuda") == "0" * 16
