# SPDX-License-Identifier: Apache-2.0
"""Answering the prompts of a file: rows -> prompts -> rollout servers -> rows with their responses.

consumes   rows with a prompt column; all their other columns travel along
produces   the same rows with `responses`, `finish_reasons`, `num_response_tokens` and `num_prompt_tokens`
waits for  the rollout servers, up to `rollout.timeout_s` for each prompt

Knows no reward and no training; the engines are those of training.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from verl.config import GenerationConfig
from verl.data.chat import Message, check_chat_template, read_messages, tokenize_prompts
from verl.data.row_file import write_rows
from verl.data.rows import Row, bad_row, read_rows
from verl.data.truncation import truncate
from verl.rollout.base import RolloutSpec, SamplingSettings
from verl.rollout.to_batch import RolloutOutput
from verl.single_controller import ResourcePool
from verl.trainer.ppo.placement import connect_ray
from verl.trainer.ppo.rollout_stream import RolloutStream
from verl.trainer.serving import (
    close_servers,
    engine_arguments,
    server_class,
    serving_slots,
    spec_of_server,
    wait_until_started,
)
from verl.utils.async_loop import BackgroundLoop
from verl.utils.device import resolve_device
from verl.utils.errors import UserError
from verl.utils.tokenizer import load_tokenizer
from verl.workers.rollout_server import GroupRequest, RolloutServer

logger = logging.getLogger(__name__)

OUTPUT_COLUMNS = ("responses", "finish_reasons", "num_response_tokens", "num_prompt_tokens")
_POOL_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Prompt:
    """A row on its way to the servers.

    Args:
        values: The row's columns; its prompt column holds the messages as they are sent.
        token_ids: The prompt, chat template applied.
    """

    values: dict[str, Any]
    token_ids: list[int]


class Generate:
    """One run from a checked configuration to the written file.

    Example:
        >>> Generate(config).run()
    """

    def __init__(self, config: GenerationConfig) -> None:
        """Remember the configuration.

        Args:
            config: Checked; its files have been looked for.
        """
        self._config = config

    def run(self) -> Path:
        """Read the prompts, start the servers, answer, write.

        Returns:
            The file.

        Raises:
            UserError: A row is not as needed, the cluster is too small, or the model cannot be loaded.
            RuntimeError: A server failed, or took too long.
        """
        config = self._config
        prompts = read_prompts(config)
        device = resolve_device(config.trainer.device).type
        with ExitStack() as stack:
            connect_ray(dict(config.ray_kwargs.ray_init), config.trainer.num_devices, device, stack)
            servers = start_servers(config, device, stack)
            loop = BackgroundLoop("verl-generation")
            stack.callback(loop.close)
            stream = RolloutStream(servers, config.rollout.timeout_s, "rollout.timeout_s")
            total = len(prompts) * config.n_samples
            bar = stack.enter_context(tqdm(total=total, desc="answered", unit="response", disable=None))
            in_flight = _groups_in_flight(config, len(servers))
            groups = loop.run(answer(stream, group_requests(config, prompts), in_flight, lambda _: bar.update()))
        path = Path(config.output).expanduser()
        write_rows(path, [answered_row(*pair) for pair in zip(prompts, groups, strict=True)], "output")
        _log_summary(path, groups)
        return path


def read_prompts(config: GenerationConfig) -> list[Prompt]:
    """Read, check and tokenize the prompts.

    Args:
        config: Names files, columns and tokenizer.

    Returns:
        The prompts in the order of the files.

    Raises:
        UserError: A file, a column or a row is not as needed, a prompt is too long, or the rows have responses already.
    """
    data, model = config.data, config.model
    tokenizer: Any = load_tokenizer(model.tokenizer_path or model.path, model.trust_remote_code, "model.path")
    if model.custom_chat_template:
        tokenizer.chat_template = model.custom_chat_template
    check_chat_template(tokenizer, "model.path")
    rows = read_rows(data.path, "data.path", (data.prompt_key,))
    rows = rows if data.max_samples < 0 else rows[: data.max_samples]
    for row in rows:
        taken = [name for name in OUTPUT_COLUMNS if name in row.values]
        if taken:
            raise bad_row(row, "data.path", f"it has the column {', '.join(taken)} already, which would be overwritten")
    messages = [_with_system(read_messages(row, data.prompt_key, "data.path"), data.system_message) for row in rows]
    token_ids = tokenize_prompts(tokenizer, messages, rows, "data.path", data.apply_chat_template_kwargs)
    return [
        Prompt(row.values | {data.prompt_key: chat}, _cut(ids, row, config))
        for row, chat, ids in zip(rows, messages, token_ids, strict=True)
    ]


def group_requests(config: GenerationConfig, prompts: Sequence[Prompt]) -> list[GroupRequest]:
    """Ask for the responses to each prompt.

    Args:
        config: How to sample.
        prompts: The prompts.

    Returns:
        One request per prompt, in order. Every response of a sampled run has a seed of its own.
    """
    rollout, seed = config.rollout, config.trainer.seed
    return [
        GroupRequest(
            uid=str(place),
            prompt_token_ids=prompt.token_ids,
            num_responses=config.n_samples,
            sampling=SamplingSettings(
                temperature=rollout.temperature,
                top_p=rollout.top_p,
                top_k=rollout.top_k,
                max_new_tokens=config.data.max_response_length,
                seed=seed + place * config.n_samples if rollout.temperature > 0 else None,
                ignore_eos=rollout.ignore_eos,
            ),
        )
        for place, prompt in enumerate(prompts)
    ]


def start_servers(config: GenerationConfig, device: str, stack: ExitStack) -> list[Any]:
    """Start one server per group of devices, and wait until all have loaded the model.

    Args:
        config: The run's configuration.
        device: `cuda` or `cpu`.
        stack: Gets the end of servers and devices.

    Returns:
        Actor handles.

    Raises:
        UserError: The cluster is too small.
        RuntimeError: They did not start in time.
    """
    rollout, model = config.rollout, config.model
    pool = ResourcePool("generation", config.trainer.nnodes, config.trainer.n_gpus_per_node, device)
    pool.acquire(_POOL_TIMEOUT_S)
    stack.callback(pool.release)
    spec = RolloutSpec(
        model_path=model.path,
        seed=config.trainer.seed,
        trust_remote_code=model.trust_remote_code,
        **engine_arguments(rollout, config.data.max_prompt_length + config.data.max_response_length, device),
    )
    servers = [
        server_class(RolloutServer, pool, slot, num_gpus=len(slot.devices)).remote(
            rollout.name, spec_of_server(spec, rollout, index), model.tokenizer_path or model.path
        )
        for index, slot in enumerate(serving_slots(rollout, pool))
    ]
    stack.callback(close_servers, servers)
    wait_until_started([server.start.remote() for server in servers], "rollout servers", rollout.start_timeout_s)
    return servers


async def answer(
    stream: RolloutStream,
    requests: Sequence[GroupRequest],
    in_flight: int,
    on_response: Callable[[RolloutOutput], Any],
) -> list[list[RolloutOutput]]:
    """Answer all prompts, a limited number at a time, the next one as soon as one is complete.

    Args:
        stream: The servers.
        requests: One per prompt.
        in_flight: Most prompts at a time.
        on_response: Called with each response when it is complete.

    Returns:
        Responses per prompt, in the order of `requests`.

    Raises:
        RuntimeError: A server failed, or took too long for one prompt.
    """
    groups: dict[int, list[RolloutOutput]] = {}

    async def work(queue: Iterator[tuple[int, GroupRequest]]) -> None:
        for place, request in queue:
            (groups[place],) = await stream.generate([request], on_response)

    queue = iter(enumerate(requests))
    workers = [asyncio.create_task(work(queue)) for _ in range(min(in_flight, len(requests)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
    return [groups[place] for place in range(len(requests))]


def answered_row(prompt: Prompt, outputs: Sequence[RolloutOutput]) -> dict[str, Any]:
    """Join a row with its responses.

    Args:
        prompt: The row.
        outputs: Its responses, in the order of their place in the group.

    Returns:
        The row's columns and `OUTPUT_COLUMNS`.
    """
    return prompt.values | {
        "responses": [output.text for output in outputs],
        "finish_reasons": [output.generation.finish_reason for output in outputs],
        "num_response_tokens": [len(output.generation.token_ids) for output in outputs],
        "num_prompt_tokens": len(prompt.token_ids),
    }


def _with_system(messages: list[Message], system_message: str | None) -> list[Message]:
    if system_message is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system_message}, *messages]


def _cut(ids: list[int], row: Row, config: GenerationConfig) -> list[int]:
    limit = config.data.max_prompt_length
    if len(ids) <= limit:
        return ids
    if config.data.truncation == "error":
        raise UserError.for_key(
            "data.max_prompt_length",
            limit,
            f"the prompt of {row.place} has {len(ids)} tokens and data.truncation=error",
            "Raise the limit, or set data.truncation to left, right or middle",
        )
    return truncate(ids, limit, config.data.truncation)


def _groups_in_flight(config: GenerationConfig, num_servers: int) -> int:
    """Prompts that keep every server full, with as many again waiting behind them."""
    return max(num_servers, math.ceil(2 * config.rollout.max_num_seqs * num_servers / config.n_samples))


def _log_summary(path: Path, groups: Sequence[Sequence[RolloutOutput]]) -> None:
    generations = [output.generation for group in groups for output in group]
    cut = sum(generation.finish_reason == "length" for generation in generations)
    tokens = sum(len(generation.token_ids) for generation in generations)
    logger.info(
        "%s: %d prompts, %d responses of %.0f tokens on average, %d of them cut at the length limit",
        path,
        len(groups),
        len(generations),
        tokens / max(len(generations), 1),
        cut,
    )
