# SPDX-License-Identifier: Apache-2.0
"""Every column of a training batch, once: name, dimensions, dtype, who writes it and who reads it.

This file is the contract between the stages of one training step. It knows no torch, no trainer and no worker: it looks
only at names, shapes and dtype names, so it can be imported anywhere.

Letters: B prompts, S sequences (prompts x group size), P prompt tokens, R response tokens, K reasoning steps (ragged).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Protocol

PadSide = Literal["left", "right"]


class Stage(StrEnum):
    """The stages of one training step in order; `REPORT` is all that only looks (metrics, dumps, validation)."""

    PROMPTS = "prompts"
    ROLLOUT = "rollout"
    RULE_SCORE = "rule_score"
    PROCESS_SCORE = "process_score"
    LOG_PROBS = "log_probs"
    REWARD = "reward"
    ADVANTAGE = "advantage"
    UPDATE = "update"
    REPORT = "report"


class Batch(Protocol):
    """What this module needs of a batch; `verl.protocol.DataProto` has it."""

    batch: Any
    non_tensor_batch: dict[str, Any]

    def __len__(self) -> int:
        """Return the number of rows."""
        ...


class SchemaError(ValueError):
    """A batch that breaks the contract: a column is missing or has the wrong dtype or shape."""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: Key in `DataProto.batch` (tensors) or `DataProto.non_tensor_batch` (numpy).
        dims: Letters of the module docstring; a trailing `K` means ragged: an object array of 1-D numpy arrays.
        dtypes: Allowed dtype names; the first is the one to write. `object` means one Python object per row.
        writer: The only stage that adds the column.
        readers: Stages that always read it.
        sometimes: Stages that read it under some settings only; such a stage names it in `require(..., also=...)`.
        pad: Side on which rows are padded when parts of different width are joined; None: widths must agree.
        holds_token_ids: True where the filling is the pad token's id and not zero.
    """

    name: str
    dims: tuple[str, ...]
    dtypes: tuple[str, ...]
    writer: Stage
    readers: tuple[Stage, ...] = ()
    sometimes: tuple[Stage, ...] = ()
    pad: PadSide | None = None
    holds_token_ids: bool = False

    @property
    def is_ragged(self) -> bool:
        """Whether every row has its own length."""
        return self.dims[-1] == "K"

    @property
    def is_tensor(self) -> bool:
        """Whether the column is a tensor (otherwise a numpy array in `non_tensor_batch`)."""
        return not self.is_ragged and self.dtypes != ("object",)


_S, _SP, _SR, _SK = ("S",), ("S", "P"), ("S", "R"), ("S", "K")
_INT, _FLOAT, _BOOL, _OBJECT = ("int64",), ("float32",), ("bool",), ("object",)
_MASK = ("int64", "bool")

