# SPDX-License-Identifier: Apache-2.0
"""Writes the miniature's untrained models: `python3 -m recipe.miniature.models --out DIR [--policy DIR] --seed 0`.

    policy_init/   a Qwen2 of about 0.6 million parameters, tied embeddings
    prm_init/      a Qwen2 backbone of the same size with a process reward head, in ReasonFlux-PRM's layout
    prm_start/     with --policy: that policy's backbone with a fresh head, which is what the PRM is best trained from

Both with the tokenizer of this recipe; both load in transformers and vLLM like their large models.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from transformers.generation import GenerationConfig

from recipe.miniature.problems import STEP_SEPARATOR
from recipe.miniature.tokenizer import STEP, build_tokenizer
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


def prm_from_policy(policy_folder: str, seed: int) -> Qwen2ForProcessRewardModel:
    """Make a PRM that knows what the policy knows, as the published ones start from a language model.

    The step token, which the policy never saw, begins as the blank line that it stands for: what the policy learned
    about the step before a blank line keeps working.

    Args:
        policy_folder: A trained policy of this recipe.
        seed: Seed of the head's weights.

    Returns:
        The PRM in float32, its head untrained.
    """
    prm = build_prm(seed)
    prm.model.load_state_dict(Qwen2ForCausalLM.from_pretrained(policy_folder, dtype=torch.float32).model.state_dict())
    step, blank_line = build_tokenizer().convert_tokens_to_ids([STEP, STEP_SEPARATOR])
    with torch.no_grad():
        embeddings = prm.model.embed_tokens.weight
        embeddings[step] = embeddings[blank_line]
    return prm


def save(folder: str, seed: int) -> None:
    """Write the untrained policy and PRM.

    Args:
        folder: Where; `policy_init` and `prm_init` are made in it.
        seed: Seed of the weights.
    """
    save_models(folder, {"policy_init": build_policy(seed), "prm_init": build_prm(seed)})


def save_models(folder: str, models: Mapping[str, PreTrainedModel]) -> None:
    """Write models with their tokenizer.

    Args:
        folder: Where; a folder for each is made in it.
        models: Name of the folder to the model.
    """
    for name, model in models.items():
        place = Path(folder).expanduser() / name
        model.save_pretrained(place)
        build_tokenizer(CONTEXT_TOKENS).save_pretrained(place)
        logger.info("%d parameters in %s", sum(weight.numel() for weight in model.parameters()), place)


def main() -> None:
    """Write the models."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder for the models")
    parser.add_argument("--policy", help="a trained policy: write only the PRM that starts from it")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.policy:
        save_models(arguments.out, {"prm_start": prm_from_policy(arguments.policy, arguments.seed)})
    else:
        save(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
