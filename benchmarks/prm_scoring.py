# SPDX-License-Identifier: Apache-2.0
"""How many tokens per second a PRM scores: served, in this process, and by the loop that the published README shows.

Same weights, same answers, same machine, one run: after a pass that is not counted the ways take turns, and their
scores must agree, or nothing is reported.

    python3 benchmarks/prm_scoring.py                                   # random PRM of 4M parameters, CPU
    python3 benchmarks/prm_scoring.py --shape 7b --device cuda --ways hf,loop   # needs neither vLLM nor Ray
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import record
from benchmarks.material import SHAPES, Shape, make_answers, pick, prm_tokenizer, read_answers, save_prm, to_requests
from benchmarks.matrix_rate import matrix_rate
from benchmarks.scorers import Way
from verl.rewards.prm.spec import PRMSpec, load_adapter
from verl.rewards.prm.types import ScoreRequest

WAYS = {
    "served": ("benchmarks.served:Served", "ProcessRewardServer (vLLM on Ray)"),
    "hf": ("benchmarks.scorers:InProcess", "HFScorer (this process)"),
    "loop": ("benchmarks.scorers:ReadmeLoop", "README loop (one at a time)"),
}
"""Dotted names, so that vLLM and Ray are loaded only where they are measured; the last one is what is compared with."""
BASE = "loop"
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Largest difference of two probabilities of the same step that rounding explains."""


class DisagreementError(RuntimeError):
    """Two ways gave different scores: their speeds are not comparable."""


def compare(scores: Mapping[str, Sequence[np.ndarray]], tolerance: float) -> dict[str, float]:
    """Compare every way's scores with the first one's.

    Args:
        scores: Per way P(right) of every step of every answer.
        tolerance: Largest difference allowed.

    Returns:
        Largest difference per way.

    Raises:
        DisagreementError: One is larger, step counts differ, or the scores spread too little to prove anything.
    """
    first = next(iter(scores))
    reference = np.concatenate(list(scores[first]))
    if len(reference) > 1 and float(reference.std()) < 2 * tolerance:
        raise DisagreementError(f"the scores spread by {reference.std():.2g} only: agreement would prove nothing")
    worst = {}
    for name, answers in scores.items():
        if [len(answer) for answer in answers] != [len(answer) for answer in scores[first]]:
            raise DisagreementError(f"{name} and {first} disagree on the number of steps")
        worst[name] = float(np.abs(np.concatenate(list(answers)) - reference).max(initial=0.0))
        if not worst[name] <= tolerance:
            raise DisagreementError(f"{name} and {first} differ by {worst[name]:.2g}, allowed {tolerance:g}")
    return worst


