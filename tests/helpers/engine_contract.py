# SPDX-License-Identifier: Apache-2.0
"""What every training engine has to show, on any number of gloo ranks, against the plain loop of `engine_cases`.

One start of the ranks serves all cases: each case makes a process group of its own and leaves nothing behind. Engines
are built by name, so a new engine, or a new way of spreading, is one more entry in a table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.distributed.tensor import DTensor

from tests.helpers.engine_cases import (
    CASES,
    NUM_STEPS,
    TEMPERATURE,
    Case,
    engine_spec,
    rank_share,
    train,
    training_batch,
    update_spec,
    weights_of,
)
from tests.helpers.megatron_cpu import megatron_on_cpu
from verl.engines.base import EngineSpec, HeadRequest, MegatronSpec, ShardingSpec, TrainEngine, build_engine
from verl.engines.micro_batches import MicroBatchSpec
from verl.engines.policy_update import PolicyBatch, update_policy
from verl.engines.token_log_probs import compute_log_probs
from verl.utils.errors import UserError

SAVED_STEPS = 3
FOLDERS = {True: "tied", False: "untied"}
PLAIN_STATES = MegatronSpec(distributed_optimizer=False)


@dataclass(frozen=True)
class EngineCase:
    """One engine in one layout with one way of cutting batches.

    Args:
        strategy: Name of the engine.
        case: Model, micro-batches, precision.
        megatron: Read by `strategy=megatron`.
        dp_size: Data-parallel ranks that this has to give.
    """

    strategy: str
    case: Case = field(default_factory=Case)
    megatron: MegatronSpec = field(default_factory=MegatronSpec)
    dp_size: int = 1

    def dp_rank(self, rank: int) -> int:
        """The share of a batch that a rank must work on: neighbours share sequences or matrices, stages lie far."""
        neighbours = self.case.sharding.sequence_parallel
        neighbours *= self.megatron.tensor_parallel if self.strategy == "megatron" else 1
        return rank // neighbours % self.dp_size

    def spec(self, folder: Path) -> EngineSpec:
        path = str(folder / FOLDERS[self.case.tied])
        return replace(engine_spec(path, self.case), strategy=self.strategy, megatron=self.megatron)


_TP = MegatronSpec(tensor_parallel=2, sequence_parallel=False)
_TP_SP = MegatronSpec(tensor_parallel=2)
_PP = MegatronSpec(pipeline_parallel=2)
_PAIR = ShardingSpec(sequence_parallel=2)
_CHECKPOINTING, _PADDED, _UNTIED = CASES["checkpointing"], CASES["padded"], CASES["untied"]
_WEIGHTS, _LIVE_WEIGHTS = Case(correction="column"), Case(correction="live")
_ON_POLICY = Case(correction="on_policy")

ONE_RANK: dict[str, EngineCase] = {
    "fsdp2": EngineCase("fsdp2"),
    "fsdp2 padded": EngineCase("fsdp2", _PADDED),
    "fsdp2 checkpointing": EngineCase("fsdp2", _CHECKPOINTING),
    "megatron": EngineCase("megatron"),
    "megatron plain optimizer": EngineCase("megatron", _UNTIED, PLAIN_STATES),
    "megatron padded": EngineCase("megatron", _PADDED),
    "megatron checkpointing": EngineCase("megatron", _CHECKPOINTING),
}
TWO_RANKS: dict[str, EngineCase] = {
    "fsdp2": EngineCase("fsdp2", dp_size=2),
    "fsdp2 padded": EngineCase("fsdp2", _PADDED, dp_size=2),
    "fsdp2 checkpointing": EngineCase("fsdp2", _CHECKPOINTING, dp_size=2),
    "fsdp2 shared sequences": EngineCase("fsdp2", Case(sharding=_PAIR)),
    "fsdp2 shared sequences checkpointing": EngineCase("fsdp2", replace(_CHECKPOINTING, sharding=_PAIR)),
    "megatron dp": EngineCase("megatron", Case(), PLAIN_STATES, dp_size=2),
    "megatron dp distributed optimizer": EngineCase("megatron", dp_size=2),
    "megatron dp padded": EngineCase("megatron", _PADDED, dp_size=2),
    "megatron tp": EngineCase("megatron", Case(), _TP),
    "megatron tp padded": EngineCase("megatron", _PADDED, _TP),
    "megatron tp+sp": EngineCase("megatron", Case(), _TP_SP),
    "megatron tp+sp untied": EngineCase("megatron", _UNTIED, _TP_SP),
    "megatron tp+sp checkpointing": EngineCase("megatron", _CHECKPOINTING, _TP_SP),
    "megatron tp selective": EngineCase("megatron", _CHECKPOINTING, replace(_TP, recompute_granularity="selective")),
    "megatron pp": EngineCase("megatron", Case(), replace(_PP, distributed_optimizer=False)),
    "megatron pp untied": EngineCase("megatron", _UNTIED, _PP),
    "megatron pp checkpointing": EngineCase("megatron", _CHECKPOINTING, _PP),
    "megatron bf16": EngineCase("megatron", CASES["bf16"], dp_size=2),
    "megatron tp bf16": EngineCase("megatron", CASES["bf16"], replace(_TP, distributed_optimizer=False)),
    "fsdp2 weights": EngineCase("fsdp2", _WEIGHTS, dp_size=2),
    "fsdp2 live weights": EngineCase("fsdp2", _LIVE_WEIGHTS, dp_size=2),
    "megatron tp+sp weights": EngineCase("megatron", _WEIGHTS, _TP_SP),
    "megatron pp live weights": EngineCase("megatron", _LIVE_WEIGHTS, _PP),
    "fsdp2 on-policy": EngineCase("fsdp2", _ON_POLICY, dp_size=2),
    "megatron pp on-policy": EngineCase("megatron", _ON_POLICY, _PP),
}
_TP_PP = MegatronSpec(tensor_parallel=2, pipeline_parallel=2)
FOUR_RANKS: dict[str, EngineCase] = {
    "megatron tp+sp+pp": EngineCase("megatron", Case(), replace(_TP_PP, distributed_optimizer=False)),
    "megatron tp+sp+pp padded": EngineCase("megatron", _PADDED, _TP_PP),
    "megatron tp+sp+pp untied checkpointing": EngineCase("megatron", replace(_CHECKPOINTING, tied=False), _TP_PP),
    "megatron tp+sp dp distributed optimizer": EngineCase("megatron", Case(), _TP_SP, dp_size=2),
    "megatron tp+sp dp untied padded": EngineCase("megatron", replace(_PADDED, tied=False), _TP_SP, dp_size=2),
    "megatron pp dp checkpointing": EngineCase("megatron", _CHECKPOINTING, _PP, dp_size=2),
}
CASES_BY_SIZE = {1: ONE_RANK, 2: TWO_RANKS, 4: FOUR_RANKS}
# Written by one world size, read by the other.
SAVED: dict[int, dict[str, EngineCase]] = {
    1: {"fsdp2": ONE_RANK["fsdp2"], "megatron": EngineCase("megatron", Case(), PLAIN_STATES)},
    2: {
        "fsdp2": TWO_RANKS["fsdp2"],
        "dp": TWO_RANKS["megatron dp"],
        "tp": EngineCase("megatron", Case(), replace(_TP_SP, distributed_optimizer=False)),
        "pp": TWO_RANKS["megatron pp"],
    },
    4: {"tp+pp": FOUR_RANKS["megatron tp+sp+pp"]},
}
# World size that reads, folder it reads, case it goes on with.
RESUMED: tuple[tuple[int, str, str], ...] = (
    (1, "2 fsdp2", "fsdp2"),
    (1, "2 dp", "megatron"),
    (1, "2 tp", "megatron"),
    (1, "2 pp", "megatron"),
    (1, "4 tp+pp", "megatron"),
    (2, "1 fsdp2", "fsdp2"),
    (2, "1 megatron", "dp"),
    (2, "1 megatron", "tp"),
    (2, "1 megatron", "pp"),
    (4, "2 tp", "tp+pp"),
)
# What one rank's part of the gradient holds must keep all ranks from stepping.
_NAN, _INF = float("nan"), float("inf")
POISONED: dict[int, dict[str, float]] = {
    1: {},
    2: {
        "fsdp2": _NAN,
        "fsdp2 checkpointing": _INF,
        "megatron dp": _INF,
        "megatron dp distributed optimizer": _NAN,
        "megatron tp+sp": _NAN,
        "megatron pp": _INF,
    },
    4: {"megatron tp+sp+pp": _NAN, "megatron tp+sp dp distributed optimizer": _INF},
}
SHARDED = EngineCase("megatron", dp_size=2)
BF16_TP = TWO_RANKS["megatron tp bf16"]


@contextmanager
def fresh_group(store: Path) -> Iterator[None]:
    """A process group of the same ranks, made anew: what Megatron leaves behind would clash with a second set."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    dist.barrier()
    dist.destroy_process_group()
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()


