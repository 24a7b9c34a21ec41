# SPDX-License-Identifier: Apache-2.0
"""The tree of keys behind a root dataclass: types, defaults, limits and docstrings. Knows no section by name."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union

from verl.config.fields import LIMITS, Limits


@dataclass(frozen=True)
class KeySpec:
    """One key that a user may type.

    Example:
        `KeySpec(key="data.max_prompt_length", type=int, default=512, limits=Limits(low=1), doc="Longest prompt ...")`
    """

    key: str
    """Full key."""
    type: Any
    """Resolved type annotation."""
    default: Any
    """Value when the user says nothing (a tuple, a number, a text, a mapping, None)."""
    limits: Limits | None
    """Numbers accepted."""
    doc: str
    """Docstring under the field, on one line."""


def is_section(annotation: Any) -> bool:
    """Say whether a type annotation is a nested section."""
    return inspect.isclass(annotation) and dataclasses.is_dataclass(annotation)


def is_mapping(annotation: Any) -> bool:
    """Say whether a type annotation is a free mapping, whose keys are not ours."""
    return typing.get_origin(annotation) is Mapping or typing.get_origin(annotation) is dict


def is_optional(annotation: Any) -> bool:
    """Say whether a type annotation accepts null."""
    return typing.get_origin(annotation) in (Union, types.UnionType) and type(None) in typing.get_args(annotation)


def without_none(annotation: Any) -> Any:
    """Strip `| None` from a type annotation."""
    if not is_optional(annotation):
        return annotation
    rest = [part for part in typing.get_args(annotation) if part is not type(None)]
    return rest[0] if len(rest) == 1 else Union[tuple(rest)]  # noqa: UP007 - a union built at run time


@functools.cache
def field_types(section: type) -> dict[str, Any]:
    """Resolve the annotations of a section.

    Args:
        section: A dataclass type.

    Returns:
        Field name to type.
    """
    return typing.get_type_hints(section)


@functools.cache
def field_docs(section: type) -> dict[str, str]:
    """Read the docstrings under a section's fields, base classes included.

    Args:
        section: A dataclass type.

    Returns:
        Field name to docstring, white space folded.
    """
    docs: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if dataclasses.is_dataclass(base):
            docs.update(_own_docs(base))
    return docs


def _own_docs(section: type) -> dict[str, str]:
    module_source = inspect.getsource(sys.modules[section.__module__])
    definitions = [node for node in ast.parse(module_source).body if isinstance(node, ast.ClassDef)]
    body = next(node.body for node in definitions if node.name == section.__name__)
    docs = {}
    for statement, following in zip(body, body[1:], strict=False):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


def walk(section: type, default: Any = None, prefix: str = "") -> Iterator[KeySpec]:
    """List every key below a section, in the order of the fields.

    Args:
        section: A dataclass type.
        default: An instance whose values are the defaults (a section may be nested with defaults of its own).
        prefix: Key of the section, "" for a root.

    Yields:
        One KeySpec per leaf; a free mapping is a leaf.
    """
    instance = section() if default is None else default
    annotations, docs = field_types(section), field_docs(section)
    for field in dataclasses.fields(section):
        key = f"{prefix}.{field.name}" if prefix else field.name
        value = getattr(instance, field.name)
        if is_section(annotations[field.name]):
            yield from walk(annotations[field.name], value, key)
        else:
            limits = field.metadata.get(LIMITS)
            yield KeySpec(key, annotations[field.name], value, limits, docs.get(field.name, ""))


@dataclass(frozen=True)
class Tree:
    """Every key and section of a root, for look-ups by full key."""

    leaves: Mapping[str, KeySpec]
    """Full key to its description."""
    sections: frozenset[str]
    """Full keys of nested sections."""

    def knows(self, key: str) -> bool:
        """Say whether a user may set this key (a leaf, a section, or anything inside a free mapping)."""
        return key in self.leaves or key in self.sections or self.mapping_above(key) is not None

    def has_section_of(self, key: str) -> bool:
        """Say whether the key's first section exists in this root."""
        first = key.split(".")[0]
        return first in self.sections or first in self.leaves

    def is_text(self, key: str) -> bool:
        """Say whether the key holds one text."""
        return key in self.leaves and without_none(self.leaves[key].type) is str

    def holds_text(self, key: str) -> bool:
        """Say whether the key holds one text or a list of texts."""
        if key not in self.leaves:
            return False
        annotation = without_none(self.leaves[key].type)
        return annotation is str or typing.get_args(annotation) == (str, Ellipsis)

    def mapping_above(self, key: str) -> str | None:
        """Name the free mapping in which the key lies, if any."""
        parts = key.split(".")
        for length in range(1, len(parts)):
            spec = self.leaves.get(".".join(parts[:length]))
            if spec is not None and is_mapping(spec.type):
                return spec.key
        return None


def tree_of(root: type) -> Tree:
    """Index the keys of a root.

    Args:
        root: A root dataclass type.

    Returns:
        The tree.
    """
    return _tree_of(root)


@functools.cache
def _tree_of(root: type) -> Tree:
    leaves = {spec.key: spec for spec in walk(root)}
    sections = {".".join(key.split(".")[:length]) for key in leaves for length in range(1, key.count(".") + 1)}
    return Tree(leaves, frozenset(sections))


def describe_type(annotation: Any) -> str:
    """Write a type annotation in the words of the reference table.

    Args:
        annotation: A resolved type annotation.

    Returns:
        E.g. `int`, `list of text`, `bool or null`, `error | left | right | middle`.
    """
    if is_optional(annotation):
        return f"{describe_type(without_none(annotation))} or null"
    if is_mapping(annotation):
        return "mapping"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " | ".join(str(choice) for choice in arguments)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return f"list of {describe_type(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(describe_type(argument) for argument in arguments)}]"
    names = {str: "text", int: "int", float: "float", bool: "bool"}
    return names.get(annotation, textwrap.shorten(str(annotation), 60))
