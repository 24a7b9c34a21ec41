# SPDX-License-Identifier: Apache-2.0
"""The two name tables of the algorithms: advantage estimators and policy losses. It knows no estimator by name.

A user's own estimator or loss registers itself with the decorator from any module that is imported before training.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from enum import StrEnum
from typing import Generic, TypeVar

import torch

from verl.algorithms.inputs import AdvantageInputs
from verl.utils.errors import UserError

AdvantageFn = Callable[[AdvantageInputs], tuple[torch.Tensor, torch.Tensor]]
Entry = TypeVar("Entry")
Fn = TypeVar("Fn", bound=Callable)


class AdvantageEstimator(StrEnum):
    """Names of the estimators that ship with the package; a registered name needs no entry here."""

    GRPO = "grpo"
    GRPO_PS = "grpo_ps"
    GRPO_MINFORM = "grpo_minform"
    GRPO_DELTA = "grpo_delta"
    PAPO = "papo"
    GDPO = "gdpo"
    RLOO = "rloo"
    OPO = "opo"
    REMAX = "remax"
    REINFORCE_PLUS_PLUS = "reinforce_plus_plus"
    REINFORCE_PLUS_PLUS_BASELINE = "reinforce_plus_plus_baseline"


class NameTable(Generic[Entry]):
    """Names and what they stand for; an unknown name is a user error that lists the known ones.

    Example:
        >>> table = NameTable[int]("trainer.answer")
        >>> table.add("forty-two", 42)
        >>> table.get("forty-two")
        42
    """

    def __init__(self, key: str) -> None:
        """Start an empty table.

        Args:
            key: Configuration key whose value is looked up here; error messages name it.
        """
        self._key = key
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> None:
        """Add an entry.

        Args:
            name: Its name.
            entry: What it stands for.

        Raises:
            ValueError: The name already stands for something else.
        """
        if self._entries.get(name, entry) != entry:
            raise ValueError(f"{self._key}: {name!r} is already registered")
        self._entries[name] = entry

    def get(self, name: str) -> Entry:
        """Look a name up.

        Args:
            name: The name, as the user wrote it.

        Returns:
            The entry.

        Raises:
            UserError: Nothing of this name is registered.
        """
        if name in self._entries:
            return self._entries[str(name)]
        near = difflib.get_close_matches(str(name), self._entries, n=1)
        mend = f"Did you mean {near[0]!r}" if near else "Use one of them, or register your own before training starts"
        raise UserError.for_key(self._key, str(name), f"registered names are {', '.join(self.names())}", mend)

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._entries)


_ESTIMATORS: NameTable[tuple[AdvantageFn, tuple[str, ...]]] = NameTable("algorithm.adv_estimator")
POLICY_LOSSES: NameTable[Callable] = NameTable("actor_rollout_ref.actor.policy_loss.loss_mode")


def register_adv_est(
    name: str, columns: tuple[str, ...] = ("token_level_rewards",)
) -> Callable[[AdvantageFn], AdvantageFn]:
    """Register an advantage estimator: a function of `AdvantageInputs` giving advantages and returns, both [S, R].

    Args:
        name: Value of `algorithm.adv_estimator` that selects it.
        columns: Attributes of `AdvantageInputs` it reads besides the mask and the groups. One that leaves out
            `token_level_rewards` cannot see a KL penalty in the reward, so the trainer refuses that combination.

    Returns:
        The decorator.

    Raises:
        ValueError: The name is taken by another function.
    """

    def decorate(function: AdvantageFn) -> AdvantageFn:
        _ESTIMATORS.add(str(name), (function, columns))
        return function

    return decorate


def get_adv_estimator_fn(name: str) -> AdvantageFn:
    """Look up an advantage estimator.

    Args:
        name: Registered name or `AdvantageEstimator` member.

    Returns:
        The function.

    Raises:
        UserError: Unknown name.
    """
    return _ESTIMATORS.get(name)[0]


def adv_estimator_columns(name: str) -> tuple[str, ...]:
    """Say which columns an estimator reads.

    Args:
        name: Registered name.

    Returns:
        Attributes of `AdvantageInputs`.

    Raises:
        UserError: Unknown name.
    """
    return _ESTIMATORS.get(name)[1]


def register_policy_loss(name: str) -> Callable[[Fn], Fn]:
    """Register a policy loss, a function like `verl.algorithms.policy_losses.clipped_surrogate`.

    Args:
        name: Value of `actor_rollout_ref.actor.policy_loss.loss_mode` that selects it.

    Returns:
        The decorator.

    Raises:
        ValueError: The name is taken by another function.
    """

    def decorate(function: Fn) -> Fn:
        POLICY_LOSSES.add(name, function)
        return function

    return decorate
