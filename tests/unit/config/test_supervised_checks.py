# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from verl.config import PRMTrainerConfig, SFTTrainerConfig
from verl.config.hydra import load_config
from verl.utils.errors import UserError

REQUIRED = ["data.train_files=a.jsonl", "model.path=org/m"]
ROOTS = {"sft_trainer": SFTTrainerConfig, "prm_trainer": PRMTrainerConfig}


@pytest.mark.parametrize("name", ROOTS)
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["data.train_batch_size=10", "trainer.n_gpus_per_node=4"],
            "must be a multiple of the 4 data-parallel ranks. Set it to e.g. 12",
        ),
        (["data.max_length=2048", "max_token_len_per_gpu=2047"], "one full sequence has data.max_length=2048 tokens"),
        (["fsdp_config.fsdp_size=3", "trainer.n_gpus_per_node=4"], "must divide the 4 ranks"),
        (["fsdp_config.mixed_precision.reduce_dtype=fp16"], "reduce_dtype='float16': would need loss scaling"),
        (["data.train_files=[]"], "data.train_files='': is required"),
        (["model.path=''"], "model.path='': is required"),
        (["optim.lr=1e-5x"], "must be a finite number"),
        (["+data.max_lenght=3"], "Did you mean data.max_length?"),
    ],
)
def test_checks(name: str, overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(name, [*REQUIRED, *overrides], ROOTS[name])
    assert said in str(caught.value)


@pytest.mark.parametrize("cut", ["left", "middle"])
def test_steps_are_not_cut_from_their_labels(cut: str) -> None:
    load_config("sft_trainer", [*REQUIRED, f"data.truncation={cut}"], SFTTrainerConfig)
    with pytest.raises(UserError, match="labels"):
        load_config("prm_trainer", [*REQUIRED, f"data.truncation={cut}"], PRMTrainerConfig)


def test_old_sft_names() -> None:
    overrides = ["model.partial_pretrain=org/other", "data.micro_batch_size_per_gpu=4", "optim.warmup_steps_ratio=0.1"]
    loaded = load_config("sft_trainer", [*REQUIRED, *overrides], SFTTrainerConfig)
    assert loaded.config.model.path == "org/other"
    assert loaded.config.micro_batch_size_per_gpu == 4
    assert loaded.config.optim.lr_warmup_steps_ratio == 0.1
