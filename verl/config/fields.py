# SPDX-License-Identifier: Apache-2.0
"""How a configuration field states its limits.

Knows nothing of any section; read by the conversion and the reference table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

LIMITS = "limits"
PATH = "path"


@dataclass(frozen=True)
class Limits:
    """The numbers a field accepts.

    Example:
        `Limits(low=1)` accepts 1, 2, ...; `Limits(above=0.0, high=1.0)` accepts the interval (0, 1].
    """

    low: float | None = None
    """Smallest value accepted."""
    high: float | None = None
    """Largest value accepted."""
    above: float | None = None
    """Every accepted value is larger than this one."""
    or_value: float | None = None
    """One value outside the interval that is accepted too, with a meaning of its own (e.g. -1 for "off")."""

    def accept(self, value: float) -> bool:
        """Say whether the value lies within the limits."""
        if self.or_value is not None and value == self.or_value:
            return True
        low_enough = self.high is None or value <= self.high
        high_enough = (self.low is None or value >= self.low) and (self.above is None or value > self.above)
        return low_enough and high_enough

    def describe(self) -> str:
        """Say in words which values are accepted."""
        parts = []
        if self.low is not None:
            parts.append(f"at least {self.low:g}")
        if self.above is not None:
            parts.append(f"above {self.above:g}")
        if self.high is not None:
            parts.append(f"at most {self.high:g}")
        text = " and ".join(parts)
        return text if self.or_value is None else f"{text}, or {self.or_value:g}"


def limited(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    or_value: float | None = None,
) -> Any:
    """Declare a number with limits (checked at the door, shown in the reference table).

    Args:
        default: Value when the user says nothing.
        low: Smallest value accepted.
        high: Largest value accepted.
        above: Exclusive lower limit.
        or_value: One more value accepted outside the interval.

    Returns:
        A dataclass field.
    """
    return field(default=default, metadata={LIMITS: Limits(low=low, high=high, above=above, or_value=or_value)})


def free_mapping() -> Any:
    """Declare a mapping whose keys are not ours (handed on to a library as it is)."""
    factory: Callable[[], Mapping[str, Any]] = dict
    return field(default_factory=factory)


def path_field(default: Any = None) -> Any:
    """Declare one path, or a list of paths, in which a leading `~` is expanded at the door.

    Args:
        default: Value when the user says nothing.

    Returns:
        A dataclass field.
    """
    return field(default=default, metadata={PATH: True})
