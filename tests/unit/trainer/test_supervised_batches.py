# SPDX-License-Identifier: Apache-2.0
import torch

from verl.trainer.supervised_batches import prm_batch, sft_batch


def test_demonstrations_are_padded_outwards_and_filled_up_with_rows_that_count_nowhere() -> None:
    rows = {"prompt_token_ids": [[5], [6, 7], [8]], "response_token_ids": [[1, 2, 3], [4], [9, 9]]}
    columns = sft_batch(rows, num_ranks=2).batch
    assert columns["prompts"].tolist() == [[0, 5], [6, 7], [0, 8], [0, 5]]
    assert columns["prompt_mask"].tolist() == [[0, 1], [1, 1], [0, 1], [0, 1]]
    assert columns["responses"].tolist() == [[1, 2, 3], [4, 0, 0], [9, 9, 0], [1, 2, 3]]
    assert columns["response_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]]


def test_labelled_solutions_keep_positions_and_labels_together() -> None:
    rows = {
        "input_ids": [[5, 6, 7], [8, 9]],
        "label_positions": [[0, 2], [1]],
        "labels": [[1.0, 0.25], [0.0]],
        "index": [0, 1],
    }
    columns = prm_batch(rows, num_ranks=4).batch
    assert columns.batch_size == torch.Size([4])
    assert columns["input_ids"][:2].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert columns["attention_mask"][:2].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert columns["positions"][:2].tolist() == [[0, 2], [1, 0]]
    assert columns["labels"][:2].tolist() == [[1.0, 0.25], [0.0, 0.0]]
    assert columns["label_mask"].tolist() == [[1, 1], [1, 0], [0, 0], [0, 0]]
