# SPDX-License-Identifier: Apache-2.0
"""Log-probs and entropy from hidden states: in chunks, and with the whole [T, V] matrix of logits.

Forward and backward of `verl.algorithms.log_probs.log_probs_from_hidden` beside the plain computation. Each way and
size runs in a process of its own, so that its peak memory is its own: on a CPU growth of the resident set over the
inputs, on a GPU torch's count of allocated bytes over the inputs. Values and gradients must agree.

    python3 benchmarks/fused_head.py                                                 # CPU
    PYTHONPATH=. python3 benchmarks/fused_head.py --device cuda --hidden 3584 --sizes 4096x152064 16384x152064
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import record
from verl.algorithms.log_probs import DEFAULT_CHUNK_TOKENS, log_probs_from_hidden
from verl.utils.device import synchronize

WAYS = ("chunks", "plain")
TOLERANCE = {"float32": 1e-5, "bfloat16": 6e-2}
"""Largest difference allowed: of values in nats, of gradients as a share of the largest one."""


@dataclass(frozen=True)
class Case:
    """One way at one size.

    Args:
        way: `chunks` or `plain`.
        tokens: T.
        vocabulary: V.
        hidden: H.
        dtype: Of hidden states and output weight.
        device: `cpu` or `cuda`.
        with_entropy: Whether the entropy is computed too.
        chunk: Tokens per chunk.
        repeats: Passes that count; one more warms up.
        threads: Torch threads.
    """

    way: str
    tokens: int
    vocabulary: int
    hidden: int
    dtype: str
    device: str
    with_entropy: bool
    chunk: int
    repeats: int
    threads: int


def plain_log_probs(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, with_entropy: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute log-probs and entropy as a plain training loop does.

    Args:
        hidden: [T, H].
        weight: [V, H].
        labels: [T] int64.
        with_entropy: Whether the entropy is wanted too.

    Returns:
        [T] float32 each.
    """
    all_log_probs = torch.log_softmax((hidden @ weight.T).float(), dim=-1)
    chosen = all_log_probs.gather(-1, labels[:, None])[:, 0]
    return chosen, -(all_log_probs.exp() * all_log_probs).sum(-1) if with_entropy else None


def run_case(case: Case, values_file: str) -> dict[str, float]:
    """Time forward and backward, and measure their peak memory; to be called in a fresh process.

    Args:
        case: What to run.
        values_file: Gets values and gradients of the last pass.

    Returns:
        `seconds` (median) and `peak_bytes` over those of the inputs.
    """
    torch.set_num_threads(case.threads)
    device = torch.device(case.device)
    small = replace(case, tokens=2, vocabulary=4)
    _pass(small, *_inputs(small, device))  # loads what torch loads on first use: it is not the way's memory
    tensors = _inputs(case, device)
    before = _peak(device, reset=True)
    seconds: list[float] = []
    values: list[torch.Tensor] = []
    for _ in range(case.repeats + 1):
        synchronize(device)
        values.clear()
        started_s = time.perf_counter()
        values += _pass(case, *tensors)
        synchronize(device)
        seconds.append(time.perf_counter() - started_s)
    peak = _peak(device) - before
    torch.save([value.cpu() for value in values], values_file)
    return {"seconds": statistics.median(seconds[1:]), "peak_bytes": float(peak)}


