# SPDX-License-Identifier: Apache-2.0
"""SGLang behind the rollout interface: its own HTTP server in an environment of its own, started here or joined by URL.

SGLang pins another torch than vLLM, so that nothing of it is imported here. Prompts go as token ids, one response per
request; weights go over a process group of their own (`sglang_weights`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import Any

import torch
from transformers import AutoConfig

from verl.rollout.base import FinishReason, Generation, GenerationRequest, RolloutSpec, SamplingSettings, ServerSettings
from verl.rollout.sglang_digest import ServerShape
from verl.rollout.sglang_http import SGLangClient, SGLangError, SGLangUnreachableError
from verl.rollout.sglang_server import (
    SGLangServerProcess,
    hold_port,
    kv_cache_tokens,
    launch_command,
    server_environment,
)
from verl.rollout.sglang_weights import SGLangWeightChannel
from verl.rollout.update_gate import UpdateGate
from verl.utils.errors import UserError
from verl.weight_sync.bundle import WeightDigestError, WeightManifest

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_CONTROL_CONNECTIONS = 4
_VERSION = "0.5.23"
_DEATH_S = 10.0  # between a broken connection and the end of a server whose other processes have died


class SGLangEngine:
    """One SGLang server.

    Example:
        >>> settings = ServerSettings(python=".venv-sglang/bin/python")
        >>> engine = SGLangEngine(RolloutSpec(model_path=path, dtype="bfloat16", max_model_len=4096, server=settings))
        >>> await engine.start()
    """

    def __init__(self, spec: RolloutSpec) -> None:
        """Remember the settings; nothing is started yet.

        Args:
            spec: Engine settings, with `server`.
        """
        self._spec = spec
        self._settings = spec.server or ServerSettings()
        self._process: SGLangServerProcess | None = None
        self._held_port: socket.socket | None = None
        self._connected: SGLangClient | None = None
        self._requests: SGLangClient | None = None
        self._channel: SGLangWeightChannel | None = None
        self._shape: ServerShape | None = None
        self._policy_version = 0
        self._heeds_seeds = self._is_paused = False
        self._gate = UpdateGate()

    async def start(self) -> None:
        """See `RolloutEngine.start`.

        Raises:
            RuntimeError: The server ended, or did not answer in time; with the last lines of its log.
        """
        url = self._settings.url or self._launch()
        self._connected = SGLangClient(url, _CONTROL_CONNECTIONS)
        # connections of its own: what is said about weights does not stand in line behind frozen requests
        self._requests = SGLangClient(url, self._spec.max_num_seqs)
        await self._wait_until_healthy()
        self._release_port()
        info = await self._client.get("/server_info")
        self._shape = self._shape_of(url, info)
        self._heeds_seeds = bool(info.get("enable_deterministic_inference"))
        if self._spec.enable_sleep_mode:
            logger.warning("SGLang servers keep their memory between rollouts: free_cache_engine has no effect")

    async def generate(self, request: GenerationRequest) -> Generation:
        """See `RolloutEngine.generate`.

        Raises:
            RuntimeError: The server refused the request, or is gone.
        """
        if request.sampling.seed is not None and not self._heeds_seeds:
            self._heeds_seeds = True  # said once
            logger.warning("SGLang heeds the seeds of requests with server_args.enable_deterministic_inference only")
        body = {
            "input_ids": request.prompt_token_ids,
            "sampling_params": sampling_params(request.sampling),
            "return_logprob": True,
        }
        assert self._requests is not None, "start() was not awaited"
        async with self._gate.passing():
            version = self._policy_version
            try:
                answer = await self._requests.post("/generate", body)
            except SGLangUnreachableError as error:
                raise await self._death(error) from error
            return generation(request.request_id, answer, version)

    async def init_transfer(self, init_info: dict[str, Any]) -> None:
        """See `RolloutEngine.init_transfer`; makes the process group with the server."""
        self._channel = SGLangWeightChannel(self._client)
        assert self._shape is not None, "start() was not awaited"
        await self._said(self._channel.open(self._shape))

    async def start_update(self) -> None:
        """See `RolloutEngine.start_update`; requests that come from now on wait for `finish_update`.

        Frozen requests lose their KV cache and wait in the server's queue, with the tokens and log-probs they have.
        They are prefilled anew when it goes on: further tokens are those of the new policy after what was said so far.
        """
        self._gate.close()
        if self._spec.in_flight_update != "keep":
            await self._gate.drained()
        if self._gate.in_flight:
            await self._said(self._client.post("/pause_generation", {"mode": "retract"}))
            self._is_paused = True
        await self._said(self._weights.begin())

    async def update(self, payload: dict[str, Any]) -> None:
        """See `RolloutEngine.update`.

        Raises:
            WeightDigestError: The bytes of a tensor, or of a parameter of the server, are not those that were sent.
            RuntimeError: The server could not take them in, or is gone.
        """
        await self._said(self._weights.send(WeightManifest(**payload)))

    async def finish_update(self, version: int) -> None:
        """See `RolloutEngine.finish_update`."""
        await self._said(self._weights.finish(version, is_idle=not self._is_paused))
        self._policy_version = version
        if self._is_paused:
            # the flush has emptied torch's cache already
            await self._said(self._client.post("/continue_generation", {"torch_empty_cache": False}))
            self._is_paused = False
        self._gate.open()

    async def sleep(self) -> None:
        """See `RolloutEngine.sleep`; the server keeps its memory, which `start` has said."""

    async def wake(self, for_update: bool = False) -> None:
        """See `RolloutEngine.wake`."""

    async def close(self) -> None:
        """See `RolloutEngine.close`; a server that was joined goes on."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
        for client in (self._requests, self._connected):
            if client is not None:
                await client.close()
        self._requests = self._connected = None
        if self._process is not None:
            await self._process.stop()
            self._process = None
        self._release_port()

    def _launch(self) -> str:
        spec = self._spec
        self._held_port = hold_port()
        port = self._held_port.getsockname()[1]
        kv_tokens = None
        if spec.kv_cache_bytes is not None:
            dtype_bytes = getattr(torch, spec.dtype).itemsize
            kv_tokens = kv_cache_tokens(self._model_config(), dtype_bytes, spec.kv_cache_bytes)
        command = launch_command(spec, self._settings, port, kv_tokens)
        environment = server_environment(spec, self._settings, dict(os.environ))
        self._process = SGLangServerProcess(command, environment)
        self._process.start()
        return f"http://127.0.0.1:{port}"

    def _release_port(self) -> None:
        if self._held_port is not None:
            self._held_port.close()
            self._held_port = None

    def _shape_of(self, url: str, info: Any) -> ServerShape:
        num_ranks, device = check_server(url, info), str(info.get("device") or "cpu")
        if num_ranks == 1:
            return ServerShape(device, num_ranks, num_key_heads=1)
        return ServerShape(device, num_ranks, self._model_config().num_key_value_heads)

    def _model_config(self) -> Any:
        return AutoConfig.from_pretrained(self._spec.model_path, trust_remote_code=self._spec.trust_remote_code)

    async def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + self._settings.start_timeout_s
        while not await self._client.is_healthy():
            if self._process is not None and not self._process.is_alive:
                raise RuntimeError(f"the SGLang server ended while it started. {self._last_words()}")
            if time.monotonic() > deadline:
                limit = f"in {self._settings.start_timeout_s:g} s (rollout.start_timeout_s)"
                raise RuntimeError(f"SGLang at {self._client.url} did not answer {limit}. {self._last_words()}")
            await asyncio.sleep(_POLL_S)

    async def _said(self, message: Any) -> None:
        try:
            await message
        except WeightDigestError:
            raise
        except RuntimeError as error:  # of the client, or of the process group
            raise await self._death(error) from error

    async def _death(self, error: RuntimeError) -> RuntimeError:
        """Say more about an error if the server has ended."""
        was_answered = isinstance(error, SGLangError) and not isinstance(error, SGLangUnreachableError)
        deadline = time.monotonic() + (0.0 if was_answered else _DEATH_S)
        while self._process is not None and self._process.is_alive and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        if self._process is not None and not self._process.is_alive:
            return RuntimeError(f"the SGLang server has ended ({error}). {self._last_words()}")
        if isinstance(error, SGLangError):
            return error
        return SGLangError(f"SGLang at {self._client.url}: the process group for weights broke: {error}")

    def _last_words(self) -> str:
        if self._process is None:
            return "It was joined by its URL: see its own log"
        return f"The last lines of its log:\n{self._process.log_tail()}"

    @property
    def _client(self) -> SGLangClient:
        assert self._connected is not None, "start() was not awaited"
        return self._connected

    @property
    def _weights(self) -> SGLangWeightChannel:
        assert self._channel is not None, "init_transfer() was not awaited"
        return self._channel


