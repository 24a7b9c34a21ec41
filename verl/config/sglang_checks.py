# SPDX-License-Identifier: Apache-2.0
"""Checks of SGLang servers. The environment is looked for by `interpreter_problems`; the rest opens no file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from verl.config.problems import Problem
from verl.config.sglang import PYTHON_VARIABLE, SETUP_SCRIPT, SGLangConfig

if TYPE_CHECKING:
    from verl.config.rollout import RolloutConfig, ServingConfig
    from verl.config.trainer import TrainerConfig


def sglang_problems(rollout: ServingConfig, section: str) -> Iterator[Problem]:
    """Check the section `sglang` of rollout servers, in training and in `main_generation` alike.

    Args:
        rollout: The servers' section.
        section: Its key.

    Yields:
        Every mistake found.
    """
    sglang, key = rollout.sglang, f"{section}.sglang"
    if rollout.name != "sglang":
        for name in ("python", "urls", "server_args", "env"):
            if getattr(sglang, name):
                allowed = f"is read with {section}.name=sglang only, not {rollout.name}"
                mend = f"Set {section}.name=sglang, or leave the key out"
                yield Problem(f"{key}.{name}", getattr(sglang, name), allowed, mend, (f"{section}.name",))
        return
    yield from _urls(sglang, key)
    if rollout.engine_kwargs:
        mend = f"Set {key}.server_args instead"
        yield Problem(f"{section}.engine_kwargs", dict(rollout.engine_kwargs), "goes to vLLM", mend)
    for name in sglang.server_args:
        if name.startswith("-"):
            mend = f"Write {name.lstrip('-').replace('-', '_')}"
            yield Problem(f"{key}.server_args", name, "names arguments without dashes in front", mend)


def sglang_training_problems(rollout: RolloutConfig, trainer: TrainerConfig, section: str) -> Iterator[Problem]:
    """Check what training asks of SGLang beyond answering.

    Args:
        rollout: The servers' section.
        trainer: Section `trainer`.
        section: Key of the servers' section.

    Yields:
        Every mistake found.
    """
    if rollout.name != "sglang":
        return
    pool = f"{section}.enable_resource_pool"
    for name, found, off in (("top_p", rollout.top_p, 1.0), ("top_k", rollout.top_k, -1)):
        if found != off:
            allowed = "SGLang returns log-probs from before the cut, which are not those of what was sampled"
            yield Problem(f"{section}.{name}", found, allowed, f"Set it to {off:g}, or {section}.name=vllm")
    if rollout.joins_servers and rollout.enable_resource_pool:
        allowed = "servers joined by URL have devices of their own already"
        yield Problem(pool, True, allowed, "Set it to False", (f"{section}.sglang.urls",))
    shares = not rollout.enable_resource_pool and not rollout.joins_servers
    if trainer.device == "cuda" and shares and rollout.free_cache_engine:
        allowed = "an SGLang server does not hand its memory back between rollouts"
        mend = f"Set it to False (and {section}.gpu_memory_utilization so that both fit), or give the servers a pool"
        yield Problem(f"{section}.free_cache_engine", True, allowed, mend, (f"{section}.name",))


def interpreter_problems(rollout: ServingConfig, section: str) -> Iterator[Problem]:
    """Look for the environment of servers that will be started.

    Args:
        rollout: The servers' section.
        section: Its key.

    Yields:
        A problem where its interpreter is not there.
    """
    if rollout.name != "sglang" or rollout.sglang.urls:
        return
    interpreter = rollout.sglang.interpreter
    if not (Path(interpreter).is_file() and os.access(interpreter, os.X_OK)):
        key = f"{section}.sglang.python"
        mend = f"Make the environment with: bash {SETUP_SCRIPT}, or name its interpreter here or in {PYTHON_VARIABLE}"
        yield Problem(key, interpreter, "there is no such program; SGLang needs an environment of its own", mend)


def _urls(sglang: SGLangConfig, key: str) -> Iterator[Problem]:
    for url in sglang.urls:
        if not _is_server_url(url):
            mend = "Write scheme, host and a port up to 65535"
            yield Problem(f"{key}.urls", url, "must be like http://host:port", mend)
    if len(set(sglang.urls)) < len(sglang.urls):
        mend = "Name each server once: its process group takes one partner"
        yield Problem(f"{key}.urls", list(sglang.urls), "names a server twice", mend)
    if not sglang.urls:
        return
    for name in ("server_args", "env"):
        if getattr(sglang, name):
            allowed = "goes to servers that are started here, and these are joined"
            yield Problem(f"{key}.{name}", dict(getattr(sglang, name)), allowed, "Leave it out", (f"{key}.urls",))


def _is_server_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or too large
        return False
