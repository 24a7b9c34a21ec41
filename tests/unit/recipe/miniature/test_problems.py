# SPDX-License-Identifier: Apache-2.0
import random
import re

import pytest

from recipe.miniature.problems import ERROR_KINDS, Problem, check_steps, draw_problem, parse_problem, solve
from verl.rewards.scores.dapo import score_dapo

RIGHT = "4*7=28\n\n28-9=19\n\n19+8=27\n\n27-3=24\n\nAnswer: 24"


def test_python_agrees_with_every_result_so_the_notation_means_what_it_says():
    rng = random.Random(0)
    for _ in range(500):
        problem = draw_problem(rng)
        assert problem.answer == eval(problem.text)
        assert parse_problem(problem.text) == problem
        assert all(0 <= result <= 20 for result in problem.results())
        assert len(problem.terms) == 4


def test_a_solution_without_errors_is_right_in_every_step_and_for_the_rule_scorer():
    rng = random.Random(1)
    for _ in range(300):
        problem = draw_problem(rng)
        solution = solve(problem, rng, error_rate=0.0, kinds=ERROR_KINDS)
        assert check_steps(problem.text, solution.text) == [True] * 5
        assert score_dapo(solution.text, str(problem.answer), {}).is_correct
    assert solve(parse_problem("4*7-9+8-3"), rng, 0.0).text == RIGHT


@pytest.mark.parametrize("kind", ["arithmetic", "carry", "operand"])
def test_a_step_is_wrong_exactly_where_an_error_was_made(kind):
    rng = random.Random(2)
    seen = 0
    for _ in range(500):
        problem = draw_problem(rng)
        solution = solve(problem, rng, error_rate=0.4, kinds=(kind,))
        *steps, answer = check_steps(problem.text, solution.text)
        assert steps == [made is None for made in solution.kinds[:-1]]
        assert answer == all(steps)
        seen += not answer
    assert seen > 100


def test_a_wrong_answer_line_leaves_the_steps_right():
    rng = random.Random(4)
    problem = draw_problem(rng)
    solution = solve(problem, rng, error_rate=0.999, kinds=("answer",))
    assert check_steps(problem.text, solution.text) == [True] * 4 + [False]


def test_a_skipped_operation_is_wrong_where_it_shows():
    rng = random.Random(5)
    for _ in range(300):
        problem = draw_problem(rng)
        solution = solve(problem, rng, error_rate=0.4, kinds=("skip",))
        verdicts = check_steps(problem.text, solution.text)
        assert len(verdicts) == 5 - solution.kinds.count("skip")
        assert verdicts[-1] == ("skip" not in solution.kinds)


def test_steps_after_an_error_go_on_from_what_it_says():
    rng = random.Random(3)
    for _ in range(200):
        solution = solve(draw_problem(rng), rng, error_rate=0.5, kinds=("arithmetic",))
        equations = [re.fullmatch(r"(-?\d+)([-+*])(\d)=(-?\d+)", step) for step in solution.steps[:-1]]
        for before, after in zip(equations, equations[1:], strict=False):
            assert after[1] == before[4]
        assert solution.steps[-1] == f"Answer: {equations[-1][4]}"


@pytest.mark.parametrize(
    ("response", "verdicts"),
    [
        (RIGHT, [True] * 5),
        (RIGHT.replace("24", "25"), [True, True, True, False, False]),
        ("4*7=27\n\n27-9=18\n\n18+8=26\n\n26-3=23\n\nAnswer: 23", [False, True, True, True, False]),
        ("4*7=28\n\n29-9=20\n\n20+8=28\n\n28-3=25\n\nAnswer: 24", [True, False, True, True, False]),
        (RIGHT.replace("Answer: 24", "Answer: 25"), [True, True, True, True, False]),
        ("Answer: 24", [True]),
        ("Answer: 23", [False]),
        ("", []),
        ("\n\n\n\n", []),
        ("4*7=28\n\nAnswer: 24", [True, True]),
        ("28-9=19", [False]),
        ("4*7 = 28", [False]),
        ("4*7=028", [False]),
        ("4*7=" + "9" * 99, [False]),
        (RIGHT + "\n\n24+1=25", [True] * 5 + [False]),
        ("<pad>nonsense", [False]),
    ],
)
def test_check_steps(response, verdicts):
    assert check_steps("4*7-9+8-3", response) == verdicts


@pytest.mark.parametrize("text", ["", "4", "4+", "44+1", "a+b", "4/2+1"])
def test_what_is_no_problem_is_refused(text):
    with pytest.raises(ValueError, match="not a chain"):
        parse_problem(text)


def test_the_text_of_a_problem():
    assert Problem(4, (("*", 7), ("-", 9))).text == "4*7-9"
