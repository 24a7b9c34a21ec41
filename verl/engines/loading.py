# SPDX-License-Identifier: Apache-2.0
"""From a folder in HF format to a transformers model: with weights, or as an empty structure. It knows no mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from verl.engines.attention import IMPLEMENTATION
from verl.engines.base import EngineSpec, load_object
from verl.utils.errors import UserError

MEND = "Name a causal language model such as Qwen2, Qwen3 or Llama"
_FIXED_ATTENTION = "lets no other attention be put in, which packed sequences need"
# What else model families multiply or divide their logits by.
_LOGIT_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
_LAYER_KINDS = {"attention", "full_attention", "sliding_attention"}


def load_model(spec: EngineSpec) -> nn.Module:
    """Load a model and its weights onto the CPU, in the dtype of the files.

    Args:
        spec: Which model.

    Returns:
        The model, its attention set to the engines' own.

    Raises:
        UserError: No such model there, or its files lack weights that transformers would fill with random numbers.
    """
    model_class, config = _class_and_config(spec)
    model, report = model_class.from_pretrained(
        _path(spec),
        config=config,
        dtype="auto",
        attn_implementation=IMPLEMENTATION,
        trust_remote_code=spec.trust_remote_code,
        output_loading_info=True,
    )
    missing = {*report.get("missing_keys", ()), *(str(key[0]) for key in report.get("mismatched_keys", ()))}
    lacking = sorted(name for name in missing if not name.startswith(spec.fresh_weights))
    if lacking:
        raise UserError.for_key(
            spec.path_key,
            spec.model_path,
            f"lacks {len(lacking)} weights of the model, among them {', '.join(lacking[:3])}",
            "Check that the folder is complete and that config.json belongs to its weights",
        )
    return model


def empty_model(spec: EngineSpec) -> nn.Module:
    """Build the model's structure on the meta device: no memory, no weights.

    Args:
        spec: Which model.

    Returns:
        The model, its attention set to the engines' own.

    Raises:
        UserError: No such model there, or one whose attention or logits are not those that the engines compute.
    """
    model_class, config = _class_and_config(spec)
    # A concrete class spells an auto class's constructor with an underscore.
    from_config = getattr(model_class, "from_config", None) or model_class._from_config
    try:
        with torch.device("meta"):
            model = from_config(config, attn_implementation=IMPLEMENTATION)
    except KeyError as error:
        if error.args != (IMPLEMENTATION,):
            raise
        raise _unfit(config, spec, _FIXED_ATTENTION) from error
    _check_attention(model, spec)
    if spec.head == "log_probs":
        _check_logits(model.config, spec)
    return model


def _check_attention(model: Any, spec: EngineSpec) -> None:
    """transformers would leave the wanted attention out silently where a family does not offer the choice, and then
    the sequences of a pack would see each other."""
    kinds = {
        *(getattr(model.config, "layer_types", None) or ()),
        *(getattr(model.config, "layers_block_type", None) or ()),
    }
    others = ", ".join(sorted(kinds - _LAYER_KINDS))
    reasons = {
        _FIXED_ATTENTION: not model._supports_attention_backend,
        f"has layers of the kind {others}, which the engines do not compute": bool(others),
        "caps its attention scores, which the engines do not compute": bool(
            getattr(model.config, "attn_logit_softcapping", None)
        ),
        "has attention sinks, which the engines do not compute": any(
            hasattr(module, "sinks") for module in model.modules()
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise _unfit(model.config, spec, reason)


def _check_logits(config: Any, spec: EngineSpec) -> None:
    """The head multiplies by the output weight itself: what a model does to its logits after that would be left out."""
    scales = {name: getattr(config, name, None) for name in _LOGIT_SCALES}
    changed = [f"{name}={value}" for name, value in scales.items() if value not in (None, 1)]
    if getattr(config, "final_logit_softcapping", None):
        changed.append(f"final_logit_softcapping={config.final_logit_softcapping}")
    if changed:
        raise _unfit(config, spec, f"changes its logits ({', '.join(changed)}), which the engines do not compute")


def _unfit(config: Any, spec: EngineSpec, reason: str) -> UserError:
    allowed = f"holds a {config.model_type!r} model, which {reason}"
    return UserError.for_key(spec.path_key, spec.model_path, allowed, MEND)


def read_config(spec: EngineSpec) -> Any:
    """Read a model's config and apply the overrides.

    Args:
        spec: Where, and what to replace.

    Returns:
        The transformers config.

    Raises:
        UserError: The path names no folder with `config.json`, and is no hub id either; or the model has no entry of
            an override's name.
    """
    folder = Path(spec.model_path).expanduser()
    is_hub_id = not folder.exists() and spec.model_path.count("/") == 1 and spec.model_path[0] not in "./~"
    if not is_hub_id and not (folder / "config.json").is_file():
        raise UserError.for_key(
            spec.path_key,
            spec.model_path,
            "must be a folder that holds config.json and weights in HF format, or a hub id (org/name)",
            "Check the path",
        )
    try:
        config, unused = AutoConfig.from_pretrained(
            _path(spec),
            trust_remote_code=spec.trust_remote_code,
            return_unused_kwargs=True,
            **dict(spec.config_overrides),
        )
    except (ValueError, KeyError, OSError) as error:
        allowed = f"cannot be read by this transformers ({str(error).splitlines()[0]})"
        mend = "Check config.json and its model_type; models with code of their own need trust_remote_code=True"
        if is_hub_id:
            mend = "Check the name and the connection to the hub, or name a local folder"
        raise UserError.for_key(spec.path_key, spec.model_path, allowed, mend) from error
    if unused:  # transformers would go on without them
        key = f"{spec.path_key.removesuffix('path')}override_config"
        entries = [name for name in config.to_dict() if not name.startswith("_")]
        mend = f"Name entries of config.json as this transformers has them: {', '.join(sorted(entries))}"
        raise UserError.for_key(key, unused, f"a {config.model_type!r} model has no such entry", mend)
    return config


def _path(spec: EngineSpec) -> str:
    folder = Path(spec.model_path).expanduser()
    return str(folder) if folder.exists() else spec.model_path


def _class_and_config(spec: EngineSpec) -> tuple[Any, Any]:
    model_class: Any = load_object(spec.model_class)
    config = read_config(spec)
    known = getattr(model_class, "_model_mapping", None)
    if known is not None:
        is_known, mend = type(config) in known, MEND
    else:
        family = model_class.config_class.model_type
        is_known, mend = config.model_type == family, f"Name a model of the family {family!r}"
    if not is_known:
        allowed = f"holds a {config.model_type!r} model, which {model_class.__name__} does not know"
        raise UserError.for_key(spec.path_key, spec.model_path, allowed, mend)
    return model_class, config
