# SPDX-License-Identifier: Apache-2.0
"""The PRM behind the programs: its options, in this process or as replicas on Ray, and what it said of each answer.

An answer that cannot be scored has a reason instead of scores; everything else ends the program.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prm_tools.columns import Answer
from verl.rewards.credit import AGGREGATIONS, CreditRule, process_reward
from verl.rewards.prm import PRMScorer, PRMScores, ScoringSettings
from verl.rewards.prm.checks import check_prm
from verl.rewards.prm.dispatch import DispatchSettings, ScoringFailedError
from verl.rewards.prm.score_space import SCORE_SPACES
from verl.rewards.prm.selftest import PRMSelfTestError, self_test
from verl.rewards.prm.spec import PRMSpec, StepScorer
from verl.rewards.prm.steps import SplitRule
from verl.rewards.prm.types import PRMInputError, ScoreRequest, StepLogits
from verl.trainer.ppo.placement import actor_environment, connect_ray
from verl.utils.errors import UserError
from verl.workers.prm_pool import PoolSettings, PRMPool
from verl.workers.process_reward import PRM_BACKENDS

logger = logging.getLogger(__name__)

SELF_TESTS = ("warn", "stop", "off")
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class PRMOptions:
    """A PRM and how it runs; one field per command line option, see `add_prm_options`."""

    prm: str
    adapter: str
    backend: str
    device: str
    dtype: str
    workers: int
    tensor_parallel_size: int
    separator: str
    min_step_chars: int
    max_step_chars: int
    score_space: str
    overlong: str
    max_length: int | None
    max_batch_tokens: int
    max_in_flight: int
    timeout_s: float
    self_test: str
    reference: str
    implicit_beta: float

    @classmethod
    def of(cls, args: argparse.Namespace) -> PRMOptions:
        """Take them from the command line.

        Args:
            args: Parsed by a parser with `add_prm_options`.

        Raises:
            UserError: A number that means nothing, or a device that is not there.
        """
        options = cls(**{name: getattr(args, name) for name in cls.__dataclass_fields__})
        for name in ("workers", "tensor_parallel_size", "max_batch_tokens", "max_in_flight", "timeout_s"):
            if not getattr(options, name) > 0:
                raise UserError.for_key(_option(name), getattr(options, name), "must be above 0", "Leave it out")
        if options.device == "cuda" and options.workers == 1 and not torch.cuda.is_available():
            raise UserError.for_key("--device", "cuda", "there is no CUDA GPU here", "Use --device cpu")
        return options

    @property
    def resolved_device(self) -> str:
        """`cuda` or `cpu`."""
        return ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device

    @property
    def resolved_dtype(self) -> str:
        """Dtype of the PRM's backbone."""
        return ("bfloat16" if self.resolved_device == "cuda" else "float32") if self.dtype == "auto" else self.dtype

    def spec(self) -> PRMSpec:
        """The PRM as `verl.rewards.prm` wants it."""
        path = Path(self.prm).expanduser()
        return PRMSpec(
            path=str(path.resolve()) if path.is_dir() else self.prm,  # replicas may run in another folder
            adapter=self.adapter,
            separator=self.separator,
            overlong=self.overlong,
            max_length=self.max_length,
            dtype=self.resolved_dtype,
            device=self.resolved_device,
            tensor_parallel_size=self.tensor_parallel_size,
            kv_cache_bytes=1 << 30 if self.resolved_device == "cpu" else None,
            max_num_batched_tokens=self.max_batch_tokens,
            max_num_seqs=self.max_in_flight,
            reference_path=self.reference,
            implicit_beta=self.implicit_beta,
        )

    def that_change_scores(self) -> dict[str, Any]:
        """Options that scores depend on: results of runs that differ in them must not be mixed."""
        elsewhere = ("workers", "device", "max_in_flight", "max_batch_tokens", "timeout_s", "self_test")
        kept = {name: value for name, value in asdict(self).items() if name not in elsewhere}
        return kept | {"prm": self.spec().path, "dtype": self.resolved_dtype}


@dataclass(frozen=True)
class Scored:
    """What became of one answer.

    Args:
        step_scores: One number per reasoning step, empty where there is an error.
        traj_score: Score of the whole answer, None where there is an error.
        flags: See `PRMScores.flags`.
        steps: The reasoning steps as they were written.
        error: Why it could not be scored, None where it was.
    """

    step_scores: list[float]
    traj_score: float | None
    flags: list[str]
    steps: list[str]
    error: str | None = None


