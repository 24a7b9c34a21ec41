# SPDX-License-Identifier: Apache-2.0
"""Mistakes in a configuration: one line each, all shown at once. Knows no section."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from verl.utils.errors import UserError


@dataclass(frozen=True)
class Problem:
    """One mistake of the user.

    Example:
        `Problem("data.truncation", "rihgt", "allowed: error | left | right | middle", "did you mean 'right'?")`
    """

    key: str
    """Full key as the user types it."""
    value: object
    """Value found."""
    allowed: str
    """What would be accepted, or what is wrong, in words."""
    mend: str
    """What the user should do."""
    others: tuple[str, ...] = ()
    """Other keys whose values take part in the mistake."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that takes part."""
        return (self.key, *self.others)

    def line(self) -> str:
        """Write the mistake as one line."""
        return str(UserError.for_key(self.key, self.value, self.allowed, self.mend)).replace("?.", "?")


def raise_all(problems: Sequence[Problem]) -> None:
    """Raise one error that lists every mistake, or return if there is none.

    Args:
        problems: Mistakes found, in the order in which they are shown; equal ones are shown once.

    Raises:
        UserError: if there is at least one problem.
    """
    lines = list(dict.fromkeys(problem.line() for problem in problems))
    if not lines:
        return
    if len(lines) == 1:
        raise UserError(lines[0])
    numbered = "\n".join(f"  {number}. {line}" for number, line in enumerate(lines, start=1))
    raise UserError(f"{len(lines)} mistakes in the configuration:\n{numbered}")


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """Find the candidate that the user most likely meant.

    Args:
        name: The name written.
        candidates: Names that exist.

    Returns:
        The nearest candidate, or None if nothing is near.
    """
    matches = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return matches[0] if matches else None


def nearest_key(key: str, candidates: Sequence[str]) -> str | None:
    """Find the full key that the user most likely meant: near as a whole, or with the same last name elsewhere.

    Args:
        key: Full key as written, e.g. `trainer.sav_freq` or `data.lr`.
        candidates: Full keys that exist.

    Returns:
        The nearest key, or None.
    """
    parent, _, name = key.rpartition(".")
    siblings = [candidate for candidate in candidates if candidate.rpartition(".")[0] == parent]
    by_name = nearest(name, [sibling.rpartition(".")[2] for sibling in siblings])
    if by_name is not None:
        return f"{parent}.{by_name}" if parent else by_name
    elsewhere = [candidate for candidate in candidates if candidate.rpartition(".")[2] == name]
    if elsewhere:
        return nearest(key, elsewhere) or elsewhere[0]
    # below a section that exists every whole key is near: they all begin alike
    return None if siblings else nearest(key, candidates)


def describe_choices(name: object, choices: Sequence[str]) -> tuple[str, str]:
    """Put the refusal of an unknown name into words.

    Args:
        name: The name written.
        choices: Names accepted.

    Returns:
        (what is allowed, the mend).
    """
    near = nearest(str(name), choices)
    mend = f"Did you mean {near!r}?" if near is not None else f"Use one of them, e.g. {choices[0]!r}"
    return f"allowed: {' | '.join(choices)}", mend