_ROWS = (
    # stage 1: prompts
    Column("prompts", _SP, _INT, Stage.PROMPTS, (Stage.LOG_PROBS, Stage.UPDATE), pad="left", holds_token_ids=True),
    Column("prompt_mask", _SP, _MASK, Stage.PROMPTS, (Stage.LOG_PROBS, Stage.UPDATE), pad="left"),
    Column("uid", _S, _OBJECT, Stage.PROMPTS, (Stage.ADVANTAGE, Stage.REPORT)),
    Column("raw_prompt", _S, _OBJECT, Stage.PROMPTS, (Stage.RULE_SCORE,), (Stage.PROCESS_SCORE, Stage.REPORT)),
    Column("data_source", _S, _OBJECT, Stage.PROMPTS, (Stage.RULE_SCORE, Stage.REPORT)),
    Column("ground_truth", _S, _OBJECT, Stage.PROMPTS, (Stage.RULE_SCORE,), (Stage.REPORT,)),
    Column("extra_info", _S, _OBJECT, Stage.PROMPTS, (), (Stage.RULE_SCORE, Stage.REPORT)),
    # stage 2: rollout
    Column("responses", _SR, _INT, Stage.ROLLOUT, (Stage.LOG_PROBS, Stage.UPDATE), pad="right", holds_token_ids=True),
    Column(
        "response_mask",
        _SR,
        _MASK,
        Stage.ROLLOUT,
        (Stage.LOG_PROBS, Stage.REWARD, Stage.ADVANTAGE, Stage.UPDATE),
        (Stage.REPORT,),
        pad="right",
    ),
    Column("rollout_log_probs", _SR, _FLOAT, Stage.ROLLOUT, (), (Stage.UPDATE, Stage.REPORT), pad="right"),
    Column("policy_version", _S, _INT, Stage.ROLLOUT, (), (Stage.UPDATE, Stage.REPORT)),
    Column("response_text", _S, _OBJECT, Stage.ROLLOUT, (Stage.RULE_SCORE,), (Stage.PROCESS_SCORE, Stage.REPORT)),
    Column("finish_reason", _S, _OBJECT, Stage.ROLLOUT, (), (Stage.RULE_SCORE, Stage.REPORT)),
    # stage 3: scores
    Column("rule_scores", _S, _FLOAT, Stage.RULE_SCORE, (Stage.REWARD,), (Stage.ADVANTAGE, Stage.REPORT)),
    Column("is_correct", _S, _BOOL, Stage.RULE_SCORE, (Stage.REPORT,), (Stage.REWARD, Stage.ADVANTAGE)),
    Column("overlong_penalty", _S, _FLOAT, Stage.RULE_SCORE, (), (Stage.REWARD, Stage.ADVANTAGE, Stage.REPORT)),
    Column("step_scores", _SK, _FLOAT, Stage.PROCESS_SCORE, (), (Stage.REWARD, Stage.ADVANTAGE, Stage.REPORT)),
    Column("step_ends", _SK, _INT, Stage.PROCESS_SCORE, (), (Stage.REWARD, Stage.ADVANTAGE, Stage.REPORT)),
    Column("traj_scores", _S, _FLOAT, Stage.PROCESS_SCORE, (), (Stage.REWARD, Stage.REPORT)),
    Column("prm_status", _S, _OBJECT, Stage.PROCESS_SCORE, (), (Stage.REWARD, Stage.ADVANTAGE, Stage.REPORT)),
    Column("is_dropped", _S, _BOOL, Stage.PROCESS_SCORE, (), (Stage.ADVANTAGE, Stage.UPDATE)),
    Column("reward_baselines", _S, _FLOAT, Stage.PROCESS_SCORE, (), (Stage.ADVANTAGE,)),
    # stage 4: log-probs
    Column("old_log_probs", _SR, _FLOAT, Stage.LOG_PROBS, (), (Stage.UPDATE, Stage.REWARD, Stage.REPORT), pad="right"),
    Column("rollout_is_weights", _SR, _FLOAT, Stage.LOG_PROBS, (), (Stage.UPDATE, Stage.REPORT), pad="right"),
    Column("ref_log_prob", _SR, _FLOAT, Stage.LOG_PROBS, (), (Stage.REWARD, Stage.UPDATE), pad="right"),
    # stages 5 and 6: reward and advantage
    Column("token_level_scores", _SR, _FLOAT, Stage.REWARD, (Stage.REPORT,), pad="right"),
    Column("token_level_rewards", _SR, _FLOAT, Stage.REWARD, (Stage.ADVANTAGE,), (Stage.REPORT,), pad="right"),
    Column("advantages", _SR, _FLOAT, Stage.ADVANTAGE, (Stage.UPDATE,), (Stage.REPORT,), pad="right"),
    Column("returns", _SR, _FLOAT, Stage.ADVANTAGE, (), (Stage.REPORT,), pad="right"),
    Column("is_kept", _S, _BOOL, Stage.ADVANTAGE, (), (Stage.UPDATE, Stage.REPORT)),
)

COLUMNS: Mapping[str, Column] = {column.name: column for column in _ROWS}


