# SPDX-License-Identifier: Apache-2.0
"""Forward and backward passes of policy training: our engine on packed sequences, and a plain transformers loop.

    verl     `FSDPEngine.forward_backward` on micro-batches under a token budget, without padding
    plain    `AutoModelForCausalLM` on micro-batches padded to their longest, whole logits, log_softmax

Same weights, same sequences, same loss (mean negative log-prob of the response tokens), one process. The engine keeps
float32 weights and casts them, as in training; the plain loop holds them in the compute dtype. Losses and gradient
norms must agree, or nothing is reported. With `--optimizer` both also clip and step, at rate zero: all of the work and
memory of AdamW, and the same loss in every repeat.

    python3 benchmarks/train_step.py                                          # 4M parameters, CPU, float32
    python3 benchmarks/train_step.py --dtype bfloat16
    PYTHONPATH=. python3 benchmarks/train_step.py --shape 1.5b --device cuda --longest 4096 --sequences 32 --optimizer
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks import record
from benchmarks.material import SHAPES
from benchmarks.matrix_rate import data_sheet_rate, matrix_rate
from benchmarks.policy_material import LENGTH_KINDS, draw_lengths, save_policy, train_flops
from recipe.miniature.tokenizer import build_tokenizer
from verl.engines.base import EngineSpec, HeadOutputs, HeadRequest, OptimizerSpec, PrecisionSpec, build_engine
from verl.engines.micro_batches import MicroBatchSpec, make_micro_batches
from verl.engines.packing import PackedSequences, PaddedSequences
from verl.utils.device import memory_stats, synchronize

SIDES = ("verl", "plain")
OPTIMIZER = OptimizerSpec(lr=0.0)
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
"""Largest relative difference of losses and of gradient norms that rounding explains."""


@dataclass(frozen=True)
class Outcome:
    """What one pass over all sequences gave.

    Args:
        seconds: Time of forward and backward, and of the optimizer where it is asked for.
        loss: Mean negative log-prob.
        grad_norm: Norm of its gradient.
    """

    seconds: float
    loss: float
    grad_norm: float


Pass = Callable[[], Outcome]


def make_sequences(lengths: Sequence[int], vocabulary: int, seed: int = 0) -> PaddedSequences:
    """Draw prompts and responses; a quarter of each sequence is its prompt.

    Args:
        lengths: Tokens of each sequence, 2 or more.
        vocabulary: Token ids are drawn below it.
        seed: Of the draw.

    Returns:
        The padded columns.
    """
    prompt_lengths = torch.tensor([max(1, length // 4) for length in lengths])
    response_lengths = torch.tensor(lengths) - prompt_lengths
    width, depth = int(prompt_lengths.max()), int(response_lengths.max())
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(0, vocabulary, (len(lengths), width), generator=generator)
    responses = torch.randint(0, vocabulary, (len(lengths), depth), generator=generator)
    prompt_mask = (torch.arange(width)[None, :] >= width - prompt_lengths[:, None]).long()
    response_mask = (torch.arange(depth)[None, :] < response_lengths[:, None]).long()
    return PaddedSequences(prompts, prompt_mask, responses, response_mask)


def verl_pass(spec: EngineSpec, sequences: PaddedSequences, budget: int, with_optimizer: bool) -> Pass:
    """Prepare our side.

    Args:
        spec: The engine.
        sequences: The work.
        budget: Most tokens of a micro-batch.
        with_optimizer: Clip and step, too.

    Returns:
        Runs all micro-batches; packing is in its time.
    """
    engine: Any = build_engine(spec)
    num_targets = int(sequences.response_mask.sum())

    def share(_: PackedSequences, outputs: HeadOutputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        assert outputs.log_probs is not None
        loss = -outputs.log_probs.sum() / num_targets
        return loss, {"loss": loss}

    def run() -> Outcome:
        engine.module.zero_grad(set_to_none=True)
        started_s = time.perf_counter()
        micro_batches = make_micro_batches(engine, sequences, range(len(sequences)), MicroBatchSpec(budget))
        shares = engine.forward_backward(micro_batches, HeadRequest(), share)
        report = engine.optimizer_step() if with_optimizer else None
        synchronize(engine.device)
        seconds = time.perf_counter() - started_s
        norm = grad_norm(engine.module) if report is None else report.grad_norm
        return Outcome(seconds, float(sum(each["loss"] for each in shares)), norm)

    return run


def plain_pass(model: Any, sequences: PaddedSequences, rows_at_once: int, with_optimizer: bool) -> Pass:
    """Prepare the plain loop.

    Args:
        model: A transformers model in training mode.
        sequences: The work.
        rows_at_once: Sequences of a micro-batch.
        with_optimizer: Clip and step, too.

    Returns:
        Runs all micro-batches, in the order of the sequences.
    """
    num_targets = int(sequences.response_mask.sum())
    rows = [list(range(len(sequences)))[at : at + rows_at_once] for at in range(0, len(sequences), rows_at_once)]
    adamw = torch.optim.AdamW(model.parameters(), lr=OPTIMIZER.lr, fused=True)

    def run() -> Outcome:
        model.zero_grad(set_to_none=True)
        total = 0.0
        started_s = time.perf_counter()
        for part in rows:
            loss = _plain_loss(model, sequences, part) / num_targets
            loss.backward()
            total += float(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_grad) if with_optimizer else None
        if with_optimizer:
            adamw.step()
        synchronize(model.device)
        seconds = time.perf_counter() - started_s
        return Outcome(seconds, total, grad_norm(model) if norm is None else float(norm))

    return run


def grad_norm(module: torch.nn.Module) -> float:
    """Give the norm of all gradients.

    Args:
        module: Sharded or not.
    """
    norm = torch.nn.utils.get_total_norm([p.grad.float() for p in module.parameters() if p.grad is not None])
    return float(norm.full_tensor() if isinstance(norm, torch.distributed.tensor.DTensor) else norm)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Let both sides take turns.

    Args:
        arguments: See `parse`.

    Returns:
        The content of the result file.

    Raises:
        RuntimeError: The sides disagree.
    """
    torch.set_num_threads(arguments.threads)
    head = record.describe_run("train_step", vars(arguments))
    shape, device, compute = SHAPES[arguments.shape], torch.device(arguments.device), getattr(torch, arguments.dtype)
    tokenizer = build_tokenizer(shape.context)
    vocabulary = max(shape.vocabulary, len(tokenizer))
    lengths = draw_lengths(arguments.kind, arguments.sequences, arguments.longest)
    sequences = make_sequences(lengths, vocabulary)
    with tempfile.TemporaryDirectory(prefix="train-step-") as name:
        folder = save_policy(Path(name), shape, tokenizer, arguments.device, arguments.dtype)
        passes = {side: PREPARE[side](folder, sequences, arguments) for side in arguments.sides}
    found = {side: [run() for _ in range(2)][-1] for side, run in passes.items()}
    _check(found, TOLERANCE[arguments.dtype])
    seconds: dict[str, list[float]] = {side: [] for side in passes}
    for _ in range(arguments.repeats):
        for side, run in passes.items():
            seconds[side].append(run().seconds)
    memory = memory_stats(device)  # of the passes, not of the matrices below
    rate, promised = matrix_rate(device, compute), data_sheet_rate(head["machine"].get("gpu", ""), compute)
    flops = train_flops(shape, vocabulary, lengths, int(sequences.response_mask.sum()))
    results = {}
    for side, outcome in found.items():
        median_s = statistics.median(seconds[side])
        results[side] = {
            "tokens_per_s": sum(lengths) / median_s,
            "share_of_matrix_rate": flops / median_s / rate,
            "mfu": flops / median_s / promised if promised else None,
            "loss": outcome.loss,
            "grad_norm": outcome.grad_norm,
            "seconds": seconds[side],
        }
    work = {"tokens": sum(lengths), "longest": max(lengths), "shortest": min(lengths), "flops": flops}
    rates = [results[side]["tokens_per_s"] for side in SIDES if side in results]
    ratio = rates[0] / rates[1] if len(rates) == 2 else None
    return head | {"work": work, "matrix_flops_per_s": rate, "memory": memory, "results": results, "ratio": ratio}


