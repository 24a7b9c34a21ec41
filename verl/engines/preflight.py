# SPDX-License-Identifier: Apache-2.0
"""Whether an engine can train a model, asked on the driver before a device is claimed: structure only, no weights."""

from __future__ import annotations

from verl.engines.base import LORA, EngineSpec, load_object
from verl.engines.fsdp.sharding import decoder_layers
from verl.engines.heads import PackedModel
from verl.engines.loading import MEND, empty_model, read_config
from verl.engines.megatron.weights import Qwen2Shape
from verl.utils.errors import UserError

_NO_LANGUAGE_MODEL = ("RewardModel", "Classification")
"""Endings of architectures whose weights transformers would take for a language model's, with a head at random."""


def check_trainable(spec: EngineSpec) -> None:
    """Refuse a model that the engine cannot load or would not compute rightly.

    Args:
        spec: The engine, as the ranks will build it.

    Raises:
        UserError: The model is of a family, or has a feature, that the engine does not know; or adapters are wanted
            where it has no layers for them.
    """
    config = read_config(spec)
    other = next((name for name in config.architectures or () if name.endswith(_NO_LANGUAGE_MODEL)), None)
    if spec.head == "log_probs" and other is not None:
        raise UserError.for_key(spec.path_key, spec.model_path, f"holds a {other}, not a language model", MEND)
    if spec.strategy == "megatron":
        Qwen2Shape.of(config, spec.model_path, spec.path_key)
        return
    model = empty_model(spec)
    try:
        module = PackedModel(model, spec.head, spec.head_chunk_size)
    except UserError as error:
        raise UserError.for_key(spec.path_key, spec.model_path, str(error), MEND) from error
    decoder_layers(module.model)
    if spec.lora is not None:
        load_object(LORA)(module.model, spec.lora)
