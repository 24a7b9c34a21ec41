# SPDX-License-Identifier: Apache-2.0
"""One rank's slice in a group of one; over the slices of several gloo ranks it is tested by the engines' contract."""

from __future__ import annotations

import torch
import torch.distributed as dist

from tests.helpers.engine_cases import one_rank_group
from verl.algorithms.log_probs import ChunkedHead, log_probs_from_hidden
from verl.engines.vocab_parallel import RankVocabSlice

VOCAB, HIDDEN, TOKENS = 23, 7, 11


def test_the_only_rank_holds_the_whole_vocabulary() -> None:
    generator = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(TOKENS, HIDDEN, generator=generator), torch.randn(VOCAB, HIDDEN, generator=generator)
    labels = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
    with one_rank_group():
        assert dist.group.WORLD is not None
        head = ChunkedHead(RankVocabSlice(0, VOCAB, dist.group.WORLD), 0.7, with_entropy=True)
        found = head(hidden, weight, labels)
    wanted = log_probs_from_hidden(hidden, weight, labels, 0.7, with_entropy=True)
    torch.testing.assert_close(found, wanted)
