# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

from verl.engines.activation_offload import HostOffload


def _gradients(is_offloaded: bool) -> tuple[list[torch.Tensor], int]:
    torch.manual_seed(0)
    layers = [torch.nn.Sequential(torch.nn.Linear(6, 24), torch.nn.GELU(), torch.nn.Linear(24, 6)) for _ in range(3)]
    hidden = torch.randn(5, 6, requires_grad=True)
    offload = HostOffload()
    if is_offloaded:
        with offload:
            for layer in layers:
                hidden = checkpoint(layer, hidden, use_reentrant=False)
    else:
        for layer in layers:
            hidden = layer(hidden)
    hidden.square().sum().backward()
    return [parameter.grad for layer in layers for parameter in layer.parameters()], offload.num_bytes


def test_gradients_are_the_same_and_only_the_layers_inputs_are_kept() -> None:
    plain, offloaded = _gradients(False), _gradients(True)
    for mine, theirs in zip(offloaded[0], plain[0], strict=True):
        assert mine.equal(theirs)
    assert offloaded[1] == 3 * 5 * 6 * 4  # inputs of three layers, float32


def test_what_is_saved_is_a_copy() -> None:
    values = torch.ones(4, requires_grad=True)
    doubled = values * 2
    with HostOffload():
        result = doubled.square().sum()
    with torch.no_grad():
        doubled.zero_()  # would be refused, or change the gradient, if the graph held the tensor itself
    result.backward()
    assert values.grad is not None and values.grad.tolist() == [8.0] * 4
