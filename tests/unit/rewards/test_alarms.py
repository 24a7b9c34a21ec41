# SPDX-License-Identifier: Apache-2.0
"""Every known hack, written as answers and scored by the real loop, sets off its alarm; healthy answers none."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import numpy as np
import pytest

from tests.helpers.prm import TableScorer
from verl.config.alarms import AlarmsConfig
from verl.config.names import ALARM_NAMES
from verl.rewards.alarms import BASELINE_STEPS, AlarmBoard, AlarmRule, AlarmStopError, alarm_rules
from verl.rewards.loop import LoopSettings, RewardLoop
from verl.rewards.manager import ManagerSettings, get_reward_manager_cls
from verl.rewards.types import RewardInput, RuleVerdict

HEALTHY = [
    "good start\n\nso x = 3\n\nAnswer: 4",
    "good idea\n\nfirst case\n\nbad slip\n\nAnswer: 5",
    "look at 2+2\n\ncount\n\nAnswer: 4",
    "bad guess\n\nAnswer: 6",
]
PRM = {"good start": 1.0, "good idea": 0.5, "bad slip": -1.0, "bad guess": -1.5, "Answer: 4": 1.0}


class Verifier:
    """Reads the last `Answer:`; 4 is right."""

    async def verify(self, item: RewardInput) -> RuleVerdict:
        _, found, answer = item.response.rpartition("Answer: ")
        predicted = answer if found else None
        return RuleVerdict(1.0 if predicted == "4" else -1.0, predicted == "4", predicted)


class BreakingScorer(TableScorer):
    """Gives no score for a response that names it."""

    async def __call__(self, request):
        if "break" in request.steps[0]:
            raise ConnectionError("gone")
        return await super().__call__(request)


def metrics_of(responses: list[str], table: dict[str, float] | None = None, default: float = 0.0) -> dict[str, float]:
    """Metrics of one batch, one group per answer, as a training step has them."""
    manager = get_reward_manager_cls("naive")(ManagerSettings())

    async def run() -> dict[str, float]:
        scorer = BreakingScorer(PRM if table is None else table, default)
        uids = [f"g{n}" for n in range(len(responses))]
        scoring = RewardLoop(Verifier(), manager, scorer, LoopSettings()).open_batch(uids, 1)
        for uid, text in zip(uids, responses, strict=True):
            starts = np.arange(len(text), dtype=np.int64)
            prompt = [{"role": "user", "content": "2+2?"}]
            scoring.submit(RewardInput(uid, 0, "t", prompt, text, starts, len(text), False, "4"))
        return dict((await scoring.finish()).metrics)

    return asyncio.run(run())


def alarms_of(*batches: dict[str, float], **changes: object) -> set[str]:
    """Names of the alarms that a run of these training steps sets off; patience 1."""
    board = AlarmBoard(alarm_rules(AlarmsConfig(patience=1, **changes)))
    return {alarm.rule.name for step, metrics in enumerate(batches) for alarm in board.check(step, metrics)}


@pytest.fixture(scope="module")
def healthy() -> dict[str, float]:
    return metrics_of(HEALTHY)


def duplicated(text: str) -> str:
    first, rest = text.split("\n\n", 1)
    return "\n\n".join([*[first] * 4, rest])


HACKS = {
    "duplicate steps": (duplicated, {"repeated_steps"}),
    "reworded labels": (lambda text: "Step 1: so\n\nStep 2:  SO\n\nStep 3. so\n\n" + text, {"repeated_steps"}),
    "empty answer": (lambda text: "\n\n", {"empty", "no_answer"}),
    "thanks": (lambda text: "thanks", {"one_step", "no_answer"}),
    "merged steps": (lambda text: text.replace("\n\n", " "), {"one_step"}),
    "deleted answer": (lambda text: text.rpartition("\n\n")[0] + "\n\nand so on", {"no_answer"}),
    "no scores": (lambda text: "break " + text, {"unscored"}),
}


@pytest.mark.parametrize("hack", HACKS)
def test_a_hack_sets_off_its_alarm_and_healthy_answers_none(hack, healthy):
    change, expected = HACKS[hack]
    hacked = metrics_of([change(text) for text in HEALTHY])
    # what a hack does besides (all answers wrong, say) is another alarm's matter
    assert expected <= alarms_of(hacked)
    assert alarms_of(healthy, healthy, healthy) == set()


def test_a_prm_that_prefers_wrong_answers_sets_off_both_alarms(healthy):
    upside_down = {text: -score for text, score in PRM.items()}
    assert alarms_of(metrics_of(HEALTHY, upside_down)) == {"auc", "right_minus_wrong"}
    blind = metrics_of(HEALTHY, {})
    assert (blind["prm/auc/mean"], blind["prm/right_minus_wrong/mean"]) == (0.5, 0.0)
    assert alarms_of(blind) == {"auc", "right_minus_wrong"}, "a PRM that cannot tell them apart is no better"


def test_a_prm_that_is_sure_of_everything_sets_off_the_saturation_alarm():
    assert "saturation" in alarms_of(metrics_of(HEALTHY, {}, default=6.0))


def test_more_and_more_steps_set_off_the_growth_alarm(healthy):
    padded = metrics_of([f"{text}\n\n" + "\n\n".join(f"also {n}{n}" for n in range(9)) for text in HEALTHY])
    start = [healthy] * BASELINE_STEPS
    assert "steps_growth" in alarms_of(*start, padded)
    assert "steps_growth" not in alarms_of(*start[1:], padded), "the start is still being measured"
    assert "steps_growth" not in alarms_of(*[padded] * 30), "long from the start is no growth"


def test_every_alarm_of_the_configuration_has_a_rule_and_null_switches_it_off():
    assert [rule.name for rule in alarm_rules(AlarmsConfig())] == list(ALARM_NAMES)
    names = {field.name for field in dataclasses.fields(AlarmsConfig)} - {"stop_on", "patience"}
    assert names == set(ALARM_NAMES)
    assert alarm_rules(AlarmsConfig(**dict.fromkeys(ALARM_NAMES))) == []
    off = {rule.name for rule in alarm_rules(AlarmsConfig())} - {r.name for r in alarm_rules(AlarmsConfig(), "legacy")}
    assert off == {"one_step"}


RULE = AlarmRule("n", "m", "above", 0.5, "warn", patience=3)


def test_patience_counts_steps_in_a_row_and_a_missing_metric_changes_nothing():
    board = AlarmBoard([RULE])
    values = [0.6, 0.6, 0.4, 0.6, None, float("nan"), 0.6, 0.6, 0.6, 0.5, 0.6]
    told = [step for step, v in enumerate(values) if board.check(step, {} if v is None else {"m": v})]
    assert told == [7], "once, when it begins; at the threshold is not above it"
    assert board.metrics() == {"alarm/n": 0.0}


def test_an_alarm_says_what_happened_and_is_a_metric(caplog):
    board = AlarmBoard([dataclasses.replace(RULE, patience=1), AlarmRule("prm", "prm/auc/mean", "below", 0.5)])
    (alarm,) = board.check(12, {"m": 0.75})
    assert str(alarm) == "alarm n at step 12: m=0.75 is above 0.5, this training step (reward_model.alarms.n)"
    assert str(alarm) in caplog.text
    assert board.metrics() == {"alarm/n": 1.0}, "nothing of a PRM that is not there"
    board.raise_for([alarm])


def test_stop_stops_as_long_as_it_lasts():
    stopping = alarm_rules(AlarmsConfig(patience=1, stop_on=("empty",)))
    board = AlarmBoard(stopping)
    for _ in range(2):
        alarms = board.check(3, {"prm/empty/share": 0.2, "prm/one_step/share": 0.9})
        with pytest.raises(AlarmStopError, match=r"alarm empty at step 3.*reward_model\.alarms\.stop_on") as caught:
            board.raise_for(alarms)
        assert "one_step" not in str(caught.value)
    board.raise_for(board.check(4, {"prm/empty/share": 0.0}))


def test_a_resumed_board_goes_on_where_it_was():
    rules = [RULE, AlarmRule("g", "k", "growth", 2.0, patience=2)]
    straight, before = AlarmBoard(rules), AlarmBoard(rules)
    series = [{"m": 0.9, "k": 1.0 + 0.3 * n} for n in range(20)]
    told = [[a.rule.name for a in straight.check(n, m)] for n, m in enumerate(series)]
    half = [[a.rule.name for a in before.check(n, m)] for n, m in enumerate(series[:11])]
    after = AlarmBoard([*rules, dataclasses.replace(RULE, name="new")])
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    rest = [[a.rule.name for a in after.check(n, m) if a.rule.name != "new"] for n, m in enumerate(series[11:], 11)]
    assert half + rest == told
    assert ["n"] in told and ["g"] in told


def test_two_alarms_of_one_name_are_refused():
    with pytest.raises(ValueError, match="same name"):
        AlarmBoard([RULE, RULE])
