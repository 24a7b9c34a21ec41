# SPDX-License-Identifier: Apache-2.0
"""Sampling answers to the prompts of a file: `python3 -m verl.trainer.main_generation KEY=VALUE ...`.

    model.path=FOLDER data.path=prompts.parquet output=responses.parquet [n_samples=8] [rollout.temperature=0] ...

All keys with their defaults are in verl/trainer/config/generation.yaml. The answer of the policy trained with
ReasonFlux-PRM as its authors ask for it:

    python3 -m verl.trainer.main_generation model.path=Gen-Verse/ReasonFlux-PRM-Qwen-2.5-7B \\
        data.path=problems.jsonl data.prompt_key=problem output=answers.jsonl \\
        data.system_message='"Please reason step by step, and put your final answer in \\boxed{}."'

`python3 -m verl.trainer.main_eval data.path=responses.parquet` grades what it writes.
"""

from __future__ import annotations

from collections.abc import Sequence

from verl.config import GenerationConfig
from verl.config.hydra import LoadedConfig
from verl.config.plan import generation_plan_text
from verl.trainer.entry_point import EntryPoint, run_entry_point
from verl.trainer.generation import Generate


def run_generation(loaded: LoadedConfig[GenerationConfig]) -> None:
    """Answer the prompts.

    Args:
        loaded: A checked configuration, its files looked for.
    """
    Generate(loaded.config).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: Command line without the program's name; None for `sys.argv`.

    Returns:
        Exit code: 0, or 2 when the user has to mend something.
    """
    entry = EntryPoint("generation", GenerationConfig, generation_plan_text, run_generation, __doc__ or "")
    return run_entry_point(entry, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
