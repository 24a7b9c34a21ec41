# SPDX-License-Identifier: Apache-2.0
"""What all PRM families share on the way from steps to inputs: settings, the tokens of a step, windows, refusals.

Knows tokens, no weights and no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from verl.rewards.prm.prompt import ChatFrame
from verl.rewards.prm.types import PRMInput, PRMInputError, PRMPlan, ScoreRequest
from verl.rewards.prm.windows import plan_windows
from verl.utils.errors import UserError
from verl.utils.tokenizer import backend_of, encode_plain

OVERLONG = ("window", "extend", "error")


@dataclass(frozen=True)
class AdapterSettings:
    """What every adapter is told.

    Args:
        context_tokens: The PRM's own context.
        max_tokens: Longest input its engine takes; above `context_tokens` only for `overlong="extend"`.
        overlong: What becomes of a longer input: scored in overlapping windows, run beyond the context, or refused.
        separator: What separates reasoning steps, taken off before a PRM sees them.
        reads_last_token: Mode `legacy`: one step, unstripped, its score read at the input's very last token.
    """

    context_tokens: int
    max_tokens: int
    overlong: str = "window"
    separator: str = "\n\n"
    reads_last_token: bool = False

    def __post_init__(self) -> None:
        """Refuse an unknown `overlong`."""
        if self.overlong not in OVERLONG:
            raise ValueError(f"overlong={self.overlong!r}: must be one of {', '.join(OVERLONG)}")

    @property
    def limit(self) -> int:
        """Longest input that is built, tokens."""
        return self.max_tokens if self.overlong == "extend" else min(self.max_tokens, self.context_tokens)


class PRMAdapter(Protocol):
    """A PRM family."""

    def plan(self, request: ScoreRequest) -> PRMPlan:
        """Build the inputs that score one response.

        Args:
            request: Problem and reasoning steps.

        Raises:
            PRMInputError: The request can never be scored.
        """
        ...


@dataclass(frozen=True)
class StepTokens:
    """The tokens that a reasoning step adds to an input; its verdict stands at the last of them.

    Args:
        opening: Where it is the first step shown.
        following: Behind another step, with whatever joins the two.
    """

    opening: list[int]
    following: list[int]

    @property
    def size(self) -> int:
        """Tokens in the longer form."""
        return max(len(self.opening), len(self.following))


def same_tokens(steps: Sequence[list[int]]) -> list[StepTokens]:
    """Make steps that look the same wherever they stand.

    Args:
        steps: [K] token ids.
    """
    return [StepTokens(ids, ids) for ids in steps]


def fit_inputs(
    request: ScoreRequest,
    frame: ChatFrame,
    steps: Sequence[StepTokens],
    settings: AdapterSettings,
    *,
    min_step_tokens: int = 2,
    differences: bool = False,
) -> PRMPlan:
    """Put frame and steps together, in windows where they are too long for one input.

    Args:
        request: For its name in messages.
        frame: Token ids around the steps.
        steps: [K] the steps' tokens.
        settings: Lengths and what to do beyond them.
        min_step_tokens: Room that a step needs for a token of content and what belongs to its verdict.
        differences: See `PRMPlan`; the position before each input's first new step is kept as well.

    Returns:
        Inputs whose kept positions are the last tokens of steps 0 to K - 1.

    Raises:
        PRMInputError: It is too long and must not be, or the problem leaves no room.
    """
    limit, around = settings.limit, len(frame.before) + len(frame.after)
    sizes = [step.size for step in steps]
    needed = around + sum(sizes)
    refuse_overlong(request, needed, settings)
    if steps and limit - around < min_step_tokens:
        raise no_room(request, limit)
    windows = plan_windows(sizes, limit - around)
    inputs = []
    for window in windows:
        shown = [steps[window.first].opening, *(step.following for step in steps[window.first + 1 : window.end])]
        kept = [ids[-window.max_step_tokens :] for ids in shown]
        ids = [*frame.before, *(token for step in kept for token in step), *frame.after]
        # ends[k] is the last token of the k-th step shown; ends[0] the one before them all
        ends = len(frame.before) - 1 + np.cumsum([0, *(len(step) for step in kept)])
        new = window.first_new - window.first
        positions = ends[new if differences else new + 1 :]
        if settings.reads_last_token:
            positions = np.array([len(ids) - 1])
        inputs.append(PRMInput(ids, positions.astype(np.int64), window.first_new))
    flags = [
        *(["windowed"] if len(windows) > 1 else []),
        *(["cut"] if any(window.is_cut for window in windows) else []),
        *extended_flag(needed, settings),
    ]
    return PRMPlan(tuple(inputs), tuple(flags), differences)


def refuse_overlong(request: ScoreRequest, needed: int, settings: AdapterSettings) -> None:
    """Refuse a request that is too long where the user asked for that.

    Args:
        request: For its name.
        needed: Tokens of its longest input.
        settings: Limit, and what to do beyond it.

    Raises:
        PRMInputError: `overlong="error"`, and it is too long.
    """
    if needed > settings.limit and settings.overlong == "error":
        raise PRMInputError(f"{request.request_id}: {needed} tokens exceed the PRM's context of {settings.limit}")


def no_room(request: ScoreRequest, limit: int) -> PRMInputError:
    """Say that the problem fills the input.

    Args:
        request: For its name.
        limit: Longest input.
    """
    return PRMInputError(f"{request.request_id}: the problem leaves no room in {limit} tokens")


def extended_flag(needed: int, settings: AdapterSettings) -> list[str]:
    """Give the flag of an input that is run beyond the PRM's context.

    Args:
        needed: Its tokens.
        settings: Context, and whether it is extended.
    """
    return ["extended"] if needed > settings.context_tokens and settings.overlong == "extend" else []


def escaped_flag(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Give the flag of a request in which something was broken up.

    Args:
        before: Its texts.
        after: The same, escaped.
    """
    return ["escaped"] if list(before) != list(after) else []


