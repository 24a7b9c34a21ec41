# SPDX-License-Identifier: Apache-2.0
"""`DataProto`: cutting, joining, comparing, travelling."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import verl
from verl.protocol import DataProto, object_array


def batch_of(num_rows: int, width: int = 3, seed: int = 0, **meta_info: object) -> DataProto:
    random = np.random.default_rng(seed)
    tensors = {
        "responses": torch.from_numpy(random.integers(0, 50, (num_rows, width))),
        "advantages": torch.from_numpy(random.normal(size=(num_rows, width)).astype(np.float32)),
        "is_correct": torch.from_numpy(random.integers(0, 2, num_rows) == 1),
    }
    steps = [random.normal(size=number % 3).astype(np.float32) for number in range(num_rows)]
    others = {"uid": [f"u{number // 2}" for number in range(num_rows)], "step_scores": steps}
    return DataProto.from_dict(tensors, others, meta_info)


def rows_of(batch: DataProto) -> list[tuple]:
    """Every row as plain Python values, the brute-force view of a batch."""
    rows = []
    for number in range(len(batch)):
        tensors = {key: batch.batch[key][number].tolist() for key in batch.batch.keys()}
        others = {key: np.asarray(batch.non_tensor_batch[key][number]).tolist() for key in batch.non_tensor_batch}
        rows.append(tuple(sorted((tensors | others).items())))
    return rows


def test_importing_verl_loads_no_heavy_package():
    heavy = "{'torch', 'ray', 'tensordict', 'vllm', 'transformers'}"
    code = f"import sys, verl; loaded = {heavy} & set(sys.modules); sys.exit(repr(loaded) if loaded else 0)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def test_the_package_hands_out_data_proto_and_refuses_other_names():
    assert verl.DataProto is DataProto
    with pytest.raises(AttributeError, match="NoSuchName"):
        verl.NoSuchName  # noqa: B018


def test_a_list_of_equally_long_lists_stays_a_column_of_lists():
    array = object_array([[1, 2], [3, 4]])
    assert array.shape == (2,) and array[1] == [3, 4]


def test_columns_of_different_length_are_refused():
    with pytest.raises(ValueError, match="length"):
        DataProto.from_dict({"a": torch.zeros(2)}, {"uid": ["x"]})
    with pytest.raises(ValueError, match="same number of rows"):
        DataProto.from_dict({"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(ValueError, match="same number of rows"):
        DataProto.from_dict({"a": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="both"):
        DataProto.from_dict({"a": torch.zeros(1)}, {"a": ["x"]})


def test_length_without_tensors_and_without_columns():
    assert len(DataProto.from_dict(non_tensors={"uid": ["a", "b"]})) == 2
    assert len(DataProto(meta_info={"x": 1})) == 0
    assert list(DataProto(meta_info={"x": 1})) == []


def test_one_row_by_number():
    batch = batch_of(4)
    item = batch[-1]
    assert item.batch["responses"].tolist() == batch.batch["responses"][3].tolist()
    assert item.non_tensor_batch["uid"] == "u1"
    assert len(list(batch)) == 4
    with pytest.raises(IndexError):
        batch[4]


@pytest.mark.parametrize(
    "index",
    [[2, 0, 0], np.array([1, -1]), torch.tensor([3]), np.array([True, False, True, False]), slice(1, 3), []],
    ids=["list", "negative", "tensor", "mask", "slice", "empty"],
)
def test_picking_rows_equals_picking_from_the_list_of_rows(index):
    batch = batch_of(4)
    numbers = np.arange(4)[np.asarray(index, dtype=int) if isinstance(index, list) else index]
    assert rows_of(batch[index]) == [rows_of(batch)[number] for number in np.atleast_1d(numbers)]


@pytest.mark.parametrize("index", [[4], [-5], [0.5], np.array([True]), [[0]]])
def test_a_wrong_row_index_is_refused(index):
    with pytest.raises(IndexError):
        batch_of(4)[index]


def test_select_keeps_what_is_named_and_names_what_is_missing():
    batch = batch_of(2, temperature=1.0, step=3)
    kept = batch.select(["uid", "advantages"], meta_info_keys=["step"])
    assert set(kept.keys()) == {"uid", "advantages"} and kept.meta_info == {"step": 3}
    assert batch.select(["uid"]).batch is None
    with pytest.raises(KeyError, match="old_log_probs"):
        batch.select(["uid", "old_log_probs"])


def test_union_joins_columns_and_leaves_both_sides_alone():
    batch = batch_of(2)
    new = DataProto.from_dict({"old_log_probs": torch.ones(2, 3)}, {"uid": batch.non_tensor_batch["uid"]}, {"step": 1})
    united = batch.union(new)
    assert set(united.keys()) == set(batch.keys()) | {"old_log_probs"} and united.meta_info == {"step": 1}
    assert "old_log_probs" not in batch and batch.meta_info == {}
    assert set(batch.union(DataProto(meta_info={"a": 1})).keys()) == set(batch.keys())


def test_union_accepts_equal_columns_even_with_nan():
    batch = DataProto.from_dict(
        {"a": torch.tensor([1.0, float("nan")])}, {"s": [np.array([float("nan")]), np.zeros(0)]}
    )
    copy = pickle.loads(pickle.dumps(batch))
    assert set(batch.union(copy).keys()) == {"a", "s"}


@pytest.mark.parametrize(
    "other",
    [
        DataProto.from_dict({"advantages": torch.zeros(2, 3)}),
        DataProto.from_dict({"advantages": torch.zeros(2, 4)}),
        DataProto.from_dict({"advantages": torch.zeros(2, 3, dtype=torch.float64)}),
        DataProto.from_dict(non_tensors={"uid": ["u0", "other"]}),
        DataProto.from_dict(non_tensors={"step_scores": [np.zeros(1, np.float32), np.zeros(1, np.float32)]}),
        DataProto(meta_info={"step": 2}),
        DataProto.from_dict({"uid": torch.zeros(2)}),
        DataProto.from_dict({"new": torch.zeros(3)}),
    ],
    ids=["values", "width", "dtype", "objects", "ragged", "meta", "place", "rows"],
)
def test_union_refuses_a_contradiction(other):
    with pytest.raises(ValueError):
        batch_of(2, step=1).union(other)


@given(num_rows=st.integers(1, 12), num_chunks=st.integers(1, 12), seed=st.integers(0, 99))
def test_chunks_put_together_again_are_the_batch(num_rows, num_chunks, seed):
    batch = batch_of(num_rows, seed=seed, temperature=0.7)
    if num_rows % num_chunks:
        with pytest.raises(ValueError, match="equal parts"):
            batch.chunk(num_chunks)
        return
    parts = batch.chunk(num_chunks)
    joined = DataProto.concat(parts)
    assert [len(part) for part in parts] == [num_rows // num_chunks] * num_chunks
    assert rows_of(joined) == rows_of(batch) and joined.meta_info == batch.meta_info
    assert joined.batch["is_correct"].dtype == torch.bool


def test_chunks_share_memory_with_the_batch():
    batch = batch_of(4)
    batch.chunk(2)[1].batch["advantages"][0, 0] = 99.0
    assert batch.batch["advantages"][2, 0] == 99.0


def test_concat_pads_responses_right_and_prompts_left():
    parts = [
        DataProto.from_dict(
            {
                "prompts": torch.full((1, size), 5),
                "prompt_mask": torch.ones(1, size, dtype=torch.int64),
                "responses": torch.full((1, size), 6),
                "advantages": torch.full((1, size), 0.5),
            },
            meta_info={"pad_token_id": 9},
        )
        for size in (1, 3)
    ]
    batch = DataProto.concat(parts).batch
    assert batch["prompts"].tolist() == [[9, 9, 5], [5, 5, 5]]
    assert batch["prompt_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
    assert batch["responses"].tolist() == [[6, 9, 9], [6, 6, 6]]
    assert batch["advantages"].tolist() == [[0.5, 0.0, 0.0], [0.5, 0.5, 0.5]]
    assert batch["advantages"].dtype == torch.float32


def test_concat_refuses_what_it_cannot_join():
    with pytest.raises(ValueError, match="at least one"):
        DataProto.concat([])
    with pytest.raises(ValueError, match="'mine'.*schema"):
        DataProto.concat([DataProto.from_dict({"mine": torch.zeros(1, size)}) for size in (1, 2)])
    with pytest.raises(ValueError, match="advantages"):
        DataProto.concat([batch_of(1), batch_of(1).select(["responses"])])
    with pytest.raises(ValueError, match="temperature"):
        DataProto.concat([batch_of(1, temperature=1.0), batch_of(1, temperature=0.5)])


def test_concat_gathers_the_metrics_of_the_parts():
    parts = [batch_of(1, metrics={"loss": float(rank)}, step=1) for rank in range(3)]
    joined = DataProto.concat([*parts, batch_of(1, step=1)])
    assert joined.meta_info == {"step": 1, "metrics": [{"loss": 0.0}, {"loss": 1.0}, {"loss": 2.0}]}


def test_repeat_keeps_groups_together_or_tiles():
    batch = DataProto.from_dict({"a": torch.tensor([1, 2])}, {"uid": ["x", "y"]})
    assert batch.repeat(2).batch["a"].tolist() == [1, 1, 2, 2]
    assert batch.repeat(2, interleave=False).non_tensor_batch["uid"].tolist() == ["x", "y", "x", "y"]


@given(st.permutations(range(5)))
def test_reorder_and_back(order):
    batch = batch_of(5)
    moved = batch.reorder(order)
    assert rows_of(moved) == [rows_of(batch)[number] for number in order]
    assert rows_of(moved.reorder(np.argsort(order))) == rows_of(batch)


@pytest.mark.parametrize("order", [[0, 1], [0, 0, 1, 2], [0, 1, 2, 2]])
def test_reorder_refuses_what_is_no_permutation(order):
    with pytest.raises(ValueError, match="permutation"):
        batch_of(4).reorder(order)


@given(
    num_rows=st.integers(1, 4),
    width=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float16]),
    protocol=st.sampled_from([2, 5]),
)
def test_pickling_keeps_everything(num_rows, width, dtype, protocol):
    tensor = torch.arange(num_rows * width).reshape(num_rows, width).to(dtype)
    batch = DataProto.from_dict({"x": tensor}, {"uid": list("abcd")[:num_rows], "n": np.arange(num_rows)}, {"k": [1]})
    back = pickle.loads(pickle.dumps(batch, protocol=protocol))
    assert back.batch["x"].dtype == dtype and torch.equal(back.batch["x"], tensor)
    assert back.non_tensor_batch["n"].dtype == np.int64 and back.meta_info == {"k": [1]}
    assert rows_of(back.select(["uid", "n", "x"]).select(["x", "n"])) == rows_of(batch.select(["x", "n"]))


def test_pickling_settings_alone():
    assert pickle.loads(pickle.dumps(DataProto(meta_info={"a": 1}))).meta_info == {"a": 1}


def test_a_view_travels_without_the_rest_of_its_batch():
    whole = DataProto.from_dict({"x": torch.zeros(1000, 100)})
    assert len(pickle.dumps(whole[:2])) < 5_000 < len(pickle.dumps(whole))


def test_what_arrives_may_be_written_to():
    buffers: list[pickle.PickleBuffer] = []
    payload = pickle.dumps(batch_of(2), protocol=5, buffer_callback=buffers.append)
    read_only = [bytes(buffer.raw()) for buffer in buffers]
    before = [bytes(bytearray(content)) for content in read_only]
    back = pickle.loads(payload, buffers=read_only)
    back.batch["advantages"].zero_()
    assert back.batch["advantages"].abs().sum() == 0 and read_only == before


def test_transposed_and_grad_carrying_tensors_travel_by_value():
    tensor = torch.arange(6.0).reshape(2, 3).T.requires_grad_()
    back = pickle.loads(pickle.dumps(DataProto.from_dict({"x": tensor})))
    assert back.batch["x"].tolist() == tensor.tolist() and not back.batch["x"].requires_grad
