# SPDX-License-Identifier: Apache-2.0
"""Section `reward_model.alarms`: when a number says that the policy is learning to please the PRM.

Knows which values make sense; the rules themselves are in `verl.rewards.alarms`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from verl.config.fields import limited
from verl.config.names import AlarmName
from verl.config.problems import Problem

_KEY = "reward_model.alarms"


@dataclass(frozen=True, kw_only=True)
class AlarmsConfig:
    """Known ways of pleasing a PRM, each with the number it shows in and where that becomes alarming.

    Every alarm warns once when it begins; `null` switches it off. Those of a PRM are silent without one.
    """

    stop_on: tuple[AlarmName, ...] = ()
    """Alarms that end the run instead of warning, e.g. `[empty,auc]`."""
    patience: int = limited(5, low=1)
    """An alarm begins when its threshold is crossed so many training steps in a row. Unit: training steps."""
    repeated_steps: float | None = limited(0.3, low=0.0, high=1.0)
    """Above: `prm/repeated_steps/share`, steps that repeat an earlier one of their response."""
    empty: float | None = limited(0.1, low=0.0, high=1.0)
    """Above: `prm/empty/share`, responses without a reasoning step."""
    one_step: float | None = limited(0.5, low=0.0, high=1.0)
    """Above: `prm/one_step/share`, responses of a single reasoning step (silent in mode `legacy`)."""
    steps_growth: float | None = limited(2.0, above=1.0)
    """Above: `prm/steps_per_response/mean` as a multiple of its mean over the run's first 10 training steps."""
    auc: float | None = limited(0.5, low=0.0, high=1.0)
    """At or below: `prm/auc/mean`, the chance that the PRM scores a right answer above a wrong one."""
    right_minus_wrong: float | None = 0.0
    """At or below: `prm/right_minus_wrong/mean`, mean PRM score of right answers less that of wrong ones."""
    saturation: float | None = limited(0.95, low=0.0, high=1.0)
    """Above: `prm/saturated_steps/share`, steps whose probability is next to 0 or 1."""
    unscored: float | None = limited(0.05, low=0.0, high=1.0)
    """Above: `prm/unscored/share`, responses without step scores."""
    no_answer: float | None = limited(0.5, low=0.0, high=1.0)
    """Above: `reward/no_answer/share`, responses in which the rule finds no answer."""


def alarm_problems(alarms: AlarmsConfig) -> Iterator[Problem]:
    """Refuse alarms that could never begin.

    Args:
        alarms: The section.

    Yields:
        Every mistake found.
    """
    shares = {
        "repeated_steps": alarms.repeated_steps,
        "empty": alarms.empty,
        "one_step": alarms.one_step,
        "saturation": alarms.saturation,
        "unscored": alarms.unscored,
        "no_answer": alarms.no_answer,
    }
    for name in (name for name, threshold in shares.items() if threshold == 1.0):
        yield Problem(f"{_KEY}.{name}", 1.0, "a share is never above 1", "Set it to null (off)")
    for name in alarms.stop_on:
        if getattr(alarms, name) is None:
            mend = f"Give {_KEY}.{name} a threshold, or leave it out of stop_on"
            yield Problem(f"{_KEY}.stop_on", list(alarms.stop_on), f"{name} is off", mend, (f"{_KEY}.{name}",))
