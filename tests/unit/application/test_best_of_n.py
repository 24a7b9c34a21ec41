# SPDX-License-Identifier: Apache-2.0
"""best_of_n.py: the known numbers of real responses, both layouts, rules and labels, scoring, and bad input."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tests.helpers.programs import read_jsonl, write_jsonl

PNG = b"\x89PNG\r\n\x1a\n"

WIDE = [
    {
        "problem": "What is 1 + 1?",
        "responses": ["so 3\n\nAnswer: 3", "so 2\n\nAnswer: 2", "so 2\n\nAnswer: 2.0", "none"],
        "data_source": "math_dapo",
        "reward_model": {"ground_truth": "2", "style": "rule"},
        "is_right": [False, True, True, False],
        "scores": [[1.0, 0.2], [0.3, 0.8], [0.5, 0.5], [0.1]],
    },
    {
        "problem": "What is 2 + 2?",
        "responses": ["Answer: 5", "Answer: 5", "Answer: 4", "Answer: 6"],
        "data_source": "math_dapo",
        "reward_model": {"ground_truth": "4", "style": "rule"},
        "is_right": [0, 0, 1, 0],
        "scores": [[0.2], [0.3], [0.6], [0.1]],
    },
]
LABELS = ("--label-column", "is_right")


def results(program, source, folder, *more) -> dict:
    ended = program("--candidates", source, "--output", folder, *more)
    assert ended.code == 0, ended.err
    return json.loads((folder / "results.json").read_text())


def at(found: dict, n: int) -> dict[str, float]:
    return {name: curve[found["n"].index(n)] for name, curve in found["accuracy"].items()}


@pytest.fixture
def source(tmp_path):
    return write_jsonl(tmp_path / "wide.jsonl", WIDE)


class TestRealResponses:
    def test_known_numbers(self, best_of_n, shared_data, tmp_path):
        file = shared_data / "math/math_responses_50x8.jsonl"
        columns = ("--score-column", "pred_score", "--label-column", "score", "--answer-column", "pred")
        found = results(best_of_n, file, tmp_path, *columns)
        assert found["n"] == [1, 2, 4, 8]
        last = at(found, 8)
        assert last["mean"] == pytest.approx(0.9375)
        assert last["majority"] == pytest.approx(0.96)
        assert last["best of N (score)"] == pytest.approx(0.96)
        assert last["oracle"] == pytest.approx(0.98)
        one = at(found, 1)
        assert all(value == pytest.approx(0.9375) for value in one.values()), "one candidate leaves no choice"
        assert (tmp_path / "accuracy.png").read_bytes().startswith(PNG)
        chosen = read_jsonl(tmp_path / "chosen.jsonl")
        assert len(chosen) == 50
        assert np.mean([row["is_correct"]["best of N (score)"] for row in chosen]) == pytest.approx(0.96)
        first = results(best_of_n, file, tmp_path, *columns, "--over-n", "first")
        assert at(first, 8) == pytest.approx(last)
        assert at(first, 2) != pytest.approx(at(found, 2))

    def test_answers_and_rules_of_our_own(self, best_of_n, shared_data, tmp_path):
        """Without the file's answers and labels: the same up to one answer, `4:30` for `4:30 p.m.`"""
        file = shared_data / "math/math_responses_50x8.jsonl"
        rules = ("--data-source", "math500", "--truth-column", "answer")
        found = at(results(best_of_n, file, tmp_path, "--score-column", "pred_score", *rules), 8)
        assert found["mean"] == pytest.approx(0.9375 + 8 / 400)
        assert found["best of N (score)"] == pytest.approx(0.98)
        assert found["oracle"] == pytest.approx(1.0)


