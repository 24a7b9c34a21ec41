# SPDX-License-Identifier: Apache-2.0
"""Grading a file: rows are read as people write them, and the numbers agree with counting by hand."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from verl.config import EvaluationConfig
from verl.config.hydra import load_config
from verl.rewards.types import RuleVerdict
from verl.trainer.evaluation import AnsweredRow, GradedRow, evaluate, grade, read_answered
from verl.trainer.main_eval import main
from verl.utils.errors import UserError


def write(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(*overrides: str) -> EvaluationConfig:
    return load_config("evaluation", ["verifier.num_workers=1", *overrides], EvaluationConfig).config


def graded(*answers: str | None, truth: str = "1", source: str = "math500") -> GradedRow:
    row = AnsweredRow({}, source, truth, tuple(f"{answer}" for answer in answers))
    return GradedRow(row, tuple(RuleVerdict(float(a == truth), a == truth, predicted=a) for a in answers))


def test_numbers_agree_with_enumeration():
    rows = [graded("1", "2", "2", "1"), graded("3", "3", "1", None), graded("1", "1", "1", "5"), graded(*"2345")]
    numbers = evaluate(rows)["overall"]

    def vote_is_right(answers: tuple) -> bool:
        counts = Counter(answer for answer in answers if answer is not None)
        return bool(counts) and max(counts, key=lambda answer: counts[answer]) == "1"

    answers = [[verdict.predicted for verdict in row.verdicts] for row in rows]
    for k in (1, 2, 4):
        subsets = [list(itertools.combinations(each, k)) for each in answers]
        passed = [sum("1" in subset for subset in each) / len(each) for each in subsets]
        voted = [sum(map(vote_is_right, each)) / len(each) for each in subsets]
        assert numbers[f"pass@{k}"] == pytest.approx(sum(passed) / 4)
        assert numbers[f"maj@{k}"] == pytest.approx(sum(voted) / 4)
    shares = [0.5, 0.25, 0.75, 0.0]
    mean = sum(shares) / 4
    assert numbers["mean@4"] == pytest.approx(mean)
    assert numbers["mean@4_stderr"] == pytest.approx((sum((s - mean) ** 2 for s in shares) / 3 / 4) ** 0.5)
    assert numbers["no_answer_share"] == pytest.approx(1 / 16)
    assert (numbers["num_prompts"], numbers["num_responses"]) == (4, 16)


def test_sources_apart_and_the_smallest_group_sets_n():
    numbers = evaluate([graded("1", "2", source="a"), graded("1", "1", "1", source="b")])
    assert numbers["sources"]["a"]["mean@2"] == 0.5
    assert numbers["sources"]["b"]["pass@3"] == 1.0
    assert numbers["overall"]["mean@2"] == 0.75
    assert "pass@3" not in numbers["overall"]


def test_without_answers_there_is_no_vote():
    row = AnsweredRow({}, "own", "1", ("a", "b"))
    numbers = evaluate([GradedRow(row, (RuleVerdict(1.0, True), RuleVerdict(0.0, False)))])["overall"]
    assert numbers["mean@2"] == 0.5 and not [name for name in numbers if name.startswith("maj")]


def test_given_verdicts_of_real_responses(shared_data):
    """The file's own judgements and answers: its authors' numbers must come out."""
    lines = (shared_data / "math" / "math_responses_50x8.jsonl").read_text().splitlines()
    rows = []
    for values in map(json.loads, lines):
        verdicts = [
            RuleVerdict(float(right), right, predicted=answer)
            for right, answer in zip(values["score"], values["pred"], strict=True)
        ]
        rows.append(GradedRow(AnsweredRow(values, "math500", values["gt"], tuple(values["response"])), tuple(verdicts)))
    numbers = evaluate(rows)["overall"]
    assert (numbers["mean@8"], numbers["maj@8"], numbers["pass@8"]) == pytest.approx((0.9375, 0.96, 0.98))


def test_our_grading_of_real_responses_differs_from_the_given_one_on_one_problem_alone(shared_data):
    """The file's own judge compared with a truth that its clean-up had garbled to `4:30p..`."""
    path = shared_data / "math" / "math_responses_50x8.jsonl"
    chosen = config(f"data.path={path}", "data.data_source=math500")
    rows = asyncio.run(grade(chosen, read_answered(chosen)))
    different = {entry.row.ground_truth for entry in rows if entry.correct != entry.row.values["score"]}
    assert different == {r"\text{4:30 p.m.}"}