def sampling_params(settings: SamplingSettings) -> dict[str, Any]:
    """Translate one request's settings.

    Args:
        settings: How to sample.

    Returns:
        SGLang's parameters, all of them said: nothing comes from the model folder's own defaults.
    """
    translated: dict[str, Any] = {
        "n": 1,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "min_p": 0.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
        "max_new_tokens": settings.max_new_tokens,
        "stop_token_ids": [] if settings.ignore_eos else list(settings.stop_token_ids),
        "ignore_eos": settings.ignore_eos,
    }
    if settings.seed is not None:
        translated["sampling_seed"] = settings.seed
    return translated


def generation(request_id: str, answer: Any, policy_version: int) -> Generation:
    """Read one answer of `/generate`.

    Args:
        request_id: Of the request.
        answer: The decoded answer.
        policy_version: Of the weights that sampled it.

    Returns:
        Tokens and log-probs as the server counted them.

    Raises:
        SGLangError: The answer has no log-probs.
    """
    meta = answer["meta_info"]
    entries = meta.get("output_token_logprobs")
    if entries is None:
        raise SGLangError(f"SGLang answered request {request_id} without log-probs")
    return Generation(
        request_id=request_id,
        token_ids=[int(entry[1]) for entry in entries],
        log_probs=[float(entry[0]) for entry in entries],
        finish_reason=_finish_reason(meta.get("finish_reason")),
        policy_version=policy_version,
    )


