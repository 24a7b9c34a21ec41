# SPDX-License-Identifier: Apache-2.0
"""The architecture of ReasonFlux-PRM-7B and Qwen2.5-Math-PRM: a Qwen2 backbone with a two-way head on every token.

Written here because the code shipped with those checkpoints no longer runs on transformers 5, and because
`AutoModel` without that code drops the head (`score.*`) without a word. Knows no text and no reasoning steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2Model, Qwen2PreTrainedModel

from verl.utils.errors import UserError

NUM_CLASSES = 2


class Qwen2ForProcessRewardModel(Qwen2PreTrainedModel):
    """Qwen2 with `score` = Linear(h, h), ReLU, Linear(h, 2); weight names are those of the published checkpoints.

    Example:
        >>> model = load_prm("Gen-Verse/ReasonFlux-PRM-7B", torch.bfloat16)
        >>> model(input_ids=ids, rows=(sequences, positions))  # [N, 2] logits (wrong, right)
    """

    config_class = Qwen2Config
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: Qwen2Config) -> None:
        """Build the model with fresh weights.

        Args:
            config: The backbone's config.
        """
        super().__init__(config)
        width = config.hidden_size
        self.model = Qwen2Model(config)
        self.score = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, NUM_CLASSES))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        embedding: nn.Module = self.model.embed_tokens
        return embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding.

        Args:
            value: The new one.
        """
        self.model.embed_tokens = value

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        rows: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Run the backbone on everything and the head where it is wanted.

        Args:
            input_ids: [B, L] int64. Padded on the right, no mask is needed: causal order hides the padding.
            attention_mask: [B, L], only for padding on the left.
            rows: Sequence and position of each wanted logit, both [N] int64; None for every token.
            **kwargs: Passed on to the backbone.

        Returns:
            [N, 2] logits, or [B, L, 2] without `rows`, in the dtype of the head's weights.
        """
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **kwargs)[0]
        if rows is not None:
            hidden = hidden[rows]
        logits: torch.Tensor = self.score(hidden.to(self.score[0].weight.dtype))
        return logits


def load_prm(path: str, dtype: torch.dtype, key: str = "reward_model.model.path") -> Qwen2ForProcessRewardModel:
    """Load a published or self-trained checkpoint; the head always runs in float32, as it does in vLLM.

    Args:
        path: Folder, or hub name, of a `Qwen2ForProcessRewardModel` checkpoint.
        dtype: Dtype of the backbone.
        key: Configuration key that `path` came from, for the message.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        UserError: If weights are missing: the checkpoint is not such a PRM.
    """
    model, report = Qwen2ForProcessRewardModel.from_pretrained(path, dtype=dtype, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError.for_key(
            key,
            path,
            f"must be a {Qwen2ForProcessRewardModel.__name__} checkpoint, but lacks {', '.join(missing[:4])}",
            "Name the folder of a PRM, not of a policy",
        )
    model.score.float()
    ready: Qwen2ForProcessRewardModel = model.eval()
    return ready
