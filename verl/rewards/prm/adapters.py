# SPDX-License-Identifier: Apache-2.0
"""The register of PRM families: an adapter's name, its class, its head, and what `auto` means for a folder.

Families stand in `adapters_chat` and `adapters_text`. A new one registers itself with `register_prm_adapter`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl.rewards.prm.adapters_chat import (
    QWEN_MATH_SYSTEM,
    QWEN_STEP_TOKEN,
    ImplicitAdapter,
    QwenPRMAdapter,
    RLHFlowAdapter,
)
from verl.rewards.prm.adapters_text import LineAdapter, MathShepherdAdapter, PrefixAdapter
from verl.rewards.prm.files import REWARD_HEAD_FILE
from verl.rewards.prm.heads import HeadKind
from verl.rewards.prm.inputs import OVERLONG, AdapterSettings, PRMAdapter, single_token_id
from verl.utils.errors import UserError

__all__ = [
    "OVERLONG",
    "QWEN_MATH_SYSTEM",
    "QWEN_STEP_TOKEN",
    "AdapterSettings",
    "PRMAdapter",
    "QwenPRMAdapter",
    "get_prm_adapter",
    "get_prm_head",
    "register_prm_adapter",
    "resolve_adapter_name",
    "single_token_id",
]
ADAPTER_KEY = "reward_model.process_reward.adapter"
AdapterFactory = Callable[[Any, AdapterSettings], PRMAdapter]
_ADAPTERS: dict[str, tuple[AdapterFactory, HeadKind]] = {}


def register_prm_adapter(name: str, head: HeadKind = "process") -> Callable[[AdapterFactory], AdapterFactory]:
    """Register an adapter (a callable of tokenizer and settings).

    Args:
        name: Value of `reward_model.process_reward.adapter`.
        head: What its checkpoints have for a head; with `token_pair` the adapter has `verdict_ids` (wrong, right).

    Returns:
        A decorator that gives its argument back.
    """

    def keep(factory: AdapterFactory) -> AdapterFactory:
        if name in _ADAPTERS:
            raise ValueError(f"PRM adapter {name!r} is registered already")
        _ADAPTERS[name] = (factory, head)
        return factory

    return keep


def get_prm_adapter(name: str) -> AdapterFactory:
    """Find an adapter.

    Args:
        name: Its registered name.

    Raises:
        UserError: There is none of that name.
    """
    return _registered(name)[0]


def get_prm_head(name: str) -> HeadKind:
    """Find out which head an adapter's checkpoints have.

    Args:
        name: Its registered name.

    Raises:
        UserError: There is none of that name.
    """
    return _registered(name)[1]


def _registered(name: str) -> tuple[AdapterFactory, HeadKind]:
    if name not in _ADAPTERS:
        known = ", ".join(["auto", *sorted(_ADAPTERS)])
        raise UserError.for_key(ADAPTER_KEY, name, f"must be one of {known}", "Choose one")
    return _ADAPTERS[name]


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


@register_prm_adapter("skywork_prm", head="value")
def skywork_adapter(tokenizer: Any, settings: AdapterSettings) -> PRMAdapter:
    """Skywork-o1-Open-PRM: a line end behind the problem too; sigmoid of one value.

    Args:
        tokenizer: The PRM's own.
        settings: Lengths and reading mode.
    """
    return LineAdapter(tokenizer, settings, "skywork_prm", problem_end="\n")


@register_prm_adapter("pure_prm", head="labels")
def pure_adapter(tokenizer: Any, settings: AdapterSettings) -> PRMAdapter:
    """PURE-PRM: two labels; its own score p1 - p0 is `score_space=signed`.

    Args:
        tokenizer: The PRM's own.
        settings: Lengths and reading mode.
    """
    return LineAdapter(tokenizer, settings, "pure_prm")


register_prm_adapter("reasonflux_prm_1_5b", head="reward_file")(PrefixAdapter)
register_prm_adapter("math_shepherd", head="token_pair")(MathShepherdAdapter)
register_prm_adapter("rlhflow_prm", head="token_pair")(RLHFlowAdapter)
register_prm_adapter("implicit_prm", head="log_ratio")(ImplicitAdapter)

LANGUAGE_MODEL_ADAPTERS = ("math_shepherd", "rlhflow_prm", "implicit_prm")
"""Families whose checkpoints are plain language models: no file tells them apart, or from a policy."""
_BY_NAME = {
    "math-shepherd-mistral-7b-prm": "math_shepherd",
    "llama3.1-8b-prm": "rlhflow_prm",
    "eurusprm": "implicit_prm",
}


@dataclass(frozen=True)
class Evidence:
    """What `auto` judges by.

    Args:
        architectures: Of config.json.
        shapes: Tensor shapes by name; empty where they cannot be read.
        has_reward_file: Whether there is a `reward_head.pt`.
        model_name: Folder or hub name.
    """

    architectures: tuple[str, ...]
    shapes: Mapping[str, Sequence[int]]
    has_reward_file: bool
    model_name: str


def resolve_adapter_name(
    name: str,
    config: Mapping[str, Any],
    model_name: str,
    shapes: Mapping[str, Sequence[int]] | None = None,
    has_reward_file: bool = False,
) -> tuple[str, str]:
    """Decide what `auto` means.

    Args:
        name: What the user asked for.
        config: The PRM's config.json.
        model_name: Folder or hub name of the PRM.
        shapes: Shapes of its tensors by name, where they are known.
        has_reward_file: Whether `reward_head.pt` lies in its folder.

    Returns:
        The adapter's name, and why.

    Raises:
        UserError: No family fits, or several do.
    """
    if name != "auto":
        get_prm_adapter(name)
        return name, "as configured"
    evidence = Evidence(tuple(config.get("architectures") or ()), shapes or {}, has_reward_file, model_name.lower())
    found = _by_head(evidence) or _by_model_name(evidence)
    if found is None:
        raise _unknown(evidence)
    return found


def _by_head(evidence: Evidence) -> tuple[str, str] | None:
    """Judge by the head, which no other family and no policy has."""
    architectures = evidence.architectures
    if evidence.has_reward_file:
        return "reasonflux_prm_1_5b", f"file {REWARD_HEAD_FILE}"
    process = _why("Qwen2ForProcessRewardModel", "score.2.weight", evidence)
    if process and "math-prm" in evidence.model_name:
        return "qwen_math_prm", f"{process}, and 'Math-PRM' in the name"
    if process:
        return "reasonflux_prm", process
    value = _why("Qwen2ForPrmModel", "v_head.summary.weight", evidence)
    if value:
        return "skywork_prm", value
    labels = tuple(evidence.shapes.get("score.weight", ()))[:1]
    classifies = [each for each in architectures if each.endswith("ForTokenClassification")]
    if classifies and labels in ((), (2,)):
        return "pure_prm", f"architecture {classifies[0]}" + (" and 2 labels in score.weight" if labels else "")
    return None


def _why(architecture: str, tensor: str, evidence: Evidence) -> str:
    if architecture in evidence.architectures:
        return f"architecture {architecture}"
    return f"tensor {tensor}" if tensor in evidence.shapes else ""


def _by_model_name(evidence: Evidence) -> tuple[str, str] | None:
    """Judge a plain language model by its name, which is all there is."""
    architectures = evidence.architectures
    if not any(each.endswith("ForCausalLM") for each in architectures):
        return None
    found = {adapter: part for part, adapter in _BY_NAME.items() if part in evidence.model_name}
    if len(found) != 1:
        return None
    ((adapter, part),) = found.items()
    return adapter, f"architecture {', '.join(architectures)}, and {part!r} in the name"


def _unknown(evidence: Evidence) -> UserError:
    architectures = list(evidence.architectures)
    if any(each.endswith("ForCausalLM") for each in architectures):
        return UserError.for_key(
            ADAPTER_KEY,
            "auto",
            f"no adapter is known for architectures {architectures}: a plain language model can be a PRM of several "
            f"families, or none",
            f"If it is one, set {ADAPTER_KEY} to {', '.join(LANGUAGE_MODEL_ADAPTERS)} (see docs/configuration.md)",
        )
    return UserError.for_key(
        ADAPTER_KEY,
        "auto",
        f"no adapter is known for architectures {architectures} (known: {', '.join(sorted(_ADAPTERS))})",
        "Point reward_model.model.path to a PRM, or name the adapter",
    )