def check_server(url: str, info: Any) -> int:
    """Look at what a server says about itself.

    Args:
        url: Where it is, for the message.
        info: Answer of `/server_info`.

    Returns:
        Ranks that take part in a weight update.

    Raises:
        UserError: It is spread in a way whose ranks do not all get new weights, or it changes them.
    """
    for name, what in (("dp_size", "data-parallel replicas"), ("pp_size", "pipeline stages")):
        if int(info.get(name) or 1) > 1:
            raise UserError.for_key(
                "rollout.sglang",
                url,
                f"the server has {info[name]} {what}, and SGLang takes new weights without them only",
                f"Start it with --{name.replace('_', '-')} 1, as many servers as you need",
            )
    if info.get("quantization"):
        raise UserError.for_key(
            "rollout.sglang",
            url,
            f"the server quantizes its weights ({info['quantization']}): they cannot be compared with those sent to it",
            "Start it without --quantization",
        )
    if info.get("version", _VERSION) != _VERSION:
        logger.warning("SGLang at %s is %s; what speaks to it knows %s", url, info["version"], _VERSION)
    return int(info.get("tp_size") or 1)


def _finish_reason(reason: Any) -> FinishReason:
    kind = reason.get("type") if isinstance(reason, dict) else None
    if kind in ("stop", "length"):
        return "stop" if kind == "stop" else "length"
    return "abort"
