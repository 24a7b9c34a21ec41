# SPDX-License-Identifier: Apache-2.0
"""The order in which rows are drawn, and the loader that can be saved in the middle of an epoch and continued.

The work is torchdata's; here it gets a seed, a collate function and checks. Knows no column.
"""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, SequentialSampler
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler

from verl.data.collate import collate_rows
from verl.utils.errors import UserError


@dataclass(frozen=True)
class LoaderSettings:
    """How rows are drawn.

    Args:
        batch_size: Rows per batch.
        shuffle: Draw a new random order in every epoch; else the files' order.
        seed: Seed of that order.
        drop_last: Leave out the last, smaller batch of an epoch.
        num_workers: Processes that read ahead; 0 reads in the caller. Rows in memory gain nothing by more. The seed
            fixes the order for a given number only: torchdata draws from the generator differently.
        batch_size_key: Configuration key of the batch size, for messages.
    """

    batch_size: int
    shuffle: bool = True
    seed: int = 0
    drop_last: bool = True
    num_workers: int = 0
    batch_size_key: str = "data.train_batch_size"


def build_dataloader(dataset: Dataset[Any], settings: LoaderSettings) -> StatefulDataLoader:
    """Build the loader of a dataset.

    Iterating over it is one epoch; iterating again is the next, in another order when shuffled. `state_dict()` after
    any batch, given to `load_state_dict` of an equal loader, makes that one continue with the next batch.

    Args:
        dataset: A dataset with a length whose rows are mappings.
        settings: How rows are drawn.

    Returns:
        The loader; its batches are `collate_rows` of the rows.

    Raises:
        UserError: The batch is larger than the dataset and `drop_last` would leave nothing.
    """
    assert isinstance(dataset, Sized)
    if settings.drop_last and len(dataset) < settings.batch_size:
        raise UserError.for_key(
            settings.batch_size_key,
            settings.batch_size,
            f"the data set has only {len(dataset)} rows, not one whole batch",
            f"Set {settings.batch_size_key} to {len(dataset)} or less, or give more rows",
        )
    generator = torch.Generator().manual_seed(settings.seed)
    sampler = RandomSampler(dataset, generator=generator) if settings.shuffle else SequentialSampler(dataset)
    return StatefulDataLoader(
        dataset,
        batch_size=settings.batch_size,
        sampler=sampler,
        drop_last=settings.drop_last,
        num_workers=settings.num_workers,
        collate_fn=collate_rows,
    )
