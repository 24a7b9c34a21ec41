# SPDX-License-Identifier: Apache-2.0
"""`DataProto`: the one value that stages of a training step hand to each other, columns of equal length plus settings.

It knows rows and columns, how to cut and join them and how to travel between processes; it knows no stage, no model and
no Ray. What a column means is written in `verl.batch_schema`. Every method returns a new object and leaves its input
alone; tensors are shared, never copied, unless rows are picked by an index array.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from tensordict import TensorDict

from verl.batch_schema import COLUMNS
from verl.utils.deep_equal import is_deep_equal

GATHERED_META_KEY = "metrics"


@dataclass(frozen=True)
class DataProtoItem:
    """One row: tensors without the row dimension, bare objects, and the settings of the whole."""

    batch: TensorDict | None
    non_tensor_batch: dict[str, Any]
    meta_info: dict[str, Any]


@dataclass(eq=False)
class DataProto:
    """Columns of equal length: tensors in `batch`, numpy arrays in `non_tensor_batch`, settings in `meta_info`.

    Ragged columns (step scores) are object arrays of 1-D numpy arrays in `non_tensor_batch`.

    Example:
        >>> part = DataProto.from_dict({"responses": torch.zeros(2, 3, dtype=torch.int64)}, {"uid": ["a", "b"]})
        >>> len(part), part.repeat(2).non_tensor_batch["uid"].tolist()
        (2, ['a', 'a', 'b', 'b'])
    """

    batch: Any = None  # TensorDict | None; a stage that reads a column has had `require` check that it is there
    non_tensor_batch: dict[str, np.ndarray] = field(default_factory=dict)
    meta_info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse columns of different length and names used twice."""
        lengths = {key: len(value) for key, value in self.non_tensor_batch.items()}
        if self.batch is not None:
            if self.batch.batch_dims != 1:
                raise ValueError(f"batch has {self.batch.batch_dims} row dimensions, expected 1")
            lengths["batch"] = self.batch.batch_size[0]
            twice = set(self.batch.keys()) & set(self.non_tensor_batch)
            if twice:
                raise ValueError(f"columns both in batch and in non_tensor_batch: {sorted(twice)}")
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of different length: {lengths}")

    @classmethod
    def from_dict(
        cls,
        tensors: Mapping[str, torch.Tensor] | None = None,
        non_tensors: Mapping[str, Sequence[Any] | np.ndarray] | None = None,
        meta_info: Mapping[str, Any] | None = None,
    ) -> DataProto:
        """Build from plain dictionaries.

        Args:
            tensors: Columns [S, ...].
            non_tensors: Columns of S objects; a list becomes an object array, a numpy array is kept as it is.
            meta_info: Settings that belong to the whole batch.

        Returns:
            The batch.

        Raises:
            ValueError: Columns differ in length, or a tensor has no row dimension.
        """
        batch = None
        if tensors:
            sizes = {key: value.shape[0] if value.ndim else None for key, value in tensors.items()}
            if None in sizes.values() or len(set(sizes.values())) > 1:
                raise ValueError(f"tensor columns need the same number of rows, found {sizes}")
            batch = TensorDict(dict(tensors), batch_size=[next(iter(tensors.values())).shape[0]])
        columns = {
            key: value if isinstance(value, np.ndarray) else object_array(value)
            for key, value in (non_tensors or {}).items()
        }
        return cls(batch, columns, dict(meta_info or {}))

    def __len__(self) -> int:
        """Return the number of rows."""
        if self.batch is not None:
            return int(self.batch.batch_size[0])
        return next((len(column) for column in self.non_tensor_batch.values()), 0)

    def __contains__(self, key: str) -> bool:
        """Return whether a column of this name exists."""
        return key in self.non_tensor_batch or (self.batch is not None and key in self.batch.keys())

    def keys(self) -> list[str]:
        """Return the names of all columns, tensors first."""
        return [*([] if self.batch is None else self.batch.keys()), *self.non_tensor_batch]

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray | torch.Tensor) -> Any:
        """Pick rows.

        Args:
            index: An int gives a `DataProtoItem`; a slice (views), an index array or a boolean mask [S] (copies)
                gives a `DataProto`.

        Returns:
            The row or the rows.

        Raises:
            IndexError: An index is out of range.
        """
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"row {index} of {len(self)}")
            row = None if self.batch is None else self.batch[int(index)]
            return DataProtoItem(row, {k: v[index] for k, v in self.non_tensor_batch.items()}, self.meta_info)
        rows = index if isinstance(index, slice) else _row_numbers(index, len(self))
        picked = None
        if self.batch is not None:
            picked = self.batch[rows if isinstance(rows, slice) else torch.from_numpy(rows)]
        return DataProto(picked, {k: v[rows] for k, v in self.non_tensor_batch.items()}, dict(self.meta_info))

    def select(self, keys: Iterable[str], meta_info_keys: Iterable[str] | None = None) -> DataProto:
        """Keep some columns.

        Args:
            keys: Names of tensor or other columns.
            meta_info_keys: Settings to keep; None keeps all.

        Returns:
            A batch with these columns only.

        Raises:
            KeyError: A name is not there.
        """
        wanted = list(keys)
        missing = [key for key in wanted if key not in self]
        if missing:
            raise KeyError(f"no column(s) {missing}; present: {self.keys()}")
        tensors = [key for key in wanted if key not in self.non_tensor_batch]
        others = {key: self.non_tensor_batch[key] for key in wanted if key in self.non_tensor_batch}
        batch = self.batch.select(*tensors) if self.batch is not None and tensors else None
        kept = self.meta_info if meta_info_keys is None else {key: self.meta_info[key] for key in meta_info_keys}
        return DataProto(batch, others, dict(kept))

    def union(self, other: DataProto) -> DataProto:
        """Join the columns of two batches over the same rows.

        A column or setting that both have must be equal (NaN equals NaN). Nothing is padded: a column that both have
        with different widths is a different column.

        Args:
            other: Batch of the same length (or without any column: settings only).

        Returns:
            All columns of both.

        Raises:
            ValueError: Lengths differ, or a shared column or setting differs; the message names it.
        """
        if self.keys() and other.keys() and len(self) != len(other):
            raise ValueError(f"cannot unite {len(self)} rows with {len(other)} rows")
        mine = {} if self.batch is None else dict(self.batch.items())
        theirs = {} if other.batch is None else dict(other.batch.items())
        return DataProto.from_dict(
            _united("column", mine, theirs),
            _united("column", self.non_tensor_batch, other.non_tensor_batch),
            _united("meta_info", self.meta_info, other.meta_info),
        )

    def chunk(self, num_chunks: int) -> list[DataProto]:
        """Cut into equal consecutive parts (views).

        Args:
            num_chunks: Number of parts; must divide the number of rows.

        Returns:
            The parts in order.

        Raises:
            ValueError: The rows cannot be divided equally.
        """
        if num_chunks < 1 or len(self) % num_chunks:
            raise ValueError(f"{len(self)} rows cannot be cut into {num_chunks} equal parts")
        size = len(self) // num_chunks
        return [self[start * size : (start + 1) * size] for start in range(num_chunks)]

    @staticmethod
    def concat(parts: Sequence[DataProto]) -> DataProto:
        """Put the rows of several batches below each other.

        Parts may have been padded to different widths. A column of `verl.batch_schema` is padded to the widest part on
        the side the schema names (`prompts` left, `responses` right) with zero, token ids with
        `meta_info["pad_token_id"]` where that is set. Any other column of differing widths is refused.

        Settings must be equal in all parts, but for `meta_info["metrics"]`: the values of the parts are gathered into a
        list in the order of the parts (parts without it add nothing).

        Args:
            parts: At least one batch; all with the same columns.

        Returns:
            One batch.

        Raises:
            ValueError: No parts, different columns, different settings, or widths that must not differ.
        """
        if not parts:
            raise ValueError("concat needs at least one part")
        if len(parts) == 1:
            return parts[0]
        names = set(parts[0].keys())
        for number, part in enumerate(parts):
            if set(part.keys()) != names:
                raise ValueError(f"part {number} differs in columns: {sorted(set(part.keys()) ^ names)}")
        meta_info = _gathered_meta([part.meta_info for part in parts])
        pad_token_id = int(meta_info.get("pad_token_id") or 0)
        tensors = {}
        for key in parts[0].batch.keys() if parts[0].batch is not None else ():
            columns = [cast(TensorDict, part.batch)[key] for part in parts]
            tensors[key] = torch.cat(_same_width(key, columns, pad_token_id))
        others = {
            key: np.concatenate([part.non_tensor_batch[key] for part in parts]) for key in parts[0].non_tensor_batch
        }
        return DataProto.from_dict(tensors, others, meta_info)

    def repeat(self, repeat_times: int, interleave: bool = True) -> DataProto:
        """Repeat every row.

        Args:
            repeat_times: How often.
            interleave: True: a a b b (samples of a group lie together); False: a b a b.

        Returns:
            A batch of `repeat_times * len(self)` rows.
        """
        rows = np.arange(len(self))
        return self[np.repeat(rows, repeat_times) if interleave else np.tile(rows, repeat_times)]

    def reorder(self, index: Sequence[int] | np.ndarray | torch.Tensor) -> DataProto:
        """Return the rows in another order.

        Args:
            index: Permutation of the row numbers [S].

        Returns:
            A new batch whose row i is this batch's row `index[i]`; this batch stays as it was.

        Raises:
            ValueError: The index is not a permutation.
        """
        rows = _row_numbers(index, len(self))
        if not np.array_equal(np.sort(rows), np.arange(len(self))):
            raise ValueError(f"reorder needs a permutation of {len(self)} rows")
        return self[rows]

    def to(self, device: torch.device | str) -> DataProto:
        """Move the tensors.

        Args:
            device: Target device.

        Returns:
            A batch with the tensors on that device.
        """
        return DataProto(
            self.batch if self.batch is None else self.batch.to(device), self.non_tensor_batch, self.meta_info
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as flat CPU buffers: of a view only its own rows, and without a copy under pickle protocol 5.

        Tensors arrive on the CPU, in fresh memory (Ray hands out read-only buffers), with their dtype, bfloat16 too.
        """
        tensors = {} if self.batch is None else {key: _to_wire(value) for key, value in self.batch.items()}
        rows = len(self) if self.batch is not None else None
        return _from_wire, (rows, tensors, self.non_tensor_batch, self.meta_info)


def object_array(values: Sequence[Any]) -> np.ndarray:
    """Put Python objects into a 1-D object array, without numpy's guessing at nested sequences.

    Args:
        values: S objects; lists and arrays of any length stay whole.

    Returns:
        Object array [S].
    """
    array = np.empty(len(values), dtype=object)
    for number, value in enumerate(values):
        array[number] = value
    return array


def _row_numbers(index: Sequence[int] | np.ndarray | torch.Tensor, num_rows: int) -> np.ndarray:
    rows = index.detach().cpu().numpy() if isinstance(index, torch.Tensor) else np.asarray(index)
    if rows.dtype == bool:
        if rows.shape != (num_rows,):
            raise IndexError(f"boolean index of shape {rows.shape} for {num_rows} rows")
        return np.flatnonzero(rows)
    rows = rows.astype(np.int64) if rows.size == 0 else rows
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise IndexError(f"row index must be 1-D integers, found shape {rows.shape}, dtype {rows.dtype}")
    if rows.size and (rows.min() < -num_rows or rows.max() >= num_rows):
        raise IndexError(f"row index {rows.min()}..{rows.max()} is out of range for {num_rows} rows")
    return rows.astype(np.int64)


def _united(kind: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    for key in mine.keys() & theirs.keys():
        if not is_deep_equal(mine[key], theirs[key]):
            raise ValueError(f"union: both sides have {kind} {key!r} with different content")
    return {**mine, **theirs}


def _gathered_meta(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    plain = [{key: value for key, value in part.items() if key != GATHERED_META_KEY} for part in parts]
    for number, part in enumerate(plain[1:], start=1):
        if not is_deep_equal(part, plain[0]):
            differing = [
                key for key in plain[0].keys() | part.keys() if not is_deep_equal(plain[0].get(key), part.get(key))
            ]
            raise ValueError(f"concat: meta_info of part {number} differs in {sorted(differing)}")
    gathered = [part[GATHERED_META_KEY] for part in parts if GATHERED_META_KEY in part]
    return {**plain[0], GATHERED_META_KEY: gathered} if gathered else plain[0]


def _same_width(key: str, columns: list[torch.Tensor], pad_token_id: int) -> list[torch.Tensor]:
    if len({column.shape[1:] for column in columns}) == 1:
        return columns
    known = COLUMNS.get(key)
    if known is None or known.pad is None or any(column.ndim != 2 for column in columns):
        shapes = [tuple(column.shape) for column in columns]
        raise ValueError(f"concat: column {key!r} has shapes {shapes} and the schema does not say how to pad it")
    width = max(column.shape[1] for column in columns)
    fill = pad_token_id if known.holds_token_ids else 0
    return [_padded(column, width, fill, on_left=known.pad == "left") for column in columns]


def _padded(column: torch.Tensor, width: int, fill: int, on_left: bool) -> torch.Tensor:
    missing = width - column.shape[1]
    sides = (missing, 0) if on_left else (0, missing)
    return torch.nn.functional.pad(column, sides, value=fill)


def _to_wire(tensor: torch.Tensor) -> tuple[np.ndarray, torch.dtype, tuple[int, ...]]:
    flat = tensor.detach().cpu().reshape(-1)
    return flat.view(torch.uint8).numpy(), tensor.dtype, tuple(tensor.shape)


def _from_wire(
    rows: int | None, tensors: dict[str, Any], others: dict[str, np.ndarray], meta_info: dict[str, Any]
) -> DataProto:
    if rows is None:
        return DataProto(None, others, meta_info)
    columns = {key: _tensor_from_wire(*wire) for key, wire in tensors.items()}
    return DataProto(TensorDict(columns, batch_size=[rows]), others, meta_info)


def _tensor_from_wire(buffer: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if buffer.size == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(buffer.copy()).view(dtype).reshape(shape)
