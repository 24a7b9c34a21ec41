# SPDX-License-Identifier: Apache-2.0
"""PRMScorer: the scores of a plain forward pass, in the order asked for, and every failure said."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch

from tests.helpers.prm import TableScorer, save_tiny_prm
from tests.helpers.prm_families import FAMILIES, family_spec, save_family
from verl.rewards.prm import PRMScorer, PRMScores, ScoringSettings
from verl.rewards.prm.model import load_prm
from verl.rewards.prm.scorer import HFScorer
from verl.rewards.prm.spec import PRMSpec, load_adapter
from verl.rewards.prm.steps import SplitRule
from verl.rewards.prm.types import PRMInputError, ScoreRequest, StepLogits
from verl.utils.errors import UserError

PROBLEM = "What is 3 * 4 - 2?"


class Table(TableScorer):
    """A table with the life of a scorer."""

    def __init__(self, table: dict[str, float], default: float = 0.0) -> None:
        super().__init__(table, default)
        self.life: list[str] = []
        self.running = self.most_running = 0

    async def start(self) -> None:
        self.life.append("start")

    async def __call__(self, request: ScoreRequest) -> StepLogits:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            # later requests are done earlier
            await asyncio.sleep(0.02 / (1 + int(request.request_id)))
            if "unscorable" in request.problem:
                raise PRMInputError(f"{request.request_id}: too long")
            if "broken" in request.problem:
                raise MemoryError("no room")
            return await super().__call__(request)
        finally:
            self.running -= 1

    async def close(self) -> None:
        self.life.append("close")


def probability(value: float) -> float:
    return float(1 / (1 + np.exp(-2 * value)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_prm(tmp_path_factory.mktemp("prm"))


def by_hand(folder, problem: str, steps: tuple[str, ...]) -> np.ndarray:
    """P(right) by one unpadded forward with the head on every token."""
    (item,) = load_adapter(PRMSpec(path=str(folder))).adapter.plan(ScoreRequest("0", problem, steps)).inputs
    with torch.no_grad():
        logits = load_prm(str(folder), torch.float32)(torch.tensor([item.token_ids]))[0]
    return torch.softmax(logits, -1)[torch.from_numpy(item.score_positions), 1].numpy()


def test_scores_are_those_of_a_plain_forward(folder):
    items = [
        (PROBLEM, "First, 12.\n\nThen 10.\n\nAnswer: 10"),
        (PROBLEM, ["a longer step than the others, by far", "b"]),
        (PROBLEM, ""),
        ("1+1?", "2"),
    ]
    with PRMScorer.from_pretrained(folder, device="cpu", max_batch_tokens=200) as scorer:
        results = scorer.score(items)
    assert [result.steps for result in results] == [
        ("First, 12.\n\n", "Then 10.\n\n", "Answer: 10"),
        ("a longer step than the others, by far", "b"),
        (),
        ("2",),
    ]
    for (problem, _), result in zip(items, results, strict=True):
        assert result.step_scores.dtype == np.float32 and result.step_scores.shape == (len(result.steps),)
        if result.steps:
            np.testing.assert_allclose(result.step_scores, by_hand(folder, problem, result.steps), atol=1e-5)
            assert result.traj_score == result.step_scores[-1]
    assert [result.flags for result in results] == [(), (), ("empty",), ("one_step",)]
    assert results[2].reward() == results[2].traj_score == 0.0


def test_dtype_and_options_reach_model_and_split(folder):
    options = {"device": "cpu", "separator": "\n", "min_step_chars": 3, "score_space": "signed"}
    with PRMScorer.from_pretrained(str(folder), **options) as scorer:
        (exact,) = scorer.score([(PROBLEM, "first\nx\nsecond\n\nthird")])
    with PRMScorer.from_pretrained(str(folder), dtype="bfloat16", **options) as scorer:
        (rounded,) = scorer.score([(PROBLEM, exact.steps)])
    assert exact.steps == ("first\n", "x\nsecond\n\n", "third")
    np.testing.assert_allclose(exact.step_scores, 2 * by_hand(folder, PROBLEM, exact.steps) - 1, atol=1e-5)
    assert not np.array_equal(exact.step_scores, rounded.step_scores)
    np.testing.assert_allclose(exact.step_scores, rounded.step_scores, atol=0.1)


def test_results_keep_the_order_and_few_are_in_flight():
    table = Table({f"step {n}": n / 10 for n in range(20)})
    with PRMScorer(table, ScoringSettings(max_in_flight=3)) as scorer:
        results = scorer.score([("p", [f"step {n}", "other"]) for n in range(20)])
    for n, result in enumerate(results):
        np.testing.assert_allclose(result.step_scores, [probability(n / 10), 0.5], rtol=1e-6)
    assert 1 < table.most_running <= 3
    assert table.life == ["start", "close"]


def test_reward_is_equation_11():
    scores = PRMScores(("a", "b", "c"), np.array([0.5, 0.25, 1.0], np.float32), 1.0)
    assert scores.reward() == pytest.approx((0.5 + 0.25 + 1.0) / 3 + 1.0)
    assert scores.reward(alpha=0.5, aggregation="min") == pytest.approx(0.25 + 0.5)
    assert [scores.aggregate(name) for name in ("mean", "min", "last", "prod")] == pytest.approx(
        [1.75 / 3, 0.25, 1.0, 0.125]
    )
    with pytest.raises(ValueError, match="harmonic"):
        scores.aggregate("harmonic")


def test_an_unscorable_answer_is_raised_or_marked_but_never_a_number():
    items = [("p", "fine"), ("unscorable", ["a", "b"]), ("p", "fine")]
    with PRMScorer(Table({"fine": 1.0})) as scorer, pytest.raises(PRMInputError, match="too long"):
        scorer.score(items)
    with PRMScorer(Table({"fine": 1.0}), ScoringSettings(unscorable="nan")) as scorer:
        first, second, third = scorer.score(items)
    assert first.step_scores == third.step_scores == pytest.approx(probability(1.0))
    assert np.isnan(second.step_scores).tolist() == [True, True] and second.flags == ("failed",)
    assert np.isnan(second.traj_score) and np.isnan(second.reward())


def test_a_failure_of_the_engine_is_always_raised_and_the_scorer_goes_on():
    table = Table({}, default=1.0)
    with PRMScorer(table, ScoringSettings(unscorable="nan")) as scorer:
        with pytest.raises(MemoryError):
            scorer.score([("p", "a")] * 5 + [("broken", "a")] * 5)
        (again,) = scorer.score([("p", "a")])
    assert again.step_scores == pytest.approx(probability(1.0))
    assert table.running == 0


@pytest.mark.parametrize("logits", [np.zeros((1, 2)), np.full((2, 2), np.nan), np.zeros((2, 3))])
def test_unusable_logits_are_refused(logits):
    class Wrong(Table):
        async def __call__(self, request):
            return StepLogits(logits.astype(np.float32))

    with PRMScorer(Wrong({})) as scorer, pytest.raises(ValueError, match="unusable logits for 2 reasoning steps"):
        scorer.score([("p", ["a", "b"])])


def test_a_closed_scorer_says_so():
    table = Table({})
    scorer = PRMScorer(table)
    scorer.close()
    scorer.close()
    assert table.life == ["start", "close"]
    with pytest.raises(RuntimeError, match="closed"):
        scorer.score([])


def test_a_scorer_that_cannot_start_is_closed():
    class Unable(Table):
        async def start(self):
            raise UserError("no weights")

    table = Unable({})
    with pytest.raises(UserError, match="no weights"):
        PRMScorer(table)
    assert table.life == ["close"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devise": "cpu"}, "devise='cpu': is no option"),
        ({"score_space": "logits"}, "score_space='logits': must be one of"),
        ({"unscorable": "zero"}, "unscorable='zero': must be one of"),
        ({"max_in_flight": 0}, "max_in_flight=0: must be at least 1"),
        ({"separator": ""}, "separator must not be empty"),
        ({"adapter": "nobody"}, "nobody"),
    ],
)
def test_wrong_options_are_named(folder, options, message):
    with pytest.raises(UserError, match=message):
        PRMScorer.from_pretrained(folder, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_missing_gpu_is_named(folder):
    with pytest.raises(UserError, match="device='cuda:1': needs a visible CUDA GPU"):
        PRMScorer.from_pretrained(folder, device="cuda:1")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="reward_model.model.path"):
        PRMScorer.from_pretrained(str(tmp_path / "nothing"))


def test_progress_goes_to_standard_error_only_when_asked(capsys):
    with PRMScorer(Table({})) as scorer:
        scorer.score([("p", "a")])
        assert capsys.readouterr() == ("", "")
        scorer.score([("p", "a")] * 3, show_progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "3/3" in err


def test_settings_split_texts():
    table = Table({})
    with PRMScorer(table, ScoringSettings(split=SplitRule(separator="##"))) as scorer:
        (result,) = scorer.score([("p", "<think>a##b</think>c")])
    assert result.steps == ("<think>a##", "b</think>", "c")


def test_the_room_itself_imports_nothing_heavy():
    source = "import sys, verl.rewards.prm as room; assert not {'torch', 'transformers'} & set(sys.modules); room.nope"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120)
    assert "AttributeError: module 'verl.rewards.prm' has no attribute 'nope'" in done.stderr


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_is_loaded_and_scores_what_its_own_scorer_says(family, tmp_path):
    spec = family_spec(family, save_family(family, tmp_path))
    request = ScoreRequest("0", PROBLEM, ("First, 3 * 4 = 12.", "Answer: 10"))

    async def by_scorer() -> np.ndarray:
        scorer = HFScorer(spec)
        await scorer.start()
        try:
            return (await scorer(request)).logits
        finally:
            await scorer.close()

    logits = asyncio.run(by_scorer())
    options = {each.name: getattr(spec, each.name) for each in fields(spec) if each.name != "path"}
    with PRMScorer.from_pretrained(spec.path, **options) as scorer:
        (result,) = scorer.score([(request.problem, request.steps)])
    np.testing.assert_allclose(result.step_scores, torch.softmax(torch.from_numpy(logits), -1)[:, 1], atol=1e-5)