class TestChoices:
    def test_every_method_by_hand(self, best_of_n, source, tmp_path):
        found = results(best_of_n, source, tmp_path / "out", *LABELS, "--score-column", "scores")
        last = at(found, 4)
        assert last["mean"] == pytest.approx((2 / 4 + 1 / 4) / 2)
        assert last["oracle"] == 1.0
        assert last["majority"] == 0.5
        assert last["best of N (last)"] == 1.0
        assert last["best of N (min)"] == 1.0
        assert last["best of N (mean)"] == 0.5
        assert last["best of N (prod)"] == 1.0
        assert last["weighted vote (last)"] == 1.0
        chosen = read_jsonl(tmp_path / "out/chosen.jsonl")
        assert chosen[0]["chosen"]["best of N (min)"] == 2
        assert chosen[0]["chosen"]["best of N (mean)"] == 0
        assert chosen[1]["chosen"]["majority"] == 0
        assert chosen[1]["chosen"]["weighted vote (last)"] == 2

    def test_aggregations_are_chosen(self, best_of_n, source, tmp_path):
        more = (*LABELS, "--score-column", "scores", "--aggregations", "product,last")
        assert set(results(best_of_n, source, tmp_path / "out", *more)["accuracy"]) == {
            "mean",
            "majority",
            "oracle",
            "best of N (prod)",
            "weighted vote (prod)",
            "best of N (last)",
            "weighted vote (last)",
        }

    def test_without_scores_there_are_votes(self, best_of_n, source, tmp_path):
        found = results(best_of_n, source, tmp_path / "out", *LABELS)
        assert set(found["accuracy"]) == {"mean", "majority", "oracle"}

    def test_rules_agree_with_the_labels(self, best_of_n, source, tmp_path):
        by_rule = results(best_of_n, source, tmp_path / "a", "--score-column", "scores")
        by_label = results(best_of_n, source, tmp_path / "b", "--score-column", "scores", *LABELS)
        assert by_rule["accuracy"] == by_label["accuracy"]
        assert (by_rule["judged_by"], by_label["judged_by"]) == ("rules", "is_right")

    def test_fewest_candidates_bound_n(self, best_of_n, tmp_path):
        rows = [WIDE[0], {**WIDE[1], "responses": WIDE[1]["responses"][:2], "is_right": [0, 0]}]
        found = results(best_of_n, write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out", *LABELS)
        assert found["n"] == [1, 2]
        assert found["candidates"] == "2 to 4"
        assert at(found, 2)["oracle"] == pytest.approx((1 - 1 / math.comb(4, 2)) / 2)


class TestLayouts:
    def test_long_rows_as_score_writes_them(self, best_of_n, score, prm, source, tmp_path):
        """Scoring first, and scoring by itself, come to the same; a candidate without an answer is still one."""
        model = ("--prm", prm, "--device", "cpu", "--self-test", "off")
        scored = tmp_path / "scored.jsonl"
        assert score("--input", source, "--output", scored, *model).code == 0
        first = results(best_of_n, scored, tmp_path / "a", *LABELS)
        itself = results(best_of_n, source, tmp_path / "b", *LABELS, *model)
        assert first["accuracy"] == itself["accuracy"]
        assert "best of N (Eq. 11)" in first["accuracy"]
        assert (first["problems"], first["candidates"]) == (2, 4)
        rows = read_jsonl(scored)
        best = max(range(4), key=lambda n: rows[n]["prm_score"])
        assert read_jsonl(tmp_path / "a/chosen.jsonl")[0]["chosen"]["best of N (Eq. 11)"] == best

    def test_rows_of_one_problem_belong_together(self, best_of_n, tmp_path):
        rows = [
            {"prompt": "p", "response": "Answer: 1", "ok": True, "data_source": "math"},
            {"prompt": "q", "response": "Answer: 2", "ok": False, "data_source": "math"},
            {"prompt": "p", "response": "", "ok": False, "data_source": "math"},
            {"prompt": "q", "response": "Answer: 3", "ok": True, "data_source": "math"},
        ]
        source = write_jsonl(tmp_path / "long.jsonl", rows)
        found = results(best_of_n, source, tmp_path / "out", "--label-column", "ok")
        assert (found["problems"], found["candidates"]) == (2, 2)
        assert at(found, 2) == {"mean": 0.5, "majority": 0.5, "oracle": 1.0}

    def test_scoring_by_itself_goes_on(self, best_of_n, prm, source, tmp_path):
        model = ("--prm", prm, "--device", "cpu", "--self-test", "off")
        results(best_of_n, source, tmp_path / "out", *LABELS, *model)
        scored = tmp_path / "out/scored.jsonl"
        written = scored.stat().st_mtime_ns
        results(best_of_n, source, tmp_path / "out", *LABELS, *model)
        assert scored.stat().st_mtime_ns == written

    def test_unscored_candidates_never_win(self, best_of_n, tmp_path):
        row = {**WIDE[0], "scores": [None, [0.1], None, None]}
        source = write_jsonl(tmp_path / "in.jsonl", [row])
        found = results(best_of_n, source, tmp_path / "out", *LABELS, "--score-column", "scores")
        assert read_jsonl(tmp_path / "out/chosen.jsonl")[0]["chosen"]["best of N (score)"] == 1
        assert found["unscored_candidates"] == 3


class TestBadInput:
    def test_bad_rows_are_left_out_and_told(self, best_of_n, tmp_path):
        rows = [
            WIDE[0],
            "{broken",
            {**WIDE[1], "responses": []},
            {**WIDE[1], "is_right": [True]},
            {**WIDE[1], "is_right": ["yes", 0, 0, 0]},
            {**WIDE[1], "scores": [["high"], [0.1], [0.1], [0.1]]},
        ]
        source = write_jsonl(tmp_path / "in.jsonl", rows)
        ended = best_of_n("--candidates", source, "--output", tmp_path / "out", *LABELS, "--score-column", "scores")
        assert ended.code == 0, ended.err
        found = json.loads((tmp_path / "out/results.json").read_text())
        assert found["problems"] == 1
        reasons = ("line 2", "not empty", "1 entries for 4 responses", "'yes'", "must hold numbers")
        assert len(found["left_out"]) == len(reasons)
        for fault, reason in zip(found["left_out"], reasons, strict=True):
            assert reason in fault
        assert ended.out.count("left out:") == 5

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (("--label-column", "nothing"), "no column 'nothing'"),
            (("--score-column", "nothing"), "no column 'nothing'"),
            (("--response-column", "nothing"), "no column 'nothing'"),
            (("--score-column", "scores", "--aggregations", "median"), "--aggregations='median'"),
            (("--max-subsets", 0), "--max-subsets=0"),
            (("--data-source", "nonsense"), "no rule scorer has this name"),
        ],
    )
    def test_one_sentence_and_exit_code_2(self, best_of_n, source, tmp_path, more, message):
        ended = best_of_n("--candidates", source, "--output", tmp_path / "out", *more)
        assert ended.code == 2
        assert message in ended.err

    @pytest.mark.parametrize(
        ("missing", "message"), [("reward_model", "no true answer"), ("data_source", "no data_source")]
    )
    def test_rules_need_truth_and_source(self, best_of_n, tmp_path, missing, message):
        row = {name: value for name, value in WIDE[0].items() if name != missing}
        source = write_jsonl(tmp_path / "in.jsonl", [row])
        ended = best_of_n("--candidates", source, "--output", tmp_path / "out")
        assert ended.code == 2
        assert message in ended.err

    def test_product_of_other_numbers(self, best_of_n, tmp_path):
        row = {**WIDE[0], "scores": [[3.0, -2.0], [1.0], [1.0], [1.0]]}
        source = write_jsonl(tmp_path / "in.jsonl", [row])
        arguments = ("--candidates", source, "--output", tmp_path / "out", *LABELS, "--score-column", "scores")
        ended = best_of_n(*arguments)
        assert ended.code == 0
        assert "no product" in ended.out
        assert "negative" in ended.out
        ended = best_of_n(*arguments, "--aggregations", "product")
        assert ended.code == 2

    def test_prompts_need_a_policy(self, best_of_n, source, tmp_path):
        ended = best_of_n("--prompts", source, "--output", tmp_path / "out")
        assert ended.code == 2
        assert "--policy" in ended.err
