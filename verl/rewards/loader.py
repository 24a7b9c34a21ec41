# SPDX-License-Identifier: Apache-2.0
"""The user's own reward function: found, loaded, called, and its result read.

The function has verl's signature `compute_score(data_source, solution_str, ground_truth, extra_info)`, is sync or
async, and returns a number or a dict with `score`. With the manager `batch` it gets the whole batch at once, as lists:
`compute_score(data_sources, solution_strs, ground_truths, extra_infos)`. Knows nothing of processes and time limits.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any

from verl.rewards.types import RuleVerdict
from verl.utils.errors import UserError

_PATH_KEY = "custom_reward_function.path"
_NAME_KEY = "custom_reward_function.name"
_ARGUMENTS = ("data_source", "solution_str", "ground_truth", "extra_info")
_BATCH_ARGUMENTS = ("data_sources", "solution_strs", "ground_truths", "extra_infos")
_METRIC_NAME = re.compile(r"[^\w./-]")
_READ = ("score", "acc", "is_correct", "pred", "step_scores")


@dataclass(frozen=True)
class FunctionSpec:
    """Where the user's reward function is.

    Args:
        path: The Python file.
        name: The function in it.
        kwargs: Further keyword arguments for every call.
        takes_batch: Whether one call judges a list of responses.
    """

    path: str
    name: str = "compute_score"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    takes_batch: bool = False

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of the four arguments the function is called with."""
        return _BATCH_ARGUMENTS if self.takes_batch else _ARGUMENTS


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


def resolve_function(
    path: str | None, name: str, kwargs: Mapping[str, Any], takes_batch: bool = False
) -> FunctionSpec | None:
    """Check the user's reward function before anything is started.

    Args:
        path: `custom_reward_function.path`, None where the shipped scorers are wanted.
        name: `custom_reward_function.name`.
        kwargs: `custom_reward_function.reward_kwargs`.
        takes_batch: Whether the reward manager calls it with lists.

    Returns:
        The checked place of the function with an absolute path, or None.

    Raises:
        UserError: As `load_function`; also when it cannot take the four arguments.
    """
    if path is None:
        return None
    spec = FunctionSpec(str(Path(path).expanduser().absolute()), name, dict(kwargs), takes_batch)
    function = load_function(spec)
    try:
        inspect.signature(function).bind(**dict.fromkeys(spec.arguments), **dict(spec.kwargs))
    except TypeError as error:
        manager = " with reward_model.reward_manager=batch" if takes_batch else ""
        allowed = f"it must take ({', '.join(spec.arguments)}) and reward_kwargs{manager}: {error}"
        raise UserError.for_key(_NAME_KEY, name, allowed, "Change its signature") from error
    return spec


class CustomFunction:
    """The user's loaded function, judging responses in this process.

    Example:
        >>> CustomFunction(FunctionSpec("my_reward.py")).judge([item])[0].score
        1.0
    """

    def __init__(self, spec: FunctionSpec) -> None:
        """Load it.

        Args:
            spec: Where it is.

        Raises:
            UserError: As `load_function`.
        """
        self._spec = spec
        self._function = load_function(spec)
        # One event loop for all calls: what an async function keeps (a client, a session) stays usable.
        self._runner = asyncio.Runner()

    def judge(self, items: Sequence[RuleItem]) -> list[RuleVerdict]:
        """Judge responses: in one call where the function takes a batch, else one by one; async ones are awaited.

        Args:
            items: The responses.

        Returns:
            As many verdicts, in their order. In a batch a result that cannot be read spoils its own response alone.

        Raises:
            Exception: Whatever the function raises; ValueError or TypeError for a result that cannot be read.
        """
        if not self._spec.takes_batch:
            columns = ((i.data_source, i.response, i.ground_truth, i.extra_info) for i in items)
            return [read_result(self._call(column)) for column in columns]
        results = self._call(
            (
                [item.data_source for item in items],
                [item.response for item in items],
                [item.ground_truth for item in items],
                [item.extra_info for item in items],
            )
        )
        return read_batch_results(results, len(items))

    def _call(self, values: Sequence[object]) -> object:
        arguments = dict(zip(self._spec.arguments, values, strict=True))
        result = self._function(**arguments, **self._spec.kwargs)
        return self._runner.run(_wait_for(result)) if inspect.isawaitable(result) else result


