# SPDX-License-Identifier: Apache-2.0
"""One training problem, solved by the FSDP engine on any number of ranks and by a plain loop in one process.

The plain loop knows nothing of the engines: whole sequences one by one through transformers, the loss written out token
by token, torch's AdamW. `run_ranks` starts the ranks once for all cases, since starting costs more than any case.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from tests.helpers.tiny_models import random_padded, tiny_model
from verl.algorithms.policy_losses import ClipSettings
from verl.algorithms.rollout_correction import CorrectionSettings
from verl.engines.base import EngineSpec, HeadRequest, OptimizerSpec, PrecisionSpec, ShardingSpec, TrainEngine
from verl.engines.fsdp.engine import FSDPEngine
from verl.engines.micro_batches import MicroBatchSpec
from verl.engines.policy_update import PolicyBatch, PolicyUpdateSpec, update_policy
from verl.engines.token_log_probs import compute_log_probs
from verl.utils.device import ensure_process_group

NUM_STEPS = 5
NUM_ROWS = 8
TEMPERATURE = 0.7
ENTROPY_COEFF = 0.05
KL_COEF = 0.1
LR = 1e-3
CLIP_GRAD = 0.5
WIDTHS = ([3, 9, 1, 5, 2, 7, 4, 6], [7, 1, 12, 4, 9, 3, 2, 5])
OPTIMIZER = OptimizerSpec(lr=LR, weight_decay=0.1, clip_grad=CLIP_GRAD, warmup_steps=2)
CLIP = ClipSettings(0.1, 0.2, 3.0)
CAP = 1.1


@dataclass(frozen=True)
class Case:
    """Settings of one run; the defaults are float32 under a budget that needs several micro-batches."""

    tied: bool = True
    gradient_checkpointing: bool = False
    compile_layers: bool = False
    compute: str = "float32"
    sharding: ShardingSpec = field(default_factory=ShardingSpec)
    micro: MicroBatchSpec = field(default_factory=lambda: MicroBatchSpec(max_tokens=25))
    loss_agg_mode: str = "token-mean"
    # Importance weights of the policy loss: none, a column of the batch, or computed in the loss; or no old
    # log-probs, so that those of the step's own forward pass are the old ones.
    correction: Literal["none", "column", "live", "on_policy"] = "none"


CASES: dict[str, Case] = {
    "plain": Case(),
    "untied": Case(tied=False),
    "checkpointing": Case(gradient_checkpointing=True),
    "compiled": Case(compile_layers=True, gradient_checkpointing=True),
    "one_micro_batch": Case(micro=MicroBatchSpec()),
    "fixed_size": Case(micro=MicroBatchSpec(max_sequences=1)),
    "padded": Case(micro=MicroBatchSpec(max_tokens=40, padded=True)),
    "replicated": Case(sharding=ShardingSpec(shard_size=1)),
    "unsharded_forward": Case(sharding=ShardingSpec(reshard_after_forward=False, forward_prefetch=True)),
    "cpu_offload": Case(sharding=ShardingSpec(cpu_offload=True)),
    "sequence_mean": Case(loss_agg_mode="seq-mean-token-mean"),
    "bf16": Case(compute="bfloat16", gradient_checkpointing=True),
}


@functools.cache
def training_batch(step: int, tied: bool = True) -> PolicyBatch:
    """The batch of one step; old and reference log-probs lie around those of the model before training."""
    sequences = random_padded(*WIDTHS, seed=step)
    generator = torch.Generator().manual_seed(100 + step)
    shape = sequences.responses.shape
    present = torch.zeros(shape)
    with torch.no_grad():
        for row in range(len(sequences)):
            log_probs = plain_log_probs(tiny_model(tied), sequences, row)[0]
            present[row, : len(log_probs)] = log_probs
    return PolicyBatch(
        **vars(sequences),
        old_log_probs=present + 0.2 * torch.randn(shape, generator=generator),
        advantages=torch.randn(shape, generator=generator),
        ref_log_prob=present + 0.2 * torch.randn(shape, generator=generator),
    )


@functools.cache
def batch_of(case: Case, step: int) -> PolicyBatch:
    """The batch of one step of a case: with a column of importance weights if it wants one. Without old log-probs it
    has what would be them as the sampler's, which are only compared."""
    batch = training_batch(step, case.tied)
    if case.correction == "on_policy":
        return replace(batch, old_log_probs=None, rollout_log_probs=batch.old_log_probs)
    if case.correction != "column":
        return batch
    weights = 2 * torch.rand(batch.responses.shape, generator=torch.Generator().manual_seed(200 + step))
    return replace(batch, rollout_is_weights=weights)


