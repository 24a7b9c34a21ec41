# SPDX-License-Identifier: Apache-2.0
"""PRM families whose input is a chat: Qwen's and ReasonFlux' `<extra_0>`, RLHFlow's turns, implicit rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from verl.rewards.prm.inputs import (
    AdapterSettings,
    StepTokens,
    chat_template_of,
    escaped_flag,
    fit_inputs,
    refuse_legacy,
    same_tokens,
    single_token_id,
)
from verl.rewards.prm.prompt import ChatFrame, Escaper, frame_chat, strip_step
from verl.rewards.prm.types import PRMPlan, ScoreRequest
from verl.utils.errors import UserError
from verl.utils.tokenizer import backend_of, encode_plain

QWEN_STEP_TOKEN = "<extra_0>"
QWEN_MATH_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
RIGHT, WRONG = "+", "-"
_PROBLEM, _FIRST, _SECOND, _VERDICT = ("\u27e6problem\u27e7", "\u27e6one\u27e7", "\u27e6two\u27e7", "\u27e6v\u27e7")


class QwenPRMAdapter:
    """Chat of [system], problem and steps, `<extra_0>` behind each step; the verdict stands at each `<extra_0>`.

    Source: model cards of Qwen2.5-Math-PRM-7B and ReasonFlux-PRM-7B; label 1 of the head means "right".

    Example:
        >>> adapter = QwenPRMAdapter(tokenizer, AdapterSettings(context_tokens=4096, max_tokens=4096))
        >>> adapter.plan(ScoreRequest("r0", "1+1?", ("1+1 is 2.",))).inputs[0].score_positions
    """

    step_token = QWEN_STEP_TOKEN

    def __init__(self, tokenizer: Any, settings: AdapterSettings, system_message: str | None = None) -> None:
        """Read the tokenizer.

        Args:
            tokenizer: The PRM's own.
            settings: Lengths and reading mode.
            system_message: None leaves it to the chat template (Qwen's put in a default of their own).

        Raises:
            UserError: `<extra_0>` is not exactly one token, or there is no chat template.
        """
        self.step_token_id = single_token_id(tokenizer, self.step_token)
        chat_template_of(tokenizer)
        self._tokenizer = tokenizer
        self._settings = settings
        self._system_message = system_message
        self._escape = Escaper(tokenizer, self.step_token)

    def plan(self, request: ScoreRequest) -> PRMPlan:
        """See `PRMAdapter.plan`."""
        problem = self._escape(request.problem)
        raw = [self._shown(step) for step in request.steps]
        shown = [self._escape(step) for step in raw]
        frame = frame_chat(self._tokenizer, problem, self._system_message, self.step_token)
        steps = [[*ids, self.step_token_id] for ids in encode_plain(self._tokenizer, shown)]
        plan = fit_inputs(request, frame, same_tokens(steps), self._settings)
        return plan.flagged(escaped_flag([request.problem, *raw], [problem, *shown]))

    def _shown(self, piece: str) -> str:
        return piece if self._settings.reads_last_token else strip_step(piece, self._settings.separator)


class RLHFlowAdapter:
    """One user turn per step, each answered by an assistant's "+"; the verdict is how likely "+" was against "-".

    It stands at the token that predicts the "+". The published code asks once per step; since each asking shows the
    "+" of the steps before, one causal forward over the whole chat gives all of them.

    Source: code of RLHFlow's Llama3.1-8B-PRM (Deepseek and Mistral data): the problem and a blank stand before the
    first step, and softmax over ("+", "-") is read three tokens before the end ("+" and the end of turn follow it).
    """

    def __init__(self, tokenizer: Any, settings: AdapterSettings) -> None:
        """Read the tokenizer, and take its chat template apart.

        Args:
            tokenizer: The PRM's own.
            settings: Lengths and reading mode.

        Raises:
            UserError: "+" or "-" is not exactly one token, the chat template is missing or edits turns, or the mode
                is `legacy`.
        """
        refuse_legacy("an RLHFlow PRM", settings)
        right = single_token_id(tokenizer, RIGHT)
        self.verdict_ids = (single_token_id(tokenizer, WRONG), right)
        chat_template_of(tokenizer)
        self._turns = _take_turns_apart(tokenizer)
        (asked,) = encode_plain(tokenizer, [self._turns.ask + RIGHT])
        if asked[-1] != right:
            raise UserError.for_key(
                "reward_model.model.path",
                tokenizer.name_or_path,
                f"{RIGHT!r} must be a token of its own behind {self._turns.ask!r}",
                "Use the tokenizer and the chat template that the PRM came with",
            )
        self._ask = asked[:-1]
        self._right = right
        self._tokenizer = tokenizer
        self._settings = settings
        self._escape = Escaper(tokenizer)

    def plan(self, request: ScoreRequest) -> PRMPlan:
        """See `PRMAdapter.plan`."""
        problem = self._escape(request.problem)
        raw = [strip_step(step, self._settings.separator) for step in request.steps]
        shown = [self._escape(step) for step in raw]
        before, end = encode_plain(self._tokenizer, [self._turns.head + problem.strip(), self._turns.end])
        opening = encode_plain(self._tokenizer, [f" {step}" for step in shown])
        following = encode_plain(self._tokenizer, [self._turns.between + step for step in shown])
        steps = [
            StepTokens([*first, *self._ask], [self._right, *later, *self._ask])
            for first, later in zip(opening, following, strict=True)
        ]
        frame = ChatFrame(before, [self._right, *end])
        plan = fit_inputs(request, frame, steps, self._settings, min_step_tokens=len(self._ask) + 1)
        return plan.flagged(escaped_flag([request.problem, *raw], [problem, *shown]))


class ImplicitAdapter:
    """A plain chat; a step's reward is the log-ratio of two language models, summed over the step's own tokens.

    r_k = beta * sum over the tokens t of step k of (log pi(y_t | y_<t) - log pi_ref(y_t | y_<t)). Steps are shown as
    they were written, blanks included, because every token of the policy counts; the end-of-turn token does not.

    Source: PRIME (arXiv 2502.01456) and EurusPRM: q_t = beta * sum_{i<=t} log(pi/pi_ref), r_step = q_t - q_{t-1}.
    """

    def __init__(self, tokenizer: Any, settings: AdapterSettings) -> None:
        """Read the tokenizer.

        Args:
            tokenizer: Of the PRM, and of its reference.
            settings: Lengths and reading mode.

        Raises:
            UserError: There is no chat template, or the mode is `legacy`.
        """
        refuse_legacy("an implicit PRM", settings)
        chat_template_of(tokenizer)
        self._tokenizer = tokenizer
        self._settings = settings
        self._escape = Escaper(tokenizer)

    def plan(self, request: ScoreRequest) -> PRMPlan:
        """See `PRMAdapter.plan`."""
        problem = self._escape(request.problem)
        shown = [self._escape(step) for step in request.steps]
        frame = frame_chat(self._tokenizer, problem, None, _FIRST)
        steps = same_tokens(self._tokens_of_steps(shown))
        plan = fit_inputs(request, frame, steps, self._settings, differences=True)
        return plan.flagged(escaped_flag([request.problem, *request.steps], [problem, *shown]))

    def _tokens_of_steps(self, pieces: list[str]) -> list[list[int]]:
        """Encode the response in one piece; a token belongs to the step that its first character lies in."""
        encoding = backend_of(self._tokenizer).encode("".join(pieces), add_special_tokens=False)
        ends = np.cumsum([len(piece) for piece in pieces])
        owners = np.searchsorted(ends, [begin for begin, _ in encoding.offsets], side="right")
        steps: list[list[int]] = [[] for _ in pieces]
        for owner, token in zip(owners, encoding.ids, strict=True):
            steps[min(int(owner), len(steps) - 1)].append(token)
        return steps


@dataclass(frozen=True)
class _Turns:
    """What a chat template writes before the problem, from step to verdict, from verdict to step, and at the end."""

    head: str
    ask: str
    between: str
    end: str


def _take_turns_apart(tokenizer: Any) -> _Turns:
    """Render two steps with placeholders, so that no text of a user can be mistaken for markup."""
    messages = [
        {"role": "user", "content": f"{_PROBLEM} {_FIRST}"},
        {"role": "assistant", "content": _VERDICT},
        {"role": "user", "content": _SECOND},
        {"role": "assistant", "content": _VERDICT},
    ]
    rest = str(tokenizer.apply_chat_template(messages, tokenize=False))
    parts = []
    for mark in (f"{_PROBLEM} {_FIRST}", _VERDICT, _SECOND, _VERDICT):
        part, found, rest = rest.partition(mark)
        if not found:
            raise UserError(
                "the PRM's chat template does not show user and assistant in turns: use the template it came with"
            )
        parts.append(part)
    head, ask, between, _ = parts
    return _Turns(head, ask, between, rest)
