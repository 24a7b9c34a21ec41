# SPDX-License-Identifier: Apache-2.0
"""GRPO by TRL's `GRPOTrainer` on a CPU, timed step by step; run by `grpo_step.py` in an environment that has TRL.

Knows nothing of verl. Settings come as a JSON file, the steps' times go to another one.

    python benchmarks/peers/trl_grpo.py settings.json steps.json
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
import trl
from datasets import load_dataset
from digit_reward import compute_score
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Clock(TrainerCallback):
    """Seconds and tokens of every training step; a step lasts from the end of the one before it to its own end."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.rows: list[dict[str, float]] = []
        self.tokens = self.responses = 0
        self.generation_s = 0.0
        self._started_s = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the first step."""
        self._started_s = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """End a step."""
        now_s = time.perf_counter()
        counts = torch.tensor([self.tokens, self.responses])
        if dist.is_initialized():
            dist.all_reduce(counts)
        self.rows.append(
            {
                "step_s": now_s - self._started_s,
                "generation_s": self.generation_s,
                "tokens": int(counts[0]),
                "responses": int(counts[1]),
            }
        )
        self.tokens = self.responses = 0
        self.generation_s = 0.0
        self._started_s = now_s  # counting over processes belongs to the next step: a few microseconds


class TimedTrainer(GRPOTrainer):
    """Adds up the time that generation takes."""

    clock: Clock

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        started_s = time.perf_counter()
        answer = super()._generate(*args, **kwargs)
        self.clock.generation_s += time.perf_counter() - started_s
        return answer


def trainer_config(settings: dict[str, Any], processes: int) -> GRPOConfig:
    """Translate the settings.

    Args:
        settings: See `grpo_step.trl_settings`.
        processes: Data-parallel processes.

    Returns:
        TRL's arguments: on-policy, no KL term, token-mean loss, no logging but to memory.
    """
    return GRPOConfig(
        output_dir=settings["folder"],
        use_cpu=True,
        bf16=settings["dtype"] == "bfloat16",
        fp16=False,
        per_device_train_batch_size=settings["prompts"] * settings["samples"] // processes,
        num_generations=settings["samples"],
        max_completion_length=settings["max_response"],
        max_steps=settings["steps"],
        generation_kwargs={"min_new_tokens": settings["max_response"]} if settings["equal"] else None,
        learning_rate=settings["lr"],
        lr_scheduler_type="constant",
        temperature=1.0,
        beta=0.0,
        loss_type="dapo",
        num_iterations=1,
        gradient_checkpointing=False,
        use_vllm=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        dataloader_num_workers=0,
        seed=0,
        torch_compile=settings["compiled"],
    )


def main() -> int:
    """Train and write the steps."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    clock = Clock()

    def reward(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        clock.tokens += sum(map(len, completion_ids))
        clock.responses += len(completion_ids)
        return [compute_score("", each[0]["content"], "") for each in completions]

    data = load_dataset("json", data_files=settings["prompts_file"], split="train", cache_dir=settings["folder"])
    trainer = TimedTrainer(
        model=AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32),
        args=trainer_config(settings, processes),
        reward_funcs=reward,
        train_dataset=data.select_columns(["prompt"]),
        processing_class=AutoTokenizer.from_pretrained(settings["model"], padding_side="left"),
        callbacks=[clock],
    )
    trainer.clock = clock
    trainer.train()
    if int(os.environ.get("RANK", "0")) == 0:
        versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
        written = {"versions": versions, "processes": processes, "steps": clock.rows}
        Path(sys.argv[2]).write_text(json.dumps(written), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