class Stage:
    """The ranks of one world size, and where they leave things for the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.world_size = dist.get_world_size()
        self._num_groups = 0

    @contextmanager
    def engine(self, case: EngineCase) -> Iterator[TrainEngine]:
        """A new engine of a case in a new process group."""
        self._num_groups += 1
        store = self.folder / f"group_{self.world_size}_{self._num_groups}_{len(list(self.folder.glob('done_*')))}"
        on_cpu = megatron_on_cpu() if case.strategy == "megatron" else nullcontext()
        with fresh_group(store), on_cpu:
            yield build_engine(case.spec(self.folder))


def run_case(stage: Stage, case: EngineCase) -> dict[str, Any]:
    """Train from the start, and look at weights and log-probs before."""
    with stage.engine(case) as engine:
        return {
            "dp": (engine.dp_rank, engine.dp_size),
            "loaded": weights_of(engine),
            "log_probs": _log_probs(engine, case),
            "history": train(engine, case.case, range(NUM_STEPS)),
            "weights": weights_of(engine),
        }


def _log_probs(engine: TrainEngine, case: EngineCase) -> tuple[torch.Tensor, torch.Tensor | None]:
    share = rank_share(training_batch(0, case.case.tied), engine.dp_rank, engine.dp_size)
    found = compute_log_probs(engine, share.sequences, MicroBatchSpec(max_tokens=25), HeadRequest(TEMPERATURE, True))
    return found.log_probs, found.entropy


def save_case(stage: Stage, name: str, case: EngineCase) -> None:
    """Train some steps, save, and export as transformers reads it."""
    folder = stage.folder / f"saved {stage.world_size} {name}"
    with stage.engine(case) as engine:
        engine.save(str(folder / "fresh"))
        train(engine, case.case, range(SAVED_STEPS))
        engine.save(str(folder / "trained"))
        engine.export_hf(str(folder / "hf"), torch.float32)


def resume_case(stage: Stage, saved: str, case: EngineCase) -> dict[str, Any]:
    """Go on from what was saved: from the middle, and from before the first step."""
    results: dict[str, Any] = {}
    for name, steps in (("trained", range(SAVED_STEPS, NUM_STEPS)), ("fresh", range(2))):
        with stage.engine(case) as engine:
            engine.load(str(stage.folder / f"saved {saved}" / name))
            results[name] = {"history": train(engine, case.case, steps), "weights": weights_of(engine)}
    return results


def skip_case(stage: Stage, case: EngineCase) -> dict[str, Any]:
    """One data-parallel rank alone has an advantage that is not a number; the next step is a good one."""
    with stage.engine(case) as engine:
        share = rank_share(training_batch(0), engine.dp_rank, engine.dp_size)
        before, poisoned = weights_of(engine), share.advantages.clone()
        if engine.dp_rank == engine.dp_size - 1:
            poisoned[0, 0] = float("nan")
        spec = update_spec(case.case, len(share))
        skipped = update_policy(engine, PolicyBatch(**(vars(share) | {"advantages": poisoned})), spec)
        return {
            "before": before,
            "after": weights_of(engine),
            "metrics": skipped,
            "next": update_policy(engine, share, spec),
        }


def poisoned_gradient_case(stage: Stage, case: EngineCase, poison: float) -> dict[str, Any]:
    """The last rank alone holds NaN or infinity in its part of the gradient, whatever the loss was."""
    with stage.engine(case) as engine:
        share = rank_share(training_batch(0), engine.dp_rank, engine.dp_size)
        before = weights_of(engine)
        packed = [share.sequences.pack(range(len(share)))]
        engine.forward_backward(packed, HeadRequest(), lambda _, out: (out.log_probs.sum(), {}))
        if dist.get_rank() == dist.get_world_size() - 1:
            own_gradients(engine)[0].view(-1)[0] = poison
        report = engine.optimizer_step()
        after, spec = weights_of(engine), update_spec(case.case, len(share))
        return {"report": report, "before": before, "after": after, "next": update_policy(engine, share, spec)}


def own_gradients(engine: Any) -> list[torch.Tensor]:
    """This rank's parts of the gradient, where the engine keeps them."""
    found = [getattr(p, "main_grad", p.grad) for p in engine.module.parameters() if p.requires_grad]
    local = [grad.to_local() if isinstance(grad, DTensor) else grad for grad in found]
    return [grad for grad in local if grad.numel()]


