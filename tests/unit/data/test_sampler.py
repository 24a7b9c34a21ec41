# SPDX-License-Identifier: Apache-2.0
import copy
from itertools import islice

import pytest
from torch.utils.data import Dataset

from verl.data.collate import collate_rows
from verl.data.sampler import LoaderSettings, build_dataloader
from verl.utils.errors import UserError


class Numbers(Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        return {"index": place, "name": str(place)}


def batches(loader):
    """Batch after batch, epoch after epoch."""
    while True:
        for batch in loader:
            yield batch["index"]


def test_collate_makes_columns_and_refuses_rows_that_differ():
    assert collate_rows([{"a": 1, "b": [2]}, {"a": 3, "b": []}]) == {"a": [1, 3], "b": [[2], []]}
    assert collate_rows([]) == {}
    with pytest.raises(ValueError, match="row 1"):
        collate_rows([{"a": 1}, {"b": 1}])


def test_every_epoch_holds_every_row_once_in_a_new_order_that_the_seed_fixes():
    def two_epochs(seed):
        return list(islice(batches(build_dataloader(Numbers(6), LoaderSettings(2, seed=seed))), 6))

    first, second = two_epochs(1)[:3], two_epochs(1)[3:]
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(6))
    assert first != second
    assert two_epochs(1) == two_epochs(1) != two_epochs(2)


def test_without_shuffle_the_order_is_the_files():
    loader = build_dataloader(Numbers(5), LoaderSettings(2, shuffle=False, drop_last=False))
    assert [batch["name"] for batch in loader] == [["0", "1"], ["2", "3"], ["4"]]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("count", "batch_size"), [(7, 2), (6, 3), (4, 4)])
def test_a_saved_position_continues_as_if_never_stopped(shuffle, count, batch_size):
    settings = LoaderSettings(batch_size, shuffle=shuffle, seed=3)
    expected = list(islice(batches(build_dataloader(Numbers(count), settings)), 12))
    for stop in range(10):
        stopped = build_dataloader(Numbers(count), settings)
        before = list(islice(batches(stopped), stop))
        state = copy.deepcopy(stopped.state_dict())
        resumed = build_dataloader(Numbers(count), settings)
        resumed.load_state_dict(state)
        assert before + list(islice(batches(resumed), 12 - stop)) == expected


def test_a_saved_position_continues_also_when_reading_ahead():
    settings = LoaderSettings(2, seed=5, num_workers=1)
    expected = list(islice(batches(build_dataloader(Numbers(6), settings)), 6))
    stopped, resumed = build_dataloader(Numbers(6), settings), build_dataloader(Numbers(6), settings)
    before = list(islice(batches(stopped), 2))
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    assert before + list(islice(batches(resumed), 4)) == expected


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match=r"data\.train_batch_size=8.*only 7 rows"):
        build_dataloader(Numbers(7), LoaderSettings(8))
    assert len(list(build_dataloader(Numbers(7), LoaderSettings(8, drop_last=False)))) == 1
