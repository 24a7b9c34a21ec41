# SPDX-License-Identifier: Apache-2.0
"""Root of `main_eval`: a file of responses, and how they are graded. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass, field

from verl.config.fields import limited, path_field
from verl.config.problems import Problem
from verl.config.reward import CustomRewardFunctionConfig


@dataclass(frozen=True, kw_only=True)
class EvaluationDataConfig:
    """Which responses."""

    path: tuple[str, ...] = path_field(())
    """Parquet or JSONL files as `main_generation` writes them, one path or a list. Required."""
    response_key: str | None = None
    """Column that holds a row's responses, a list or one text; null = the first of `responses`, `response`."""
    ground_truth_key: str | None = None
    """Column that holds the true answer; null = `reward_model.ground_truth`, else the first of `ground_truth`,
    `answer`, `gt`."""
    reward_fn_key: str = "data_source"
    """Column whose value chooses the rule scorer."""
    data_source: str | None = None
    """Rule scorer of rows without that column, e.g. `math500`; null = every row needs one."""


@dataclass(frozen=True, kw_only=True)
class VerifierConfig:
    """Processes that grade."""

    num_workers: int = limited(4, low=1)
    """Processes that run the rule verifier. Unit: processes."""
    timeout_s: float = limited(10.0, above=0.0)
    """Longest time for one verdict; the answer then counts as wrong, and is counted. Unit: seconds."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Root of `verl.trainer.main_eval`."""

    data: EvaluationDataConfig = field(default_factory=EvaluationDataConfig)
    """Responses."""
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    """Grading."""
    custom_reward_function: CustomRewardFunctionConfig = field(default_factory=CustomRewardFunctionConfig)
    """A rule function of the user; null path = the built-in rules."""
    output: str | None = path_field()
    """JSON file for the numbers; null = print them only."""
    graded_output: str | None = path_field()
    """JSONL file for the rows with `is_correct` and `predicted` of each response; null = none."""

    def problems(self) -> list[Problem]:
        """List every mistake across sections."""
        if not self.data.path:
            return [Problem("data.path", "", "is required", "Name one or more parquet or JSONL files")]
        return []

    def notices(self) -> list[str]:
        """List values that are read differently from how they look."""
        return []