def distributed_optimizer_case(stage: Stage) -> dict[str, Any]:
    """Save in the middle on these ranks, go on from there on the same ones."""
    folder = str(stage.folder / "sharded")
    with stage.engine(SHARDED) as engine:
        train(engine, SHARDED.case, range(SAVED_STEPS))
        engine.save(folder)
        straight = train(engine, SHARDED.case, range(SAVED_STEPS, NUM_STEPS))
        weights = weights_of(engine)
    with stage.engine(SHARDED) as engine:
        engine.load(folder)
        resumed = train(engine, SHARDED.case, range(SAVED_STEPS, NUM_STEPS))
        return {"straight": straight, "weights": weights, "resumed": resumed, "resumed_weights": weights_of(engine)}


def refusal(stage: Stage, case: EngineCase, saved: str) -> str:
    """What an engine says to a checkpoint that it cannot go on from."""
    with stage.engine(case) as engine:
        try:
            engine.load(str(stage.folder / saved))
        except UserError as error:
            return str(error)
    return ""


def gradient_adds_up(stage: Stage, case: EngineCase) -> dict[str, float]:
    """The norm after the same forward and backward passes once and twice."""
    norms = []
    for times in (1, 2):
        with stage.engine(case) as engine:
            share = rank_share(training_batch(0), engine.dp_rank, engine.dp_size)
            packed = [share.sequences.pack(range(len(share)))]
            for _ in range(times):
                engine.forward_backward(packed, HeadRequest(), lambda _, out: (out.log_probs.sum(), {}))
            norms.append(engine.optimizer_step().grad_norm)
    return {"once": norms[0], "twice": norms[1]}


