# SPDX-License-Identifier: Apache-2.0
"""The reward loop with a fake verifier and a fake PRM: concurrency, alignment, failures at group level."""

from __future__ import annotations

import asyncio
import dataclasses

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


async def let_run() -> None:
    """Let everything that waits for nothing run; counts turns of the loop, not time."""
    for _ in range(50):
        await asyncio.sleep(0)


def run(items, scorer=None, verifier=None, manager_settings=None, manager="naive", **settings):
    manager = get_reward_manager_cls(manager)(manager_settings or ManagerSettings())

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
        await let_run()
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


# ---- groups settle when complete ----


class GatedVerifier(Verifier):
    """Waits for a gate before it judges a response that names it."""

    def __init__(self, *gates: str) -> None:
        super().__init__()
        self.gates = {name: asyncio.Event() for name in gates}

    async def verify(self, one: RewardInput) -> RuleVerdict:
        for name, gate in self.gates.items():
            if name in one.response:
                await gate.wait()
        return await super().verify(one)


def test_a_group_is_told_when_it_is_complete_and_not_before():
    async def go():
        told = []
        verifier = GatedVerifier("slow", "slowest")
        reward_loop = RewardLoop(verifier, get_reward_manager_cls("naive")(ManagerSettings()), None, LoopSettings())
        scoring = reward_loop.open_batch(["a", "b"], 2, on_group=told.append)
        for one in [item("slowest 4", "a", 1), item("slow 4", "b", 0), item("4", "b", 1), item("5", "a", 0)]:
            scoring.submit(one)
        await let_run()
        assert told == []
        verifier.gates["slow"].set()
        await let_run()
        assert [group.uid for group in told] == ["b"]
        verifier.gates["slowest"].set()
        return told, await scoring.finish()

    told, batch = asyncio.run(go())
    assert [(g.uid, [r.index for r in g.responses], g.is_dropped) for g in told] == [
        ("b", [0, 1], False),
        ("a", [0, 1], False),
    ]
    assert list(batch.by_response) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)], "in the order of the groups"


def test_a_group_is_settled_as_it_will_be_used():
    groups = []

    async def go():
        reward_loop = RewardLoop(
            Verifier(),
            get_reward_manager_cls("naive")(ManagerSettings()),
            FailingScorer(SCORER_TABLE),
            LoopSettings(on_error="drop_group"),
        )
        scoring = reward_loop.open_batch(["a", "b"], 2, on_group=groups.append)
        for one in two_groups("fail\n\nAnswer: 4"):
            scoring.submit(one)
        return await scoring.finish()

    batch = asyncio.run(go())
    assert {group.uid: group.is_dropped for group in groups} == {"a": True, "b": False}
    assert all(batch.by_response[one.uid, one.index] is one for group in groups for one in group.responses)


@pytest.mark.parametrize("trouble", ["prm", "rule", "group"])
def test_stop_ends_at_once_refuses_more_and_gives_up_what_is_running(trouble):
    """The other response would never be scored: only an end at once lets this test end."""
    given_up = []

    class Patient(GatedVerifier):
        async def verify(self, one):
            if trouble == "rule" and "fail" in one.response:
                return RuleVerdict(0.0, False, status="timeout", detail="took too long")
            try:
                return await super().verify(one)
            except asyncio.CancelledError:
                given_up.append(one.uid)
                raise

    def refuse(group):
        raise RuntimeError(f"no use for {group.uid}")

    async def go():
        scorer = FailingScorer(SCORER_TABLE) if trouble == "prm" else None
        manager = get_reward_manager_cls("naive")(ManagerSettings(is_custom=trouble == "rule"))
        reward_loop = RewardLoop(Patient("never"), manager, scorer, LoopSettings(on_error="stop"))
        scoring = reward_loop.open_batch(["a", "b", "c"], 1, on_group=refuse if trouble == "group" else None)
        scoring.submit(item("never", "a"))
        scoring.submit(item("fail\n\n4", "b"))
        await let_run()
        with pytest.raises((RewardFailedError, RuntimeError)) as at_once:
            scoring.submit(item("good", "c"))
        with pytest.raises((RewardFailedError, RuntimeError)) as at_the_end:
            await scoring.finish()
        return str(at_once.value), str(at_the_end.value)

    at_once, at_the_end = asyncio.run(asyncio.wait_for(go(), 10))
    assert at_once == at_the_end
    expected = {"prm": "gone; no score", "rule": "the reward function: took too long", "group": "no use for b"}
    assert expected[trouble] in at_once
    assert given_up == ["a"]


def test_finish_waiting_sees_a_failure_that_comes_later():
    async def go():
        verifier = GatedVerifier("fail")
        manager = get_reward_manager_cls("naive")(ManagerSettings(is_custom=True))
        verifier.status = "error"
        reward_loop = RewardLoop(verifier, manager, None, LoopSettings(on_error="stop"))
        scoring = reward_loop.open_batch(["a"], 1)
        scoring.submit(item("fail", "a"))
        finish = asyncio.create_task(scoring.finish())
        await let_run()
        assert not finish.done()
        verifier.gates["fail"].set()
        await finish

    with pytest.raises(RewardFailedError, match="uid=a index=0"):
        asyncio.run(go())


