# SPDX-License-Identifier: Apache-2.0
"""Bytes per second of the shared-memory weight sync, beside a copy of the same bytes in memory.

The sender is `SharedMemorySender` over the tensors of a Qwen2; the receiver a process of its own that maps the bundle
and copies every tensor into its model, or, with `--vllm`, a real vLLM engine that reloads its model. A sync writes the
bytes once and reads them into place once: it cannot be faster than half the copy.

    python3 benchmarks/weight_sync.py
    VLLM_CPU_OMP_THREADS_BIND=nobind python3 benchmarks/weight_sync.py --vllm --shape 4m
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2ForCausalLM

from benchmarks import record
from benchmarks.material import SHAPES, Shape
from benchmarks.policy_material import qwen2_config, save_policy
from recipe.miniature.tokenizer import build_tokenizer
from verl.rollout.base import RolloutSpec
from verl.utils.async_loop import BackgroundLoop
from verl.weight_sync.base import SyncReport
from verl.weight_sync.bundle import WeightManifest, read_bundle
from verl.weight_sync.shared_memory import SharedMemorySender

_START_TIMEOUT_S = 600.0
Weights = dict[str, torch.Tensor]


class ProcessClient:
    """Engine side in a process of its own, with plain tensors for a model; see `WeightSyncClient`."""

    def __init__(self, weights: Weights) -> None:
        """Start the process.

        Args:
            weights: Their names, shapes and dtypes are those of its model.
        """
        shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=receive, args=(theirs, shapes), daemon=True)
        self._process.start()
        if not self._pipe.poll(_START_TIMEOUT_S):
            raise RuntimeError("the receiving process did not start")
        self._pipe.recv()

    def init_transfer(self, init_info: dict[str, Any]) -> None:
        """Nothing to agree on."""

    def start_update(self) -> None:
        """Nothing is generated meanwhile."""

    def update(self, payload: dict[str, Any]) -> None:
        """Have the bundle read."""
        self._pipe.send(payload)
        error = self._pipe.recv()
        if error:
            raise RuntimeError(error)

    def finish_update(self, version: int) -> None:
        """Nothing was cached."""

    def sync(self, payload: dict[str, Any], version: int) -> None:
        """Have the bundle read."""
        self.update(payload)

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join(timeout=30)


class VLLMClient:
    """Engine side is vLLM; see `WeightSyncClient`."""

    def __init__(self, spec: RolloutSpec) -> None:
        """Start the engine.

        Args:
            spec: Its settings.
        """
        self._engine: Any = importlib.import_module("verl.rollout.vllm_engine").VLLMEngine(spec)
        self._loop = BackgroundLoop("weight-sync")
        self._loop.run(self._engine.start(), timeout_s=_START_TIMEOUT_S)

    def init_transfer(self, init_info: dict[str, Any]) -> None:
        """See `RolloutEngine.init_transfer`."""
        self._loop.run(self._engine.init_transfer(init_info))

    def start_update(self) -> None:
        """See `RolloutEngine.start_update`."""
        self._loop.run(self._engine.start_update())

    def update(self, payload: dict[str, Any]) -> None:
        """See `RolloutEngine.update`."""
        self._loop.run(self._engine.update(payload))

    def finish_update(self, version: int) -> None:
        """See `RolloutEngine.finish_update`."""
        self._loop.run(self._engine.finish_update(version))

    def sync(self, payload: dict[str, Any], version: int) -> None:
        """See `WeightSyncClient.sync`."""
        self.start_update()
        self.update(payload)
        self.finish_update(version)

    def close(self) -> None:
        """End the engine."""
        self._loop.run(asyncio.wait_for(self._engine.close(), 60))
        self._loop.close()


def receive(pipe: Connection, shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    """Take in bundles until None comes; the body of the receiving process.

    Args:
        pipe: Brings manifests as plain dicts; gets an empty text for each, or what went wrong.
        shapes: Shape and dtype of every tensor of the model.
    """
    torch.set_num_threads(1)
    model = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    pipe.send("")
    while (payload := pipe.recv()) is not None:
        try:
            for name, tensor in read_bundle(WeightManifest(**payload)):
                model[name].copy_(tensor)
        except (OSError, RuntimeError) as error:
            pipe.send(f"{type(error).__name__}: {error}")
        else:
            pipe.send("")


def make_weights(shape: Shape, tokenizer: Any, dtype: torch.dtype) -> Weights:
    """Make the tensors of an untied Qwen2, every page of them touched.

    Args:
        shape: Its size.
        tokenizer: Gives the vocabulary, where the shape does not.
        dtype: Of all tensors.
    """
    with torch.device("meta"):
        names = Qwen2ForCausalLM(qwen2_config(shape, tokenizer)).state_dict()
    return {name: torch.full(tensor.shape, 0.01, dtype=dtype) for name, tensor in names.items()}


def copy_seconds(weights: Weights) -> float:
    """Copy all tensors into other ones, whose pages were touched before; the best of three counts.

    Args:
        weights: The tensors.
    """
    targets = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    best_s = float("inf")
    for _ in range(3):
        started_s = time.perf_counter()
        for name, tensor in weights.items():
            targets[name].copy_(tensor)
        best_s = min(best_s, time.perf_counter() - started_s)
    return best_s


def summarise(reports: Sequence[SyncReport], copied_s: float) -> dict[str, float]:
    """Turn reports into rates.

    Args:
        reports: Of several syncs of the same bytes.
        copied_s: Seconds of a copy in memory.

    Returns:
        Medians, and the sync's rate over the copy's.
    """
    rate = statistics.median(report.bytes_per_s for report in reports)
    return {
        "bytes_per_s": rate,
        "write_s": statistics.median(report.gather_s for report in reports),
        "load_s": statistics.median(report.load_s for report in reports),
        "over_copy": rate / (reports[0].num_bytes / copied_s),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Sync with and without digests.

    Args:
        arguments: See `parse`.

    Returns:
        The content of the result file.
    """
    torch.set_num_threads(1)
    head = record.describe_run("weight_sync", vars(arguments))
    shape = SHAPES[arguments.shape]
    shape = replace(shape, layers=arguments.layers or shape.layers)
    tokenizer = build_tokenizer(shape.context)
    weights = make_weights(shape, tokenizer, getattr(torch, arguments.dtype))
    copied_s = copy_seconds(weights)
    results = {}
    with ExitStack() as stack:
        client = _client(arguments, shape, tokenizer, weights, stack)
        stack.callback(client.close)
        sender = SharedMemorySender(client, is_leader=True)
        for name, verify in (("plain", False), ("with digests", True)):
            sender.send(weights.items(), 1, verify)  # not counted
            reports = [sender.send(weights.items(), n + 2, verify) for n in range(arguments.repeats)]
            results[name] = summarise(reports, copied_s)
    num_bytes = sum(tensor.nbytes for tensor in weights.values())
    return head | {
        "work": {"tensors": len(weights), "bytes": num_bytes},
        "copy_bytes_per_s": num_bytes / copied_s,
        "results": results,
    }


