# SPDX-License-Identifier: Apache-2.0
"""Digests of tensors, and the stand-in for a model that compares them on the way in."""

from __future__ import annotations

import pytest
import torch
import xxhash

from verl.weight_sync.base import NamedWeights
from verl.weight_sync.digest import CheckedModel, WeightDigestError, check_digests, checked, digest_of


class Model:
    """Keeps what it loads; `reads` limits how many tensors it asks for."""

    def __init__(self, reads: int | None = None) -> None:
        self.loaded: dict[str, torch.Tensor] = {}
        self._reads = reads

    def load_weights(self, weights: NamedWeights) -> set[str]:
        for name, tensor in weights:
            self.loaded[name] = tensor
            if len(self.loaded) == self._reads:
                break
        return set(self.loaded)


def weights() -> dict[str, torch.Tensor]:
    return {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(0)}


def digests() -> dict[str, str]:
    return {name: digest_of(tensor) for name, tensor in weights().items()}


def test_a_digest_is_that_of_the_bytes_in_row_major_order() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    assert digest_of(tensor) == xxhash.xxh3_64_hexdigest(tensor.numpy().tobytes())
    assert digest_of(tensor.T.contiguous().T) == digest_of(tensor)
    assert digest_of(tensor.T) != digest_of(tensor)


def test_what_was_sent_goes_in() -> None:
    model = Model()
    checked = CheckedModel(model, digests())
    assert checked.load_weights(weights().items()) == {"a", "b", "c"}
    checked.raise_if_some_are_missing()
    assert all(torch.equal(model.loaded[name], tensor) for name, tensor in weights().items())


@pytest.mark.parametrize("name", ["a", "b"])
def test_one_flipped_bit_is_refused_by_name_and_not_loaded(name: str) -> None:
    received = weights()
    received[name].view(torch.uint8)[..., 0] ^= 1
    model = Model()
    with pytest.raises(WeightDigestError, match=f"the bytes of '{name}' are not those that were sent"):
        CheckedModel(model, digests()).load_weights(received.items())
    assert name not in model.loaded


def test_a_tensor_that_was_not_sent_is_refused() -> None:
    with pytest.raises(WeightDigestError, match="'z' was received but not sent"):
        list(check_digests([("z", torch.ones(1))], digests()))


def test_tensors_that_did_not_arrive_are_missed() -> None:
    checked = CheckedModel(Model(reads=2), digests())
    checked.load_weights(weights().items())
    with pytest.raises(WeightDigestError, match="3 tensors were sent, 2 arrived"):
        checked.raise_if_some_are_missing()


class Engine:
    """Loads what it is given into its model, as vLLM's receivers do."""

    def __init__(self) -> None:
        self.model = Model()

    def receive(self, received: NamedWeights) -> None:
        self.model.load_weights(received)


@pytest.mark.parametrize("flips", [True, False])
def test_an_engine_has_its_own_model_again_whatever_happened(flips: bool) -> None:
    engine, received = Engine(), weights()
    model = engine.model
    if flips:
        received["a"][0, 0] += 1
    try:
        with checked(engine, list(digests()), list(digests().values())):
            assert engine.model is not model
            engine.receive(received.items())
    except WeightDigestError:
        assert flips
    assert engine.model is model
    assert ("a" in model.loaded) == (not flips)


def test_without_digests_an_engine_keeps_its_model() -> None:
    engine = Engine()
    model = engine.model
    with checked(engine, ["a"], []):
        assert engine.model is model
