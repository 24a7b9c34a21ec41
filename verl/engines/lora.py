# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters, put into a transformers model by peft: which weights they change, and how to leave them out.

    h = W x + scale * B (A x)        scale = alpha / rank, W frozen, A random and B zero at the start

Nothing but `Linear` layers gets adapters, so that W + scale * B A is a plain weight: that is what rollout engines and
exported models hold. The only file of the engines that imports peft; it is loaded by its name. It knows no mesh.

Source: Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear, LoraLayer
from torch import nn

from verl.engines.adapters import AdapterPair, LoraSpec
from verl.utils.errors import UserError

_ADAPTER = "default"
_ALL = "all-linear"


class LoraAdapters:
    """The adapters inside one model.

    Args:
        model: Gets the adapters, in place; on the meta device they have no memory, elsewhere they are initialised.
        spec: Size and places.

    Attributes:
        pairs: By the name of the weight they change, both named as the model names its parameters.

    Raises:
        UserError: A place does not exist, or is no `Linear` layer below the output projection.
    """

    def __init__(self, model: nn.Module, spec: LoraSpec) -> None:
        targets = _ALL if spec.target_modules == (_ALL,) else list(spec.target_modules)
        self._config = LoraConfig(
            r=spec.rank, lora_alpha=spec.alpha, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM"
        )
        is_empty = any(parameter.is_meta for parameter in model.parameters())
        try:
            inject_adapter_in_model(self._config, model, _ADAPTER, low_cpu_mem_usage=is_empty)
        except ValueError as error:
            raise _refused(spec, f"must name layers of the model ({error})") from error
        self._layers = _checked_layers(model, spec)
        self.pairs = {
            f"{name}.base_layer.weight": AdapterPair(
                f"{name}.lora_A.{_ADAPTER}.weight", f"{name}.lora_B.{_ADAPTER}.weight", layer.scaling[_ADAPTER]
            )
            for name, layer in self._layers.items()
        }

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Run the model as it was before training; for forward passes without gradient."""
        # peft's own switch also changes which parameters have gradients, which a sharded model fixes at its first use
        for layer in self._layers.values():
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer._disable_adapters = False

    def write_config(self, folder: str, base_model: str) -> None:
        """Write `adapter_config.json` as peft reads it.

        Args:
            folder: An existing folder.
            base_model: Path or hub id of the frozen model.
        """
        config = replace(self._config, base_model_name_or_path=base_model, inference_mode=True)
        config.save_pretrained(folder)


def _checked_layers(model: Any, spec: LoraSpec) -> dict[str, Linear]:
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    layers: dict[str, Linear] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        if not isinstance(layer, Linear) or layer is output or not isinstance(layer.base_layer, nn.Linear):
            raise _refused(spec, f"must name Linear layers below the output projection, and {name} is none")
        layers[name] = layer
    if not layers:
        raise _refused(spec, "must name layers of the model")
    return layers


def _refused(spec: LoraSpec, allowed: str) -> UserError:
    mend = "Use all-linear, or names such as [q_proj,k_proj,v_proj,o_proj]"
    return UserError.for_key(spec.key, ",".join(spec.target_modules), allowed, mend)
