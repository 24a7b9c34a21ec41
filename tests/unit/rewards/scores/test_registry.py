# SPDX-License-Identifier: Apache-2.0
import pytest

from verl.rewards.loader import read_result
from verl.rewards.scores import registry
from verl.rewards.scores.boxed import score_boxed, score_boxed_or_line
from verl.rewards.scores.dapo import score_dapo
from verl.rewards.scores.gsm8k import score_gsm8k
from verl.rewards.types import RuleVerdict
from verl.utils.errors import UserError


@pytest.mark.parametrize(
    ("data_source", "scorer"),
    [
        ("math_dapo", score_dapo),
        ("openai/gsm8k", score_gsm8k),
        ("HuggingFaceH4/MATH-500", score_boxed),
        ("DigitalLearningGmbH/MATH-lighteval", score_boxed),
        ("aime24", score_boxed_or_line),
        ("HuggingFaceH4/aime_2024", score_boxed_or_line),
    ],
)
def test_known_data_sources(data_source, scorer):
    assert registry.get_scorer(data_source) is scorer


def test_an_unknown_data_source_is_refused_naming_the_known_ones():
    with pytest.raises(UserError, match=r"data_source='poems'.*math_dapo.*\*gsm8k"):
        registry.check_data_sources(["math_dapo", "poems"])


def test_a_registered_scorer_comes_first_and_only_once():
    def score_length(response, ground_truth, extra_info):
        return RuleVerdict(float(len(response)), True)

    registry.register_scorer("unit/test_GSM8K", score_length)
    assert registry.get_scorer("unit/test_gsm8k") is score_length
    assert registry.known_data_sources()[0] == "unit/test_gsm8k"
    with pytest.raises(UserError, match="once"):
        registry.register_scorer("unit/test_gsm8k", score_length)


def test_the_shipped_score_can_be_called_from_a_custom_function():
    scored = registry.default_compute_score("math_dapo", "Answer: 34", "34")
    assert scored == {"score": 1.0, "acc": True, "pred": "34"}
    verdict = read_result(registry.default_compute_score("math_dapo", "none", "34", {"index": 1}))
    assert verdict == RuleVerdict(-1.0, False, None)
