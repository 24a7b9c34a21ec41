# SPDX-License-Identifier: Apache-2.0
"""Modules that can be imported and not used: every name in them is a function that refuses to be called.

On a machine without a GPU the compiled packages that SGLang imports cannot be installed. These stand in for them in
tests. Nothing can be computed with them, so that no result comes from a fake: what runs is SGLang's own torch code.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any


class Refusing:
    """A name of a missing package. It can be looked up and compared, and raises when it is called."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{self.__name__} stands in for a package that is not installed here")

    def __getattr__(self, name: str) -> Refusing:
        return Refusing(f"{self.__name__}.{_public(name)}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Refusing) and other.__name__ == self.__name__

    def __hash__(self) -> int:
        return hash(self.__name__)


class SubmoduleFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every submodule of one missing package.

    Args:
        package: Its name.
    """

    def __init__(self, package: str) -> None:
        self._prefix = f"{package}."

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith(self._prefix):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = lambda name: Refusing(f"{spec.name}.{_public(name)}")  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def refuse(package: str) -> Any:
    """Make a package out of refusals.

    Args:
        package: Its name; its submodules are found from now on.

    Returns:
        A `__getattr__` for the package's own module.
    """
    sys.meta_path.append(SubmoduleFinder(package))
    return lambda name: Refusing(f"{package}.{_public(name)}")


def _public(name: str) -> str:
    if name.startswith("__"):  # asked for by Python itself, which must hear that it is not there
        raise AttributeError(name)
    return name
