# SPDX-License-Identifier: Apache-2.0
"""Training a process-reward model on labelled steps: `python3 -m verl.trainer.prm_trainer KEY=VALUE ...`.

    model.path=FOLDER data.train_files=FILE [data.val_files=FILE] [trainer.n_gpus_per_node=8] ...

The model is a `Qwen2ForProcessRewardModel`, or a Qwen2 language model that gets a fresh head. It learns from exactly
the input that scoring will show it: the PRM adapter writes both. All keys with their defaults are in
verl/trainer/config/prm_trainer.yaml.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from verl.config import PRMTrainerConfig
from verl.data.prm_dataset import EncodeSteps, PRMDataset, StepEncoding
from verl.data.sampler import LoaderSettings, build_dataloader
from verl.rewards.prm.adapters import AdapterSettings, get_prm_adapter, resolve_adapter_name
from verl.rewards.prm.model import Qwen2ForProcessRewardModel
from verl.rewards.prm.types import ScoreRequest
from verl.trainer.supervised import SupervisedData
from verl.trainer.supervised_batches import prm_batch
from verl.trainer.supervised_run import Program, run_main
from verl.utils.tokenizer import load_tokenizer


def read_prm_data(config: PRMTrainerConfig) -> SupervisedData:
    """Read and encode the labelled solutions.

    Args:
        config: A checked configuration.

    Returns:
        The data.

    Raises:
        UserError: A file or row is not as needed, or the tokenizer has no step token.
    """
    data = config.data
    encode = step_encoder(config)
    train = build_dataloader(
        PRMDataset(data, encode, "train"), LoaderSettings(data.train_batch_size, data.shuffle, config.trainer.seed)
    )
    if not data.val_files:
        return SupervisedData(train, None, prm_batch)
    settings = LoaderSettings(data.train_batch_size, shuffle=False, drop_last=False)
    return SupervisedData(train, build_dataloader(PRMDataset(data, encode, "val"), settings), prm_batch)


def step_encoder(config: PRMTrainerConfig) -> EncodeSteps:
    """Make the function that writes a solution as the trained PRM will be shown it.

    Args:
        config: A checked configuration.

    Returns:
        A function of problem and steps; never windows, the data set sees to the length.

    Raises:
        UserError: The tokenizer has no step token or no chat template.
    """
    model = config.model
    tokenizer = load_tokenizer(model.tokenizer_path or model.path, model.trust_remote_code, "model.path")
    if model.custom_chat_template:
        tokenizer.chat_template = model.custom_chat_template
    architectures = {"architectures": [Qwen2ForProcessRewardModel.__name__]}
    name, _ = resolve_adapter_name("auto", architectures, model.path)
    adapter = get_prm_adapter(name)(tokenizer, AdapterSettings(sys.maxsize, sys.maxsize))

    def encode(problem: str, steps: Sequence[str]) -> StepEncoding:
        (shown,) = adapter.plan(ScoreRequest("", problem, tuple(steps))).inputs
        return StepEncoding(shown.token_ids, [int(place) for place in shown.score_positions])

    return encode


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: Command line without the program's name; None for `sys.argv`.

    Returns:
        Exit code: 0, or 2 when the user has to mend something.
    """
    program = Program("prm", "prm_trainer", PRMTrainerConfig, read_prm_data, __doc__ or "")
    return run_main(program, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
