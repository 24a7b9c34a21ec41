# SPDX-License-Identifier: Apache-2.0
"""The methods that the miniature compares: a name, a script of examples/grpo_trainer/ and what is changed in it.

Everything else (start, PRM, prompts, samples per step, learning rate, KL) is the same for all, from `settings.sh`.
"""

from __future__ import annotations

from dataclasses import dataclass

RULE_SCRIPT = "qwen_rulebased_dapo.sh"
PRM_SCRIPT = "qwen_reasonflux_dapo.sh"
_MODE = "reward_model.process_reward.mode"
_BETA = "reward_model.process_reward.beta"
_SPACE = "reward_model.process_reward.score_space"
_ESTIMATOR = "algorithm.adv_estimator"


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Args:
        name: Its name on the command line and its folder.
        says: What it is, in one line.
        script: The example script that is run.
        overrides: `KEY=VALUE` arguments that make the script this method.
    """

    name: str
    says: str
    script: str
    overrides: tuple[str, ...]


# `grpo` with mode=step is not here: it sums a row, and the sum of a dense row is Eq. 12, so it is `eq12_scalar`.
METHODS: tuple[Method, ...] = (
    Method("rule_only", "outcome alone, GRPO", RULE_SCRIPT, (f"{_ESTIMATOR}=grpo",)),
    Method(
        "legacy",
        "published code: one PRM score per response at its last token, GRPO",
        PRM_SCRIPT,
        (f"{_ESTIMATOR}=grpo", f"{_MODE}=legacy", f"{_BETA}=0.75"),
    ),
    Method(
        "eq12_scalar",
        "the paper's Eq. 11 and 12 as one number per response, GRPO",
        PRM_SCRIPT,
        (f"{_ESTIMATOR}=grpo", f"{_MODE}=scalar", f"{_BETA}=0.75"),
    ),
    Method(
        "grpo_ps",
        "dense: normalised step scores summed from the step on (DeepSeekMath 4.1.3), blended with the outcome",
        PRM_SCRIPT,
        (f"{_ESTIMATOR}=grpo_ps", f"{_MODE}=step", f"{_BETA}=0.75"),
    ),
    Method(
        "grpo_minform",
        "dense: signed step scores, the worst step counts (PURE), plus the outcome",
        PRM_SCRIPT,
        (f"{_ESTIMATOR}=grpo_minform", f"{_MODE}=step", f"{_SPACE}=signed"),
    ),
    Method(
        "papo",
        "outcome plus PRM advantage among right answers alone",
        PRM_SCRIPT,
        (f"{_ESTIMATOR}=papo", f"{_MODE}=step"),
    ),
)
BY_NAME: dict[str, Method] = {method.name: method for method in METHODS}