def take_turns(ways: Mapping[str, Way], requests: Sequence[ScoreRequest], repeats: int) -> dict[str, list[float]]:
    """Time the ways in turns, so that a busy minute of the machine hits all of them.

    Args:
        ways: Warmed up.
        requests: Answers of a pass.
        repeats: Passes of each.

    Returns:
        Seconds of every pass.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started_s = time.perf_counter()
            way.score(requests)
            seconds[name].append(time.perf_counter() - started_s)
    return seconds


def summarise(
    seconds: Mapping[str, Sequence[float]], tokens: int, differences: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Turn times into rates.

    Args:
        seconds: Of every pass of every way.
        tokens: PRM input tokens of one pass, the same for all.
        differences: Largest score difference per way.

    Returns:
        Per way the median rate, the slowest and the fastest pass, and the ratio of medians to the README loop's.
    """
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return {
        name: {
            "tokens_per_s": tokens / medians[name],
            "slowest": tokens / max(each),
            "fastest": tokens / min(each),
            "over_loop": medians[BASE] / medians[name] if BASE in medians else None,
            "max_abs_diff": differences[name],
            "seconds": [round(one, 4) for one in each],
        }
        for name, each in seconds.items()
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure.

    Args:
        arguments: See `parse`.

    Returns:
        The content of the result file.
    """
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    shape = SHAPES[arguments.shape]
    head = record.describe_run("prm_scoring", vars(arguments))
    with tempfile.TemporaryDirectory(prefix="prm-scoring-") as folder:
        path = arguments.model or _make_model(Path(folder) / "prm", shape, arguments)
        spec = PRMSpec(
            path=path,
            dtype=arguments.dtype,
            device=arguments.device,
            max_num_batched_tokens=arguments.batch_tokens,
            kv_cache_bytes=512 << 20 if arguments.device == "cpu" else None,
            enforce_eager=arguments.device == "cpu",
        )
        requests = to_requests(_answers(arguments))
        lengths = [plan.num_tokens for plan in map(load_adapter(spec).adapter.plan, requests)]
        ways = _start(arguments.ways, spec)
        try:
            differences = compare({name: way.score(requests) for name, way in ways.items()}, arguments.tolerance)
            seconds = take_turns(ways, requests, arguments.repeats)
        finally:
            for way in ways.values():
                way.close()
    work = {
        "answers": len(requests),
        "steps": sum(len(request.steps) for request in requests),
        "tokens": sum(lengths),
        "shortest": min(lengths),
        "longest": max(lengths),
        "layer_parameters": None if arguments.model else shape.layer_parameters,
    }
    results = summarise(seconds, sum(lengths), differences)
    if arguments.device == "cuda" and not arguments.model:
        _add_peak(head, results, shape.forward_flops(lengths) / sum(lengths), getattr(torch, arguments.dtype))
    return head | {"work": work, "results": results}


def _start(names: Sequence[str], spec: PRMSpec) -> dict[str, Way]:
    """Load the ways; the README loop first, for it is what the others are compared with."""
    ways: dict[str, Way] = {}
    try:
        for name in sorted(names, key=list(reversed(WAYS)).index):
            module, _, kind = WAYS[name][0].partition(":")
            ways[name] = getattr(importlib.import_module(module), kind)(spec)
    except BaseException:
        for way in ways.values():
            way.close()
        raise
    return ways


def _make_model(folder: Path, shape: Shape, arguments: argparse.Namespace) -> str:
    tokenizer = prm_tokenizer(arguments.tokenizer, shape.context)
    dtype = getattr(torch, arguments.dtype)
    return str(save_prm(folder, shape, tokenizer, arguments.device, dtype, arguments.seed))


def _answers(arguments: argparse.Namespace) -> Any:
    if arguments.texts:
        return pick(read_answers(arguments.texts), arguments.answers, arguments.seed)
    return make_answers(arguments.answers, arguments.longest_chars, arguments.seed)


def _add_peak(head: dict[str, Any], results: dict[str, dict[str, Any]], flops: float, dtype: torch.dtype) -> None:
    """Add which share of the measured matrix rate each way's forward passes reach; `flops` is per token."""
    peak = matrix_rate(torch.device("cuda"), dtype)
    head["machine"]["matrix_tflops_per_s"] = peak / 1e12
    for result in results.values():
        result["share_of_matrix_rate"] = result["tokens_per_s"] * flops / peak


def show(result: Mapping[str, Any]) -> str:
    """Lay a result out for reading.

    Args:
        result: From `run`.
    """
    work, machine = result["work"], result["machine"]
    head = ["way", "tokens/s", "slowest", "fastest", "over loop", "max diff"]
    has_share = any("share_of_matrix_rate" in each for each in result["results"].values())
    rows = []
    for name, each in result["results"].items():
        ratio = "" if each["over_loop"] is None else f"{each['over_loop']:.2f}x"
        rates = [f"{each[key]:,.0f}" for key in ("tokens_per_s", "slowest", "fastest")]
        share = [f"{each['share_of_matrix_rate']:.0%}"] if has_share else []
        rows.append([WAYS[name][1], *rates, ratio, f"{each['max_abs_diff']:.1e}", *share])
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores"
    about = (
        f"{work['answers']} answers, {work['steps']} steps, {work['tokens']:,} tokens "
        f"({work['shortest']} to {work['longest']}), {result['settings']['dtype']}, {where}, "
        f"{machine['threads']} threads, load {machine['load_before']} before"
    )
    return about + "\n\n" + record.table([*head, *(["of matrix rate"] if has_share else [])], rows)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        arguments: Of the program; None for `sys.argv`.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", default=",".join(WAYS), help=f"which to measure, of {','.join(WAYS)}")
    parser.add_argument("--shape", choices=SHAPES, default="4m", help="size of the random PRM")
    parser.add_argument("--model", help="folder of a real PRM instead of a random one")
    parser.add_argument("--tokenizer", help="folder of a real tokenizer; without it, one token a character")
    parser.add_argument("--texts", help="JSONL with real problems and responses; without it, generated ones")
    parser.add_argument("--answers", type=int, default=64)
    parser.add_argument("--longest_chars", type=int, default=3000, help="longest generated answer, characters")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=TOLERANCE, help="default: float32 on the CPU, bfloat16 on a GPU")
    parser.add_argument(
        "--tolerance", type=float, help=f"largest score difference allowed; default by dtype: {TOLERANCE}"
    )
    parser.add_argument("--batch_tokens", type=int, default=8192, help="most tokens in one forward pass of ours")
    parser.add_argument("--repeats", type=int, default=5, help="timed passes of each way")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of this process; 0 leaves them alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="result file; default: a dated one in outputs/benchmarks/")
    parsed = parser.parse_args(arguments)
    parsed.ways = parsed.ways.split(",")
    unknown = set(parsed.ways) - set(WAYS)
    if unknown:
        parser.error(f"--ways: {', '.join(sorted(unknown))} unknown, choose from {', '.join(WAYS)}")
    parsed.dtype = parsed.dtype or ("float32" if parsed.device == "cpu" else "bfloat16")
    parsed.tolerance = parsed.tolerance or TOLERANCE[parsed.dtype]
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show and write.

    Args:
        arguments: Of the program; None for `sys.argv`.

    Returns:
        Exit code: 1 where scores disagree.
    """
    return record.conclude(parse(arguments), run, show)


if __name__ == "__main__":
    sys.exit(main())
