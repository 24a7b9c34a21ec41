# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from verl.rewards.loader import FunctionSpec, RuleItem, call_function, load_function, read_result, resolve_function
from verl.rewards.types import RuleVerdict
from verl.utils.errors import UserError

ITEM = RuleItem("mine", "abc", "3", {"index": 7})


def write(folder, text):
    path = folder / "my_reward.py"
    path.write_text(text)
    return str(path)


def test_a_sync_function_gets_the_four_arguments_and_the_kwargs(tmp_path):
    path = write(
        tmp_path,
        "def compute_score(data_source, solution_str, ground_truth, extra_info, scale):\n"
        "    return len(solution_str) * scale if (data_source, ground_truth) == ('mine', '3') else -1\n",
    )
    spec = resolve_function(path, "compute_score", {"scale": 0.5})
    assert call_function(load_function(spec), ITEM, spec.kwargs) == RuleVerdict(1.5, True)


def test_an_async_function_is_awaited(tmp_path):
    path = write(
        tmp_path,
        "import asyncio\n"
        "async def grade(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    await asyncio.sleep(0)\n"
        "    return {'score': -0.5, 'acc': 1, 'pred': 9, 'length': 3, 'note': 'text', 'ok': True}\n",
    )
    verdict = call_function(load_function(FunctionSpec(path, "grade")), ITEM, {})
    assert verdict == RuleVerdict(-0.5, True, "9", metrics={"length": 3.0, "ok": 1.0})


@pytest.mark.parametrize(
    ("result", "score", "is_correct"),
    [
        (2, 2.0, True),
        (0.0, 0.0, False),
        (-1.0, -1.0, False),
        (True, 1.0, True),
        (np.float32(0.5), 0.5, True),
        (np.array([0.25]), 0.25, True),
        ({"score": 0.5, "acc": False}, 0.5, False),
        ({"score": 0.5, "acc": None}, 0.5, True),
    ],
)
def test_results_that_can_be_read(result, score, is_correct):
    verdict = read_result(result)
    assert (verdict.score, verdict.is_correct, verdict.status) == (score, is_correct, "scored")


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "not NoneType"),
        ("1", "not str"),
        ({"acc": 1}, "no 'score'; it has acc"),
        ({}, "it has nothing"),
        (float("nan"), "nan, not a finite"),
        (float("inf"), "inf, not a finite"),
        ({"score": 1, "acc": "yes"}, "acc must be a number, not str"),
        ((1.0, {}), "not tuple"),
    ],
)
def test_results_that_cannot_be_read_raise(result, message):
    with pytest.raises((TypeError, ValueError), match=message):
        read_result(result)


def test_no_path_means_the_shipped_scorers():
    assert resolve_function(None, "compute_score", {}) is None


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"custom_reward_function\.path=.*does not exist"):
        resolve_function(str(tmp_path / "none.py"), "compute_score", {})


def test_a_missing_name_is_refused_naming_what_is_there(tmp_path):
    path = write(tmp_path, "def other(data_source, solution_str, ground_truth, extra_info): return 1\n")
    with pytest.raises(UserError, match=r"custom_reward_function\.name='compute_score'.*it has other"):
        resolve_function(path, "compute_score", {})


@pytest.mark.parametrize("text", ["import not_a_module_anywhere\n", "def broken(:\n", "1 / 0\n"])
def test_a_file_that_cannot_be_imported_is_refused(tmp_path, text):
    with pytest.raises(UserError, match="importing it raised"):
        resolve_function(write(tmp_path, text), "compute_score", {})


def test_a_wrong_signature_is_refused(tmp_path):
    path = write(tmp_path, "def compute_score(text): return 1\n")
    with pytest.raises(UserError, match="must take"):
        resolve_function(path, "compute_score", {})


def test_unknown_reward_kwargs_are_refused(tmp_path):
    path = write(tmp_path, "def compute_score(data_source, solution_str, ground_truth, extra_info): return 1\n")
    with pytest.raises(UserError, match="scale"):
        resolve_function(path, "compute_score", {"scale": 2})
