# SPDX-License-Identifier: Apache-2.0
"""Plain data (dicts, lists, texts, numbers) into the frozen dataclasses, strictly. Knows no Hydra and no section."""

from __future__ import annotations

import dataclasses
import math
import os
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from verl.config.fields import LIMITS, PATH, Limits
from verl.config.problems import Problem, describe_choices, nearest_key
from verl.config.schema import (
    Tree,
    describe_type,
    field_types,
    is_mapping,
    is_optional,
    is_section,
    without_none,
)

T = TypeVar("T")


class _WrongValueError(Exception):
    """A value that does not fit; carries what is allowed and the mend."""

    def __init__(self, allowed: str, mend: str) -> None:
        super().__init__(allowed)
        self.allowed = allowed
        self.mend = mend


def convert(plain: Mapping[str, Any], root: type[T], tree: Tree) -> tuple[T, list[Problem]]:
    """Build a root from plain data.

    Args:
        plain: Nested dicts with the user's values; missing keys take the dataclass default.
        root: The root dataclass type.
        tree: Its index of keys (names unknown keys' neighbours).

    Returns:
        (config, problems). Where a value is wrong the config holds the default, so that checks across sections can
        still run; the config must not be used unless `problems` is empty.
    """
    converter = _Converter(tree)
    return converter.section(plain, root(), ""), converter.problems


def unknown_key(key: str, value: object, tree: Tree) -> Problem:
    """Describe a key that does not exist, with its nearest neighbour.

    Args:
        key: Full key as written.
        value: Value given.
        tree: Keys that exist.

    Returns:
        The problem.
    """
    near = nearest_key(key, [*tree.leaves, *sorted(tree.sections)])
    if near is not None:
        return Problem(key, value, "unknown key", f"Did you mean {near}?")
    parent = key.rpartition(".")[0]
    where = f"section {parent}" if parent in tree.sections else "every key"
    mend = f"See {where} in docs/configuration.md"
    return Problem(key, value, "unknown key", mend)


class _Converter:
    """One pass over the user's values; collects what is wrong."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.problems: list[Problem] = []

    def section(self, plain: Mapping[str, Any], default: Any, prefix: str) -> Any:
        """Build one section; wrong values keep their default."""
        section: type = type(default)
        annotations = field_types(section)
        fields = {field.name: field for field in dataclasses.fields(section)}
        values: dict[str, Any] = {}
        for name, value in plain.items():
            key = f"{prefix}.{name}" if prefix else str(name)
            if name not in fields:
                self.problems.append(unknown_key(key, value, self.tree))
            elif not is_section(annotations[name]):
                self._leaf(key, value, (fields[name], annotations[name]), values)
            elif isinstance(value, Mapping):
                values[name] = self.section(value, getattr(default, name), key)
            elif value is not None:  # null for a section means its defaults
                problem = Problem(key, value, "is a section, not a value", f"Set a key below it, e.g. {key}.NAME=...")
                self.problems.append(problem)
        return dataclasses.replace(default, **values)

    def _leaf(self, key: str, value: Any, declared: tuple[dataclasses.Field[Any], Any], values: dict[str, Any]) -> None:
        field, annotation = declared
        try:
            converted = _value(value, annotation)
            _check_limits(converted, field.metadata.get(LIMITS))
        except _WrongValueError as wrong:
            self.problems.append(Problem(key, value, wrong.allowed, wrong.mend))
            return
        values[field.name] = _expand_user(converted) if field.metadata.get(PATH) else converted


def _value(value: Any, annotation: Any) -> Any:
    if is_optional(annotation):
        return None if value is None else _value(value, without_none(annotation))
    if value is None:
        raise _WrongValueError(f"must be {describe_type(annotation)}, not null", "Give a value or leave the key out")
    if is_mapping(annotation):
        return _mapping(value)
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return _choice(value, typing.get_args(annotation))
    if origin is tuple:
        return _tuple(value, typing.get_args(annotation))
    return _SCALARS[annotation](value)


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise _WrongValueError("must be True or False", "Write True or False")


def _int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    mend = "Write a whole number, without quotes"
    if isinstance(value, float) and value.is_integer():
        mend = f"Write {int(value)}"
    raise _WrongValueError("must be a whole number", mend)


def _float(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise _WrongValueError("must be a finite number", "Write a number such as 0.5 or 1e-6, without quotes")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # trainer.experiment_name=20250101 is read as a number by Hydra
    raise _WrongValueError("must be a text", "Put it in quotes twice, for the shell and for Hydra: 'KEY=\"VALUE\"'")


def _choice(value: Any, choices: Sequence[Any]) -> Any:
    if isinstance(value, str) and value in choices:
        return value
    allowed, mend = describe_choices(value, [str(choice) for choice in choices])
    raise _WrongValueError(allowed, mend)


def _mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {str(name): inner for name, inner in value.items()}
    raise _WrongValueError("must be a mapping", "Write {name: value, ...}, or set KEY.name=value")


def _tuple(value: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    is_list = isinstance(value, list | tuple)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        # One text stands for a list of one: data.train_files=train.parquet
        items = value if is_list else [value] if isinstance(value, str) and value else None
        if items is None:
            raise _WrongValueError(f"must be a list of {describe_type(arguments[0])}", "Write [first,second]")
        return tuple(_value(item, arguments[0]) for item in items)
    if not is_list or len(value) != len(arguments):
        shape = ",".join(describe_type(argument) for argument in arguments)
        raise _WrongValueError(f"must be a list of {len(arguments)} values", f"Write [{shape}]")
    return tuple(_value(item, argument) for item, argument in zip(value, arguments, strict=True))


_SCALARS = {bool: _bool, int: _int, float: _float, str: _text}


def _check_limits(value: Any, limits: Limits | None) -> None:
    if limits is None or value is None or limits.accept(value):
        return
    raise _WrongValueError(f"must be {limits.describe()}", "Choose a value in that range")


def _expand_user(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_expand_user(item) for item in value)
    return os.path.expanduser(value) if isinstance(value, str) else value


def to_plain(config: Any) -> Any:
    """Turn a configuration back into dicts, lists, texts and numbers (for YAML, JSON and wandb).

    Args:
        config: A dataclass, or a value of one.

    Returns:
        Plain data; tuples become lists.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {name: to_plain(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_plain(value) for value in config]
    return config
