# SPDX-License-Identifier: Apache-2.0
"""How a call on a worker group is split over its ranks and how the results come together."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

from verl.protocol import DataProto

_DISPATCH_ATTRIBUTE = "_verl_dispatch"

Method = TypeVar("Method", bound=Callable[..., Any])


class Dispatch(Enum):
    """Ways to call a method on every rank of a group."""

    ONE_TO_ALL = "one_to_all"
    """Every rank gets the same arguments; the result is the list of what the ranks return."""
    DP_COMPUTE_PROTO = "dp_compute_proto"
    """`DataProto` arguments are cut into equal consecutive chunks, one per rank; results are concatenated."""
    DP_COMPUTE_METRIC = "dp_compute_metric"
    """Arguments are cut as in `DP_COMPUTE_PROTO`; the result is the list of what the ranks return."""


def register(dispatch_mode: Dispatch) -> Callable[[Method], Method]:
    """Declare how a worker method is dispatched.

    Args:
        dispatch_mode: The way.

    Returns:
        A decorator that marks the method; `RayWorkerGroup` offers marked methods and no others.
    """

    def mark(method: Method) -> Method:
        setattr(method, _DISPATCH_ATTRIBUTE, dispatch_mode)
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


def split_arguments(
    mode: Dispatch, world_size: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments of each rank.

    Args:
        mode: The way.
        world_size: Number of ranks.
        args: Positional arguments of the call on the group.
        kwargs: Keyword arguments of the call on the group.

    Returns:
        One `(args, kwargs)` per rank.

    Raises:
        ValueError: A `DataProto` argument does not divide by `world_size`.
    """
    if mode is Dispatch.ONE_TO_ALL:
        return [(args, kwargs)] * world_size

    def split(value: Any) -> list[Any]:
        return value.chunk(world_size) if isinstance(value, DataProto) else [value] * world_size

    split_args = [split(value) for value in args]
    split_kwargs = {key: split(value) for key, value in kwargs.items()}
    return [
        (tuple(value[rank] for value in split_args), {key: value[rank] for key, value in split_kwargs.items()})
        for rank in range(world_size)
    ]


def join_results(mode: Dispatch, results: list[Any]) -> Any:
    """Bring the ranks' results together.

    Args:
        mode: The way.
        results: In rank order.

    Returns:
        A `DataProto` for `DP_COMPUTE_PROTO`, else the list.
    """
    return DataProto.concat(results) if mode is Dispatch.DP_COMPUTE_PROTO else results
