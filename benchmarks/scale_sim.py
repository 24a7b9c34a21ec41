# SPDX-License-Identifier: Apache-2.0
"""Utilisation and exposed reward time on simulated clusters, for colocated, split and asynchronous placement.

real         `RolloutStream`, which spreads groups over servers and pauses for a weight sync, and `Dispatcher`, which
             spreads responses over PRM replicas, both on simulated time (`virtual_time.py`)
modelled     how long decoding, log-probs, updates, scoring and weight sync take (`simulated.Times`), and how long
             responses are: log-normal, or drawn from the rollout files of a run
left out     prefill, rule verifiers, network, failures, the controller's own time (see data_plane.py)

colocated    rollout, then log-probs and update on the same GPUs; the PRM has its own
split        rollout and training have GPUs of their own and wait for each other
one_step     the same GPUs; batch k+1 is sampled while batch k is trained on (trainer.max_staleness=1), and the weight
             sync waits for the responses in flight
keep         the same GPUs; up to `--staleness` batches ahead, and the weight sync freezes the responses in flight
             (rollout.in_flight_update=keep)

python3 benchmarks/scale_sim.py
python3 benchmarks/scale_sim.py --rollouts 'outputs/run/rollouts/*.jsonl' --longest 16384
"""

from __future__ import annotations

import argparse
import asyncio
import glob
import json
import statistics
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.simulated import (
    SimulatedPRM,
    SimulatedRanks,
    SimulatedServer,
    Times,
    log_normal_lengths,
    measured_lengths,
)
from benchmarks.virtual_time import VirtualTimeLoop
from verl.rewards.prm.dispatch import DispatchSettings, spread_over
from verl.rewards.prm.types import ScoreRequest
from verl.rollout.base import SamplingSettings
from verl.rollout.to_batch import RolloutOutput
from verl.trainer.ppo.rollout_stream import RolloutStream
from verl.workers.rollout_server import GroupRequest

PLACEMENTS = ("colocated", "split", "one_step", "keep")
_FOREVER_S = 1e9
_PROMPT_TOKENS = 256


