# SPDX-License-Identifier: Apache-2.0
"""What the controller itself costs per sequence, from small batches to large ones.

Runs whole training steps of the real `RayPPOTrainer` (rollout stream, reward loop and dispatcher, reward placing,
advantages, splitting, shipping and joining of batches, metrics) over engines and scorers that answer at once
(`instant.py`). The time must grow no faster than the number of sequences; a real step's time tells which share it is.

    python3 benchmarks/data_plane.py
    python3 benchmarks/data_plane.py --step_s 2.1 --step_sequences 128     # a step of so many took so long

Ray's own message times are not in it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import record
from benchmarks.instant import RepeatedRows, instant_runtime, prompt_rows
from verl.config import PPOTrainerConfig
from verl.config.hydra import load_config
from verl.trainer.ppo.ray_trainer import RayPPOTrainer
from verl.utils.async_loop import BackgroundLoop
from verl.utils.garbage import StepwiseGarbage

STAGES = ("gen", "old_log_prob", "ref", "reward", "adv", "update_actor", "update_weights")
LARGEST_EXPONENT = 1.1
"""Of a line through the logarithms; a little above 1 is within what a timing says."""


def step_config(sequences: int, arguments: argparse.Namespace) -> PPOTrainerConfig:
    """Give the configuration of a step.

    Args:
        sequences: Responses of the step.
        arguments: See `parse`.
    """
    prompts = sequences // arguments.samples
    overrides = [
        "data.train_files=none.parquet",
        "data.val_files=none.parquet",
        f"data.train_batch_size={prompts}",
        f"data.max_prompt_length={arguments.prompt}",
        f"data.max_response_length={arguments.response}",
        "actor_rollout_ref.model.path=org/policy",
        f"actor_rollout_ref.rollout.n={arguments.samples}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={prompts}",
        "actor_rollout_ref.actor.use_kl_loss=True",
        "reward_model.enable=True",
        "reward_model.model.path=org/prm",
        "reward_model.enable_resource_pool=True",
        f"reward_model.n_gpus_per_node={arguments.replicas}",
        f"algorithm.adv_estimator={arguments.estimator}",
        "trainer.device=cpu",
        f"trainer.n_gpus_per_node={arguments.ranks}",
    ]
    return load_config("ppo_trainer", overrides, PPOTrainerConfig).config


def time_steps(sequences: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time training steps of one size.

    Args:
        sequences: Responses of a step.
        arguments: See `parse`.

    Returns:
        Median seconds of a step and of each stage, and microseconds per sequence.
    """
    config = step_config(sequences, arguments)
    rows = prompt_rows(sequences // arguments.samples, arguments.prompt)
    loop = BackgroundLoop("data-plane")
    seconds: list[float] = []
    spent: list[dict[str, float]] = []
    try:
        tracker: Any = None
        trainer = RayPPOTrainer(config, instant_runtime(config, loop), RepeatedRows(rows), None, tracker)
        with StepwiseGarbage() as garbage:  # as the trainer's loop has it
            trainer.train_step()  # warms up
            for _ in range(arguments.repeats):
                garbage.collect()
                started_s = time.perf_counter()
                trainer.train_step()
                garbage.collect()
                seconds.append(time.perf_counter() - started_s)
                spent.append(dict(trainer.timer.seconds))
    finally:
        loop.close()
    median_s = statistics.median(seconds)
    return {
        "sequences": sequences,
        "step_s": median_s,
        "us_per_sequence": median_s / sequences * 1e6,
        "seconds": seconds,
        "stages_s": {name: statistics.median(step[name] for step in spent) for name in STAGES},
    }


def growth_exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Fit time = c * size^x.

    Args:
        sizes: Sequences; at least two different ones.
        seconds: Time of each.

    Returns:
        x; 1 is linear.
    """
    return float(np.polyfit(np.log(sizes), np.log(seconds), deg=1)[0])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time all sizes, and the one of the real step.

    Args:
        arguments: See `parse`.

    Returns:
        The content of the result file.
    """
    torch.set_num_threads(arguments.threads)
    head = record.describe_run("data_plane", vars(arguments))
    results = [time_steps(size, arguments) for size in arguments.sizes]
    steps = [result["step_s"] for result in results]
    found: dict[str, Any] = {"results": results, "exponent": growth_exponent(arguments.sizes, steps)}
    if arguments.step_s:
        own = time_steps(arguments.step_sequences, arguments)
        found["share_of_step"] = {"controller": own, "share": own["step_s"] / arguments.step_s}
    return head | found


def show(result: Mapping[str, Any]) -> str:
    """Lay a result out for reading.

    Args:
        result: From `measure`.
    """
    machine, settings = result["machine"], result["settings"]
    about = (
        f"responses of {settings['response'] // 16} to {settings['response']} tokens, {settings['ranks']} ranks, "
        f"{settings['replicas']} PRM replicas, {settings['estimator']}; {machine['cpu']}, load "
        f"{machine['load_before']} before"
    )
    rows = []
    for each in result["results"]:
        stages = [f"{each['stages_s'][name]:.3f}" for name in STAGES]
        rows.append([each["sequences"], f"{each['step_s']:.3f}", f"{each['us_per_sequence']:.0f}", *stages])
    lines = [about, "", record.table(["sequences", "step s", "us/sequence", *STAGES], rows), ""]
    lines.append(f"time grows as sequences^{result['exponent']:.2f} (allowed: {LARGEST_EXPONENT})")
    if "share_of_step" in result:
        share = result["share_of_step"]
        lines.append(
            f"of a step of {share['controller']['sequences']} sequences that takes {settings['step_s']} s: "
            f"{share['controller']['step_s']:.3f} s = {share['share']:.2%}"
        )
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        arguments: Of the program; None for `sys.argv`.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[192, 768, 3072, 12288], help="sequences of a step")
    parser.add_argument("--samples", type=int, default=8, help="responses per prompt")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--response", type=int, default=512, help="tokens of the longest response")
    parser.add_argument("--ranks", type=int, default=8, help="data-parallel ranks")
    parser.add_argument("--replicas", type=int, default=2, help="PRM replicas")
    parser.add_argument("--estimator", default="grpo")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--step_s", type=float, help="seconds of a real step, to give the controller's share of it")
    parser.add_argument("--step_sequences", type=int, default=128, help="sequences of that step")
    parser.add_argument("--out", help="result file; default: a dated one in outputs/benchmarks/")
    parsed = parser.parse_args(arguments)
    sizes = [*parsed.sizes, *([parsed.step_sequences] if parsed.step_s else [])]
    if any(size % (parsed.samples * parsed.ranks) for size in sizes):
        parser.error(f"sizes must be multiples of {parsed.samples * parsed.ranks} (samples x ranks)")
    if len(set(parsed.sizes)) < 2:
        parser.error("--sizes: at least two are needed to see growth")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show and write.

    Args:
        arguments: Of the program; None for `sys.argv`.

    Returns:
        Exit code: 1 where the time grows faster than the number of sequences.
    """
    parsed = parse(arguments)
    result = measure(parsed)
    path = record.write(result, parsed.out)
    print(f"{show(result)}\n\nwritten: {path}")
    return int(result["exponent"] > LARGEST_EXPONENT)


if __name__ == "__main__":
    sys.exit(main())
