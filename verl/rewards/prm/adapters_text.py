# SPDX-License-Identifier: Apache-2.0
"""PRM families whose input is plain text: Skywork's and PURE's lines, Math-Shepherd's step tag, ReasonFlux-PRM-1.5B."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from verl.rewards.prm.inputs import (
    AdapterSettings,
    StepTokens,
    escaped_flag,
    extended_flag,
    fit_inputs,
    no_room,
    refuse_legacy,
    refuse_overlong,
    same_tokens,
    single_token_id,
)
from verl.rewards.prm.prompt import ChatFrame, Escaper, strip_end, strip_step
from verl.rewards.prm.types import PRMInput, PRMInputError, PRMPlan, ScoreRequest
from verl.utils.errors import UserError
from verl.utils.tokenizer import backend_of, encode_plain

STEP_TAG = "ки"
_STEP_LABEL = re.compile(r"Step\s*\d+\s*[:.]")


class LineAdapter:
    """Problem, then each step and a line end; the verdict stands at the line end behind a step.

    The line end is put behind a step as a token of its own, and its place is known from there: line ends inside a
    step make no scores, whatever they are merged with.

    Source: Skywork's prm-inference (`bos`, problem, line end, steps), PURE's model card (problem, steps).
    """

    separator = "\n"

    def __init__(self, tokenizer: Any, settings: AdapterSettings, family: str, problem_end: str = "") -> None:
        """Read the tokenizer.

        Args:
            tokenizer: The PRM's own.
            settings: Lengths and reading mode.
            family: The adapter's name, for messages.
            problem_end: What stands behind the problem; where it is not empty, the tokenizer's `bos` stands before it.

        Raises:
            UserError: The line end is not exactly one token, or the mode is `legacy`.
        """
        refuse_legacy(family, settings)
        self.step_token_id = single_token_id(tokenizer, self.separator)
        self._bos = (getattr(tokenizer, "bos_token", None) or "") if problem_end else ""
        self._problem_end = problem_end
        self._tokenizer = tokenizer
        self._settings = settings
        self._escape = Escaper(tokenizer)

    def plan(self, request: ScoreRequest) -> PRMPlan:
        """See `PRMAdapter.plan`."""
        problem = self._escape(request.problem)
        raw = [strip_step(step, self._settings.separator) for step in request.steps]
        shown = [self._escape(step) for step in raw]
        before, *steps = encode_plain(self._tokenizer, [self._bos + problem + self._problem_end, *shown])
        ended = same_tokens([[*ids, self.step_token_id] for ids in steps])
        plan = fit_inputs(request, ChatFrame(before, []), ended, self._settings)
        return plan.flagged(escaped_flag([request.problem, *raw], [problem, *shown]))


class MathShepherdAdapter:
    """Problem, then "Step i: ... ки" in lines; the verdict is how likely "+" is against "-" behind each "ки".

    Source: model card of math-shepherd-mistral-7b-prm: softmax over the tokens "+" (648) and "-" (387) at the step
    tag (12902). Ids are looked up here. A tag that the policy writes itself is broken up.
    """

    def __init__(self, tokenizer: Any, settings: AdapterSettings) -> None:
        """Read the tokenizer.

        Args:
            tokenizer: The PRM's own.
            settings: Lengths and reading mode.

        Raises:
            UserError: The step tag, "+" or "-" is not exactly one token, also within a text, or the mode is `legacy`.
        """
        refuse_legacy("math_shepherd", settings)
        self.step_token_id = single_token_id(tokenizer, STEP_TAG)
        self.verdict_ids = (single_token_id(tokenizer, "-"), single_token_id(tokenizer, "+"))
        self._backend = backend_of(tokenizer)
        self._settings = settings
        self._escape = Escaper(tokenizer, words=(STEP_TAG,))
        (probe,) = self._encode_behind_tag([f" 1 {STEP_TAG}"])
        if probe[-1] != self.step_token_id:
            raise UserError.for_key(
                "reward_model.model.path",
                tokenizer.name_or_path,
                f"the step tag {STEP_TAG!r} must be the same token alone ({self.step_token_id}) and behind a blank "
                f"({probe[-1]})",
                "Use the tokenizer the PRM came with",
            )

    def plan(self, request: ScoreRequest) -> PRMPlan:
        """See `PRMAdapter.plan`."""
        problem = self._escape(request.problem)
        raw = [strip_step(step, self._settings.separator) for step in request.steps]
        shown = [self._escape(step) for step in raw]
        lines = [f"{_labelled(step, number)} {STEP_TAG}" for number, step in enumerate(shown, start=1)]
        opening = self._encode_behind_tag([f" {line}" for line in lines])
        following = self._encode_behind_tag([f"\n{line}" for line in lines])
        steps = [StepTokens(first, later) for first, later in zip(opening, following, strict=True)]
        if any(step.opening[-1] != self.step_token_id or step.following[-1] != self.step_token_id for step in steps):
            raise PRMInputError(f"{request.request_id}: the tokenizer merges the step tag with the text before it")
        before = list(self._backend.encode(problem, add_special_tokens=True).ids)
        plan = fit_inputs(request, ChatFrame(before, []), steps, self._settings)
        return plan.flagged(escaped_flag([request.problem, *raw], [problem, *shown]))

    def _encode_behind_tag(self, texts: list[str]) -> list[list[int]]:
        """Encode texts as they are encoded behind other text: alone, a sentencepiece vocabulary puts a blank first."""
        encodings = self._backend.encode_batch([STEP_TAG + text for text in texts], add_special_tokens=False)
        return [
            [token for token, (_, end) in zip(each.ids, each.offsets, strict=True) if end > len(STEP_TAG)]
            for each in encodings
        ]


class PrefixAdapter:
    """Problem and response as raw text, one input for each step's prefix; the verdict stands at an input's last token.

    The model scores whole responses, so step k is scored by the response up to its end. K steps cost K inputs, in all
    about (K + 1) / 2 times the tokens of the response; prefix requests on an engine that keeps the KV of earlier ones
    cost less. Too long a prefix loses its earliest steps.

    Source: ReasonFlux-PRM-1.5B as its README calls it: no template, sigmoid of `reward_head` at the last token.
    """

    def __init__(self, tokenizer: Any, settings: AdapterSettings) -> None:
        """Read the tokenizer.

        Args:
            tokenizer: The PRM's own.
            settings: Lengths and reading mode; `legacy` is what this family does of itself with one step.
        """
        self._backend = backend_of(tokenizer)
        self._settings = settings
        self._escape = Escaper(tokenizer)

    def plan(self, request: ScoreRequest) -> PRMPlan:
        """See `PRMAdapter.plan`."""
        problem = self._escape(request.problem)
        written = ["".join(request.steps[: k + 1]) for k in range(len(request.steps))]
        if not self._settings.reads_last_token:
            written = [strip_end(prefix, self._settings.separator) for prefix in written]
        shown = [self._escape(prefix) for prefix in written]
        ends = [len(self._escape("".join(request.steps[: k + 1]))) for k in range(len(request.steps))]
        encodings = self._backend.encode_batch([problem + prefix for prefix in shown])
        flags = dict.fromkeys(escaped_flag([request.problem, *written], [problem, *shown]))
        inputs = []
        for k, encoding in enumerate(encodings):
            refuse_overlong(request, len(encoding.ids), self._settings)
            starts = np.array([begin for begin, _ in encoding.offsets]) - len(problem)
            ids, done = self._shorten(request, list(encoding.ids), starts, ends[:k])
            flags |= dict.fromkeys([*done, *extended_flag(len(ids), self._settings)])
            inputs.append(PRMInput(ids, np.array([len(ids) - 1], dtype=np.int64), k))
        return PRMPlan(tuple(inputs), tuple(flags))

    def _shorten(
        self, request: ScoreRequest, ids: list[int], starts: np.ndarray, borders: list[int]
    ) -> tuple[list[int], list[str]]:
        """Leave out a prefix's earliest steps, or else the beginning of its last one.

        Args:
            request: For its name.
            ids: [T] tokens of problem and prefix.
            starts: [T] first character of each token, counted from the response's first; below 0 in the problem.
            borders: Where steps begin, the first one left out.

        Returns:
            Tokens that fit, and flags.
        """
        limit = self._settings.limit
        if len(ids) <= limit:
            return ids, []
        head = int(np.count_nonzero(starts < 0))
        room = limit - head
        if room < 1:
            raise no_room(request, limit)
        firsts = head + np.searchsorted(starts[head:], np.array(borders, dtype=np.int64))
        fitting = firsts[len(ids) - firsts <= room]
        if len(fitting):
            return [*ids[:head], *ids[fitting[0] :]], ["windowed"]
        return [*ids[:head], *ids[-room:]], ["cut"]


def _labelled(step: str, number: int) -> str:
    return step if _STEP_LABEL.match(step) else f"Step {number}: {step}"
