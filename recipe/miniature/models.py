# SPDX-License-Identifier: Apache-2.0
"""Writes the miniature's untrained models: `python3 -m recipe.miniature.models --out DIR --seed 0`.

    policy_init/   a Qwen2 of about 0.6 million parameters, tied embeddings
    prm_init/      a Qwen2 backbone of the same size with a process reward head, in ReasonFlux-PRM's layout

Both with the tokenizer of this recipe; both load in transformers and vLLM like their large models.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.generation import GenerationConfig

from recipe.miniature.tokenizer import build_tokenizer
from verl.rewards.prm.model import Qwen2ForProcessRewardModel

logger = logging.getLogger(__name__)

CONTEXT_TOKENS = 256


def tiny_config(tied: bool) -> Qwen2Config:
    """Give the sizes of both models.

    Args:
        tied: Whether input and output embeddings are one matrix.

    Returns:
        A Qwen2 config of 3 layers with 4 heads of 32, which vLLM's CPU attention has a kernel for.
    """
    tokenizer = build_tokenizer(CONTEXT_TOKENS)
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=tied,
        # Near 1/sqrt(hidden_size). With the usual 0.02 so small a model learns several times more slowly.
        initializer_range=0.06,
        rope_theta=10000.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_policy(seed: int) -> Qwen2ForCausalLM:
    """Make the policy.

    Args:
        seed: Seed of its weights.

    Returns:
        The untrained policy in float32.
    """
    torch.manual_seed(seed)
    policy = Qwen2ForCausalLM(tiny_config(tied=True)).float()
    policy.generation_config = GenerationConfig(
        eos_token_id=policy.config.eos_token_id, pad_token_id=policy.config.pad_token_id, do_sample=True
    )
    return policy


def build_prm(seed: int) -> Qwen2ForProcessRewardModel:
    """Make the PRM.

    Args:
        seed: Seed of its weights.

    Returns:
        The untrained PRM in float32.
    """
    torch.manual_seed(seed)
    config = tiny_config(tied=False)
    config.num_labels = 2
    return Qwen2ForProcessRewardModel(config).float()


def save(folder: str, seed: int) -> None:
    """Write both models with their tokenizer.

    Args:
        folder: Where; `policy_init` and `prm_init` are made in it.
        seed: Seed of the weights.
    """
    for name, model in (("policy_init", build_policy(seed)), ("prm_init", build_prm(seed))):
        place = Path(folder).expanduser() / name
        model.save_pretrained(place)
        build_tokenizer(CONTEXT_TOKENS).save_pretrained(place)
        logger.info("%d parameters in %s", sum(weight.numel() for weight in model.parameters()), place)


def main() -> None:
    """Write the models."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder for the models")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    save(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
