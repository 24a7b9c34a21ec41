# SPDX-License-Identifier: Apache-2.0
"""Supervised fine-tuning, a policy's warm start: `python3 -m verl.trainer.sft_trainer KEY=VALUE ...`.

    model.path=FOLDER data.train_files=FILE [data.val_files=FILE] [trainer.n_gpus_per_node=8] ...

All keys with their defaults are in verl/trainer/config/sft_trainer.yaml. Leaves metrics.jsonl, checkpoints/ and hf/ (a
model that transformers and vLLM load) in trainer.default_local_dir.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from verl.config import SFTTrainerConfig
from verl.data.sampler import LoaderSettings, build_dataloader
from verl.data.sft_dataset import SFTDataset
from verl.trainer.supervised import SupervisedData
from verl.trainer.supervised_batches import sft_batch
from verl.trainer.supervised_run import Program, run_main
from verl.utils.tokenizer import load_tokenizer


def read_sft_data(config: SFTTrainerConfig) -> SupervisedData:
    """Read and tokenize the demonstrations.

    Args:
        config: A checked configuration.

    Returns:
        The data.

    Raises:
        UserError: A file or row is not as needed.
    """
    data, model = config.data, config.model
    tokenizer: Any = load_tokenizer(model.tokenizer_path or model.path, model.trust_remote_code, "model.path")
    if model.custom_chat_template:
        tokenizer.chat_template = model.custom_chat_template
    train = build_dataloader(
        SFTDataset(data, tokenizer, "train"), LoaderSettings(data.train_batch_size, data.shuffle, config.trainer.seed)
    )
    if not data.val_files:
        return SupervisedData(train, None, sft_batch)
    settings = LoaderSettings(data.train_batch_size, shuffle=False, drop_last=False)
    return SupervisedData(train, build_dataloader(SFTDataset(data, tokenizer, "val"), settings), sft_batch)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: Command line without the program's name; None for `sys.argv`.

    Returns:
        Exit code: 0, or 2 when the user has to mend something.
    """
    program = Program("sft", "sft_trainer", SFTTrainerConfig, read_sft_data, __doc__ or "")
    return run_main(program, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
