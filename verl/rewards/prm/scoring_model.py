# SPDX-License-Identifier: Apache-2.0
"""Any PRM family as one plain transformers module: token ids in, logits (wrong, right) at the wanted tokens out.

Knows no text and no reasoning steps. A backbone is loaded by transformers' own class of its `model_type`, the head by
`heads`: code shipped with a checkpoint never runs, and no tensor of a head can be dropped without a word.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaModel, MistralModel, PreTrainedModel, Qwen2Model

from verl.rewards.prm.files import PATH_KEY, find_folder, read_json
from verl.rewards.prm.heads import HeadSpec, StepHead, load_head
from verl.rewards.prm.weights import find_backbone, lm_head_name, read_tensors, weight_names
from verl.utils.errors import UserError

REFERENCE_KEY = "reward_model.process_reward.implicit.reference_path"
Rows = tuple[torch.Tensor, torch.Tensor]
_HEADS = [r"^lm_head\.", r"^score\.", r"^v_head\.", r"^pretrained_model\.lm_head\."]
"""Tensors that belong to no backbone: left to `load_head`, so no reason for a warning."""
_POSITIONS_AT_ONCE = 2048
"""Bounds the logits over a whole vocabulary that exist at a time."""


class _Qwen2(Qwen2Model):
    _keys_to_ignore_on_load_unexpected = _HEADS


class _Llama(LlamaModel):
    _keys_to_ignore_on_load_unexpected = _HEADS


class _Mistral(MistralModel):
    _keys_to_ignore_on_load_unexpected = _HEADS


_CLASSES: dict[str, type[PreTrainedModel]] = {"qwen2": _Qwen2, "llama": _Llama, "mistral": _Mistral}


class HeadedBackbone(nn.Module):
    """Backbone on every token, head where it is wanted."""

    def __init__(self, backbone: PreTrainedModel, head: StepHead) -> None:
        """Put the two together.

        Args:
            backbone: Gives hidden states first.
            head: See `StepHead`.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, input_ids: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Score tokens.

        Args:
            input_ids: [B, L] int64, padded on the right: causal order hides the padding.
            rows: Sequence and position of each wanted token, both [N] int64.

        Returns:
            [N, 2] float32 logits (wrong, right).
        """
        logits: torch.Tensor = self.head(_hidden(self.backbone, input_ids)[rows])
        return logits


class LanguageModel(nn.Module):
    """A causal language model that gives the log-probability of every token of its input."""

    lm_head: torch.Tensor

    def __init__(self, backbone: PreTrainedModel, lm_head: torch.Tensor) -> None:
        """Put the two together.

        Args:
            backbone: Gives hidden states first.
            lm_head: [V, h] its head's weight, in the backbone's dtype.
        """
        super().__init__()
        self.backbone = backbone
        self.register_buffer("lm_head", lm_head)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Compute log-probabilities.

        Args:
            input_ids: [B, L] int64, padded on the right.

        Returns:
            [B, L] float32, log pi(y_t | y_<t); 0 for the first token, which follows nothing.
        """
        hidden = _hidden(self.backbone, input_ids)[:, :-1]
        flat, targets = hidden.flatten(0, 1), input_ids[:, 1:].flatten()
        parts = []
        for part, target in zip(flat.split(_POSITIONS_AT_ONCE), targets.split(_POSITIONS_AT_ONCE), strict=True):
            logits = nn.functional.linear(part, self.lm_head).float()
            parts.append(logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(dim=1))
        found = torch.cat(parts).view(input_ids.shape[0], -1) if parts else flat.new_zeros(input_ids.shape[0], 0)
        return nn.functional.pad(found.float(), (1, 0))


class LogRatioModel(nn.Module):
    """An implicit PRM: running total of beta * (log pi - log pi_ref) over the tokens of an input."""

    def __init__(self, policy: LanguageModel, reference: LanguageModel, beta: float) -> None:
        """Keep both models.

        Args:
            policy: The PRM.
            reference: What it is compared with.
            beta: Factor.
        """
        super().__init__()
        self.policy = policy
        self.reference = reference
        self.beta = beta

    def forward(self, input_ids: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Sum up log-ratios.

        Args:
            input_ids: [B, L] int64, padded on the right.
            rows: Sequence and position of each wanted total, both [N] int64.

        Returns:
            [N, 2] float64, (0, total up to and with that token): summed in float64, for steps are told apart by
            differences of totals.
        """
        ratio = (self.policy(input_ids) - self.reference(input_ids)).double() * self.beta
        totals = ratio.cumsum(dim=1)[rows]
        return torch.stack([torch.zeros_like(totals), totals], dim=1)


def load_scoring_model(
    folder: Path, head: HeadSpec, dtype: torch.dtype, reference_path: str = "", beta: float = 1.0
) -> HeadedBackbone | LogRatioModel:
    """Load a PRM of any family.

    Args:
        folder: Where it lies.
        head: Its head; `load_adapter(spec)` says folder and head.
        dtype: Dtype of the backbone; heads are float32.
        reference_path: Of an implicit PRM, folder or hub name of the reference.
        beta: Of an implicit PRM, its factor.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        UserError: Weights are missing.
    """
    if head.kind != "log_ratio":
        return HeadedBackbone(load_backbone(folder, dtype), load_head(folder, head)).eval()
    reference = find_folder(reference_path, REFERENCE_KEY)
    return LogRatioModel(
        load_language_model(folder, dtype), load_language_model(reference, dtype, REFERENCE_KEY), beta
    ).eval()


def load_backbone(folder: Path, dtype: torch.dtype, key: str = PATH_KEY) -> PreTrainedModel:
    """Load what stands below the head.

    Args:
        folder: Model folder.
        dtype: Dtype of its weights.
        key: Configuration key that `folder` came from, for the message.

    Raises:
        UserError: The type is not known, or weights are missing.
    """
    facts = find_backbone(folder, key)
    outer = facts.prefix.removesuffix("model.")
    mapping = {f"^{re.escape(outer)}": ""} if outer else None
    model, report = _CLASSES[facts.model_type].from_pretrained(
        folder, dtype=dtype, output_loading_info=True, key_mapping=mapping
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError.for_key(
            key, str(folder), f"lacks weights of its backbone: {', '.join(missing[:4])}", "Download the model again"
        )
    backbone: PreTrainedModel = model.eval().requires_grad_(False)
    return backbone


def load_language_model(folder: Path, dtype: torch.dtype, key: str = PATH_KEY) -> LanguageModel:
    """Load a causal language model for its log-probabilities.

    Args:
        folder: Model folder.
        dtype: Dtype of its weights.
        key: Configuration key that `folder` came from, for the message.

    Raises:
        UserError: Weights are missing.
    """
    name = lm_head_name(weight_names(folder), read_json(folder / "config.json", str(folder), key))
    lm_head = read_tensors(folder, [name], key=key)[name]
    return LanguageModel(load_backbone(folder, dtype, key), lm_head.to(dtype))


def _hidden(backbone: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    hidden: torch.Tensor = backbone(input_ids=input_ids, use_cache=False)[0]
    return hidden
