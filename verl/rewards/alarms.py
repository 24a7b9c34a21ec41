# SPDX-License-Identifier: Apache-2.0
"""Alarms over the metrics of training steps: the hacks of a PRM that are known, each seen in one number.

Numbers in, alarms out; knows no trainer and stops nothing itself. Sources of the hacks: PURE (arXiv 2504.15275: empty
and single-step answers), arXiv 2410.15115 (repeated trivial steps), P2T (saturation), PROF (arXiv 2509.03403: wrong
answers with a high PRM mean).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from verl.config.alarms import AlarmsConfig
from verl.utils.errors import UserError

logger = logging.getLogger(__name__)

BASELINE_STEPS = 10
"""Values of a metric whose mean its growth is measured against."""

Kind = Literal["above", "below", "growth"]


class AlarmStopError(UserError):
    """An alarm with action `stop` has begun: somebody has to look at the run."""


@dataclass(frozen=True)
class AlarmRule:
    """When an alarm begins.

    Args:
        name: Its name.
        metric: The metric it watches.
        kind: `above` the threshold; `below`: at or below it; `growth`: above so many times the mean of the metric's
            first `BASELINE_STEPS` values.
        threshold: The number compared with.
        action: `warn` or `stop`.
        patience: Training steps in a row.
    """

    name: str
    metric: str
    kind: Kind
    threshold: float
    action: Literal["warn", "stop"] = "warn"
    patience: int = 1

    def limit(self, baseline: float) -> float:
        """Return the value of the metric that must be crossed.

        Args:
            baseline: Mean of the metric's first values; read by `growth` alone.
        """
        return self.threshold * baseline if self.kind == "growth" else self.threshold

    def is_crossed(self, value: float, baseline: float) -> bool:
        """Say whether a value lies beyond the limit.

        Args:
            value: Of the metric.
            baseline: As in `limit`.
        """
        limit = self.limit(baseline)
        return value <= limit if self.kind == "below" else value > limit


@dataclass(frozen=True)
class Alarm:
    """An alarm that has begun.

    Args:
        rule: Its rule.
        step: Training step.
        value: Of the metric.
        limit: What it crossed.
    """

    rule: AlarmRule
    step: int
    value: float
    limit: float

    def __str__(self) -> str:
        side = "not above" if self.rule.kind == "below" else "above"
        steps = f"{self.rule.patience} training steps in a row" if self.rule.patience > 1 else "this training step"
        return (
            f"alarm {self.rule.name} at step {self.step}: {self.rule.metric}={self.value:.4g} is {side} "
            f"{self.limit:.4g}, {steps} (reward_model.alarms.{self.rule.name})"
        )


def alarm_rules(alarms: AlarmsConfig, mode: str = "step") -> list[AlarmRule]:
    """Read the rules from the configuration.

    Args:
        alarms: `reward_model.alarms`.
        mode: `reward_model.process_reward.mode`; in `legacy` every response is one step, which is no alarm.

    Returns:
        The alarms that are on.
    """
    watched: list[tuple[str, str, Kind, float | None]] = [
        ("repeated_steps", "prm/repeated_steps/share", "above", alarms.repeated_steps),
        ("empty", "prm/empty/share", "above", alarms.empty),
        ("one_step", "prm/one_step/share", "above", None if mode == "legacy" else alarms.one_step),
        ("steps_growth", "prm/steps_per_response/mean", "growth", alarms.steps_growth),
        ("auc", "prm/auc/mean", "below", alarms.auc),
        ("right_minus_wrong", "prm/right_minus_wrong/mean", "below", alarms.right_minus_wrong),
        ("saturation", "prm/saturated_steps/share", "above", alarms.saturation),
        ("unscored", "prm/unscored/share", "above", alarms.unscored),
        ("no_answer", "reward/no_answer/share", "above", alarms.no_answer),
    ]
    return [
        AlarmRule(name, metric, kind, threshold, "stop" if name in alarms.stop_on else "warn", alarms.patience)
        for name, metric, kind, threshold in watched
        if threshold is not None
    ]


class AlarmBoard:
    """Watches the metrics of one training step after the other.

    A metric that a step says nothing of (an AUC where all answers are right) changes nothing: the count of steps in a
    row goes on with the next value.

    Example:
        >>> board = AlarmBoard(alarm_rules(config.reward_model.alarms))
        >>> alarms = board.check(step, metrics)     # new ones only, logged
        >>> metrics |= board.metrics()
        >>> board.raise_for(alarms)                 # after the step's metrics are written
    """

    def __init__(self, rules: Sequence[AlarmRule]) -> None:
        """Remember the rules.

        Args:
            rules: With different names.
        """
        self._rules = list(rules)
        self._in_row = {rule.name: 0 for rule in rules}
        self._seen: set[str] = set()
        self._first_values: dict[str, list[float]] = {rule.name: [] for rule in rules if rule.kind == "growth"}
        if len(self._in_row) != len(self._rules):
            raise ValueError(f"two alarms have the same name: {sorted(rule.name for rule in rules)}")

    def check(self, step: int, metrics: Mapping[str, float]) -> list[Alarm]:
        """Look at one training step.

        Args:
            step: Its number.
            metrics: Its metrics.

        Returns:
            The alarms that begin with this step; one that goes on is not told again, unless it is to stop the run.
        """
        begun: list[Alarm] = []
        for rule in self._rules:
            value = metrics.get(rule.metric)
            if value is None or not math.isfinite(value):
                continue
            self._seen.add(rule.name)
            baseline = self._baseline(rule, value)
            was_on = self._is_on(rule)
            self._in_row[rule.name] = self._in_row[rule.name] + 1 if rule.is_crossed(value, baseline) else 0
            if self._is_on(rule) and (not was_on or rule.action == "stop"):
                begun.append(Alarm(rule, step, value, rule.limit(baseline)))
                logger.warning("%s", begun[-1])
        return begun

    def metrics(self) -> dict[str, float]:
        """Return `alarm/NAME` -> 1 where the alarm is on, else 0; nothing of metrics that were never there."""
        return {f"alarm/{rule.name}": float(self._is_on(rule)) for rule in self._rules if rule.name in self._seen}

    def raise_for(self, alarms: Sequence[Alarm]) -> None:
        """End the run where its owner asked for it.

        Args:
            alarms: What `check` returned.

        Raises:
            AlarmStopError: One of them has the action `stop`.
        """
        stopping = [alarm for alarm in alarms if alarm.rule.action == "stop"]
        if stopping:
            told = "; ".join(map(str, stopping))
            raise AlarmStopError(
                f"{told}. Look at the rollouts; to go on, take it out of reward_model.alarms.stop_on and resume"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must know, as plain values."""
        return {"in_row": dict(self._in_row), "first_values": {k: list(v) for k, v in self._first_values.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another board was; rules that it did not have begin anew.

        Args:
            state: Its `state_dict`.
        """
        for own, saved in ((self._in_row, state["in_row"]), (self._first_values, state["first_values"])):
            own.update({name: saved[name] for name in own if name in saved})

    def _is_on(self, rule: AlarmRule) -> bool:
        return self._in_row[rule.name] >= rule.patience

    def _baseline(self, rule: AlarmRule, value: float) -> float:
        """Return the mean of the first values; until there are enough nothing has grown."""
        if rule.kind != "growth":
            return 0.0
        first = self._first_values[rule.name]
        if len(first) < BASELINE_STEPS:
            first.append(value)
            return math.inf
        return sum(first) / len(first)
