# SPDX-License-Identifier: Apache-2.0
"""Heads are read from their own tensors; a checkpoint without the right ones is refused by name and shape."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.prm_families import FAMILIES, rewrite_config, rewrite_tensors, save_family
from verl.rewards.prm.files import tensor_shapes
from verl.rewards.prm.heads import HeadSpec, StepHead, check_shapes, load_head, wanted_shapes
from verl.utils.errors import UserError

KINDS = {
    "reasonflux_prm": HeadSpec("process"),
    "skywork_prm": HeadSpec("value"),
    "pure_prm": HeadSpec("labels"),
    "reasonflux_prm_1_5b": HeadSpec("reward_file"),
    "math_shepherd": HeadSpec("token_pair", (7, 5)),
}


@pytest.fixture(scope="module", params=KINDS)
def family(request, tmp_path_factory):
    return save_family(request.param, tmp_path_factory.mktemp(request.param)), KINDS[request.param]


def by_hand(folder, head: HeadSpec, hidden: torch.Tensor) -> torch.Tensor:
    weights = load_file(folder / "model.safetensors")
    if head.kind == "process":
        hidden = torch.relu(hidden @ weights["score.0.weight"].T + weights["score.0.bias"])
        return hidden @ weights["score.2.weight"].T + weights["score.2.bias"]
    if head.kind == "labels":
        return hidden @ weights["score.weight"].T + weights["score.bias"]
    if head.kind == "token_pair":
        return torch.stack([hidden @ weights["lm_head.weight"][row] for row in head.token_ids], dim=-1)
    if head.kind == "value":
        layer = {name: weights[f"v_head.summary.{name}"] for name in ("weight", "bias")}
    else:
        layer = torch.load(folder / "reward_head.pt", weights_only=True)
    value = hidden @ layer["weight"].T + layer["bias"]
    return torch.cat([torch.zeros_like(value), value], dim=-1)


def test_logits_equal_the_head_written_out(family):
    folder, head = family
    hidden = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))
    logits = load_head(folder, head)(hidden)
    assert logits.shape == (3, 5, 2) and logits.dtype == torch.float32
    torch.testing.assert_close(logits, by_hand(folder, head, hidden), atol=1e-5, rtol=1e-5)


def test_bfloat16_hidden_states_are_judged_in_float32(family):
    folder, head = family
    hidden = torch.randn(4, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    torch.testing.assert_close(load_head(folder, head)(hidden), by_hand(folder, head, hidden.float()))


def test_only_the_heads_own_tensors_are_read(family, tmp_path):
    """A checkpoint whose backbone is gone still gives its head."""
    folder, head = family
    copy = shutil.copytree(folder, tmp_path / "prm")
    rewrite_tensors(copy, {name: None for name in load_file(copy / "model.safetensors") if name.startswith("model.")})
    if head.kind == "reward_file":
        (copy / "model.safetensors").unlink()
    hidden = torch.randn(2, 64)
    assert torch.equal(load_head(copy, head)(hidden), load_head(folder, head)(hidden))


@pytest.mark.parametrize("adapter", sorted(KINDS.keys() - {"reasonflux_prm_1_5b"}))
def test_a_missing_or_misshapen_tensor_is_named(adapter, tmp_path):
    folder, head = save_family(adapter, tmp_path / adapter), KINDS[adapter]
    names = list(wanted_shapes(head.kind, 64)) or ["lm_head.weight"]
    for tensor, said in ((None, "but it is missing"), (torch.zeros(9, 3), r"but it has shape \[9, 3\]")):
        copy = shutil.copytree(folder, tmp_path / said[-4:-2])
        rewrite_tensors(copy, {names[0]: tensor})
        with pytest.raises(UserError, match=f"{names[0]} of shape .*, {said}"):
            check_shapes(tensor_shapes(copy), head, {"hidden_size": 64}, str(copy))
        with pytest.raises(UserError, match=names[0]):
            load_head(copy, head)


def test_tied_weights_lend_their_embedding_and_untied_ones_do_not(tmp_path):
    folder = save_family("reasonflux_prm_1_5b", tmp_path)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    hidden = torch.randn(2, 64)
    logits = load_head(folder, HeadSpec("token_pair", (3, 9)))(hidden)
    torch.testing.assert_close(logits, hidden @ embedding[[3, 9]].T)
    rewrite_config(folder, tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"lm_head\.weight"):
        load_head(folder, HeadSpec("token_pair", (3, 9)))


def test_a_vocabulary_without_the_two_tokens_is_refused(tmp_path):
    folder = save_family("math_shepherd", tmp_path)
    rows = tensor_shapes(folder)["lm_head.weight"][0]
    with pytest.raises(UserError, match=rf"of shape \[{rows + 1}, 64\], but it has shape \[{rows}, 64\]"):
        check_shapes(tensor_shapes(folder), HeadSpec("token_pair", (0, rows)), {"hidden_size": 64}, "p")
    with pytest.raises(UserError, match=f"lm_head.weight with more than {rows} rows, but it has {rows}"):
        load_head(folder, HeadSpec("token_pair", (0, rows)))


class _Bomb:
    """Unpickled by a careless reader, it leaves a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_the_reward_file_is_read_without_running_its_code(tmp_path):
    folder = save_family("reasonflux_prm_1_5b", tmp_path)
    torch.save({"weight": torch.zeros(1, 64), "bias": _Bomb(str(tmp_path / "exploded"))}, folder / "reward_head.pt")
    with pytest.raises(UserError, match="cannot be read as a dict of tensors"):
        load_head(folder, HeadSpec("reward_file"))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "state",
    [
        {"weight": torch.zeros(2, 64), "bias": torch.zeros(2)},
        {"weight": torch.zeros(1, 64)},
        {"weight": torch.zeros(1, 32), "bias": torch.zeros(1)},
        torch.zeros(3),
    ],
    ids=["two outputs", "no bias", "another width", "no dict"],
)
def test_another_reward_file_is_refused(tmp_path, state):
    folder = save_family("reasonflux_prm_1_5b", tmp_path)
    torch.save(state, folder / "reward_head.pt")
    with pytest.raises(UserError, match=r"must hold weight \[1, 64\] and bias \[1\]|cannot be read as a dict"):
        load_head(folder, HeadSpec("reward_file"))


def test_a_reward_file_with_prefixed_names_is_the_same_head(tmp_path):
    folder = save_family("reasonflux_prm_1_5b", tmp_path)
    before, hidden = load_head(folder, HeadSpec("reward_file")), torch.randn(2, 64)
    state = torch.load(folder / "reward_head.pt", weights_only=True)
    torch.save({f"reward_head.{name}": tensor for name, tensor in state.items()}, folder / "reward_head.pt")
    assert torch.equal(before(hidden), load_head(folder, HeadSpec("reward_file"))(hidden))
    (folder / "reward_head.pt").unlink()
    with pytest.raises(UserError, match="must hold reward_head.pt"):
        load_head(folder, HeadSpec("reward_file"))


def test_an_implicit_prm_has_no_head(tmp_path):
    assert "implicit_prm" in FAMILIES
    with pytest.raises(ValueError, match="compares two language models"):
        load_head(save_family("implicit_prm", tmp_path), HeadSpec("log_ratio"))


def test_one_number_stands_for_right():
    head = StepHead(torch.nn.Linear(4, 1))
    logits = head(torch.randn(3, 4))
    assert torch.equal(logits[:, 0], torch.zeros(3)) and not torch.equal(logits[:, 1], torch.zeros(3))