def require(batch: Batch, stage: Stage, also: Iterable[str] = ()) -> None:
    """Refuse a batch that lacks a column which a stage reads.

    Args:
        batch: The batch the stage is about to read.
        stage: The reading stage.
        also: Columns the stage reads under the present settings (`Column.sometimes`), e.g. `("ref_log_prob",)`.

    Raises:
        SchemaError: A column is missing; the message names it, the reader and the stage that should have written it.
        KeyError: A name in `also` is no column of the schema, or the schema does not let this stage read it.
    """
    wanted = [column for column in _ROWS if stage in column.readers]
    for name in also:
        column = COLUMNS[name]
        if stage not in column.readers + column.sometimes:
            raise KeyError(f"column {name!r} is not read by stage {stage!r} in the schema; add it there first")
        wanted.append(column)
    present = _keys(batch)
    missing = [column for column in wanted if column.name not in present]
    if missing:
        lines = [f"{column.name!r} (written by stage {str(column.writer)!r})" for column in missing]
        raise SchemaError(
            f"stage {str(stage)!r} reads missing column(s): {', '.join(lines)}; present: {', '.join(sorted(present))}"
        )


def check(batch: Batch) -> None:
    """Refuse a batch whose known columns have a wrong dtype, rank or a dimension that disagrees with another column.

    Columns the schema does not know (a user's own) are left alone.

    Args:
        batch: Any batch, of any stage.

    Raises:
        SchemaError: The first violation; the message names the column, what is there and what belongs there.
    """
    sizes: dict[str, tuple[int, str]] = {"S": (len(batch), "the batch")}
    present = _keys(batch)
    for column in (column for column in _ROWS if column.name in present):
        values = _find(batch, column)
        if column.is_ragged:
            _check_ragged(column, values)
        else:
            _check_dense(column, values, sizes)
    _check_same_steps(batch)


def _keys(batch: Batch) -> set[str]:
    tensors = set() if batch.batch is None else set(batch.batch.keys())
    return tensors | set(batch.non_tensor_batch)


def _find(batch: Batch, column: Column) -> Any:
    is_tensor = batch.batch is not None and column.name in batch.batch.keys()
    if is_tensor != column.is_tensor:
        where = "batch (a tensor)" if column.is_tensor else "non_tensor_batch (numpy)"
        raise SchemaError(f"column {column.name!r} belongs into {where}")
    return batch.batch[column.name] if is_tensor else batch.non_tensor_batch[column.name]


def _dtype_name(values: Any) -> str:
    return str(values.dtype).removeprefix("torch.")


def _check_dense(column: Column, values: Any, sizes: dict[str, tuple[int, str]]) -> None:
    if _dtype_name(values) not in column.dtypes and column.is_tensor:
        raise SchemaError(f"column {column.name!r} is {_dtype_name(values)}, expected {' or '.join(column.dtypes)}")
    if len(values.shape) != len(column.dims):
        raise SchemaError(f"column {column.name!r} has shape {tuple(values.shape)}, expected {list(column.dims)}")
    for letter, size in zip(column.dims, values.shape, strict=True):
        known, owner = sizes.setdefault(letter, (size, column.name))
        if size != known:
            raise SchemaError(f"column {column.name!r} has {letter}={size}, but {owner} has {letter}={known}")


def _check_ragged(column: Column, rows: Any) -> None:
    for number, row in enumerate(rows):
        if not hasattr(row, "shape") or len(row.shape) != 1 or _dtype_name(row) not in column.dtypes:
            found = f"{_dtype_name(row)}{list(row.shape)}" if hasattr(row, "shape") else type(row).__name__
            raise SchemaError(f"column {column.name!r}, row {number}: {found}, expected {column.dtypes[0]}[K]")


def _check_same_steps(batch: Batch) -> None:
    rows = [batch.non_tensor_batch.get(name) for name in ("step_scores", "step_ends")]
    if rows[0] is None or rows[1] is None:
        return
    for number, (scores, ends) in enumerate(zip(*rows, strict=True)):
        if len(scores) != len(ends):
            raise SchemaError(f"row {number}: {len(scores)} step_scores but {len(ends)} step_ends")
