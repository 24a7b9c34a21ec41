# SPDX-License-Identifier: Apache-2.0
"""Attention over packed sequences where there is no variable-length kernel: buckets of lengths, one grid, or a mask?

    engine     what the engines do: buckets, each by torch's kernel or by products, whichever `product_attention` says
    kernel     sequences of nearly equal lengths side by side, at most 3% padding in each bucket, torch's kernel
    products   the same buckets, matrix products and a softmax
    grid       all sequences padded to the longest, torch's kernel
    single     torch's kernel for every length
    mask       all tokens as one sequence under a block-diagonal causal mask

Forward and backward of the attention alone, on random queries, keys and values. All ways must agree.

    python3 benchmarks/cpu_attention.py                                   # responses of up to 512 tokens
    python3 benchmarks/cpu_attention.py --dtype bfloat16
    python3 benchmarks/cpu_attention.py --longest 130 --heads 4 2 32      # tiny ones: 8 to 130 tokens, hidden size 128
    python3 benchmarks/cpu_attention.py --longest 4096 --tokens 8192 --ways engine kernel products single grid
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import record
from verl.engines.attention import BucketGrid, attend_by_kernel, attend_on_grid
from verl.engines.length_buckets import MAX_PADDING_SHARE
from verl.engines.product_attention import causal_attention

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1}
WAYS = ("engine", "kernel", "products", "grid", "single", "mask")
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Heads:
    """Shape of the attention.

    Args:
        query: Query heads.
        key: Key and value heads.
        dim: Width of a head.
    """

    query: int
    key: int
    dim: int


def draw_lengths(kind: str, tokens: int, longest: int, seed: int = 0) -> list[int]:
    """Draw sequence lengths until they fill a token budget.

    Args:
        kind: `equal`, `uniform`, or `tail` (most are short, as responses are).
        tokens: Budget.
        longest: Longest sequence.
        seed: Of the draw.

    Returns:
        Lengths whose sum is at most the budget.
    """
    generator = np.random.default_rng(seed)
    draw = {
        "equal": lambda: longest // 2,
        "uniform": lambda: int(generator.integers(longest // 16, longest + 1)),
        "tail": lambda: int(longest ** generator.uniform(0.5, 1.0)),
    }[kind]
    lengths: list[int] = []
    while sum(lengths) + (length := max(1, draw())) <= tokens:
        lengths.append(length)
    return lengths


def ways(lengths: Sequence[int], names: Sequence[str] = WAYS) -> dict[str, Attend]:
    """Prepare some ways for some lengths; planning is not timed, the engines do it once for all layers.

    Args:
        lengths: Tokens of each sequence.
        names: Which ways.

    Returns:
        By name: from [1, H, T, D] queries, keys and values to [1, T, H, D].
    """
    makers: dict[str, Callable[[], Attend]] = {
        "engine": lambda: _on_grid(lengths, MAX_PADDING_SHARE, None),
        "kernel": lambda: _on_grid(lengths, MAX_PADDING_SHARE, attend_by_kernel),
        "products": lambda: _on_grid(lengths, MAX_PADDING_SHARE, causal_attention),
        "grid": lambda: _on_grid(lengths, 1.0, attend_by_kernel),
        "single": lambda: _on_grid(lengths, 0.0, attend_by_kernel),
        "mask": lambda: _masked(lengths),
    }
    return {name: makers[name]() for name in names}


def _on_grid(lengths: Sequence[int], max_padding: float, rectangle: Callable[..., torch.Tensor] | None) -> Attend:
    grid = BucketGrid.of(lengths, torch.device("cpu"), max_padding)
    if rectangle is None:
        return lambda q, k, v: attend_on_grid(q, k, v, grid, None)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        parts = zip(*(grid.spread(x) for x in (q, k, v)), strict=True)
        return grid.collect([rectangle(*part, None) for part in parts])

    return attend


def _masked(lengths: Sequence[int]) -> Attend:
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = (owner[:, None] == owner[None, :]).tril()

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q32, k32, v32 = (x.float() for x in (q, k, v))  # as for the kernel, whose backward pass is slow in 16 bit
        attended = F.scaled_dot_product_attention(q32, k32, v32, attn_mask=mask, enable_gqa=True)
        return attended.transpose(1, 2).to(q.dtype)

    return attend


def run_once(attend: Attend, tensors: Sequence[torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
    """Time one forward and backward pass.

    Args:
        attend: The way.
        tensors: Queries, keys, values, and the gradient of the result.

    Returns:
        Seconds; result and gradients.
    """
    q, k, v = (tensor.clone().requires_grad_() for tensor in tensors[:3])
    start = time.perf_counter()
    out = attend(q, k, v)
    out.backward(tensors[3])
    seconds = time.perf_counter() - start
    return seconds, [out.detach(), *(x.grad for x in (q, k, v) if x.grad is not None)]


@dataclass(frozen=True)
class Rounds:
    """How the ways are compared.

    Args:
        repeats: Rounds that count; one more warms up.
        dtype: Of queries, keys and values.
        names: Which ways; `engine`, with which the others are compared, always.
    """

    repeats: int
    dtype: str = "float32"
    names: Sequence[str] = WAYS


def compare(lengths: Sequence[int], heads: Heads, rounds: Rounds) -> dict[str, dict[str, float]]:
    """Let the ways take turns.

    Args:
        lengths: Tokens of each sequence.
        heads: Shape of the attention.
        rounds: How.

    Returns:
        By way: median seconds, tokens per second, time relative to `engine`, largest difference from `engine`.
    """
    total = sum(lengths)
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, n, total, heads.dim) for n in (heads.query, heads.key, heads.key)] + [
        (1, total, heads.query, heads.dim)
    ]
    tensors = [torch.randn(shape, generator=generator).to(getattr(torch, rounds.dtype)) for shape in shapes]
    prepared = ways(lengths, ["engine", *(name for name in rounds.names if name != "engine")])
    answers = {name: run_once(attend, tensors)[1] for name, attend in prepared.items()}
    times: dict[str, list[float]] = {name: [] for name in prepared}
    order = list(prepared)
    for _ in range(rounds.repeats):
        order.append(order.pop(0))  # what ran before leaves its traces in the caches
        for name in order:
            times[name].append(run_once(prepared[name], tensors)[0])
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        name: {
            "seconds": seconds,
            "tokens_per_s": total / seconds,
            "relative_time": seconds / medians["engine"],
            "difference": max(
                float((a - b).float().abs().max()) for a, b in zip(answers[name], answers["engine"], strict=True)
            ),
        }
        for name, seconds in medians.items()
    }


def padding_share(lengths: Sequence[int], max_padding: float) -> float:
    """Share of the computed places that hold no token.

    Args:
        lengths: Tokens of each sequence.
        max_padding: As for `BucketGrid.of`.
    """
    shapes = BucketGrid.of(lengths, torch.device("cpu"), max_padding).shapes
    return 1.0 - sum(lengths) / sum(n * longest for n, longest in shapes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write.

    Args:
        arguments: Command line; None for the process's own.

    Returns:
        Exit code: 1 if the ways disagree.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a micro-batch")
    parser.add_argument("--longest", type=int, default=512, help="tokens of the longest sequence")
    parser.add_argument("--heads", type=int, nargs=3, default=(8, 2, 32), metavar=("H", "H_KV", "D"))
    parser.add_argument("--dtype", choices=tuple(TOLERANCES), default="float32")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", help="JSON file; default: a dated one below outputs/benchmarks")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    result = record.describe_run("cpu_attention", vars(options)) | {"results": {}}
    rows, worst = [], 0.0
    for kind in ("equal", "uniform", "tail"):
        lengths = draw_lengths(kind, options.tokens, options.longest)
        found = compare(lengths, Heads(*options.heads), Rounds(options.repeats, options.dtype, options.ways))
        padding = {"engine": padding_share(lengths, MAX_PADDING_SHARE), "grid": padding_share(lengths, 1.0)}
        result["results"][kind] = {"sequences": len(lengths), "tokens": sum(lengths), "padding": padding, "ways": found}
        worst = max(worst, *(way["difference"] for way in found.values()))
        for name, way in found.items():
            share = f"{padding[name]:.1%}" if name in padding else "-"
            rows.append([f"{kind}, {len(lengths)} sequences", name, f"{way['tokens_per_s']:,.0f}",
                         f"{way['relative_time']:.2f}", share])  # fmt: skip
    sys.stdout.write(record.table(["lengths", "way", "tokens/s", "time / engine", "padding"], rows) + "\n")
    allowed = TOLERANCES[options.dtype]
    if worst > allowed:
        sys.stderr.write(f"the ways disagree by {worst:.2g}, allowed is {allowed}: no result\n")
        return 1
    sys.stdout.write(f"{record.write(result, options.out)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
