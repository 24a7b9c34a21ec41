# SPDX-License-Identifier: Apache-2.0
"""A PRM inside vLLM: vLLM's own backbone, and our small head on every token.

vLLM knows one published PRM (`Qwen2ForProcessRewardModel`). Every other family is a Qwen2, Llama or Mistral backbone
under a head of a few thousand numbers, and `load_head` brings all of those heads to [.., 2] logits (wrong, right); so
one architecture serves them all. Knows no text, no requests and no reasoning steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.pooler.activations import PoolerIdentity
from vllm.model_executor.layers.pooler.tokwise import pooler_for_token_classify
from vllm.model_executor.models.llama import LlamaModel
from vllm.model_executor.models.mistral import MistralModel
from vllm.model_executor.models.qwen2 import Qwen2Model
from vllm.model_executor.models.utils import AutoWeightsLoader, maybe_prefix
from vllm.sequence import IntermediateTensors

from verl.rewards.prm.heads import HeadSpec, load_head
from verl.rewards.prm.weights import find_backbone

BACKBONES = {"llama": LlamaModel, "mistral": MistralModel, "qwen2": Qwen2Model}
"""By `model_type` of the checkpoint's config."""
BACKBONE_PARTS = ("embed_tokens.", "layers.", "norm.")
"""What the three backbones' tensors are called below the prefix; everything else in a checkpoint belongs to heads."""


class StepHeadModel(nn.Module):
    """Backbone and head; `forward` gives the head's logits of every token, so nothing wider leaves the model.

    The head is whole on every rank: hidden states are the same on all ranks behind the last layer's all-reduce.

    Example:
        >>> AsyncEngineArgs(model=folder, runner="pooling", hf_overrides={"architectures": [ARCHITECTURE], ...})
    """

    is_pooling_model = True
    # A head saved by torch.save lies beside the weights and is none of them.
    fall_back_to_pt_during_load = False
    hf_to_vllm_mapper = LlamaModel.hf_to_vllm_mapper
    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        """Build the backbone and load the head.

        Args:
            vllm_config: vLLM's settings, whose model config says in `verl_step_head` which head lies where.
            prefix: Name of this module in a larger one.
        """
        super().__init__()
        config = vllm_config.model_config.hf_config
        settings = dict(config.verl_step_head)
        folder = settings.pop("folder")
        self._checkpoint_prefix = find_backbone(folder).prefix
        self.model: Any = BACKBONES[config.model_type](vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.step_head = load_head(folder, HeadSpec(**settings)).to(vllm_config.device_config.device)
        self.pooler = pooler_for_token_classify(vllm_config.model_config.pooler_config, act_fn=PoolerIdentity())

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Look up embeddings.

        Args:
            input_ids: [n] token ids.

        Returns:
            [n, h].
        """
        embedded: torch.Tensor = self.model.embed_input_ids(input_ids)
        return embedded

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run the tokens of one scheduler step.

        Args:
            input_ids: [n] token ids of all sequences, one after the other.
            positions: [n] position of each token in its sequence.
            intermediate_tensors: None, as there are no pipeline stages.
            inputs_embeds: [n, h] in place of `input_ids`.

        Returns:
            [n, 2] float32 logits (wrong, right).
        """
        hidden = self.model(input_ids, positions, intermediate_tensors, inputs_embeds)
        logits: torch.Tensor = self.step_head(hidden)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load the backbone; the head has its values since it was built.

        Args:
            weights: Names and tensors of the checkpoint.

        Returns:
            Names of the parameters that have their values now; vLLM refuses to go on if one is missing.
        """
        prefix = self._checkpoint_prefix
        parts = ((name.removeprefix(prefix), tensor) for name, tensor in weights if name.startswith(prefix))
        of_backbone = ((f"model.{name}", tensor) for name, tensor in parts if name.startswith(BACKBONE_PARTS))
        loaded: set[str] = AutoWeightsLoader(self).load_weights(of_backbone)
        return loaded | {f"step_head.{name}" for name, _ in self.step_head.named_parameters()}
