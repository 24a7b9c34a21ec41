# SPDX-License-Identifier: Apache-2.0
"""The process of an SGLang server in an environment of its own: command line, start, death, end. Knows no request.

The server runs behind `verl.rollout.process_guard`, so that it ends with this process, however that one ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from verl.rollout import process_guard
from verl.rollout.base import RolloutSpec, ServerSettings

_GRACE_S = 12.0  # SGLang looks every 5 s whether it was asked to end, then lets its schedulers clean up
_LOG_TAIL_BYTES = 4000


class SGLangServerProcess:
    """One `sglang.launch_server` with its children and its log.

    Example:
        >>> process = SGLangServerProcess([python, "-m", "sglang.launch_server", ...], env={})
        >>> process.start()
        >>> process.log_tail()
        >>> await process.stop()
    """

    def __init__(self, command: list[str], env: dict[str, str], grace_s: float = _GRACE_S) -> None:
        """Remember what to run; nothing is started yet.

        Args:
            command: Program and arguments.
            env: Its whole environment.
            grace_s: Seconds it has to end when it is asked to.
        """
        self._command, self._env, self._grace_s = command, env, grace_s
        self._guard: subprocess.Popen[bytes] | None = None
        self._log_path: Path | None = None

    def start(self) -> None:
        """Start the process; returns at once."""
        descriptor, name = tempfile.mkstemp(prefix="verl-sglang-", suffix=".log")
        self._log_path = Path(name)
        with os.fdopen(descriptor, "wb") as log:
            self._guard = subprocess.Popen(
                [sys.executable, process_guard.__file__, str(self._grace_s), *self._command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._env,
                start_new_session=True,
            )

    @property
    def is_alive(self) -> bool:
        """Whether it was started and has not ended."""
        return self._guard is not None and self._guard.poll() is None

    def log_tail(self) -> str:
        """The last lines of what the server printed."""
        if self._log_path is None or not self._log_path.is_file():
            return "(no log)"
        with self._log_path.open("rb") as log:
            log.seek(max(0, self._log_path.stat().st_size - _LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").strip() or "(it printed nothing)"

    async def stop(self) -> None:
        """End the server with all its children, by force where it does not end by itself; removes the log."""
        if self._guard is None:
            return
        assert self._guard.stdin is not None
        self._guard.stdin.close()  # the guard ends the server, then the whole group
        for _ in range(int((self._grace_s + 5) / 0.1)):
            if self._guard.poll() is not None:
                break
            await asyncio.sleep(0.1)
        else:
            os.killpg(self._guard.pid, signal.SIGKILL)
            self._guard.wait()
        self._guard = None
        if self._log_path is not None:
            self._log_path.unlink(missing_ok=True)


def hold_port() -> socket.socket:
    """Keep a port of this machine for a server that takes it when its model is loaded, minutes later.

    Returns:
        A socket bound to it on the loopback address. Until it is closed no connection and no other holder gets it; a
        server that asks to reuse addresses, as HTTP servers do, can listen on it.
    """
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return holder


def launch_command(spec: RolloutSpec, settings: ServerSettings, port: int, kv_tokens: int | None) -> list[str]:
    """Command line of a server.

    Args:
        spec: Engine settings.
        settings: Names the interpreter; its arguments win over what is derived here.
        port: HTTP port.
        kv_tokens: Size of the KV cache in tokens; None lets the server derive it from its share of the memory.

    Returns:
        Program and arguments. An argument of value True is a bare flag, one of False or None is left out.
    """
    derived: dict[str, Any] = {
        "model_path": spec.model_path,
        "host": "127.0.0.1",
        "port": port,
        "dtype": spec.dtype,
        "device": spec.device,
        "tp_size": spec.tensor_parallel_size,
        "context_length": spec.max_model_len,
        "max_running_requests": spec.max_num_seqs,
        "max_prefill_tokens": spec.max_num_batched_tokens,
        "chunked_prefill_size": spec.max_num_batched_tokens if spec.enable_chunked_prefill else -1,
        "disable_radix_cache": not spec.enable_prefix_caching,
        "disable_cuda_graph": spec.enforce_eager or spec.device == "cpu",
        "mem_fraction_static": spec.gpu_memory_utilization,
        "max_total_tokens": kv_tokens,
        "random_seed": spec.seed,
        "trust_remote_code": spec.trust_remote_code,
        "skip_tokenizer_init": True,
        "skip_server_warmup": True,
        "log_level": "warning",
    }
    if spec.device == "cpu":
        derived["attention_backend"] = "torch_native"
    command = [settings.python, "-m", "sglang.launch_server"]
    for name, value in (derived | settings.arguments).items():
        if value is None or value is False:
            continue
        command += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return command


def server_environment(spec: RolloutSpec, settings: ServerSettings, own: dict[str, str]) -> dict[str, str]:
    """Environment of a server.

    Args:
        spec: Engine settings.
        settings: Further variables; they win.
        own: This process's environment.

    Returns:
        All variables. Those that belong to this process's Python are left out: the server has its own.
    """
    kept = {key: value for key, value in own.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    # the log-probs of the distribution that was sampled, temperature included: what `Generation` promises
    kept.pop("SGLANG_RETURN_ORIGINAL_LOGPROB", None)
    if spec.device == "cpu":
        kept |= {"SGLANG_USE_CPU_ENGINE": "1"}
    return kept | settings.env


def kv_cache_tokens(model: Any, dtype_bytes: int, kv_cache_bytes: int) -> int:
    """Tokens that fit into a KV cache.

    Args:
        model: Hugging Face config of a model with plain attention.
        dtype_bytes: Size of a cached number.
        kv_cache_bytes: Size of the cache.

    Returns:
        Tokens, at least 1.
    """
    heads = getattr(model, "num_key_value_heads", None) or model.num_attention_heads
    head_dim = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    per_token = 2 * model.num_hidden_layers * heads * head_dim * dtype_bytes
    return max(1, kv_cache_bytes // per_token)
