# SPDX-License-Identifier: Apache-2.0
"""How a call on a worker group is split over its ranks and how the results come together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from verl.protocol import DataProto

_DISPATCH_ATTRIBUTE = "_verl_dispatch"
_ROLE_ATTRIBUTE = "_verl_dispatch_role"
MAIN_ROLE = "main"

Method = TypeVar("Method", bound=Callable[..., Any])


class Dispatch(Enum):
    """Ways to call a method on every rank of a group."""

    ONE_TO_ALL = "one_to_all"
    """Every rank gets the same arguments; the result is the list of what the ranks return."""
    DP_COMPUTE_PROTO = "dp_compute_proto"
    """`DataProto` arguments are cut into equal consecutive chunks, one per data-parallel rank, and every rank gets the
    chunk of its `DataShare`; the results of one output rank per chunk are concatenated in the order of the chunks."""
    DP_COMPUTE_METRIC = "dp_compute_metric"
    """Arguments are cut as in `DP_COMPUTE_PROTO`; the result is the list of what the output ranks return."""


@dataclass(frozen=True, slots=True)
class DataShare:
    """Which part of a batch a rank works on.

    Ranks that split one model or one sequence among them (tensor, pipeline or sequence parallel) have the same
    `dp_rank`: they get the same rows.

    Attributes:
        dp_rank: Number of the chunk that this rank gets.
        dp_size: Chunks into which a batch is cut; the same on every rank.
        is_output: Whether this rank's results may be used; the first such rank of a chunk speaks for it.
    """

    dp_rank: int
    dp_size: int
    is_output: bool = True


def output_ranks(shares: Sequence[DataShare]) -> list[int]:
    """Choose the rank that speaks for each chunk.

    Args:
        shares: In rank order.

    Returns:
        Global ranks, in the order of the chunks.

    Raises:
        ValueError: Ranks disagree on the number of chunks, or nobody speaks for one.
    """
    sizes = {share.dp_size for share in shares}
    if len(sizes) != 1:
        raise ValueError(f"ranks disagree on the number of data-parallel ranks: {sorted(sizes)}")
    first: dict[int, int] = {}
    for rank, share in enumerate(shares):
        if share.is_output:
            first.setdefault(share.dp_rank, rank)
    dp_size = sizes.pop()
    if sorted(first) != list(range(dp_size)):
        raise ValueError(f"{dp_size} data-parallel ranks are promised, results come from {sorted(first)}")
    return [first[dp_rank] for dp_rank in range(dp_size)]


def register(dispatch_mode: Dispatch, role: str = MAIN_ROLE) -> Callable[[Method], Method]:
    """Declare how a worker method is dispatched.

    Args:
        dispatch_mode: The way.
        role: Whose `DataShare` counts, for a worker that holds several engines (see `Worker.data_shares`).

    Returns:
        A decorator that marks the method; `RayWorkerGroup` offers marked methods and no others.
    """

    def mark(method: Method) -> Method:
        setattr(method, _DISPATCH_ATTRIBUTE, dispatch_mode)
        setattr(method, _ROLE_ATTRIBUTE, role)
        return method

    return mark


def dispatch_mode_of(method: object) -> Dispatch | None:
    """Read the mark.

    Args:
        method: Any attribute of a worker class.

    Returns:
        The declared way, or None for a method that is not offered to the controller.
    """
    return getattr(method, _DISPATCH_ATTRIBUTE, None)


def dispatch_role_of(method: object) -> str:
    """Read whose `DataShare` counts.

    Args:
        method: A marked method.

    Returns:
        The role.
    """
    role: str = getattr(method, _ROLE_ATTRIBUTE, MAIN_ROLE)
    return role


def split_arguments(
    shares: Sequence[DataShare], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments of each rank; ranks of one chunk get the same objects.

    Args:
        shares: In rank order.
        args: Positional arguments of the call on the group.
        kwargs: Keyword arguments of the call on the group.

    Returns:
        One `(args, kwargs)` per rank.

    Raises:
        ValueError: A `DataProto` argument does not divide by the number of data-parallel ranks.
    """
    dp_size = shares[0].dp_size

    def split(value: Any) -> list[Any]:
        return value.chunk(dp_size) if isinstance(value, DataProto) else [value] * dp_size

    split_args = [split(value) for value in args]
    split_kwargs = {key: split(value) for key, value in kwargs.items()}
    return [
        (
            tuple(value[share.dp_rank] for value in split_args),
            {key: value[share.dp_rank] for key, value in split_kwargs.items()},
        )
        for share in shares
    ]


def join_results(mode: Dispatch, shares: Sequence[DataShare], results: Sequence[Any]) -> Any:
    """Bring the ranks' results together.

    Args:
        mode: `DP_COMPUTE_PROTO` or `DP_COMPUTE_METRIC`.
        shares: In rank order.
        results: In rank order.

    Returns:
        A `DataProto` for `DP_COMPUTE_PROTO`, else the list of one result per chunk.
    """
    spoken = [results[rank] for rank in output_ranks(shares)]
    return DataProto.concat(spoken) if mode is Dispatch.DP_COMPUTE_PROTO else spoken
