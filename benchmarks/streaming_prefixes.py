# SPDX-License-Identifier: Apache-2.0
"""Does it pay to score the finished steps of a response that is still being written?

Responses grow at a fixed pace, as those of a rollout engine do. A PRM served by vLLM in a process of its own scores
them either whole, each when it ends, or step by step, each step as a request for its prefix, whose KV the engine kept.
What counts is the time from the last token of the last response to the last score: it is what a training step would
wait, less whatever runs meanwhile (old and reference log-probs).

    tail     lengths spread evenly on a logarithmic scale: few long responses end late and alone
    limit    the longest third all reach the length limit in the same moment

    python3 benchmarks/streaming_prefixes.py
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import record
from benchmarks.material import SHAPES, Answer, make_answers, prm_tokenizer, save_prm, to_requests
from verl.rewards.prm.score_space import to_score
from verl.rewards.prm.spec import PRMSpec, load_adapter
from verl.rewards.prm.types import PRMInput

SCENARIOS = ("tail", "limit")
MODES = ("whole", "steps")
BLOCK_TOKENS = 32
"""The smallest KV block of vLLM on a CPU: a prefix is reused down to a whole number of blocks."""
TOLERANCE = 1e-3
_ENGINE = "verl.workers.vllm_rows"  # by name, so that everything else here loads without vLLM


@dataclass(frozen=True)
class Growing:
    """A response in the making.

    Args:
        item: The PRM's input for the whole of it. Its prompt counts as generated: it is short.
    """

    item: PRMInput

    def ends(self) -> list[int]:
        """Tokens that are there when each step ends."""
        return [int(position) + 1 for position in self.item.score_positions]

    def prefix(self, step: int) -> PRMInput:
        """Give the input that ends with a step.

        Args:
            step: Its number.
        """
        end = self.ends()[step]
        return PRMInput(self.item.token_ids[:end], np.array([end - 1]), step)


Ask = Callable[[str, PRMInput], Awaitable[np.ndarray]]


class Rollout:
    """One rollout at a fixed pace with scoring beside it.

    Example:
        >>> rollout = Rollout(engine.rows, pace=100.0)
        >>> scores, waits = await rollout.run(responses, "steps")
    """

    def __init__(self, ask: Ask, pace: float) -> None:
        """Remember whom to ask.

        Args:
            ask: Gives an input's rows.
            pace: Tokens per second of each response; infinite to have everything there at once.
        """
        self._ask = ask
        self._pace = pace

    async def run(self, responses: Sequence[Growing], mode: str) -> tuple[list[np.ndarray], list[float]]:
        """Let the responses grow, and score them.

        Args:
            responses: All starting now.
            mode: `whole` or `steps`.

        Returns:
            Rows of every response, and how many seconds after the end of the last response each one's were there
            (negative: before).
        """
        last_end_s = time.perf_counter() + max(response.ends()[-1] for response in responses) / self._pace
        one = self._whole if mode == "whole" else self._by_steps
        done = await asyncio.gather(*(self._timed(one, f"r{n}", each) for n, each in enumerate(responses)))
        return [rows for rows, _ in done], [at_s - last_end_s for _, at_s in done]

    async def _timed(
        self, one: Callable[[str, Growing], Awaitable[np.ndarray]], name: str, response: Growing
    ) -> tuple[np.ndarray, float]:
        rows = await one(name, response)
        return rows, time.perf_counter()

    async def _whole(self, name: str, response: Growing) -> np.ndarray:
        await asyncio.sleep(response.ends()[-1] / self._pace)
        return await self._ask(name, response.item)

    async def _by_steps(self, name: str, response: Growing) -> np.ndarray:
        async def score(step: int, end: int) -> np.ndarray:
            await asyncio.sleep(end / self._pace)
            return await self._ask(f"{name}-{step}", response.prefix(step))

        return np.concatenate(await asyncio.gather(*(score(step, end) for step, end in enumerate(response.ends()))))


def scenario_answers(scenario: str, count: int, longest_chars: int, seed: int) -> list[Answer]:
    """Write the responses of a scenario.

    Args:
        scenario: One of `SCENARIOS`.
        count: Responses.
        longest_chars: Length of the longest.
        seed: Of their contents.
    """
    answers = make_answers(count, longest_chars, seed)
    if scenario == "tail":
        return answers
    at_limit = make_answers(count, longest_chars, seed + 1)
    full = max(at_limit, key=lambda answer: len(answer.response)).response
    ranked = sorted(range(count), key=lambda n: -len(answers[n].response))[: max(count // 3, 1)]
    # another first line each: identical texts would share their whole KV
    return [
        Answer(a.problem, f"Attempt {n}.\n\n{full}"[: len(full)]) if n in ranked else a for n, a in enumerate(answers)
    ]


def grow(answers: Sequence[Answer], spec: PRMSpec) -> list[Growing]:
    """Build the PRM's input of every response.

    Args:
        answers: The responses.
        spec: Of the PRM, which must take each of them whole: a window is no prefix.
    """
    adapter = load_adapter(spec).adapter
    plans = [adapter.plan(request) for request in to_requests(answers)]
    if any(len(plan.inputs) != 1 for plan in plans):
        raise ValueError("a response is longer than the PRM's context: lower --longest_chars")
    return [Growing(plan.inputs[0]) for plan in plans]


async def measure(spec: PRMSpec, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run every scenario in both modes, and once with everything there at once.

    Args:
        spec: Of the PRM.
        arguments: See `parse`.

    Returns:
        Per scenario and mode: seconds of all runs.

    Raises:
        RuntimeError: The modes' scores differ.
    """
    engine = importlib.import_module(_ENGINE).PooledRows(spec, load_adapter(spec))
    try:
        return {scenario: await _measure_scenario(engine.rows, scenario, spec, arguments) for scenario in SCENARIOS}
    finally:
        engine.close()