def rank_share(batch: PolicyBatch, rank: int, world_size: int) -> PolicyBatch:
    """Rows of one rank: contiguous, equally many."""
    size = len(batch) // world_size
    rows = slice(rank * size, (rank + 1) * size)
    return PolicyBatch(**{name: None if column is None else column[rows] for name, column in vars(batch).items()})


def engine_spec(model_path: str, case: Case) -> EngineSpec:
    return EngineSpec(
        model_path,
        OPTIMIZER,
        device="cpu",
        precision=PrecisionSpec(compute=case.compute),
        sharding=case.sharding,
        gradient_checkpointing=case.gradient_checkpointing,
        compile_layers=case.compile_layers,
        head_chunk_size=5,
    )


def update_spec(case: Case, num_rows: int) -> PolicyUpdateSpec:
    return PolicyUpdateSpec(
        mini_batch_size=num_rows,
        micro=case.micro,
        max_response_len=12,
        clip=CLIP,
        loss_agg_mode=case.loss_agg_mode,
        temperature=TEMPERATURE,
        entropy_coeff=ENTROPY_COEFF,
        kl_loss_coef=KL_COEF,
        kl_loss_type="k3",
        live_correction=CorrectionSettings("token", CAP) if case.correction == "live" else None,
    )


def train(engine: TrainEngine, case: Case, steps: range) -> list[dict[str, float]]:
    """Make some of the steps; returns the metrics of each."""
    history = []
    for step in steps:
        share = rank_share(batch_of(case, step), engine.dp_rank, engine.dp_size)
        history.append(update_policy(engine, share, update_spec(case, len(share))))
    return history


def weights_of(engine: TrainEngine) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in engine.named_weights()}


def run_case(model_path: str, case: Case) -> dict[str, Any]:
    """Train from the start; returns history and weights, the same on every rank."""
    engine = FSDPEngine(engine_spec(model_path, case))
    return {"history": train(engine, case, range(NUM_STEPS)), "weights": weights_of(engine)}


def plain_loop(model: torch.nn.Module, case: Case, num_steps: int = NUM_STEPS) -> dict[str, Any]:
    """The same training without the engines: the reference."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=OPTIMIZER.weight_decay)
    losses, norms, differences = [], [], []
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / OPTIMIZER.warmup_steps)
        if case.correction == "on_policy":
            differences.append(_largest_difference(model, batch_of(case, step)))
        loss = _plain_loss(model, batch_of(case, step), case)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_GRAD)))
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return {"losses": losses, "norms": norms, "differences": differences, "weights": weights}


@torch.no_grad()
def _largest_difference(model: torch.nn.Module, batch: PolicyBatch) -> float:
    """Between the model's log-probs and the sampler's, over all response tokens."""
    assert batch.rollout_log_probs is not None
    log_probs = [plain_log_probs(model, batch, row)[0] for row in range(len(batch))]
    return max(
        float((mine - batch.rollout_log_probs[row, : len(mine)]).abs().max()) for row, mine in enumerate(log_probs)
    )


def plain_log_probs(model: torch.nn.Module, batch: Any, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of one row's response tokens at the test's temperature."""
    prompt = batch.prompts[row][batch.prompt_mask[row].bool()]
    response = batch.responses[row][batch.response_mask[row].bool()]
    logits = model(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
    table = torch.log_softmax(logits, dim=-1)
    return table.gather(-1, response[:, None])[:, 0], -(table.exp() * table).sum(-1)


def _plain_loss(model: torch.nn.Module, batch: PolicyBatch, case: Case) -> torch.Tensor:
    per_sequence = []
    for row in range(len(batch)):
        log_probs, entropies = plain_log_probs(model, batch, row)
        terms = []
        for t, (log_prob, entropy) in enumerate(zip(log_probs, entropies, strict=True)):
            old = log_prob.detach() if batch.old_log_probs is None else batch.old_log_probs[row, t]
            advantage, ratio = batch.advantages[row, t], (log_prob - old).exp()
            clipped = ratio.clamp(1 - CLIP.clip_ratio_low, 1 + CLIP.clip_ratio_high)
            policy = -torch.minimum(ratio * advantage, clipped * advantage)
            if advantage < 0:
                policy = torch.minimum(policy, -advantage * CLIP.clip_ratio_c)
            if batch.rollout_is_weights is not None:
                policy = policy * batch.rollout_is_weights[row, t]
            if case.correction == "live":
                policy = -ratio.detach().clamp(max=CAP) * advantage * log_prob
                policy = policy - policy.detach() - ratio.detach().clamp(max=CAP) * advantage
            difference = batch.ref_log_prob[row, t] - log_prob
            kl = difference.exp() - difference - 1
            terms.append(policy + KL_COEF * kl - ENTROPY_COEFF * entropy)
        per_sequence.append(torch.stack(terms))
    if case.loss_agg_mode == "token-mean":
        return torch.cat(per_sequence).mean()
    return torch.stack([terms.mean() for terms in per_sequence]).mean()


def extra_checks(folder: Path) -> dict[str, Any]:
    """What needs live ranks beside the plain runs; see the tests that read the results."""
    results: dict[str, Any] = {}
    case = CASES["plain"]
    world_size = dist.get_world_size()

    engine = FSDPEngine(engine_spec(str(folder / "tied"), case))
    share = rank_share(training_batch(0), engine.dp_rank, world_size)
    mine = compute_log_probs(engine, share.sequences, MicroBatchSpec(max_tokens=25), HeadRequest(TEMPERATURE, True))
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, (mine.log_probs, mine.entropy))
    results["log_probs"] = torch.cat([part[0] for part in gathered])
    results["entropy"] = torch.cat([part[1] for part in gathered])

    results["skip"] = _skipped_step(engine, share)
    results["new_state"] = _save_before_first_step(folder, case)
    engine = FSDPEngine(engine_spec(str(folder / "tied"), case))
    train(engine, case, range(3))
    engine.save(str(folder / f"checkpoint_{world_size}"))
    engine.export_hf(str(folder / f"hf_{world_size}"), torch.float32)
    results["exported"] = weights_of(engine)
    return results


