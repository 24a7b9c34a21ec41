# SPDX-License-Identifier: Apache-2.0
"""Scoring answers with a PRM from a notebook or a script: plain calls, no event loop, no Ray, no configuration tree.

Drives any `StepScorer` on an event loop in a thread of its own; knows no family, no engine and no policy.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from types import TracebackType
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from verl.rewards.credit import CreditRule, aggregate, process_reward
from verl.rewards.prm.checks import check_prm
from verl.rewards.prm.score_space import SCORE_SPACES, to_score
from verl.rewards.prm.scorer import HFScorer
from verl.rewards.prm.spec import PRMSpec, StepScorer
from verl.rewards.prm.steps import SplitRule, split_text
from verl.rewards.prm.types import PRMInputError, ScoreRequest, StepLogits
from verl.utils.async_loop import BackgroundLoop
from verl.utils.device import release_memory
from verl.utils.errors import UserError

Item = tuple[str, Sequence[str] | str]
UNSCORABLE = ("raise", "nan")


@dataclass(frozen=True)
class ScoringSettings:
    """How texts become steps, and logits become scores.

    Args:
        split: How a text is cut into reasoning steps.
        score_space: `prob`, `signed` or `logit_diff`; see `to_score`.
        unscorable: What becomes of an answer that can never be scored (a problem longer than the PRM's context, say):
            `raise`, or `nan` for NaN scores and the flag `failed`. Any other failure is raised.
        max_in_flight: Most answers handed to the scorer at a time; it sorts what it holds by length.
    """

    split: SplitRule = field(default_factory=SplitRule)
    score_space: str = "prob"
    unscorable: str = "raise"
    max_in_flight: int = 256

    def __post_init__(self) -> None:
        """Refuse names and numbers that mean nothing."""
        for name, allowed in {"score_space": SCORE_SPACES, "unscorable": UNSCORABLE}.items():
            if getattr(self, name) not in allowed:
                raise UserError.for_key(name, getattr(self, name), f"must be one of {', '.join(allowed)}", "Choose one")
        if self.max_in_flight < 1:
            raise UserError.for_key("max_in_flight", self.max_in_flight, "must be at least 1", "Leave it out")


@dataclass(frozen=True)
class PRMScores:
    """What the PRM thinks of one answer.

    Args:
        steps: [K] reasoning steps, as they were written.
        step_scores: [K] float32, in the scorer's `score_space`; NaN where the answer could not be scored.
        traj_score: Score of the whole answer: that of its last step, which the PRM gave having read all of it. 0
            without steps.
        flags: "empty" (no step), "one_step", "failed", and what was done to the text: "escaped", "windowed",
            "extended", "cut".
    """

    steps: tuple[str, ...]
    step_scores: np.ndarray
    traj_score: float
    flags: tuple[str, ...] = ()

    def aggregate(self, name: str) -> float:
        """Return one number for all step scores, 0 without steps.

        Args:
            name: `mean`, `min`, `last` or `prod` (which means something for probabilities only).
        """
        return aggregate(self.step_scores, name)

    def reward(self, alpha: float = 1.0, aggregation: str = "mean") -> float:
        """Return r_hat = agg_k s_k + alpha * s_traj (Eq. 11 of arXiv 2506.18896), 0 without steps.

        Args:
            alpha: Weight of the trajectory score.
            aggregation: See `aggregate`.
        """
        return process_reward(self.step_scores, self.traj_score, CreditRule(alpha=alpha, aggregation=aggregation))


class PRMScorer:
    """A loaded PRM that scores answers step by step. Leaving the `with` block frees it.

    Example:
        >>> with PRMScorer.from_pretrained("Gen-Verse/ReasonFlux-PRM-7B") as scorer:
        ...     (scores,) = scorer.score([("What is 1+1?", ["Adding one to one gives two.", "Answer: 2"])])
        >>> scores.step_scores, scores.reward()
    """

    def __init__(self, scorer: StepScorer, settings: ScoringSettings | None = None) -> None:
        """Load the PRM.

        Args:
            scorer: Any scorer that was not started yet; it is started here, and closed by `close`.
            settings: Steps and scores; the default is blank lines and probabilities.

        Raises:
            UserError: The PRM cannot be loaded.
        """
        self._scorer = scorer
        self._settings = settings or ScoringSettings()
        self._loop = BackgroundLoop("prm-scorer")
        self._is_open = True
        try:
            self._loop.run(scorer.start())
        except BaseException:
            self.close()
            raise

    @classmethod
    def from_pretrained(cls, path: str | PathLike[str], **options: Any) -> PRMScorer:
        """Load a PRM into this process, with transformers.

        Args:
            path: Folder or hub name of a PRM of a known family.
            **options: `device` (`auto`: the GPU where there is one; `cpu`, `cuda`, `cuda:1`), `dtype` of the backbone
                (`auto`: bfloat16 on a GPU, float32 on a CPU), `adapter` (`auto` reads it off config and files),
                `separator` of reasoning steps (a blank line), `min_step_chars`, `max_step_chars`, `score_space`
                (`prob`), `overlong` (`window`), `max_length`, `max_batch_tokens` of one forward pass, padding included
                (8192), and the other fields of `ScoringSettings` and `PRMSpec`.

        Returns:
            The scorer.

        Raises:
            UserError: There is no such PRM or option, or the device is not there.
        """
        spec, settings = _settings_of(str(path), options)
        check_prm(spec)
        return cls(HFScorer(spec), settings)

    def score(self, items: Sequence[Item], show_progress: bool = False) -> list[PRMScores]:
        """Score answers.

        Args:
            items: N pairs of a problem and its answer: reasoning steps, taken as they are, or a text, which is split.
            show_progress: Whether to show a progress bar on standard error.

        Returns:
            N results in the order of `items`.

        Raises:
            PRMInputError: An answer can never be scored, and `unscorable` is `raise`.
            RuntimeError: The scorer is closed.
        """
        if not self._is_open:
            raise RuntimeError("this PRMScorer is closed; load another one")
        requests = [self._request(n, *item) for n, item in enumerate(items)]
        with tqdm(total=len(requests), desc="scored", unit="answer", disable=not show_progress) as bar:
            future = self._loop.submit(self._score_all(requests, bar.update))
            try:
                return future.result()
            except BaseException:  # an interrupted notebook cell must not leave its work running
                future.cancel()
                raise

    def close(self) -> None:
        """Free the PRM; a second call does nothing."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            self._loop.run(self._scorer.close())
        finally:
            self._loop.close()
            release_memory(torch.device("cuda" if torch.cuda.is_initialized() else "cpu"))

    def __enter__(self) -> PRMScorer:
        """Return the scorer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _request(self, number: int, problem: str, answer: Sequence[str] | str) -> ScoreRequest:
        if isinstance(answer, str):
            spans = split_text(answer, self._settings.split)
            answer = [answer[begin:end] for begin, end in spans]
        return ScoreRequest(str(number), problem, tuple(answer))

    async def _score_all(self, requests: Sequence[ScoreRequest], advance: Callable[[int], Any]) -> list[PRMScores]:
        """Keep `max_in_flight` answers at the scorer; the first failure ends all."""
        results: dict[int, PRMScores] = {}
        queue = iter(enumerate(requests))
        count = min(self._settings.max_in_flight, len(requests))
        workers = [asyncio.create_task(self._work(queue, results, advance)) for _ in range(count)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
        return [results[n] for n in range(len(requests))]

    async def _work(
        self, queue: Iterator[tuple[int, ScoreRequest]], results: dict[int, PRMScores], advance: Callable[[int], Any]
    ) -> None:
        for number, request in queue:
            results[number] = await self._score_one(request)
            advance(1)

    async def _score_one(self, request: ScoreRequest) -> PRMScores:
        count = len(request.steps)
        shape_flags = ("empty",) if not count else ("one_step",) if count == 1 else ()
        if not count:
            return PRMScores((), np.zeros(0, dtype=np.float32), 0.0, shape_flags)
        try:
            answer = await self._scorer(request)
        except PRMInputError:
            if self._settings.unscorable == "raise":
                raise
            answer = StepLogits(np.full((count, 2), np.nan, dtype=np.float32), ("failed",))
        else:
            _check_logits(request, answer)
        scores = to_score(answer.logits, self._settings.score_space)
        return PRMScores(request.steps, scores, float(scores[-1]), (*shape_flags, *answer.flags))


def _check_logits(request: ScoreRequest, answer: StepLogits) -> None:
    if answer.logits.shape != (len(request.steps), 2) or not np.isfinite(answer.logits).all():
        raise ValueError(
            f"answer {request.request_id}: unusable logits for {len(request.steps)} reasoning steps: "
            f"{answer.logits.tolist()[:8]}"
        )


def _settings_of(path: str, options: dict[str, Any]) -> tuple[PRMSpec, ScoringSettings]:
    """Sort the options of `from_pretrained` into what the PRM and what the scoring is to know."""
    renamed = {"max_batch_tokens": "max_num_batched_tokens"}
    of_split = {each.name for each in dataclasses.fields(SplitRule)}
    of_scoring = {each.name for each in dataclasses.fields(ScoringSettings)} - {"split"}
    of_spec = {each.name for each in dataclasses.fields(PRMSpec)} - {"path"}
    known = {*renamed, *of_split, *of_scoring, *of_spec}
    for name in options:
        if name not in known:
            raise UserError.for_key(name, options[name], "is no option", f"Known are {', '.join(sorted(known))}")
    given = {renamed.get(name, name): value for name, value in options.items()}
    device = given.get("device", "auto")
    has_cuda = torch.cuda.is_available()
    if str(device).startswith("cuda") and not has_cuda:
        raise UserError.for_key("device", device, "needs a visible CUDA GPU", "Set device='cpu'")
    on_gpu = has_cuda if device == "auto" else str(device) != "cpu"
    if given.get("dtype", "auto") == "auto":
        given["dtype"] = "bfloat16" if on_gpu else "float32"
    try:
        split = SplitRule(**{name: value for name, value in given.items() if name in of_split})
    except ValueError as err:
        raise UserError(str(err)) from err
    scoring = {name: value for name, value in given.items() if name in of_scoring}
    spec = PRMSpec(path=path, **{name: value for name, value in given.items() if name in of_spec})
    return spec, ScoringSettings(split=split, **scoring)