@dataclass(frozen=True)
class Layout:
    """Who has which GPUs.

    Args:
        rollout_gpus: Of the rollout servers.
        train_gpus: Of the policy ranks; the same GPUs where colocated.
        prm_gpus: Of the PRM replicas, one each.
        server_gpus: Of one rollout server.
    """

    rollout_gpus: int
    train_gpus: int
    prm_gpus: int
    server_gpus: int

    @classmethod
    def of(cls, placement: str, gpus: int, arguments: argparse.Namespace) -> Layout:
        """Divide a cluster.

        Args:
            placement: One of `PLACEMENTS`.
            gpus: Of the cluster.
            arguments: See `parse`.
        """
        size = arguments.server_gpus
        prm = max(1, round(gpus * arguments.prm_share))
        policy = (gpus - prm) // size * size
        if placement == "colocated":
            return cls(policy, policy, prm, size)
        rollout = min(policy - 1, max(1, round(policy * arguments.rollout_share / size)) * size)
        return cls(rollout // size * size, policy - rollout // size * size, prm, size)


@dataclass
class Batch:
    """One batch in the making: its tokens, and the scores still missing."""

    tokens: int = 0
    scores: list[asyncio.Task[Any]] = field(default_factory=list)


@dataclass
class StepRecord:
    """One training step: response tokens, waiting for scores; when it ended, and what GPUs had worked until then."""

    exposed_s: float
    tokens: int
    ended_s: float = 0.0
    policy_gpu_s: float = 0.0
    prm_gpu_s: float = 0.0


class Cluster:
    """The parts of one simulated run; made on the event loop."""

    def __init__(self, layout: Layout, times: Times, lengths: Iterator[int], arguments: argparse.Namespace) -> None:
        """Start everything.

        Args:
            layout: Who has which GPUs.
            times: The model.
            lengths: Tokens of the responses.
            arguments: See `parse`.
        """
        self.layout = layout
        self.servers = [SimulatedServer(times, lengths) for _ in range(layout.rollout_gpus // layout.server_gpus)]
        self.replicas = [SimulatedPRM(times) for _ in range(layout.prm_gpus)]
        self.ranks = SimulatedRanks(layout.train_gpus, times)
        self._stream = RolloutStream(self.servers, timeout_s=_FOREVER_S)
        self._score = spread_over(self.replicas, DispatchSettings(timeout_s=_FOREVER_S))
        self._samples, self._longest = arguments.samples, arguments.longest
        self._groups = max(1, arguments.per_gpu * arguments.gpus_now // arguments.samples)
        self.steps: list[StepRecord] = []

    async def rollout(self) -> Batch:
        """Sample a batch; scoring of a response starts when it ends."""
        batch = Batch()
        sampling = SamplingSettings(max_new_tokens=self._longest)

        def submit(output: RolloutOutput) -> None:
            num_tokens = len(output.generation.token_ids)
            batch.tokens += num_tokens
            request = ScoreRequest(f"{output.uid}-{output.index}", "x" * 4 * _PROMPT_TOKENS, ("step",), num_tokens)
            batch.scores.append(asyncio.ensure_future(self._score(request)))

        groups = [
            GroupRequest(uid=str(n), prompt_token_ids=[], num_responses=self._samples, sampling=sampling)
            for n in range(self._groups)
        ]
        await self._stream.generate(groups, submit)
        return batch

    async def train(self, batch: Batch) -> None:
        """Log-probs, then the scores that are still missing, then the update."""
        loop = asyncio.get_running_loop()
        tokens = batch.tokens + _PROMPT_TOKENS * len(batch.scores)
        await self.ranks.log_probs(tokens)
        waits_s = loop.time()
        await asyncio.gather(*batch.scores)
        exposed_s = loop.time() - waits_s
        await self.ranks.update(tokens)
        self.steps.append(StepRecord(exposed_s, batch.tokens))

    async def sync(self, keeps: bool) -> None:
        """Send weights, when the responses in flight are complete or frozen; the step ends with it.

        Args:
            keeps: They are frozen.
        """
        await self._stream.pause(until_idle=not keeps)
        for server in self.servers:
            server.freeze()
        await self.ranks.sync()
        for server in self.servers:
            server.thaw()
        await self._stream.resume()
        step = self.steps[-1]
        step.ended_s = asyncio.get_running_loop().time()
        step.policy_gpu_s = self.ranks.busy_s * self.layout.train_gpus
        step.policy_gpu_s += sum(server.busy_s for server in self.servers) * self.layout.server_gpus
        step.prm_gpu_s = sum(replica.busy_s for replica in self.replicas)


async def train_on(cluster: Cluster, steps: int, ahead: int, keeps: bool) -> None:
    """Train; the batches of coming steps are begun as `RolloutAhead` begins them, behind the last step too.

    Args:
        cluster: The parts.
        steps: Training steps.
        ahead: Steps that the rollout runs ahead; 0 = on-policy.
        keeps: A weight sync freezes responses in flight and does not wait for them.
    """
    under_way: deque[asyncio.Task[Batch]] = deque()
    for _ in range(steps):
        while len(under_way) <= ahead:
            under_way.append(asyncio.ensure_future(cluster.rollout()))
        await cluster.train(await under_way.popleft())
        await cluster.sync(keeps)


def simulate(placement: str, gpus: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one cluster.

    Args:
        placement: One of `PLACEMENTS`.
        gpus: Of the cluster.
        arguments: See `parse`.

    Returns:
        Rates, waiting and utilisation, means over the steps whose batches were begun after the first one ended.
    """
    arguments = argparse.Namespace(**vars(arguments), gpus_now=gpus)
    layout = Layout.of(placement, gpus, arguments)
    times = Times(**{entry.name: getattr(arguments, entry.name) for entry in fields(Times)})

    ahead = {"one_step": 1, "keep": arguments.staleness}.get(placement, 0)

    async def run() -> list[StepRecord]:
        cluster = Cluster(layout, times, _lengths(arguments), arguments)
        await train_on(cluster, arguments.steps, ahead, keeps=placement == "keep")
        return cluster.steps

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        steps = runner.run(run())
    first, *counted = steps[ahead:]
    wall_s = steps[-1].ended_s - first.ended_s
    step_s = wall_s / len(counted)
    exposed_s = statistics.fmean(step.exposed_s for step in counted)
    policy_gpus = layout.rollout_gpus + (layout.train_gpus if placement != "colocated" else 0)
    busy = {
        "policy": (steps[-1].policy_gpu_s - first.policy_gpu_s) / wall_s / policy_gpus,
        "prm": (steps[-1].prm_gpu_s - first.prm_gpu_s) / wall_s / layout.prm_gpus,
    }
    tokens = statistics.fmean(step.tokens for step in counted)
    return {
        "placement": placement,
        "gpus": gpus,
        "layout": asdict(layout),
        "step_s": step_s,
        "tokens_per_s_per_gpu": tokens / step_s / gpus,
        "exposed_s": exposed_s,
        "exposed_share": exposed_s / step_s,
        "busy": busy,
    }


def _lengths(arguments: argparse.Namespace) -> Iterator[int]:
    if arguments.rollouts:
        return measured_lengths(read_lengths(arguments.rollouts), arguments.longest)
    return log_normal_lengths(arguments.mean, arguments.sigma, arguments.longest)


def read_lengths(pattern: str) -> list[int]:
    """Read response lengths of a run.

    Args:
        pattern: Names its rollout files; every row has `num_tokens`.

    Raises:
        ValueError: There are none.
    """
    rows = [line for path in sorted(glob.glob(pattern)) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    lengths = [int(json.loads(row)["num_tokens"]) for row in rows]
    if not lengths:
        raise ValueError(f"{pattern}: no rollouts found")
    return lengths


def show(result: dict[str, Any]) -> str:
    """Lay a result out for reading.

    Args:
        result: With `settings` and `results`.
    """
    settings, rows = result["settings"], []
    for each in result["results"]:
        layout = each["layout"]
        spread = f"{layout['rollout_gpus']}/{layout['train_gpus']}/{layout['prm_gpus']}"
        busy = [f"{each['busy'][name]:.0%}" for name in ("policy", "prm")]
        rates = [f"{each['step_s']:.1f}", f"{each['tokens_per_s_per_gpu']:,.0f}"]
        rows.append([each["placement"], each["gpus"], spread, *rates, *busy, f"{each['exposed_s']:.2f}",
                     f"{each['exposed_share']:.1%}"])  # fmt: skip
    head = ["placement", "GPUs", "rollout/train/PRM", "step s", "tokens/s/GPU", "policy busy", "PRM busy",
            "exposed s", "exposed"]  # fmt: skip
    drawn = settings["rollouts"] or f"log-normal lengths, mean {settings['mean']:g}, sigma {settings['sigma']:g}"
    about = f"simulated, engine times modelled; {settings['per_gpu']} responses per GPU and step, {drawn}"
    return f"{about}, at most {settings['longest']} tokens\n\n{record.table(head, rows)}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        arguments: Of the program; None for `sys.argv`.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--placements", nargs="+", choices=PLACEMENTS, default=list(PLACEMENTS))
    parser.add_argument("--per_gpu", type=int, default=16, help="responses per GPU and step: the batch grows with it")
    parser.add_argument("--samples", type=int, default=8, help="responses per prompt")
    parser.add_argument("--steps", type=int, default=5, help="training steps of a simulation, 2 more than --staleness")
    parser.add_argument("--staleness", type=int, default=2, help="batches ahead where responses in flight are kept")
    parser.add_argument("--prm_share", type=float, default=0.125, help="share of the GPUs that is the PRM's")
    parser.add_argument("--rollout_share", type=float, default=0.5, help="of the other GPUs, where they are split")
    parser.add_argument("--server_gpus", type=int, default=2, help="GPUs of one rollout server")
    parser.add_argument("--mean", type=float, default=3000.0, help="mean response length, tokens")
    parser.add_argument("--sigma", type=float, default=0.8, help="spread of its logarithm")
    parser.add_argument("--longest", type=int, default=16384, help="response limit, tokens")
    parser.add_argument("--rollouts", help="rollout files of a run (pattern), to draw lengths from")
    for entry in fields(Times):
        parser.add_argument(f"--{entry.name}", type=type(entry.default), default=entry.default, help="see Times")
    parser.add_argument("--out", help="result file; default: a dated one in outputs/benchmarks/")
    parsed = parser.parse_args(arguments)
    if parsed.steps < parsed.staleness + 2 or min(parsed.gpus) < 3 * parsed.server_gpus:
        parser.error("--steps must be 2 more than --staleness, and --gpus at least three servers' worth")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, show and write.

    Args:
        arguments: Of the program; None for `sys.argv`.
    """
    parsed = parse(arguments)
    head = record.describe_run("scale_sim", vars(parsed))
    result = head | {
        "results": [simulate(placement, gpus, parsed) for gpus in parsed.gpus for placement in parsed.placements]
    }
    path = record.write(result, parsed.out)
    print(f"{show(result)}\n\nwritten: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