def _skipped_step(engine: FSDPEngine, share: PolicyBatch) -> dict[str, Any]:
    """One rank alone has an advantage that is not a number."""
    before = weights_of(engine)
    poisoned = share.advantages.clone()
    if engine.dp_rank == engine.dp_size - 1:
        poisoned[0, 0] = float("nan")
    bad = PolicyBatch(**(vars(share) | {"advantages": poisoned}))
    spec = update_spec(CASES["plain"], len(share))
    skipped = update_policy(engine, bad, spec)
    after = weights_of(engine)
    good = update_policy(engine, share, spec)
    return {"before": before, "after": after, "metrics": skipped, "next": good}


def _save_before_first_step(folder: Path, case: Case) -> dict[str, Any]:
    """Saving an engine that never stepped must not change how it trains."""
    engine = FSDPEngine(engine_spec(str(folder / "tied"), case))
    engine.save(str(folder / f"fresh_{dist.get_world_size()}"))
    kept = train(engine, case, range(2))
    again = FSDPEngine(engine_spec(str(folder / "tied"), case))
    again.load(str(folder / f"fresh_{dist.get_world_size()}"))
    return {"kept": kept, "loaded": train(again, case, range(2)), "weights": weights_of(again)}


def resume_from(folder: Path, saved_world_size: int) -> dict[str, Any]:
    """Load what some other number of ranks saved after three steps, and make the last two."""
    case = CASES["plain"]
    engine = FSDPEngine(engine_spec(str(folder / "tied"), case))
    engine.load(str(folder / f"checkpoint_{saved_world_size}"))
    return {"history": train(engine, case, range(3, NUM_STEPS)), "weights": weights_of(engine)}


def run_all(folder: Path, cases: dict[str, Case], resume_world_size: int | None) -> dict[str, Any]:
    """Everything one world size has to show."""
    results: dict[str, Any] = {
        name: run_case(str(folder / ("tied" if case.tied else "untied")), case) for name, case in cases.items()
    }
    results |= extra_checks(folder)
    if resume_world_size is not None:
        results["resumed"] = resume_from(folder, resume_world_size)
    return results


@contextmanager
def one_rank_group(device: torch.device = torch.device("cpu")) -> Iterator[None]:  # noqa: B008
    """A process group of this process alone, gone afterwards."""
    ensure_process_group(device)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _rank_main(rank: int, world_size: int, store: str, body: Callable[[], Any], out: str) -> None:
    torch.set_num_threads(1)
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(rank), str(world_size)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    torch.save(body(), f"{out}.{rank}")
    dist.destroy_process_group()
    # Meshes keep the group and its threads alive; one that wants the interpreter while it ends aborts the process.
    os._exit(0)


def run_ranks(world_size: int, folder: Path, body: Callable[[], Any]) -> list[Any]:
    """Run a picklable function on every rank; returns what each rank returned."""
    out = str(folder / f"results_{world_size}")
    store = folder / f"store_{world_size}"
    torch.multiprocessing.spawn(_rank_main, (world_size, str(store), body, out), nprocs=world_size, join=True)
    return [torch.load(f"{out}.{rank}", weights_only=False) for rank in range(world_size)]