def bf16_round_trip(stage: Stage) -> dict[str, Any]:
    """16-bit weights keep their 32-bit copies over a checkpoint."""
    folder = str(stage.folder / "bf16")
    with stage.engine(BF16_TP) as engine:
        train(engine, BF16_TP.case, range(SAVED_STEPS))
        engine.save(folder)
        straight = train(engine, BF16_TP.case, range(SAVED_STEPS, NUM_STEPS))
        weights = weights_of(engine)
    with stage.engine(BF16_TP) as engine:
        engine.load(folder)
        resumed = train(engine, BF16_TP.case, range(SAVED_STEPS, NUM_STEPS))
        return {"straight": straight, "weights": weights, "resumed": resumed, "resumed_weights": weights_of(engine)}


def show_all(folder: Path, cases: Mapping[str, EngineCase]) -> dict[str, Any]:
    """Everything that one world size shows before the other has saved anything."""
    stage = Stage(folder)
    results: dict[str, Any] = {name: run_case(stage, case) for name, case in cases.items()}
    for name, case in SAVED[stage.world_size].items():
        save_case(stage, name, case)
    results["poisoned"] = {
        name: poisoned_gradient_case(stage, cases[name], poison) for name, poison in POISONED[stage.world_size].items()
    }
    if stage.world_size == 2:
        results["skip"] = {
            name: skip_case(stage, cases[name])
            for name in ("megatron dp", "megatron dp distributed optimizer", "megatron tp+sp", "megatron pp")
        }
        results["sharded"] = distributed_optimizer_case(stage)
        results["bf16 resumed"] = bf16_round_trip(stage)
        results["adds_up"] = {name: gradient_adds_up(stage, cases[name]) for name in ("megatron dp", "megatron pp")}
    if stage.world_size > 1:
        results["resumed"] = resume_all(folder)
    return results


def resume_all(folder: Path) -> dict[str, Any]:
    """Go on from what the other world size saved."""
    stage = Stage(folder)
    (folder / f"done_{stage.world_size}_{dist.get_rank()}").touch()
    dist.barrier()
    return {
        f"{saved} -> {name}": resume_case(stage, saved, SAVED[stage.world_size][name])
        for world_size, saved, name in RESUMED
        if world_size == stage.world_size
    }


def refusals(folder: Path) -> dict[str, str]:
    """What one rank says to checkpoints that it cannot go on from."""
    stage = Stage(folder)
    (folder / "done_refusals").touch()
    plain = EngineCase("megatron", Case(), PLAIN_STATES)
    (folder / "nothing").mkdir()
    return {
        "other sizes": refusal(stage, EngineCase("megatron"), "sharded"),
        "other optimizer": refusal(stage, plain, "sharded"),
        "no checkpoint": refusal(stage, plain, "nothing"),
        "written": json.loads((folder / "sharded" / "engine.json").read_text())["sizes"],
    }