def refuse_legacy(family: str, settings: AdapterSettings) -> None:
    """Refuse mode `legacy` for a family that it says nothing about.

    Args:
        family: The adapter's name.
        settings: With the mode in `reads_last_token`.

    Raises:
        UserError: The mode is `legacy`.
    """
    if settings.reads_last_token:
        raise UserError.for_key(
            "reward_model.process_reward.mode",
            "legacy",
            f"reads a score at the last token, as the code published with ReasonFlux-PRM does; {family} has its "
            "verdicts elsewhere",
            "Use mode step, or scalar",
        )


def chat_template_of(tokenizer: Any) -> str:
    """Return a tokenizer's chat template.

    Args:
        tokenizer: The PRM's own.

    Raises:
        UserError: It has none.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise UserError.for_key(
            "reward_model.model.path", tokenizer.name_or_path, "the PRM has no chat template", "Add the one it had"
        )
    return str(template)


def single_token_id(tokenizer: Any, token: str, key: str = "reward_model.model.path") -> int:
    """Look up a token that must be exactly one.

    Args:
        tokenizer: The PRM's own.
        token: The token's text.
        key: Configuration key for the message.

    Returns:
        Its id.

    Raises:
        UserError: The text is several tokens, or unknown.
    """
    ids = encode_plain(tokenizer, [token])[0]
    backend = backend_of(tokenizer)
    unknown = {getattr(tokenizer, "unk_token", None), getattr(backend.model, "unk_token", None)} - {None}
    if len(ids) != 1 or backend.id_to_token(ids[0]) in unknown:
        raise UserError.for_key(
            key,
            tokenizer.name_or_path,
            f"the step token {token!r} must be exactly one token of the PRM's tokenizer, but is {len(ids)} ({ids[:8]})",
            "Use the tokenizer the PRM came with, or name another adapter",
        )
    return ids[0]
