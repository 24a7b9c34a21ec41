# SPDX-License-Identifier: Apache-2.0
"""The reward loop with a fake verifier and a fake PRM: concurrency, alignment, failures at group level."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch

from tests.helpers.prm import TableScorer
from verl.rewards.credit import CreditRule, ScoreColumns, place_rewards
from verl.rewards.loop import LoopSettings, RewardFailedError, RewardLoop
from verl.rewards.manager import ManagerSettings, get_reward_manager_cls
from verl.rewards.prm.steps import SplitRule
from verl.rewards.prm.types import StepLogits
from verl.rewards.types import RewardInput, RuleVerdict

GOOD, BAD = 2.0, -2.0


class Verifier:
    """Right if the response ends with the ground truth."""

    def __init__(self, status: str = "scored") -> None:
        self.status = status
        self.asked = 0

    async def verify(self, item: RewardInput) -> RuleVerdict:
        self.asked += 1
        is_right = item.response.rstrip().endswith(item.ground_truth)
        return RuleVerdict(float(is_right), is_right, status=self.status, detail="took too long")


class FailingScorer(TableScorer):
    """Fails for responses whose first step says so."""

    async def __call__(self, request):
        if "fail" in request.steps[0]:
            raise ConnectionError("gone")
        if "nan" in request.steps[0]:
            return StepLogits(np.full((len(request.steps), 2), np.nan, np.float32))
        return await super().__call__(request)


SCORER_TABLE = {"good": GOOD, "bad": BAD, "Answer: 4": 1.0}


def item(response: str, uid: str = "g", index: int = 0, truncated: bool = False) -> RewardInput:
    starts = np.array([*range(len(response)), len(response)], dtype=np.int64)  # one token a character, then EOS
    prompt = [{"role": "system", "content": "S"}, {"role": "user", "content": "2+2?"}]
    return RewardInput(uid, index, "t", prompt, response, starts, len(response) + 1, truncated, "4")


def run(items, scorer=None, verifier=None, manager_settings=None, **settings):
    manager = get_reward_manager_cls("naive")(manager_settings or ManagerSettings())

    async def go():
        reward_loop = RewardLoop(verifier or Verifier(), manager, scorer, LoopSettings(**settings))
        uids = list(dict.fromkeys(one.uid for one in items))
        scoring = reward_loop.open_batch(uids, len(items) // len(uids))
        for one in items:
            scoring.submit(one)
        return await scoring.finish()

    return asyncio.run(go())


def test_scores_steps_and_verdict_of_a_response():
    scorer = TableScorer(SCORER_TABLE)
    scored = run([item("good\n\nbad\n\nAnswer: 4")], scorer).by_response["g", 0]
    assert scorer.requests[0].problem == "2+2?"
    assert scorer.requests[0].steps == ("good\n\n", "bad\n\n", "Answer: 4")
    np.testing.assert_allclose(scored.step_scores, 1 / (1 + np.exp(-2 * np.array([GOOD, BAD, 1.0]))), rtol=1e-6)
    assert scored.step_ends.tolist() == [5, 10, 19]
    assert scored.step_spans == ((0, 6), (6, 11), (11, 20))
    assert scored.traj_score == pytest.approx(float(scored.step_scores[-1]))
    assert (scored.prm_status, scored.flags, scored.rule_score) == ("scored", (), 1.0)
    assert scored.verdict.is_correct


def test_dense_row_of_a_scored_response_sums_to_eq_12():
    result = run([item("good\n\nbad\n\nAnswer: 4")], TableScorer(SCORER_TABLE))
    scored = result.by_response["g", 0]
    row = place_rewards(ScoreColumns.of([scored]), torch.ones(1, 21), CreditRule())
    assert float(row.sum()) == pytest.approx(
        0.25 + 0.75 * (scored.step_scores.mean() + scored.step_scores[-1]), abs=1e-5
    )
    assert np.flatnonzero(row[0]).tolist() == [5, 10, 19, 20]


def test_verifier_and_prm_run_at_the_same_time():
    both = asyncio.Event()
    running = []

    async def meet(who):
        running.append(who)
        if len(running) == 2:
            both.set()
        await asyncio.wait_for(both.wait(), 5)

    class MeetingVerifier(Verifier):
        async def verify(self, one):
            await meet("rule")
            return await super().verify(one)

    class MeetingScorer(TableScorer):
        async def __call__(self, request):
            await meet("prm")
            return await super().__call__(request)

    assert run([item("good")], MeetingScorer({}), MeetingVerifier()).by_response["g", 0].prm_status == "scored"


def test_scoring_begins_with_submit_not_with_finish():
    scorer, verifier = TableScorer(SCORER_TABLE), Verifier()

    async def go():
        reward_loop = RewardLoop(verifier, get_reward_manager_cls("naive")(ManagerSettings()), scorer, LoopSettings())
        scoring = reward_loop.open_batch(["g"], 2)
        scoring.submit(item("good", index=0))
        await asyncio.sleep(0.01)
        assert verifier.asked == 1 and len(scorer.requests) == 1
        scoring.submit(item("bad", index=1))
        return await scoring.finish()

    assert len(asyncio.run(go()).by_response) == 2


def test_empty_one_step_and_truncated_are_flagged_and_the_empty_one_is_not_shown_to_the_prm():
    scorer = TableScorer({}, default=GOOD)
    texts = [" \n\n", "one", "a\n\nb", "<think></think>"]
    result = run([item(text, index=n, truncated=n == 2) for n, text in enumerate(texts)], scorer)
    first, second, third, fourth = (result.by_response["g", n] for n in range(4))
    assert fourth.flags == ("empty",), "tags and separators alone are no step"
    assert (first.flags, first.prm_status, len(first.step_scores), first.traj_score) == (("empty",), "scored", 0, 0.0)
    assert second.flags == ("one_step",)
    assert third.flags == ("truncated",)
    assert len(scorer.requests) == 2
    assert result.metrics["prm/empty/share"] == 0.5


def test_without_a_prm_the_rule_stands_alone():
    result = run([item("Answer: 4", index=0), item("Answer: 5", index=1)])
    assert [result.by_response["g", n].rule_score for n in range(2)] == [1.0, -1.0]
    assert {one.prm_status for one in result.by_response.values()} == {"off"}
    assert not any(name.startswith("prm/") for name in result.metrics)


def test_legacy_shows_the_whole_response_as_one_step():
    scorer = TableScorer({}, default=GOOD)
    scored = run([item("good\n\nbad")], scorer, mode="legacy").by_response["g", 0]
    assert scorer.requests[0].steps == ("good\n\nbad",)
    assert scored.step_ends.tolist() == [8]


def test_split_rule_and_score_space_are_used():
    scored = run([item("good ## bad")], TableScorer(SCORER_TABLE), split=SplitRule("##"), score_space="logit_diff")
    assert scored.by_response["g", 0].step_scores.tolist() == [0.0, 2 * BAD]  # the fake strips blanks, not separators


def two_groups(first: str):
    return [
        item(first, "a", 0),
        item("good\n\nAnswer: 4", "a", 1),
        item("good\n\nAnswer: 4", "b", 0),
        item("bad\n\nAnswer: 5", "b", 1),
    ]


@pytest.mark.parametrize("trouble", ["fail\n\nAnswer: 4", "nan\n\nAnswer: 4"])
def test_rule_only_takes_the_prm_out_of_the_whole_group_and_of_no_other(trouble):
    result = run(two_groups(trouble), FailingScorer(SCORER_TABLE), on_error="rule_only")
    group = [result.by_response["a", n] for n in range(2)]
    assert [one.prm_status for one in group] == ["failed", "failed"]
    assert all(len(one.step_scores) == 0 and one.rule_score == 1.0 for one in group)
    assert ["prm_error" in one.flags for one in group] == [True, False]
    assert result.by_response["b", 0].prm_status == "scored"
    assert result.dropped_groups == frozenset()
    assert result.metrics["reward/prm_failed/count"] == 1
    assert result.metrics["reward/groups_by_rule_only/share"] == 0.5
    rows = place_rewards(ScoreColumns.of(group), torch.ones(2, 20), CreditRule())
    assert rows.sum(1).tolist() == [1.0, 1.0], "r_out in full, on one scale"


def test_drop_group_drops_that_group():
    result = run(two_groups("fail\n\nAnswer: 4"), FailingScorer(SCORER_TABLE), on_error="drop_group")
    assert result.dropped_groups == {"a"} and len(result.by_response) == 4
    assert result.metrics["reward/groups_dropped/share"] == 0.5


def test_stop_ends_the_batch_and_says_which_response():
    with pytest.raises(RewardFailedError, match="uid=a index=0.*gone.*on_error=stop"):
        run(two_groups("fail\n\nAnswer: 4"), FailingScorer(SCORER_TABLE), on_error="stop")


def test_a_custom_function_without_a_score_drops_its_group_or_stops():
    custom = ManagerSettings(is_custom=True)
    items = [item("Answer: 4", index=0), item("Answer: 5", index=1)]
    result = run(items, verifier=Verifier("timeout"), manager_settings=custom)
    assert result.dropped_groups == {"g"}
    assert result.metrics["reward/rule_timeout/count"] == 2
    columns = ScoreColumns.of(list(result.by_response.values()))
    assert torch.isfinite(place_rewards(columns, torch.ones(2, 10), CreditRule())).all(), "no NaN reaches a sum"
    with pytest.raises(RewardFailedError, match="the reward function: took too long"):
        run(items, verifier=Verifier("timeout"), manager_settings=custom, on_error="stop")


def test_retried_answers_are_scored_and_say_so():
    class Retried(TableScorer):
        async def __call__(self, request):
            answer = await super().__call__(request)
            return StepLogits(answer.logits, ("windowed", "retried"))

    scored = run([item("good")], Retried({})).by_response["g", 0]
    assert scored.prm_status == "retried" and scored.flags == ("one_step", "windowed")


def test_responses_of_another_batch_or_twice_are_refused_and_missing_ones_named():
    async def go(*items):
        reward_loop = RewardLoop(Verifier(), get_reward_manager_cls("naive")(ManagerSettings()), None, LoopSettings())
        scoring = reward_loop.open_batch(["g"], 2)
        for one in items:
            scoring.submit(one)
        await scoring.finish()

    with pytest.raises(ValueError, match=r"\('h', 0\) is not awaited"):
        asyncio.run(go(item("x", "h")))
    with pytest.raises(ValueError, match=r"\('g', 0\) is not awaited"):
        asyncio.run(go(item("x"), item("x")))
    with pytest.raises(ValueError, match=r"1 responses were never submitted.*\('g', 1\)"):
        asyncio.run(go(item("x")))


def test_unknown_policy():
    with pytest.raises(ValueError, match="on_error='ignore'"):
        LoopSettings(on_error="ignore")


def test_a_batch_counts_only_what_happened_in_it():
    totals = {"retries": 5, "alive": 2, "cache_hits": 3, "cache_misses": 1}

    class CountingScorer(TableScorer):
        async def __call__(self, request):
            totals["retries"] += 1
            totals["cache_misses"] += 1
            return await super().__call__(request)

    async def go():
        manager = get_reward_manager_cls("naive")(ManagerSettings())
        reward_loop = RewardLoop(Verifier(), manager, CountingScorer({}), LoopSettings(), lambda: totals)
        scoring = reward_loop.open_batch(["g"], 2)
        for index in range(2):
            scoring.submit(item("good", index=index))
        return (await scoring.finish()).metrics

    metrics = asyncio.run(go())
    assert (metrics["prm/retries/count"], metrics["prm/replicas_alive/count"]) == (2.0, 2.0)
    assert metrics["prm/cache_hits/share"] == 0.0


def test_the_prm_is_told_how_many_tokens_a_response_has():
    scorer = TableScorer({})
    run([item("good")], scorer)
    assert scorer.requests[0].num_tokens == len("good") + 1