async def _measure_scenario(rows: Any, scenario: str, spec: PRMSpec, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one scenario in both modes, `repeats` times."""
    paced, at_once = Rollout(rows, arguments.pace), Rollout(rows, float("inf"))
    await at_once.run(_responses(scenario, spec, arguments, seed=100), "whole")  # not counted
    result: dict[str, Any] = {mode: {"exposed_s": [], "at_once_s": []} for mode in MODES}
    for repeat in range(arguments.repeats):
        scores = {}
        for number, mode in enumerate(MODES):
            # each run has texts of its own: nothing of them may be in the KV cache yet
            responses = _responses(scenario, spec, arguments, seed=200 * repeat + 10 * number)
            result[mode]["exposed_s"].append(max((await paced.run(responses, mode))[1]))
            responses = _responses(scenario, spec, arguments, seed=200 * repeat + 10 * number + 5)
            result[mode]["at_once_s"].append(max((await at_once.run(responses, mode))[1]))
            responses = _responses(scenario, spec, arguments, seed=0)
            scores[mode] = (await at_once.run(responses, mode))[0]
        _check_equal(scores)
    result["longest"] = max(each.ends()[-1] for each in responses)
    result["num_tokens"] = sum(each.ends()[-1] for each in responses)
    result["num_steps"] = sum(len(each.ends()) for each in responses)
    return result


def _check_equal(scores: dict[str, list[np.ndarray]]) -> None:
    whole, steps = (to_score(np.concatenate(scores[mode]), "prob") for mode in MODES)
    worst = float(np.abs(whole - steps).max())
    if not worst <= TOLERANCE:
        raise RuntimeError(f"scores by steps differ from those of whole responses by {worst:.2g}")


def _responses(scenario: str, spec: PRMSpec, arguments: argparse.Namespace, seed: int) -> list[Growing]:
    seed += arguments.seed + 10_000 * SCENARIOS.index(scenario)
    return grow(scenario_answers(scenario, arguments.answers, arguments.longest_chars, seed), spec)


def show(result: dict[str, Any]) -> str:
    """Lay a result out for reading.

    Args:
        result: The content of the result file.
    """
    rows = []
    for scenario, found in result["results"].items():
        rollout_s = found["longest"] / result["settings"]["pace"]
        for mode in MODES:
            exposed_s, at_once_s = (float(np.median(found[mode][key])) for key in ("exposed_s", "at_once_s"))
            rows.append(
                [
                    scenario,
                    mode,
                    f"{rollout_s:.1f}",
                    f"{exposed_s:.2f}",
                    f"{exposed_s / rollout_s:.1%}",
                    f"{at_once_s:.2f}",
                ]
            )
    head = ["scenario", "scored", "rollout s", "exposed s", "of rollout", "PRM work, all at once s"]
    return record.table(head, rows)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        arguments: Of the program; None for `sys.argv`.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="4m", help="size of the random PRM")
    parser.add_argument("--answers", type=int, default=12)
    parser.add_argument("--longest_chars", type=int, default=3000, help="length of the longest answer, characters")
    parser.add_argument("--pace", type=float, default=150.0, help="tokens per second of each response")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="result file; default: a dated one in outputs/benchmarks/")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show and write.

    Args:
        arguments: Of the program; None for `sys.argv`.
    """
    parsed = parse(arguments)
    torch.set_num_threads(1)
    shape = SHAPES[parsed.shape]
    head = record.describe_run("streaming_prefixes", vars(parsed))
    with tempfile.TemporaryDirectory(prefix="streaming-") as folder:
        save_prm(Path(folder), shape, prm_tokenizer(None, shape.context), "cpu", torch.float32, parsed.seed)
        spec = PRMSpec(
            path=folder,
            dtype="float32",
            device="cpu",
            kv_cache_bytes=1 << 30,
            enforce_eager=True,
            engine_kwargs={"enable_prefix_caching": True, "block_size": BLOCK_TOKENS},
        )
        result = head | {"results": asyncio.run(measure(spec, parsed))}
    path = record.write(result, parsed.out)
    print(f"{show(result)}\n\nwritten: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