def _prepare_verl(folder: Path, sequences: PaddedSequences, arguments: argparse.Namespace) -> Pass:
    spec = EngineSpec(
        str(folder),
        OPTIMIZER,
        device=arguments.device,
        precision=PrecisionSpec(compute=arguments.dtype),
        gradient_checkpointing=arguments.checkpointing,
        compile_layers=arguments.compile,
    )
    return verl_pass(spec, sequences, arguments.budget, arguments.optimizer)


def _prepare_plain(folder: Path, sequences: PaddedSequences, arguments: argparse.Namespace) -> Pass:
    compute = getattr(torch, arguments.dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=compute, attn_implementation="sdpa")
    model = model.to(arguments.device).train()
    if arguments.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    rows_at_once = max(1, arguments.budget // int(sequences.lengths().max()))
    return plain_pass(model, sequences, rows_at_once, arguments.optimizer)


PREPARE = {"verl": _prepare_verl, "plain": _prepare_plain}


def _plain_loss(model: Any, sequences: PaddedSequences, rows: Sequence[int]) -> torch.Tensor:
    """Sum of negative log-probs of the response tokens, prompts left padded as a collator does."""
    prompt_keep = sequences.prompt_mask[rows].bool()
    width = int(prompt_keep.sum(1).max())
    depth = int(sequences.response_mask[rows].sum(1).max())
    prompts, responses = sequences.prompts[rows][:, -width:], sequences.responses[rows][:, :depth]
    targets_mask = sequences.response_mask[rows][:, :depth].to(model.device)
    mask = torch.cat([sequences.prompt_mask[rows][:, -width:], sequences.response_mask[rows][:, :depth]], dim=1)
    ids = torch.cat([prompts, responses], dim=1).to(model.device)
    places = (mask.cumsum(1) - 1).clamp(min=0).to(model.device)
    logits = model(input_ids=ids, attention_mask=mask.to(model.device), position_ids=places, use_cache=False).logits
    log_probs = torch.log_softmax(logits[:, width - 1 : -1].float(), dim=-1)
    chosen = log_probs.gather(-1, responses.to(model.device)[..., None])[..., 0]
    return -(chosen * targets_mask).sum()


def _check(found: dict[str, Outcome], tolerance: float) -> None:
    if len(found) < 2:
        return
    ours, plain = found["verl"], found["plain"]
    for what in ("loss", "grad_norm"):
        if not math.isclose(getattr(ours, what), getattr(plain, what), rel_tol=tolerance):
            raise RuntimeError(f"the sides disagree: {what} {getattr(ours, what)} and {getattr(plain, what)}")


def show(result: dict[str, Any]) -> str:
    """Lay a result out for reading.

    Args:
        result: From `measure`.
    """
    machine, work, settings = result["machine"], result["work"], result["settings"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    about = (
        f"shape {settings['shape']}, {settings['sequences']} sequences ({settings['kind']}) of {work['shortest']} to "
        f"{work['longest']} tokens, {settings['dtype']}; {where}, load {machine['load_before']} before; matrix product "
        f"{result['matrix_flops_per_s'] / 1e9:,.0f} GFLOP/s"
    )
    rows = [
        [side, f"{each['tokens_per_s']:,.0f}", f"{each['share_of_matrix_rate']:.1%}",
         "" if each["mfu"] is None else f"{each['mfu']:.1%}", f"{each['loss']:.5f}", f"{each['grad_norm']:.5f}"]
        for side, each in result["results"].items()
    ]  # fmt: skip
    table = record.table(["side", "tokens/s", "of matrix rate", "MFU", "loss", "grad norm"], rows)
    peak = result["memory"].get("memory_allocated_peak_bytes")
    lines = [] if peak is None else [f"peak of allocated memory: {peak / 2**30:.1f} GiB"]
    lines += [] if result["ratio"] is None else [f"verl / plain: {result['ratio']:.2f}x"]
    return "\n\n".join([about, table, *lines])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        arguments: Of the program; None for `sys.argv`.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="4m")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=TOLERANCE, help="of computing; default: float32 on a CPU, else bfloat16")
    parser.add_argument("--kind", choices=LENGTH_KINDS, default="tail", help="how lengths spread")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--longest", type=int, default=512, help="tokens of the longest sequence")
    parser.add_argument("--budget", type=int, help="most tokens of a micro-batch, padding included in the plain loop")
    parser.add_argument("--sides", default=",".join(SIDES), help="which to measure; one alone has all of the memory")
    parser.add_argument("--optimizer", action="store_true", help="clip and make an AdamW step in every pass")
    parser.add_argument("--compile", action="store_true", help="our side as with actor.use_torch_compile")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations on both sides")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", help="result file; default: a dated one in outputs/benchmarks/")
    parsed = parser.parse_args(arguments)
    parsed.sides = parsed.sides.split(",")
    if not set(parsed.sides) <= set(SIDES):
        parser.error(f"--sides: choose from {', '.join(SIDES)}")
    parsed.dtype = parsed.dtype or ("float32" if parsed.device == "cpu" else "bfloat16")
    parsed.budget = parsed.budget or 8 * parsed.longest
    if parsed.budget < parsed.longest:
        parser.error("--budget must hold the longest sequence")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show and write.

    Args:
        arguments: Of the program; None for `sys.argv`.

    Returns:
        Exit code: 1 where the sides disagree.
    """
    return record.conclude(parse(arguments), measure, show)


if __name__ == "__main__":
    sys.exit(main())