def differences(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> dict[str, float]:
    """Compare what two ways gave.

    Args:
        found: Log-probs, entropy where there is one, gradients of hidden states and of the weight.
        wanted: The same.

    Returns:
        Largest difference of the values in nats, and of the gradients as a share of the largest one.
    """
    pairs = [(a.float(), b.float()) for a, b in zip(found, wanted, strict=True)]
    return {
        "values": max(float((a - b).abs().max()) for a, b in pairs[:-2]),
        "gradients": max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs[-2:]),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all sizes.

    Args:
        arguments: See `parse`.

    Returns:
        The content of the result file.

    Raises:
        RuntimeError: The ways disagree.
    """
    head = record.describe_run("fused_head", vars(arguments))
    results = []
    for tokens, vocabulary in arguments.sizes:
        with tempfile.TemporaryDirectory(prefix="fused-head-") as folder:
            found = {way: _in_process(_case(arguments, way, tokens, vocabulary), folder) for way in WAYS}
            values = [torch.load(Path(folder) / f"{way}.pt") for way in WAYS]
        worst = differences(*values)
        if not max(worst.values()) <= TOLERANCE[arguments.dtype]:
            raise RuntimeError(f"the ways differ by {worst} at {tokens} x {vocabulary}")
        results.append({"tokens": tokens, "vocabulary": vocabulary, "ways": found, "differences": worst})
    return head | {"results": results}


def _case(arguments: argparse.Namespace, way: str, tokens: int, vocabulary: int) -> Case:
    return Case(
        way,
        tokens,
        vocabulary,
        arguments.hidden,
        arguments.dtype,
        arguments.device,
        not arguments.no_entropy,
        arguments.chunk,
        arguments.repeats,
        arguments.threads,
    )


def _in_process(case: Case, folder: str) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(run_case, (case, str(Path(folder) / f"{case.way}.pt"))) | {"case": asdict(case)}


def _inputs(case: Case, device: torch.device) -> list[torch.Tensor]:
    """Hidden states, weight, labels, and the gradients of log-probs and entropy; the same for both ways."""
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    hidden = torch.randn(case.tokens, case.hidden, device=device).to(dtype).requires_grad_()
    weight = (torch.randn(case.vocabulary, case.hidden, device=device) * case.hidden**-0.5).to(dtype).requires_grad_()
    labels = torch.randint(0, case.vocabulary, (case.tokens,), device=device)
    return [hidden, weight, labels, *(torch.randn(case.tokens, device=device) / case.tokens for _ in range(2))]


def _pass(
    case: Case, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, *gradients: torch.Tensor
) -> list[torch.Tensor]:
    hidden.grad = weight.grad = None
    if case.way == "chunks":
        answer = log_probs_from_hidden(hidden, weight, labels, with_entropy=case.with_entropy, chunk_tokens=case.chunk)
    else:
        answer = plain_log_probs(hidden, weight, labels, case.with_entropy)
    outputs = [output for output in answer if output is not None]
    torch.autograd.backward(outputs, list(gradients[: len(outputs)]))
    assert hidden.grad is not None and weight.grad is not None
    return [*(output.detach() for output in outputs), hidden.grad, weight.grad]


def _peak(device: torch.device, reset: bool = False) -> int:
    """Largest memory so far, bytes; with `reset` what is used now, from which a GPU's count starts anew."""
    if device.type == "cpu":
        return _resident("VmRSS" if reset else "VmHWM")
    if reset:
        torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.max_memory_allocated(device)


def _resident(field: str) -> int:
    """Read the kernel's count; `getrusage` would tell the parent's peak where that is larger."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def show(result: dict[str, Any]) -> str:
    """Lay a result out for reading.

    Args:
        result: From `measure`.
    """
    machine, settings = result["machine"], result["settings"]
    rows = []
    for each in result["results"]:
        chunks, plain = (each["ways"][way] for way in WAYS)
        memory = [f"{way['peak_bytes'] / 2**20:,.0f}" for way in (chunks, plain)]
        ratio = f"{chunks['seconds'] / plain['seconds']:.2f}"
        worst = [f"{each['differences'][name]:.1e}" for name in ("values", "gradients")]
        seconds = [f"{way['seconds']:.3f}" for way in (chunks, plain)]
        rows.append([f"{each['tokens']} x {each['vocabulary']}", *seconds, ratio, *memory, *worst])
    head = ["T x V", "chunks s", "plain s", "time ratio", "chunks MiB", "plain MiB", "max diff", "grad diff"]
    where = machine.get("gpu") or f"{machine['cpu']}, {settings['threads']} threads"
    about = f"H {settings['hidden']}, {settings['dtype']}, chunks of {settings['chunk']} tokens; {where}"
    return f"{about}, load {machine['load_before']} before\n\n{record.table(head, rows)}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        arguments: Of the program; None for `sys.argv`.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=_size, nargs="+", default=[(2048, 32768), (8192, 32768)], metavar="TxV")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=TOLERANCE, help="default: float32 on a CPU, else bfloat16")
    parser.add_argument("--no_entropy", action="store_true", help="log-probs alone")
    parser.add_argument("--chunk", type=int, default=DEFAULT_CHUNK_TOKENS, help="tokens per chunk")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", help="result file; default: a dated one in outputs/benchmarks/")
    parsed = parser.parse_args(arguments)
    parsed.dtype = parsed.dtype or ("float32" if parsed.device == "cpu" else "bfloat16")
    return parsed


def _size(text: str) -> tuple[int, int]:
    tokens, _, vocabulary = text.partition("x")
    return int(tokens), int(vocabulary)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show and write.

    Args:
        arguments: Of the program; None for `sys.argv`.

    Returns:
        Exit code: 1 where the ways disagree.
    """
    return record.conclude(parse(arguments), measure, show)


if __name__ == "__main__":
    sys.exit(main())