# ---- managers that change who is asked what ----


class WholeBatch:
    """Judges a batch by the rank of its lengths; the longest is right."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[list[tuple[str, int]]] = []
        self.error = error

    async def verify_batch(self, items):
        self.calls.append([(one.uid, one.index) for one in items])
        if self.error is not None:
            raise self.error
        longest = max(len(one.response) for one in items)
        return [RuleVerdict(len(one.response) / longest, len(one.response) == longest) for one in items]


CUSTOM = ManagerSettings(is_custom=True)


def test_batch_asks_once_when_the_last_response_is_there_group_by_group():
    verifier = WholeBatch()

    async def go():
        scorer = TableScorer({})
        reward_loop = RewardLoop(verifier, get_reward_manager_cls("batch")(CUSTOM), scorer, LoopSettings())
        scoring = reward_loop.open_batch(["a", "b"], 2)
        for one in [item("xx", "b", 1), item("x", "a", 1), item("xxxx", "b", 0)]:
            scoring.submit(one)
        await let_run()
        assert verifier.calls == [] and len(scorer.requests) == 3, "the PRM does not wait"
        scoring.submit(item("xxx", "a", 0))
        return await scoring.finish()

    batch = asyncio.run(asyncio.wait_for(go(), 10))
    assert verifier.calls == [[("a", 0), ("a", 1), ("b", 0), ("b", 1)]]
    assert [one.rule_score for one in batch.by_response.values()] == [0.75, 0.25, 1.0, 0.5]


def test_an_error_of_the_batch_call_reaches_the_trainer():
    with pytest.raises(RuntimeError, match="pool is closed"):
        run([item("x", index=n) for n in range(3)], None, WholeBatch(RuntimeError("pool is closed")), CUSTOM, "batch")


class StepJudge:
    """A custom function of the manager `process`: what it gives for a response."""

    def __init__(self, *given, status="scored") -> None:
        self.given, self.status = list(given), status
        self.seen: list[RewardInput] = []

    async def verify(self, one):
        self.seen.append(one)
        ends, scores = self.given[one.index]
        return RuleVerdict(1.0, True, status=self.status, detail="why", step_scores=scores, step_char_ends=ends)


TEXT = "one\n\ntwo\n\nthree"


def test_process_shows_the_steps_and_takes_their_scores_in_place_of_the_prm():
    judge, prm = StepJudge((None, (0.5, -3.0, 7.0))), TableScorer({})
    scored = run([item(TEXT)], prm, judge, CUSTOM, "process").by_response["g", 0]
    assert judge.seen[0].extra_info["reasoning_steps"] == ["one\n\n", "two\n\n", "three"]
    assert prm.requests == []
    assert scored.step_scores.tolist() == [0.5, -3.0, 7.0] and scored.traj_score == 7.0
    assert scored.step_ends.tolist() == [4, 9, 14]
    assert (scored.prm_status, scored.flags) == ("scored", ("own_steps",))


def test_process_takes_steps_of_the_functions_own():
    result = run([item(TEXT), item(TEXT, index=1)], None, StepJudge(((3, 15), (1, 2)), ((4,), (9,))), CUSTOM, "process")
    whole, part = (result.by_response["g", n] for n in range(2))
    assert (whole.step_spans, whole.step_ends.tolist()) == (((0, 3), (3, 15)), [2, 14])
    assert (part.step_spans, part.step_ends.tolist()) == (((0, 4),), [3]), "the text behind belongs to no step"
    assert "one_step" in part.flags


def test_process_with_a_prm_and_no_step_scores_is_naive():
    items = [item("good\n\nbad\n\nAnswer: 4"), item("bad\n\nAnswer: 5", index=1)]
    silent = run(items, TableScorer(SCORER_TABLE), StepJudge((None, None), (None, None)), CUSTOM, "process")
    shipped = run(items, TableScorer(SCORER_TABLE), manager="process")
    naive = run(items, TableScorer(SCORER_TABLE))
    for key, expected in naive.by_response.items():
        for found in (silent.by_response[key], shipped.by_response[key]):
            assert found.step_scores.tolist() == expected.step_scores.tolist()
            assert (found.prm_status, found.flags) == (expected.prm_status, expected.flags)


@pytest.mark.parametrize(
    "given",
    [
        (None, (1.0,)),
        (None, None),
        ((4, 16), (1.0, 1.0)),
        ((4, 400), (1.0, 1.0)),
    ],
)
def test_step_scores_that_fit_no_step_count_as_a_failed_prm(given):
    items = [item(TEXT), item(TEXT, index=1)]
    judge = StepJudge(given, (None, (1.0, 1.0, 1.0)))
    result = run(items, None, judge, CUSTOM, "process")
    assert result.metrics["reward/prm_failed/count"] == 1
    assert [one.prm_status for one in result.by_response.values()] == ["failed", "failed"], "no group of two scales"
    assert run(items, None, judge, CUSTOM, "process", on_error="drop_group").dropped_groups == {"g"}
    with pytest.raises(RewardFailedError, match="uid=g index=0.*step scores"):
        run(items, None, judge, CUSTOM, "process", on_error="stop")


def test_a_step_in_which_no_token_begins_is_refused():
    one = item(TEXT)
    coarse = dataclasses.replace(one, token_starts=np.array([0, 5, 10]), num_tokens=3)
    result = run([coarse], None, StepJudge(((2, 4, 15), (1.0, 1.0, 1.0))), CUSTOM, "process")
    assert result.by_response["g", 0].prm_status == "failed"


def test_a_process_function_that_fails_is_counted_once():
    result = run([item(TEXT)], None, StepJudge((None, None), status="error"), CUSTOM, "process")
    assert (result.metrics["reward/rule_error/count"], result.metrics["reward/prm_failed/count"]) == (1, 0)
    assert result.dropped_groups == {"g"}


def test_an_empty_response_of_a_process_function_is_empty_not_failed():
    scored = run([item(" ")], None, StepJudge((None, None)), CUSTOM, "process").by_response["g", 0]
    assert (scored.prm_status, len(scored.step_scores)) == ("scored", 0)
    assert "empty" in scored.flags


def test_validation_asks_a_function_as_training_does():
    async def go():
        judge = StepJudge((None, (1.0, 1.0, 1.0)))
        process = RewardLoop(judge, get_reward_manager_cls("process")(CUSTOM), None, LoopSettings())
        await process.open_verifier(["g"], 1).verify(item(TEXT))
        whole = WholeBatch()
        opened = RewardLoop(whole, get_reward_manager_cls("batch")(CUSTOM), None, LoopSettings()).open_verifier(
            ["g"], 2
        )
        await asyncio.gather(opened.verify(item("x")), opened.verify(item("xx", index=1)))
        return judge.seen[0].extra_info, whole.calls

    shown, calls = asyncio.run(asyncio.wait_for(go(), 10))
    assert shown == {"reasoning_steps": ["one\n\n", "two\n\n", "three"]}
    assert calls == [[("g", 0), ("g", 1)]]


def test_prime_trains_on_what_could_not_be_judged_as_wrong_and_counts_it():
    result = run(
        [item("4"), item("4", index=1)], verifier=Verifier("timeout"), manager_settings=CUSTOM, manager="prime"
    )
    assert [one.rule_score for one in result.by_response.values()] == [-1.0, -1.0]
    assert result.dropped_groups == frozenset()
    assert result.metrics["reward/rule_timeout/count"] == 2


def test_repeated_steps_are_counted():
    text = "So x = 1.\n\nso  X = 1.\n\nStep 3: so x = 1.\n\nso x = 2.\n\n4. so x = 1."
    scored = run([item(text)], TableScorer({})).by_response["g", 0]
    assert (scored.num_repeated_steps, "repeated" in scored.flags) == (3, True)
    assert run([item(TEXT)], TableScorer({})).by_response["g", 0].num_repeated_steps == 0


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


def test_what_happened_while_several_batches_were_open_is_counted_once():
    totals = {"retries": 5, "alive": 2}

    class CountingScorer(TableScorer):
        async def __call__(self, request):
            totals["retries"] += 1
            return await super().__call__(request)

    async def go():
        manager = get_reward_manager_cls("naive")(ManagerSettings())
        reward_loop = RewardLoop(Verifier(), manager, CountingScorer({}), LoopSettings(), lambda: totals)
        batches = {uid: reward_loop.open_batch([uid], size) for uid, size in (("a", 3), ("b", 1), ("c", 2))}
        for uid, size in (("b", 1), ("a", 3)):
            for index in range(size):
                batches[uid].submit(item("good", uid, index))
        first = await batches["a"].finish()
        batches["c"].submit(item("good", "c", 0))
        second = await batches["b"].finish()
        batches["c"].submit(item("good", "c", 1))
        return [first, second, await batches["c"].finish()]

    scored = asyncio.run(go())
    assert [set(batch.by_response) for batch in scored] == [
        {("a", 0), ("a", 1), ("a", 2)},
        {("b", 0)},
        {("c", 0), ("c", 1)},
    ]
    counted = [batch.metrics["prm/retries/count"] for batch in scored]
    assert counted[0] == 4.0 and sum(counted) == 6.0 == totals["retries"] - 5


def test_the_prm_is_told_how_many_tokens_a_response_has():
    scorer = TableScorer({})
    run([item("good")], scorer)
    assert scorer.requests[0].num_tokens == len("good") + 1
