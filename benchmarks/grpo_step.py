# SPDX-License-Identifier: Apache-2.0
"""Whole GRPO steps of `verl.trainer.main_ppo` and of TRL's GRPOTrainer: samples and tokens per second.

Both sides start from the same weights and tokenizer, answer the same prompts equally often up to the same length, call
the same rule reward (`peers/digit_reward.py`) and take one on-policy optimizer step per batch without a KL term.
`--lengths equal` makes every response as long as allowed; with `mixed` responses end by themselves, at random.

    python3 benchmarks/grpo_step.py --lengths equal
    python3 benchmarks/grpo_step.py --lengths mixed

A run is named SIDE:DTYPE:PROCESSESxTHREADS. TRL runs in an environment of its own, made at the first call.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.grpo_sides import (
    DTYPES,
    PEERS,
    Run,
    Step,
    Work,
    read_trl,
    read_verl,
    trl_command,
    trl_settings,
    verl_command,
)
from benchmarks.material import SHAPES
from benchmarks.policy_material import save_policy, write_prompts
from benchmarks.processes import make_environment, run_to_end
from recipe.miniature.tokenizer import build_tokenizer

RUNS = "verl:float32:2x1,verl:bfloat16:2x1,trl:float32:1x1,trl:float32:2x1,trl:bfloat16:2x1"


def summarise(steps: Sequence[Step], skip: int) -> dict[str, Any]:
    """Turn steps into rates: all counted work over all counted time, and medians of the stages.

    Args:
        steps: Of one run.
        skip: First steps left out: engines, compilers and caches warm up in them.

    Raises:
        ValueError: No step is left.
    """
    counted = steps[skip:]
    if not counted:
        raise ValueError(f"{len(steps)} steps, of which the first {skip} do not count")
    seconds = sum(step.seconds for step in counted)
    responses, tokens = sum(step.responses for step in counted), sum(step.tokens for step in counted)
    return {
        "steps": len(counted),
        "samples_per_s": responses / seconds,
        "tokens_per_s": tokens / seconds,
        "tokens_per_response": tokens / responses,
        "step_s": statistics.median(step.seconds for step in counted),
        "seconds": [round(step.seconds, 4) for step in counted],
        "stages_s": {name: statistics.median(step.stages[name] for step in counted) for name in counted[0].stages},
    }


def compare(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Divide our tokens per second by TRL's: in equal dtypes, and each in its best; the best spread of a side counts.

    Args:
        results: `summarise` by the name of the run.

    Returns:
        Ratios; those whose other side was not run are left out.
    """
    best: dict[tuple[str, str], float] = {}
    for name, result in results.items():
        run = Run.parse(name)
        for dtype in (run.dtype, "best"):
            best[run.side, dtype] = max(best.get((run.side, dtype), 0.0), result["tokens_per_s"])
    return {
        dtype: best["verl", dtype] / best["trl", dtype]
        for dtype in (*DTYPES, "best")
        if ("verl", dtype) in best and ("trl", dtype) in best
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run everything.

    Args:
        arguments: See `parse`.

    Returns:
        The content of the result file.
    """
    shape = SHAPES[arguments.shape]
    head = record.describe_run("grpo_step", vars(arguments))
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="grpo-step-") as name:
        base = Path(name)
        tokenizer = build_tokenizer(shape.context)
        work = Work(
            model=str(save_policy(base / "policy", shape, tokenizer)),
            prompts_file=str(write_prompts(base / "prompts.jsonl", 512, arguments.prompt)),
            prompts=arguments.prompts,
            samples=arguments.samples,
            max_prompt=arguments.prompt,
            max_response=arguments.response,
            equal=arguments.lengths == "equal",
            steps=arguments.steps,
            compiled=not arguments.plain,
        )
        for run in arguments.runs:
            folder = base / run.name.replace(":", "-")
            folder.mkdir()
            steps = _train(work, run, folder, arguments, head)
            results[run.name] = summarise(steps, arguments.skip)
    return head | {"work": asdict(work), "results": results, "ratios": compare(results)}


def _train(work: Work, run: Run, folder: Path, arguments: argparse.Namespace, head: dict[str, Any]) -> list[Step]:
    environment = {"OMP_NUM_THREADS": str(run.threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    log = folder / "log.txt"
    if run.side == "verl":
        call = verl_command(work, run, folder, arguments.further)
        run_to_end(call, log, arguments.limit_s, environment, record.REPO)
        return read_verl(folder / "metrics.jsonl")
    python = make_environment(Path(arguments.trl_venv), PEERS / "trl-requirements.txt")
    (folder / "settings.json").write_text(json.dumps(trl_settings(work, run, folder)), encoding="utf-8")
    run_to_end(trl_command(python, run, folder), log, arguments.limit_s, environment, folder)
    steps, head["trl_versions"] = read_trl(folder / "steps.json")
    return steps


def show(result: Mapping[str, Any]) -> str:
    """Lay a result out for reading.

    Args:
        result: From `measure`.
    """
    machine, work = result["machine"], result["work"]
    about = (
        f"{work['prompts']} prompts x {work['samples']} responses, at most {work['max_prompt']} + "
        f"{work['max_response']} tokens, {result['settings']['lengths']} lengths, shape {result['settings']['shape']}; "
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_before']} before"
    )
    rows, parts = [], []
    for name, each in result["results"].items():
        rates = [f"{each['samples_per_s']:,.1f}", f"{each['tokens_per_s']:,.0f}", f"{each['tokens_per_response']:.0f}"]
        rows.append([name, *rates, f"{each['step_s']:.3f}", str(each["steps"])])
        shares = [f"{stage} {s:.3f} s ({s / each['step_s']:.0%})" for stage, s in each["stages_s"].items()]
        parts.append(f"{name}: {', '.join(shares)}")
    table = record.table(["run", "samples/s", "tokens/s", "tokens/response", "step s", "steps"], rows)
    ratios = [f"verl / TRL, {name}: {ratio:.2f}x" for name, ratio in result["ratios"].items()]
    return "\n".join([about, "", table, "", *parts, "", *ratios])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        arguments: Of the program; None for `sys.argv`.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default=RUNS, help=f"default: {RUNS}")
    parser.add_argument("--lengths", choices=("equal", "mixed"), default="equal")
    parser.add_argument("--shape", choices=("tiny", "4m"), default="4m")
    parser.add_argument("--prompts", type=int, default=16, help="prompts of a training step")
    parser.add_argument("--samples", type=int, default=8, help="responses to each prompt")
    parser.add_argument("--prompt", type=int, default=32, help="longest prompt, tokens")
    parser.add_argument("--response", type=int, default=128, help="longest response, tokens")
    parser.add_argument("--steps", type=int, default=8, help="training steps of a run")
    parser.add_argument("--skip", type=int, default=4, help="first steps that are not counted (TRL compiles in three)")
    parser.add_argument("--plain", action="store_true", help="no torch.compile in the update, on either side")
    parser.add_argument("--trl_venv", default=str(record.REPO / ".cache" / "trl"), help="environment of TRL")
    parser.add_argument("--limit_s", type=float, default=900.0, help="longest time of one run, seconds")
    parser.add_argument("--out", help="result file; default: a dated one in outputs/benchmarks/")
    parser.add_argument("further", nargs="*", help="KEY=VALUE arguments of our trainer")
    parsed = parser.parse_args(arguments)
    try:
        parsed.runs = [Run.parse(text) for text in parsed.runs.split(",")]
    except ValueError as error:
        parser.error(str(error))
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show and write.

    Args:
        arguments: Of the program; None for `sys.argv`.
    """
    parsed = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a run in progress is ended too
    result = measure(parsed)
    result["settings"]["runs"] = [run.name for run in parsed.runs]
    path = record.write(result, parsed.out)
    print(f"{show(result)}\n\nwritten: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