def _client(arguments: argparse.Namespace, shape: Shape, tokenizer: Any, weights: Weights, stack: ExitStack) -> Any:
    if not arguments.vllm:
        return ProcessClient(weights)
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="weight-sync-"))
    path = save_policy(Path(folder), shape, tokenizer, dtype=arguments.dtype)
    spec = RolloutSpec(
        model_path=str(path), dtype=arguments.dtype, max_model_len=256, max_num_seqs=8, kv_cache_bytes=64 << 20
    )
    return VLLMClient(spec)


def show(result: dict[str, Any]) -> str:
    """Lay a result out for reading.

    Args:
        result: From `measure`.
    """
    machine, work, settings = result["machine"], result["work"], result["settings"]
    receiver = "vLLM" if settings["vllm"] else "a process that copies into place"
    about = (
        f"{work['tensors']} tensors, {work['bytes'] / 2**20:,.0f} MiB, to {receiver}; {machine['cpu']}, load "
        f"{machine['load_before']} before; copy in memory {result['copy_bytes_per_s'] / 1e9:.2f} GB/s"
    )
    rows = [
        [name, *(f"{each[key]:.3f}" for key in ("write_s", "load_s")), f"{each['bytes_per_s'] / 1e9:.2f}",
         f"{each['over_copy']:.2f}x"]
        for name, each in result["results"].items()
    ]  # fmt: skip
    return f"{about}\n\n{record.table(['sync', 'write s', 'load s', 'GB/s', 'over copy'], rows)}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        arguments: Of the program; None for `sys.argv`.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.5b")
    parser.add_argument("--layers", type=int, default=4, help="layers instead of the shape's; 0 keeps them")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--vllm", action="store_true", help="a real vLLM engine receives")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", help="result file; default: a dated one in outputs/benchmarks/")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show and write.

    Args:
        arguments: Of the program; None for `sys.argv`.
    """
    return record.conclude(parse(arguments), measure, show)


if __name__ == "__main__":
    sys.exit(main())