class ItemScorer:
    """Scores answers, and knows why some could not be."""

    def __init__(self, scorer: PRMScorer, watched: _Watched) -> None:
        """Take a loaded PRM.

        Args:
            scorer: It.
            watched: The step scorer inside, which keeps the reasons.
        """
        self._scorer = scorer
        self._watched = watched

    def score(self, items: Sequence[tuple[str, Answer]]) -> list[Scored]:
        """Score answers.

        Args:
            items: Pairs of a problem and its answer.

        Returns:
            One result for each, in the same order.
        """
        self._watched.reasons.clear()
        return [self._result(n, scores) for n, scores in enumerate(self._scorer.score(items))]

    def _result(self, number: int, scores: PRMScores) -> Scored:
        error = self._watched.reasons.get(str(number))
        if not scores.steps:
            error = "the response has no reasoning step"
        flags, steps = list(scores.flags), list(scores.steps)
        if error is not None:
            return Scored([], None, flags, steps, error)
        return Scored([_short(score) for score in scores.step_scores], _short(scores.traj_score), flags, steps)


def add_prm_options(parser: argparse.ArgumentParser, is_required: bool) -> None:
    """Add the options of `PRMOptions`.

    Args:
        parser: Gets them.
        is_required: Whether the program cannot do without a PRM.
    """
    group = parser.add_argument_group("the PRM")
    add = group.add_argument
    add("--prm", required=is_required, metavar="PATH", help="folder or hub name of the process reward model")
    add("--adapter", default="auto", help="family of the PRM (default: read off its config and files)")
    add("--reference", default="", metavar="PATH", help="of an implicit PRM: the model it is compared with")
    add("--implicit-beta", type=float, default=0.05, help="of an implicit PRM: factor of the log-ratio (default: 0.05)")
    add("--backend", choices=sorted(PRM_BACKENDS), default="hf", help="what runs it (default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU where there is one")
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the PRM's backbone (default: bfloat16 on a GPU, float32 on a CPU)",
    )
    add("--workers", type=int, default=1, metavar="N", help="replicas; more than 1 are Ray actors (default: 1)")
    add("--tensor-parallel-size", type=int, default=1, metavar="N", help="GPUs per replica, vllm only (default: 1)")
    add("--separator", default="\n\n", type=_unescape, help=r"between reasoning steps of a text (default: \n\n)")
    add("--min-step-chars", type=int, default=0, metavar="N", help="shorter steps join their neighbour")
    add("--max-step-chars", type=int, default=0, metavar="N", help="longer steps are cut again")
    add("--score-space", choices=SCORE_SPACES, default="prob", help="default: %(default)s")
    add(
        "--overlong",
        choices=("window", "extend", "error"),
        default="window",
        help="an answer longer than the PRM's context: windows (default), up to --max-length, or no score",
    )
    add("--max-length", type=int, metavar="N", help="longest input in tokens (default: the PRM's context)")
    add("--max-batch-tokens", type=int, default=8192, metavar="N", help="per forward pass (default: %(default)s)")
    add("--max-in-flight", type=int, default=256, metavar="N", help="answers per replica at a time (default: 256)")
    add("--timeout-s", type=float, default=600.0, metavar="S", help="per answer, with several workers (default: 600)")
    add(
        "--self-test",
        choices=SELF_TESTS,
        default="warn",
        help="when the PRM does not score right steps above wrong ones on known problems (default: %(default)s)",
    )


def add_eq11_options(parser: argparse.ArgumentParser) -> None:
    """Add alpha and aggregation of Eq. 11.

    Args:
        parser: Gets them.
    """
    group = parser.add_argument_group("Eq. 11: score = agg(step scores) + alpha * trajectory score")
    group.add_argument("--alpha", type=float, default=1.0, help="weight of the trajectory score (default: 1.0)")
    group.add_argument(
        "--aggregation",
        choices=(*AGGREGATIONS, "product"),
        default="mean",
        help="of the step scores (default: mean, the paper's)",
    )


