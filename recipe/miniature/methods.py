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
# beta is the published code's 0.75 where its reward is meant, and 0.5, the two parts alike, where a paper adds them so.
METHODS: tuple[Method, ...] = (
    Method("rule_only", "outcome alone, GRPO", RULE_SCRIPT, (f"{_ESTIMATOR}=grpo",)),
    Method(
        "legacy",
        "published code: one PRM score per response, read at its last token, GRPO",
        PRM_SCRIPT,
        (f"{_ESTIMATOR}=grpo", f"{_MODE}=legacy", f"{_BETA}=0.75"),
    ),
    Method(
        "eq12_scalar",
        "Eq. 11 and 12 of the ReasonFlux-PRM paper as one number per response, GRPO",
        PRM_SCRIPT,
        (f"{_ESTIMATOR}=grpo", f"{_MODE}=scalar", f"{_BETA}=0.75"),
    ),
    Method(
        "grpo_ps",
        "dense: a step's advantage is the sum of the normalised scores from it on (DeepSeekMath 4.1.3)",
        PRM_SCRIPT,
        (f"{_ESTIMATOR}=grpo_ps", f"{_MODE}=step", f"{_BETA}=0.75"),
    ),
    Method(
        "grpo_minform",
        "dense: the worst step still to come counts, signed scores (PURE)",
        PRM_SCRIPT,
        (f"{_ESTIMATOR}=grpo_minform", f"{_MODE}=step", f"{_SPACE}=signed", f"{_BETA}=0.5"),
    ),
    Method(
        "papo",
        "mean step score, compared among the right answers alone (PAPO)",
        PRM_SCRIPT,
        (f"{_ESTIMATOR}=papo", f"{_MODE}=step", f"{_BETA}=0.5"),
    ),
)
# Not in the table unless asked for by name.
MORE_METHODS: tuple[Method, ...] = (
    Method(
        "grpo_ps_half",
        "grpo_ps with both parts alike",
        PRM_SCRIPT,
        (f"{_ESTIMATOR}=grpo_ps", f"{_MODE}=step", f"{_BETA}=0.5"),
    ),
)
BY_NAME: dict[str, Method] = {method.name: method for method in (*METHODS, *MORE_METHODS)}
