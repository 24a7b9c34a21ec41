# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from verl.rewards.loader import (
    CustomFunction,
    FunctionSpec,
    RuleItem,
    read_batch_results,
    read_result,
    resolve_function,
)
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
    assert CustomFunction(spec).judge([ITEM]) == [RuleVerdict(1.5, True, says_predicted=False)]


def test_an_async_function_is_awaited(tmp_path):
    path = write(
        tmp_path,
        "import asyncio\n"
        "async def grade(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    await asyncio.sleep(0)\n"
        "    return {'score': -0.5, 'acc': 1, 'pred': 9, 'length': 3, 'note': 'text', 'ok': True}\n",
    )
    verdict = CustomFunction(FunctionSpec(path, "grade")).judge([ITEM])[0]
    assert verdict == RuleVerdict(-0.5, True, "9", metrics={"length": 3.0, "ok": 1.0})


def test_what_an_async_function_keeps_stays_usable(tmp_path):
    """A lock (or a client) belongs to the event loop it was made on; a second loop would refuse it."""
    path = write(
        tmp_path,
        "import asyncio\n"
        "kept = {}\n"
        "async def compute_score(data_source, solution_str, ground_truth, extra_info):\n"
        "    waiting = kept.setdefault('task', asyncio.get_running_loop().create_future())\n"
        "    if not waiting.done():\n"
        "        asyncio.get_running_loop().call_later(0.01, waiting.set_result, 7)\n"
        "    return await waiting\n",
    )
    function = CustomFunction(FunctionSpec(path))
    assert [function.judge([ITEM])[0].score for _ in range(3)] == [7.0] * 3


def test_a_batch_function_gets_lists(tmp_path):
    path = write(
        tmp_path,
        "async def compute_score(data_sources, solution_strs, ground_truths, extra_infos, scale=1):\n"
        "    longest = max(map(len, solution_strs))\n"
        "    assert data_sources == ['mine'] * 3 and ground_truths == ['3'] * 3\n"
        "    return [{'score': scale * len(s) / longest, 'pred': e['index']} if len(s) > 1 else None\n"
        "            for s, e in zip(solution_strs, extra_infos)]\n",
    )
    spec = resolve_function(path, "compute_score", {"scale": 2}, takes_batch=True)
    items = [RuleItem("mine", text, "3", {"index": n}) for n, text in enumerate(["abcd", "ab", "x"])]
    first, second, third = CustomFunction(spec).judge(items)
    assert [(v.score, v.predicted) for v in (first, second)] == [(2.0, "0"), (1.0, "1")]
    assert (third.status, third.detail) == ("error", "TypeError: score must be a number, not NoneType")


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([1.0], "1 results for a batch of 2"),
        ([1.0, 2.0, 3.0], "3 results for a batch of 2"),
        (None, "must return a list, not NoneType"),
        ("12", "must return a list, not str"),
        ({"score": [1, 2]}, "must return a list, not dict"),
        (1.0, "must return a list, not float"),
    ],
)
def test_a_batch_result_that_fits_no_response_raises(results, message):
    with pytest.raises((TypeError, ValueError), match=message):
        read_batch_results(results, 2)


def test_arrays_are_lists_too():
    assert [v.score for v in read_batch_results(np.array([0.5, -1.0]), 2)] == [0.5, -1.0]
    assert [v.score for v in read_batch_results((1, 2), 2)] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("given", "ends", "scores"),
    [
        ([0.5, 1], None, (0.5, 1.0)),
        (np.array([0.25]), None, (0.25,)),
        ([], None, ()),
        ([(3, 0.5), [9, -1]], (3, 9), (0.5, -1.0)),
        (np.array([[3.0, 0.5], [9.0, 0.0]]), (3, 9), (0.5, 0.0)),
    ],
)
def test_step_scores_are_numbers_or_pairs(given, ends, scores):
    verdict = read_result({"score": 1, "step_scores": given})
    assert (verdict.step_char_ends, verdict.step_scores) == (ends, scores)
    assert read_result({"score": 1}).step_scores is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("0.5", "step_scores must be a list, not str"),
        (0.5, "step_scores must be a list, not float"),
        ([0.5, None], "a step score must be a number, not NoneType"),
        ([0.5, float("nan")], "a step score is nan"),
        ([(3, 0.5), 1.0], "a step score must be a number, not tuple"),
        ([(3, 0.5, 1)], "pairs"),
        ([(3, 0.5), (3, 0.5)], "rise from 1 on"),
        ([(0, 0.5)], "rise from 1 on"),
        ([(1.5, 0.5)], "whole numbers"),
    ],
)
def test_step_scores_that_cannot_be_read_raise(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        read_result({"score": 1, "step_scores": given})


def test_metric_names_are_names_and_metric_values_are_numbers():
    given = {"score": 1, "my metric!": 2, "a/b-c.d": np.float32(3), "nan": float("nan"), "text": "4", "list": [5]}
    assert read_result(given).metrics == {"my_metric_": 2.0, "a/b-c.d": 3.0}


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
        ({"score": 0.5, "is_correct": False}, 0.5, False),
        ({"score": -0.5, "acc": True, "is_correct": False}, -0.5, True),
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
        ({"score": "1"}, "score must be a number, not str"),
        ({"score": None}, "score must be a number, not NoneType"),
        ({"score": np.array([1.0, 2.0])}, "score must be one number"),
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


def test_the_signature_fits_the_manager(tmp_path):
    one = "def compute_score(data_source, solution_str, ground_truth, extra_info): return 1\n"
    with pytest.raises(UserError, match=r"must take \(data_sources, .* with reward_model.reward_manager=batch"):
        resolve_function(write(tmp_path, one), "compute_score", {}, takes_batch=True)
    many = "def compute_score(data_sources, solution_strs, ground_truths, extra_infos): return [1]\n"
    with pytest.raises(UserError, match=r"must take \(data_source, "):
        resolve_function(write(tmp_path, many), "compute_score", {})


def test_unknown_reward_kwargs_are_refused(tmp_path):
    path = write(tmp_path, "def compute_score(data_source, solution_str, ground_truth, extra_info): return 1\n")
    with pytest.raises(UserError, match="scale"):
        resolve_function(path, "compute_score", {"scale": 2})
