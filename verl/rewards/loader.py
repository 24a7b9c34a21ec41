# SPDX-License-Identifier: Apache-2.0
"""The user's own reward function: found, loaded, called, and its result read.

The function has verl's signature `compute_score(data_source, solution_str, ground_truth, extra_info)`, is sync or
async, and returns a number or a dict with `score`. Knows nothing of processes and time limits.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from verl.rewards.types import RuleVerdict
from verl.utils.errors import UserError

_PATH_KEY = "custom_reward_function.path"
_NAME_KEY = "custom_reward_function.name"


@dataclass(frozen=True)
class FunctionSpec:
    """Where the user's reward function is.

    Args:
        path: The Python file.
        name: The function in it.
        kwargs: Further keyword arguments for every call.
    """

    path: str
    name: str = "compute_score"
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RuleItem:
    """What a rule scorer reads of a response; this is what travels to a worker process.

    Args:
        data_source: Name of the row's source.
        response: Response text.
        ground_truth: The true answer.
        extra_info: The row's further fields.
    """

    data_source: str
    response: str
    ground_truth: str
    extra_info: dict[str, Any]


def load_function(spec: FunctionSpec) -> Callable[..., Any]:
    """Import the user's file and take the function from it.

    Args:
        spec: Where it is.

    Returns:
        The function.

    Raises:
        UserError: The file is missing or cannot be imported, has no such name, or the name is not callable.
    """
    path = Path(spec.path).expanduser()
    if not path.is_file():
        raise UserError.for_key(_PATH_KEY, spec.path, "this file does not exist", "Give the path of a Python file")
    # The name is fixed by the path, so that what the function pickles or caches is found again.
    module_name = f"custom_reward_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    if module_spec is None or module_spec.loader is None:
        raise UserError.for_key(_PATH_KEY, spec.path, "this is not a Python file", "Give a file ending in .py")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        detail = f"importing it raised {type(error).__name__}: {error}"
        raise UserError.for_key(_PATH_KEY, spec.path, detail, "Mend the file") from error
    function = getattr(module, spec.name, None)
    if not callable(function):
        functions = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        allowed = f"no function of this name in {spec.path}; it has {', '.join(functions) or 'none'}"
        raise UserError.for_key(_NAME_KEY, spec.name, allowed, "Name one of these, or add it")
    return function


def resolve_function(path: str | None, name: str, kwargs: Mapping[str, Any]) -> FunctionSpec | None:
    """Check the user's reward function before anything is started.

    Args:
        path: `custom_reward_function.path`, None where the shipped scorers are wanted.
        name: `custom_reward_function.name`.
        kwargs: `custom_reward_function.reward_kwargs`.

    Returns:
        The checked place of the function with an absolute path, or None.

    Raises:
        UserError: As `load_function`; also when it cannot take the four arguments.
    """
    if path is None:
        return None
    spec = FunctionSpec(str(Path(path).expanduser().absolute()), name, dict(kwargs))
    function = load_function(spec)
    try:
        inspect.signature(function).bind(
            data_source="", solution_str="", ground_truth="", extra_info={}, **dict(spec.kwargs)
        )
    except TypeError as error:
        allowed = f"it must take (data_source, solution_str, ground_truth, extra_info) and reward_kwargs: {error}"
        raise UserError.for_key(_NAME_KEY, name, allowed, "Change its signature") from error
    return spec


def call_function(function: Callable[..., Any], item: RuleItem, kwargs: Mapping[str, Any]) -> RuleVerdict:
    """Call the user's function on one response, waiting for it if it is async.

    Args:
        function: The function.
        item: The response.
        kwargs: Further keyword arguments.

    Returns:
        Its verdict.

    Raises:
        Exception: Whatever the function raises; ValueError or TypeError for a result that cannot be read.
    """
    result = function(
        data_source=item.data_source,
        solution_str=item.response,
        ground_truth=item.ground_truth,
        extra_info=item.extra_info,
        **kwargs,
    )
    if inspect.isawaitable(result):
        result = asyncio.run(_wait_for(result))
    return read_result(result)


async def _wait_for(awaitable: Any) -> Any:
    return await awaitable


def read_result(result: object) -> RuleVerdict:
    """Read what a user's function returned.

    Args:
        result: A finite number, or a dict with `score` and optionally `acc`, `pred`; its other numbers are metrics.

    Returns:
        The verdict. Without `acc` an answer is correct exactly when its score is above 0.

    Raises:
        TypeError: The result, its `score` or its `acc` is no number.
        ValueError: A dict without `score`, or a score that is not finite.
    """
    fields: Mapping[str, Any] = result if isinstance(result, Mapping) else {"score": result}
    if "score" not in fields:
        raise ValueError(f"the returned dict has no 'score'; it has {', '.join(map(str, fields)) or 'nothing'}")
    score = _number(fields["score"], "score")
    is_correct = bool(_number(fields["acc"], "acc")) if fields.get("acc") is not None else score > 0
    predicted = fields.get("pred")
    extra = {key: value for key, value in fields.items() if key not in ("score", "acc", "pred")}
    metrics = {str(key): float(value) for key, value in extra.items() if isinstance(value, Real)}
    return RuleVerdict(
        score=score,
        is_correct=is_correct,
        predicted=None if predicted is None else str(predicted),
        metrics=metrics,
    )


def _number(value: object, name: str) -> float:
    """Read a number; one-element arrays and tensors count as their element."""
    if not isinstance(value, Real) and hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}, not a finite number")
    return number
