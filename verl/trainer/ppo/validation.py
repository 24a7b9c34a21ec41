# SPDX-License-Identifier: Apache-2.0
"""Validation: sample the held-out prompts with the validation settings and judge the answers by rule alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from verl.config import PPOTrainerConfig
from verl.rewards.loop import Verifier
from verl.rewards.types import RewardInput, RuleVerdict
from verl.rollout.base import SamplingSettings
from verl.rollout.to_batch import RolloutOutput
from verl.trainer.ppo.prompts import group_requests, prompt_batch, reward_input, reward_inputs_of
from verl.trainer.ppo.rollout_stream import RolloutStream
from verl.trainer.ppo.val_metrics import JudgedResponse, accuracy_metrics
from verl.utils.async_loop import BackgroundLoop


class Judges(Protocol):
    """Gives a verifier for one batch; `RewardLoop` does."""

    def open_verifier(self, uids: Sequence[str], group_size: int) -> Verifier:
        """See `RewardLoop.open_verifier`."""
        ...


@dataclass(frozen=True)
class _Judged:
    item: RewardInput
    verdict: RuleVerdict


class Validator:
    """Runs a validation on the rollout servers of the run.

    Example:
        >>> validator = Validator(config, loop, stream, reward_loop)
        >>> metrics = validator.run(val_loader, step=20, pad_token_id=0)
    """

    def __init__(self, config: PPOTrainerConfig, loop: BackgroundLoop, stream: RolloutStream, judges: Judges):
        """Remember the parts.

        Args:
            config: Reads `rollout.val_kwargs`, the response limit and the dump folder.
            loop: Event loop of the run.
            stream: The rollout servers.
            judges: Gives the rule verifier, which judges as in training.
        """
        self._loop, self._stream, self._judges = loop, stream, judges
        self._val = config.actor_rollout_ref.rollout.val_kwargs
        self._sampling = SamplingSettings(
            temperature=self._val.temperature if self._val.do_sample else 0.0,
            top_p=self._val.top_p,
            top_k=self._val.top_k,
            max_new_tokens=config.data.max_response_length,
            seed=config.trainer.seed if self._val.do_sample else None,
        )
        folder = config.trainer.validation_data_dir
        self._folder = Path(folder).expanduser() if folder else None
        self.examples: list[tuple[str, str, bool]] = []

    def run(self, batches: Iterable[Mapping[str, Any]], step: int, pad_token_id: int) -> dict[str, float]:
        """Sample and judge every prompt.

        Args:
            batches: The validation loader.
            step: Training step, for names.
            pad_token_id: The policy tokenizer's.

        Returns:
            `val/...` metrics. The same seeds are used every time, so that two validations differ by the policy alone.
        """
        judged: list[_Judged] = []
        for number, rows in enumerate(batches):
            judged += self._loop.run(self._judge_batch(rows, f"val{step}.{number}", pad_token_id))
        self.examples = [(str(j.item.prompt[-1]["content"]), j.item.response, j.verdict.is_correct) for j in judged]
        if self._folder is not None:
            self._dump(judged, step)
        responses = [
            JudgedResponse(j.item.uid, j.item.data_source, j.verdict.is_correct, j.verdict.predicted) for j in judged
        ]
        metrics = accuracy_metrics(responses)
        if judged:
            metrics["val/response_length/mean"] = sum(j.item.num_tokens for j in judged) / len(judged)
            metrics["val/unjudged/share"] = sum(j.verdict.status != "scored" for j in judged) / len(judged)
        return metrics

    async def _judge_batch(self, rows: Mapping[str, Any], name: str, pad_token_id: int) -> list[_Judged]:
        prompts = prompt_batch(rows, name, pad_token_id)
        by_uid = reward_inputs_of(prompts)
        tasks: dict[tuple[str, int], asyncio.Task[_Judged]] = {}
        group_size = self._val.n if self._val.do_sample else 1
        requests = group_requests(prompts, group_size, self._sampling)
        verifier = self._judges.open_verifier([request.uid for request in requests], group_size)

        def start(output: RolloutOutput) -> None:
            item = reward_input(output, by_uid[output.uid])
            tasks[output.uid, output.index] = asyncio.create_task(_judge(verifier, item))

        groups = await self._stream.generate(requests, start)
        return [await tasks[output.uid, output.index] for group in groups for output in group]

    def _dump(self, judged: list[_Judged], step: int) -> None:
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"{step}.jsonl").open("w", encoding="utf-8") as file:
            for entry in judged:
                row = {
                    "uid": entry.item.uid,
                    "index": entry.item.index,
                    "data_source": entry.item.data_source,
                    "prompt": entry.item.prompt,
                    "response": entry.item.response,
                    "ground_truth": entry.item.ground_truth,
                    "predicted": entry.verdict.predicted,
                    "is_correct": entry.verdict.is_correct,
                    "num_tokens": entry.item.num_tokens,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


async def _judge(verifier: Verifier, item: RewardInput) -> _Judged:
    return _Judged(item, await verifier.verify(item))
