# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.tiny_models import tiny_model
from verl.engines.hf_export import write_hf_folder


@pytest.mark.parametrize(("max_shard_bytes", "num_files"), [(10**9, 1), (20_000, 4)])
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_one_or_several_files(
    tmp_path: Path, tied: bool, max_shard_bytes: int, num_files: int
) -> None:
    model = tiny_model(tied)
    weights = ((name, parameter.detach()) for name, parameter in model.named_parameters())
    write_hf_folder(str(tmp_path), model, weights, torch.float32, True, max_shard_bytes)
    assert len(list(tmp_path.glob("*.safetensors"))) >= num_files
    assert not list(tmp_path.glob("*.tmp"))
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert again.config.tie_word_embeddings == tied
    ids = torch.tensor([[5, 6, 7, 8]])
    assert again(ids).logits.equal(model(ids).logits)


def test_other_ranks_run_the_stream_and_write_nothing(tmp_path: Path) -> None:
    model = tiny_model()
    seen = []
    stream = ((seen.append(name) or name, p.detach()) for name, p in model.named_parameters())
    write_hf_folder(str(tmp_path / "none"), model, stream, torch.float32, is_writer=False)
    assert len(seen) == len(list(model.parameters()))
    assert not (tmp_path / "none").exists()
