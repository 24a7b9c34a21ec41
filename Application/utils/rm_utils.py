# SPDX-License-Identifier: Apache-2.0
"""What the model-usage snippets published with ReasonFlux-PRM need, written for transformers 5.

The snippets run as they are, but for one line. `AutoModel` must become `load_process_reward_model`: the code that comes
with ReasonFlux-PRM-7B no longer runs on transformers 5, and `AutoModel` without that code builds the backbone alone and
drops the head without a word, so that `outputs[0]` would be hidden states and every "score" meaningless.

    from utils.rm_utils import load_process_reward_model, make_step_rewards
    model = load_process_reward_model("Gen-Verse/ReasonFlux-PRM-7B", device_map="auto", torch_dtype=torch.bfloat16)

For new code `verl.rewards.prm.PRMScorer` does the same in batches, for all PRM families, and guards against separators
within the text and against answers longer than the PRM's context.
"""

from __future__ import annotations

from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.modeling_outputs import TokenClassifierOutput

from verl.rewards.prm.heads import HeadSpec, load_head
from verl.rewards.prm.model import load_prm


def make_step_rewards(logits: torch.Tensor, token_masks: torch.Tensor) -> list[list[float]]:
    """Read the probability of "right" at the tokens that end a reasoning step.

    Read by position: a probability that is exactly 0 or 1 is a score like any other, and a sample without a step gives
    an empty list. The softmax is taken in float32, since bfloat16 has no number between 0.996 and 1.

    Args:
        logits: [B, L, 2], (wrong, right); or any shape that broadcasts to it, such as the [2] logits of one token,
            which then stand for every masked position (as the published training code calls this function).
        token_masks: [B, L], true (or 1) where a step ends.

    Returns:
        One list per sample with the probabilities of its steps, in order.

    Raises:
        ValueError: The last dimension is not 2: this is no process reward model, or its head was dropped.
    """
    if logits.shape[-1] != 2 or token_masks.dim() != 2:
        raise ValueError(
            f"logits of shape {list(logits.shape)} and masks of shape {list(token_masks.shape)}: needed are [B, L, 2] "
            f"and [B, L]. Load the model with load_process_reward_model; AutoModel drops the head"
        )
    right = torch.softmax(logits.float(), dim=-1)[..., 1].broadcast_to(token_masks.shape)
    masks = token_masks.bool().to(right.device)
    return [row[mask].tolist() for row, mask in zip(right, masks, strict=True)]


class ProcessRewardModel(nn.Module):
    """A process reward model with the calling convention of the published one: `outputs[0]` are its logits."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap a loaded model.

        Args:
            model: Maps token ids [B, L] to logits [B, L, 2].
        """
        super().__init__()
        self.model = model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> TokenClassifierOutput:
        """Run the model.

        Args:
            input_ids: [B, L] int64.
            attention_mask: [B, L], needed only for padding on the left.

        Returns:
            Output whose `[0]` and `.logits` are [B, L, 2] float32 logits, (wrong, right) at every token.
        """
        return TokenClassifierOutput(logits=self.model(input_ids=input_ids, attention_mask=attention_mask).float())


def load_process_reward_model(
    path: str,
    device_map: str | torch.device = "auto",
    torch_dtype: torch.dtype | str = "auto",
    trust_remote_code: bool = False,
) -> ProcessRewardModel:
    """Load ReasonFlux-PRM-7B, Qwen2.5-Math-PRM or a PRM trained here, head included.

    Args:
        path: Folder or hub name.
        device_map: `auto` (the GPU where there is one), or a device.
        torch_dtype: Dtype of the backbone; `auto` is bfloat16 on a GPU and float32 on a CPU. The head is float32.
        trust_remote_code: Accepted because the published snippet gives it; no remote code is run.

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: The checkpoint has no process reward head.
    """
    device = _device(device_map)
    return ProcessRewardModel(load_prm(path, _dtype(torch_dtype, device), key="path").to(device)).eval()


class RewardModel(nn.Module):
    """ReasonFlux-PRM-1.5B: a causal language model with a linear head that judges a whole text by its last token.

    Example:
        >>> model = RewardModel.from_pretrained("Gen-Verse/ReasonFlux-PRM-1.5B")
        >>> encoded = tokenizer([problem + answer], return_tensors="pt", padding=True)
        >>> model(encoded["input_ids"], encoded["attention_mask"])  # [B], 0 to 1
    """

    def __init__(self, base_model: nn.Module, reward_head: nn.Module) -> None:
        """Put the parts together.

        Args:
            base_model: Causal language model.
            reward_head: Maps hidden states [B, h] to logits [B, 2]; see `verl.rewards.prm.heads`.
        """
        super().__init__()
        self.base_model = base_model
        self.reward_head = reward_head

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str,
        auth_token: str | None = None,
        device_map: str | torch.device = "auto",
        torch_dtype: torch.dtype | str = "auto",
    ) -> RewardModel:
        """Load base model and head.

        Args:
            path_or_hub_id: Folder or hub name with a causal language model and `reward_head.pt`.
            auth_token: Token for a hub that asks for one.
            device_map: `auto` (the GPU where there is one), or a device.
            torch_dtype: Dtype of the base model; `auto` is bfloat16 on a GPU and float32 on a CPU.

        Returns:
            The model in evaluation mode.

        Raises:
            UserError: There is no head, or it does not fit the base model.
        """
        device = _device(device_map)
        folder = Path(path_or_hub_id).expanduser()
        if not folder.is_dir():
            folder = Path(snapshot_download(path_or_hub_id, token=auth_token))
        # first, since it is small: a folder without a head is refused before gigabytes are read
        head = load_head(folder, HeadSpec("reward_file"))
        base_model = AutoModelForCausalLM.from_pretrained(folder, dtype=_dtype(torch_dtype, device))
        return cls(base_model, head).to(device).eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Judge texts.

        Args:
            input_ids: [B, L] int64, padded on either side.
            attention_mask: [B, L], 1 on the text's own tokens; None where nothing is padded.

        Returns:
            [B] float32, 0 to 1: the sigmoid of the head's value at each text's last own token.

        Raises:
            ValueError: A row has no token.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.device)
        if not bool(mask.any(dim=1).all()):
            raise ValueError("a row without any token has no reward: its attention mask is all 0")
        backbone = self.base_model.base_model
        hidden = backbone(input_ids=input_ids, attention_mask=mask, use_cache=False)[0]
        places = torch.arange(mask.shape[1], device=mask.device)
        last = (places * mask.bool()).argmax(dim=1)
        rows = torch.arange(len(last), device=last.device)
        # logits (0, v): the probability of the second is sigmoid(v)
        return torch.softmax(self.reward_head(hidden[rows, last]), dim=-1)[:, 1]


def _device(device_map: str | torch.device) -> torch.device:
    if str(device_map) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device_map)


def _dtype(torch_dtype: torch.dtype | str, device: torch.device) -> torch.dtype:
    if isinstance(torch_dtype, torch.dtype):
        return torch_dtype
    if torch_dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, torch_dtype)