def eq11_rule(args: argparse.Namespace, score_space: str = "prob") -> CreditRule:
    """Read alpha and aggregation.

    Args:
        args: Parsed by a parser with `add_eq11_options`.
        score_space: What the step scores are; a product needs probabilities.

    Raises:
        UserError: They contradict each other, or alpha is no number.
    """
    if not math.isfinite(args.alpha):
        raise UserError.for_key("--alpha", args.alpha, "must be a finite number", "Leave it out for 1.0")
    aggregation = "prod" if args.aggregation == "product" else args.aggregation
    if aggregation == "prod" and score_space != "prob":
        raise UserError.for_key("--aggregation", args.aggregation, "needs probabilities", "Use --score-space prob")
    return CreditRule(alpha=args.alpha, aggregation=aggregation)


def eq11(step_scores: Sequence[float], traj_score: float, rule: CreditRule) -> float:
    """Return r_hat of Eq. 11 (arXiv 2506.18896).

    Args:
        step_scores: [K].
        traj_score: Of the whole answer.
        rule: alpha and aggregation.
    """
    return process_reward(np.asarray(step_scores, dtype=np.float64), traj_score, rule)


@contextmanager
def open_scorer(options: PRMOptions) -> Iterator[ItemScorer]:
    """Load the PRM, here or in Ray actors, and free it at the end.

    Args:
        options: Which, and how.

    Yields:
        The scorer.

    Raises:
        UserError: The PRM cannot be loaded or used, or fails its self-test under `--self-test stop`.
    """
    spec = options.spec()
    for notice in check_prm(spec).notices:
        logger.info("%s", notice)
    try:
        split = SplitRule(options.separator, options.min_step_chars, options.max_step_chars)
    except ValueError as error:
        raise UserError(f"reasoning steps cannot be cut so: {error}. Change the step options.") from error
    settings = ScoringSettings(split, options.score_space, "nan", options.max_in_flight * options.workers)
    with ExitStack() as stack:
        watched = _Watched(_step_scorer(options, spec, stack), spec.path, options.self_test)
        yield ItemScorer(stack.enter_context(PRMScorer(watched, settings)), watched)


def _step_scorer(options: PRMOptions, spec: PRMSpec, stack: ExitStack) -> StepScorer:
    """A scorer in this process, or one over several actors (the stack gets the end of the Ray connection)."""
    environment = actor_environment(spec.device)
    if options.workers == 1:
        if options.backend == "vllm":
            for name, value in environment.items():
                os.environ.setdefault(name, value)
        module, _, name = PRM_BACKENDS[options.backend].partition(":")
        scorer: StepScorer = getattr(importlib.import_module(module), name)(spec)
        return scorer
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = PoolSettings(
        backend=options.backend,
        num_replicas=options.workers,
        gpus_per_replica=options.tensor_parallel_size if spec.device == "cuda" else 0,
        environment=environment | {"PYTHONPATH": path},
        dispatch=DispatchSettings(max_in_flight=options.max_in_flight, timeout_s=options.timeout_s),
    )
    connect_ray({}, options.workers * options.tensor_parallel_size, spec.device, stack)
    return PRMPool(spec, settings)


class _Watched:
    """A step scorer that turns the failure of one answer into a reason, and tests the PRM once it is loaded."""

    def __init__(self, inner: StepScorer, prm_path: str, self_test_mode: str) -> None:
        self._inner = inner
        self._prm_path = prm_path
        self._self_test_mode = self_test_mode
        self.reasons: dict[str, str] = {}

    async def start(self) -> None:
        """Load and test the PRM."""
        await self._inner.start()
        if self._self_test_mode == "off":
            return
        try:
            await self_test(self._inner, self._prm_path)
        except PRMSelfTestError as error:
            if self._self_test_mode == "stop":
                raise
            logger.warning("%s", error)

    async def __call__(self, request: ScoreRequest) -> StepLogits:
        """Score one answer."""
        try:
            answer = await self._inner(request)
            if not np.isfinite(answer.logits).all():
                raise PRMInputError("the PRM gave NaN or infinite logits")
        except (PRMInputError, ScoringFailedError) as error:
            # a request's name is its place in the batch, which means nothing to the user
            self.reasons[request.request_id] = str(error).removeprefix(f"{request.request_id}: ")
            raise PRMInputError(str(error)) from error
        return answer

    async def close(self) -> None:
        """Free the PRM."""
        await self._inner.close()


def _short(score: float) -> float:
    """The shortest decimal that is this float32: half the digits in a JSON file, and nothing lost."""
    return float(str(np.float32(score)))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _unescape(text: str) -> str:
    r"""Let a shell user write `\n`."""
    return text.replace(r"\n", "\n").replace(r"\t", "\t")