def test_columns_are_found_or_named(tmp_path):
    path = write(
        tmp_path / "rows.jsonl",
        {"responses": ["a", "b"], "reward_model": {"ground_truth": "x"}, "answer": "y", "data_source": "math_dapo"},
        {"response": "a", "answer": 7},
    )
    first, second = read_answered(config(f"data.path={path}", "data.data_source=math500"))
    assert (first.responses, first.ground_truth, first.data_source) == (("a", "b"), "x", "math_dapo")
    assert (second.responses, second.ground_truth, second.data_source) == (("a",), "7", "math500")
    path = write(tmp_path / "named.jsonl", {"out": ["a"], "truth": "z", "kind": "gsm8k"})
    keys = ("data.response_key=out", "data.ground_truth_key=truth", "data.reward_fn_key=kind")
    (row,) = read_answered(config(f"data.path={path}", *keys))
    assert (row.responses, row.ground_truth, row.data_source) == (("a",), "z", "gsm8k")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"responses": [], "answer": "1", "data_source": "math500"}, "must be a text or a list of texts"),
        ({"responses": ["a", None], "answer": "1", "data_source": "math500"}, "must be a text or a list of texts"),
        ({"responses": ["a"], "data_source": "math500"}, "it has no true answer"),
        ({"responses": ["a"], "answer": "1"}, "data.data_source=None: .*line 1 has no 'data_source'"),
        ({"responses": ["a"], "answer": "1", "data_source": "unheard"}, "no rule scorer has this name"),
    ],
)
def test_rows_that_cannot_be_graded_are_refused(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        read_answered(config(f"data.path={write(tmp_path / 'rows.jsonl', row)}"))


def test_the_program_grades_prints_and_writes(tmp_path, capsys):
    row = {"prompt": "1+1", "answer": "2", "data_source": "math500", "finish_reasons": ["stop", "length"]}
    row |= {"responses": ["so \\boxed{2}", "so 3"], "num_response_tokens": [4, 8]}
    path = write(tmp_path / "rows.jsonl", row)
    outputs = [f"output={tmp_path}/made/eval.json", f"graded_output={tmp_path}/graded.jsonl"]
    assert main([f"data.path={path}", "verifier.num_workers=1", *outputs]) == 0
    numbers = json.loads((tmp_path / "made" / "eval.json").read_text())
    overall = numbers["overall"]
    assert (overall["mean@2"], overall["pass@1"], overall["pass@2"], overall["maj@2"]) == (0.5, 0.5, 1.0, 1.0)
    assert (overall["truncated_share"], overall["response_tokens_mean"]) == (0.5, 6.0)
    assert numbers["data"] == [path] and numbers["sources"]["math500"] == overall
    assert json.loads((tmp_path / "graded.jsonl").read_text()) == row | {
        "is_correct": [True, False],
        "predicted": ["2", None],
    }
    assert "pass@2" in capsys.readouterr().out


def test_a_users_function_grades_and_a_hanging_one_is_counted(tmp_path):
    function = tmp_path / "own.py"
    function.write_text(
        "import time\n"
        "def compute_score(data_source, solution_str, ground_truth, extra_info):\n"
        "    if solution_str == 'hang':\n"
        "        time.sleep(60)\n"
        "    return float(solution_str == ground_truth)\n"
    )
    path = write(tmp_path / "rows.jsonl", {"responses": ["1", "2", "hang"], "answer": "1", "data_source": "own"})
    chosen = config(f"data.path={path}", f"custom_reward_function.path={function}", "verifier.timeout_s=2")
    (row,) = asyncio.run(grade(chosen, read_answered(chosen)))
    assert row.correct == [True, False, False]
    assert row.verdicts[2].status == "timeout"
    assert evaluate([row])["overall"]["unjudged_share"] == pytest.approx(1 / 3)


def test_mistakes_end_with_code_2(tmp_path, capsys):
    assert main(["data.paht=x"]) == 2
    assert "Did you mean data.path" in capsys.readouterr().err
    assert main([f"data.path={tmp_path}/nothing.jsonl"]) == 2
    assert "there is no such file" in capsys.readouterr().err
    assert main([]) == 2
    assert "data.path" in capsys.readouterr().err
