# SPDX-License-Identifier: Apache-2.0
"""Size budgets: files, classes, functions, nesting and parameters. An exception is a line here with its reason.

Docstrings do not count towards the length of a function: they are wanted.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.sources import label, parse, python_files

FILE_LINES = 400
CLASS_LINES = 350
FUNCTION_LINES = 60
NESTING = 3
PARAMETERS = 6

FOLDERS = ("verl", "recipe", "Application", "examples", "scripts", "benchmarks")
# "path" or "path::qualified name" to the reason why the budget does not fit there.
EXCEPTIONS: dict[str, str] = {}

Function = ast.FunctionDef | ast.AsyncFunctionDef
NESTS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)


def definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.ClassDef | Function]]:
    """Yield every class and function with its qualified name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | Function):
            name = f"{prefix}{node.name}"
            yield name, node
            yield from definitions(node, f"{name}.")
        else:
            yield from definitions(node, prefix)


def count_lines(node: ast.ClassDef | Function) -> int:
    """Lines from the definition to its end; for a function without its docstring."""
    assert node.end_lineno is not None
    lines = node.end_lineno - node.lineno + 1
    first = node.body[0]
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    if isinstance(node, Function) and has_docstring and isinstance(first.value.value, str):
        assert first.end_lineno is not None
        lines -= first.end_lineno - first.lineno + 1
    return lines


def nesting_of(node: ast.AST, depth: int = 0) -> int:
    """Deepest nesting of compound statements; `elif` is as deep as its `if`, a function inside counts for itself."""
    deepest = depth
    for field, children in ast.iter_fields(node):
        for child in children if isinstance(children, list) else [children]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.ClassDef | Function):
                continue
            is_elif = (
                isinstance(node, ast.If) and isinstance(child, ast.If) and field == "orelse" and len(children) == 1
            )
            deeper = isinstance(child, NESTS) and not is_elif
            deepest = max(deepest, nesting_of(child, depth + deeper))
    return deepest


def count_parameters(node: Function) -> int:
    """Parameters a caller may give, without `self` and `cls`, `*args` and `**kwargs`."""
    arguments = node.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def findings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield `(place, fault)` for everything over budget in one file."""
    lines = len(path.read_text().splitlines())
    if lines > FILE_LINES:
        yield label(path), f"{lines} lines, allowed {FILE_LINES}"
    for name, node in definitions(parse(path)):
        place = f"{label(path)}::{name}"
        limit = CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES
        if count_lines(node) > limit:
            yield place, f"{count_lines(node)} lines, allowed {limit}"
        if isinstance(node, ast.ClassDef):
            continue
        if nesting_of(node) > NESTING:
            yield place, f"nested {nesting_of(node)} deep, allowed {NESTING}"
        if count_parameters(node) > PARAMETERS:
            yield place, f"{count_parameters(node)} parameters, allowed {PARAMETERS}: use a frozen dataclass"


def test_everything_is_within_budget() -> None:
    over = [f"{place}: {fault}" for path in python_files(*FOLDERS) for place, fault in findings(path)]
    unexcused = [line for line in over if line.split(": ")[0] not in EXCEPTIONS]
    assert not unexcused, "\n".join(unexcused)


def test_exceptions_are_still_needed() -> None:
    over = {place for path in python_files(*FOLDERS) for place, _ in findings(path)}
    assert set(EXCEPTIONS) <= over, f"no longer over budget: {set(EXCEPTIONS) - over}"


@pytest.mark.parametrize(
    ("source", "depth"),
    [
        ("def f():\n    return 1", 0),
        ("def f():\n    if a:\n        pass\n    elif b:\n        pass\n    elif c:\n        pass", 1),
        ("def f():\n    if a:\n        pass\n    else:\n        if b:\n            pass\n        g()", 2),
        (
            "def f():\n for x in y:\n  with z:\n   try:\n    pass\n   except E:\n    pass",
            3,
        ),
        ("def f():\n    if a:\n        def g():\n            if b:\n                pass\n        return g", 1),
    ],
)
def test_nesting_is_counted_as_a_reader_would(source: str, depth: int) -> None:
    function = ast.parse(source).body[0]
    assert nesting_of(function) == depth


def test_docstring_does_not_count_as_length() -> None:
    function = ast.parse('def f(a, *, b, **c):\n    """One.\n\n    Two.\n    """\n    return a').body[0]
    assert isinstance(function, ast.FunctionDef)
    assert count_lines(function) == 2
    assert count_parameters(function) == 2
