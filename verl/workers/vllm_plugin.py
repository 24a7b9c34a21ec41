# SPDX-License-Identifier: Apache-2.0
"""Entry point `vllm.general_plugins`: makes our PRM architecture known to every vLLM process, without loading it."""

from __future__ import annotations

from vllm import ModelRegistry

ARCHITECTURE = "VerlStepHeadModel"


def register() -> None:
    """Register the architecture by name; vLLM may load plugins more than once in a process."""
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "verl.workers.vllm_step_head:StepHeadModel")
