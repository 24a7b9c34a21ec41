# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from verl.engines.megatron.offload import HostStash


def test_views_of_one_buffer_come_back_in_place() -> None:
    buffer = torch.arange(6.0)
    first, second = buffer[:4].view(2, 2), buffer[4:]
    stash = HostStash()
    stash.put_away([first, second])
    assert buffer.untyped_storage().nbytes() == 0
    assert not stash.is_empty
    stash.bring_back()
    assert stash.is_empty
    assert first.tolist() == [[0, 1], [2, 3]]
    first.add_(10)
    assert buffer.tolist() == [10, 11, 12, 13, 4, 5]


def test_putting_away_twice_keeps_the_content() -> None:
    weight, moment = torch.ones(3), torch.full((2,), 7.0)
    stash = HostStash()
    stash.put_away([weight])
    stash.put_away([weight, moment])
    stash.bring_back()
    assert weight.tolist() == [1, 1, 1]
    assert moment.tolist() == [7, 7]


def test_gradients_come_back_as_zeros() -> None:
    gradient = torch.ones(3)
    stash = HostStash()
    stash.put_away([gradient], keeps_content=False)
    stash.bring_back()
    assert gradient.tolist() == [0, 0, 0]
    stash.bring_back()
    assert gradient.tolist() == [0, 0, 0]
