# SPDX-License-Identifier: Apache-2.0
"""One small class per PRM family: how its input is built, and at which tokens its verdict on each step stands.

Knows tokens, no weights and no engine. A new family registers itself with `register_prm_adapter`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from verl.rewards.prm.prompt import ChatFrame, Escaper, frame_chat, strip_step
from verl.rewards.prm.types import PRMInput, PRMInputError, PRMPlan, ScoreRequest
from verl.rewards.prm.windows import plan_windows
from verl.utils.errors import UserError
from verl.utils.tokenizer import encode_plain

QWEN_STEP_TOKEN = "<extra_0>"
QWEN_MATH_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
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


AdapterFactory = Callable[[Any, AdapterSettings], PRMAdapter]
_ADAPTERS: dict[str, AdapterFactory] = {}
_BY_ARCHITECTURE: dict[str, str] = {"Qwen2ForProcessRewardModel": "reasonflux_prm"}


def register_prm_adapter(name: str) -> Callable[[AdapterFactory], AdapterFactory]:
    """Register an adapter (a callable of tokenizer and settings).

    Args:
        name: Value of `reward_model.process_reward.adapter`.

    Returns:
        A decorator that gives its argument back.
    """

    def keep(factory: AdapterFactory) -> AdapterFactory:
        if name in _ADAPTERS:
            raise ValueError(f"PRM adapter {name!r} is registered already")
        _ADAPTERS[name] = factory
        return factory

    return keep


def get_prm_adapter(name: str) -> AdapterFactory:
    """Find an adapter.

    Args:
        name: Its registered name.

    Raises:
        UserError: There is none of that name.
    """
    if name not in _ADAPTERS:
        known = ", ".join(["auto", *sorted(_ADAPTERS)])
        raise UserError.for_key("reward_model.process_reward.adapter", name, f"must be one of {known}", "Choose one")
    return _ADAPTERS[name]


def resolve_adapter_name(name: str, config: Mapping[str, Any], model_name: str) -> tuple[str, str]:
    """Decide what `auto` means.

    Args:
        name: What the user asked for.
        config: The PRM's config.json.
        model_name: Folder or hub name of the PRM.

    Returns:
        The adapter's name, and why.

    Raises:
        UserError: No family fits.
    """
    if name != "auto":
        get_prm_adapter(name)
        return name, "as configured"
    architectures = list(config.get("architectures") or [])
    for architecture in architectures:
        if architecture in _BY_ARCHITECTURE:
            if "math-prm" in model_name.lower():
                return "qwen_math_prm", f"architecture {architecture}, and 'Math-PRM' in the name"
            return _BY_ARCHITECTURE[architecture], f"architecture {architecture}"
    raise UserError.for_key(
        "reward_model.process_reward.adapter",
        name,
        f"no adapter is known for architectures {architectures} (known: {', '.join(_BY_ARCHITECTURE)})",
        "Point reward_model.model.path to a PRM, or name the adapter",
    )


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
        if not getattr(tokenizer, "chat_template", None):
            raise UserError.for_key(
                "reward_model.model.path", tokenizer.name_or_path, "the PRM has no chat template", "Add the one it had"
            )
        self._tokenizer = tokenizer
        self._settings = settings
        self._system_message = system_message
        self._escape = Escaper(tokenizer, self.step_token)

    def plan(self, request: ScoreRequest) -> PRMPlan:
        """See `PRMAdapter.plan`."""
        problem = self._escape(request.problem)
        raw = [self._shown(step) for step in request.steps]
        shown = [self._escape(step) for step in raw]
        was_escaped = problem != request.problem or shown != raw
        frame = frame_chat(self._tokenizer, problem, self._system_message, self.step_token)
        steps = [[*ids, self.step_token_id] for ids in encode_plain(self._tokenizer, shown)]
        plan = self._fit(request, frame, steps)
        return PRMPlan(plan.inputs, (*(("escaped",) if was_escaped else ()), *plan.flags))

    def _shown(self, piece: str) -> str:
        return piece if self._settings.reads_last_token else strip_step(piece, self._settings.separator)

    def _fit(self, request: ScoreRequest, frame: ChatFrame, steps: list[list[int]]) -> PRMPlan:
        """Put frame and steps together, in windows where they are too long for one input."""
        settings = self._settings
        extends = settings.overlong == "extend"
        limit = settings.max_tokens if extends else min(settings.max_tokens, settings.context_tokens)
        needed = len(frame.before) + sum(map(len, steps)) + len(frame.after)
        if needed > limit and settings.overlong == "error":
            raise PRMInputError(f"{request.request_id}: {needed} tokens exceed the PRM's context of {limit}")
        try:
            windows = plan_windows([len(step) for step in steps], limit - len(frame.before) - len(frame.after))
        except ValueError as err:
            raise PRMInputError(f"{request.request_id}: the problem leaves no room in {limit} tokens") from err
        inputs = []
        for window in windows:
            kept = [steps[k][-window.max_step_tokens :] for k in range(window.first, window.end)]
            ids = [*frame.before, *(token for step in kept for token in step), *frame.after]
            ends = len(frame.before) - 1 + np.cumsum([len(step) for step in kept])
            positions = ends[window.first_new - window.first :]
            if settings.reads_last_token:
                positions = np.array([len(ids) - 1])
            inputs.append(PRMInput(ids, positions.astype(np.int64), window.first_new))
        flags = [
            *(["windowed"] if len(windows) > 1 else []),
            *(["cut"] if any(window.is_cut for window in windows) else []),
            *(["extended"] if needed > settings.context_tokens and extends else []),
        ]
        return PRMPlan(tuple(inputs), tuple(flags))


@register_prm_adapter("reasonflux_prm")
def reasonflux_adapter(tokenizer: Any, settings: AdapterSettings) -> PRMAdapter:
    """ReasonFlux-PRM-7B as its card calls it: no system message of ours.

    Args:
        tokenizer: The PRM's own.
        settings: Lengths and reading mode.
    """
    return QwenPRMAdapter(tokenizer, settings)


@register_prm_adapter("qwen_math_prm")
def qwen_math_adapter(tokenizer: Any, settings: AdapterSettings) -> PRMAdapter:
    """Qwen2.5-Math-PRM as its card calls it: with the system message it was trained on.

    Args:
        tokenizer: The PRM's own.
        settings: Lengths and reading mode.
    """
    return QwenPRMAdapter(tokenizer, settings, QWEN_MATH_SYSTEM)


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
    if len(ids) != 1 or ids[0] == getattr(tokenizer, "unk_token_id", None):
        raise UserError.for_key(
            key,
            tokenizer.name_or_path,
            f"the step token {token!r} must be exactly one token of the PRM's tokenizer, but is {len(ids)} ({ids[:8]})",
            "Use the tokenizer the PRM came with, or name another adapter",
        )
    return ids[0]
