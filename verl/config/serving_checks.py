# SPDX-License-Identifier: Apache-2.0
"""Checks of rollout servers, whoever uses them. Opens no file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from verl.config.problems import Problem
from verl.config.rollout import ServingConfig
from verl.config.sglang_checks import sglang_problems


@dataclass(frozen=True)
class ServingNeeds:
    """What the servers stand in.

    Args:
        section: Key of their section.
        longest: Longest prompt plus longest response. Unit: tokens.
        devices_per_node: Of the pool they stand in.
        devices_key: Key that says so.
    """

    section: str
    longest: int
    devices_per_node: int
    devices_key: str = "trainer.n_gpus_per_node"


def find_serving_problems(rollout: ServingConfig, needs: ServingNeeds) -> Iterator[Problem]:
    """Check engine, devices and lengths of rollout servers.

    Args:
        rollout: Their section.
        needs: Where they stand, and what they must hold.

    Yields:
        Every mistake found.
    """
    section, longest, per_node = needs.section, needs.longest, needs.devices_per_node
    tp = rollout.tensor_model_parallel_size
    yield from sglang_problems(rollout, section)
    if rollout.name == "hf" and tp > 1:
        mend = f"Set it to 1, or {section}.name=vllm"
        yield Problem(
            f"{section}.tensor_model_parallel_size", tp, "hf has one device per server", mend, (f"{section}.name",)
        )
    elif per_node % tp and not rollout.joins_servers:
        fault = "is larger than" if tp > per_node else "must divide"
        allowed = f"{fault} {needs.devices_key}={per_node} (a server lies within one node)"
        mend = f"Set it to a divisor of {per_node}"
        yield Problem(f"{section}.tensor_model_parallel_size", tp, allowed, mend, (needs.devices_key,))
    max_model_len = rollout.max_model_len or longest
    if max_model_len < longest:
        allowed = f"must hold data.max_prompt_length + data.max_response_length = {longest} tokens"
        mend = f"Set it to {longest}, or leave it out"
        yield Problem(f"{section}.max_model_len", max_model_len, allowed, mend)
    if rollout.name == "vllm" and not rollout.enable_chunked_prefill and rollout.max_num_batched_tokens < max_model_len:
        key = f"{section}.max_num_batched_tokens"
        allowed = f"without chunked prefill a whole sequence of {max_model_len} tokens must fit"
        mend = f"Set it to {max_model_len}, or enable_chunked_prefill=True"
        yield Problem(key, rollout.max_num_batched_tokens, allowed, mend)