async def _wait_for(awaitable: Any) -> Any:
    return await awaitable


def read_batch_results(results: object, count: int) -> list[RuleVerdict]:
    """Read what a user's batch function returned.

    Args:
        results: One result per response; see `read_result`.
        count: How many responses it was given.

    Returns:
        The verdicts; `error` for a result that cannot be read.

    Raises:
        TypeError: No list (or array) at all.
        ValueError: Another number of results: which belongs to which response cannot be known.
    """
    results = results.tolist() if hasattr(results, "tolist") else results
    if not isinstance(results, Sequence) or isinstance(results, str | bytes):
        raise TypeError(f"a batch function must return a list, not {type(results).__name__}")
    if len(results) != count:
        raise ValueError(f"{len(results)} results for a batch of {count} responses")
    return [_read_or_error(result) for result in results]


def _read_or_error(result: object) -> RuleVerdict:
    try:
        return read_result(result)
    except (TypeError, ValueError) as error:
        return RuleVerdict(0.0, False, status="error", detail=f"{type(error).__name__}: {error}")


def read_result(result: object) -> RuleVerdict:
    """Read what a user's function returned.

    Args:
        result: A finite number, or a dict with `score` and optionally `acc` (or `is_correct`), `pred`, `step_scores`;
            its other numbers are metrics. `step_scores` are numbers, or pairs (one past the step's last character,
            number).

    Returns:
        The verdict. Without `acc` an answer is correct exactly when its score is above 0.

    Raises:
        TypeError: The result, its `score`, its `acc` or a step score is no number.
        ValueError: A dict without `score`, a number that is not finite, or character ends that do not rise.
    """
    fields: Mapping[str, Any] = result if isinstance(result, Mapping) else {"score": result}
    if "score" not in fields:
        raise ValueError(f"the returned dict has no 'score'; it has {', '.join(map(str, fields)) or 'nothing'}")
    score = _number(fields["score"], "score")
    given = [name for name in ("acc", "is_correct") if fields.get(name) is not None]
    is_correct = bool(_number(fields[given[0]], given[0])) if given else score > 0
    predicted = fields.get("pred")
    step_char_ends, step_scores = _read_step_scores(fields.get("step_scores"))
    return RuleVerdict(
        score=score,
        is_correct=is_correct,
        predicted=None if predicted is None else str(predicted),
        metrics=_other_numbers(fields),
        step_scores=step_scores,
        step_char_ends=step_char_ends,
        says_predicted="pred" in fields,
    )


def _read_step_scores(given: object) -> tuple[tuple[int, ...] | None, tuple[float, ...] | None]:
    """Read numbers, or pairs of a character end and a number."""
    given = given.tolist() if hasattr(given, "tolist") else given
    if given is None:
        return None, None
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise TypeError(f"step_scores must be a list, not {type(given).__name__}")
    if not given or not all(isinstance(entry, Sequence) for entry in given):
        return None, tuple(_number(entry, "a step score") for entry in given)
    if any(len(entry) != 2 for entry in given):
        raise ValueError("step_scores must be numbers, or pairs (character end, score)")
    ends = [_number(entry[0], "a step's character end") for entry in given]
    if any(end != int(end) for end in ends) or any(left >= right for left, right in pairwise([0.0, *ends])):
        raise ValueError(f"the steps' character ends must be whole numbers that rise from 1 on, not {ends}")
    return tuple(map(int, ends)), tuple(_number(entry[1], "a step score") for entry in given)


def _other_numbers(fields: Mapping[str, Any]) -> dict[str, float]:
    """Keep what can be averaged: finite numbers under names that make a metric's name."""
    numbers = {str(key): float(value) for key, value in fields.items() if key not in _READ and isinstance(value, Real)}
    return {_METRIC_NAME.sub("_", key): value for key, value in numbers.items() if math.isfinite(value)}


def _number(value: object, name: str) -> float:
    """Read a number; one-element arrays and tensors count as their element."""
    if not isinstance(value, Real) and hasattr(value, "item"):
        try:
            value = value.item()
        except (ValueError, RuntimeError) as error:  # numpy's and torch's, for more than one element
            raise TypeError(f"{name} must be one number: {error}") from error
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}, not a finite number")
    return number
