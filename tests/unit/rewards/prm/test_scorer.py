# SPDX-License-Identifier: Apache-2.0
"""The in-process scorer: batches change nothing, failures reach those who wait, modes and lengths are honoured."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch

from tests.helpers.prm import save_tiny_prm
from verl.rewards.prm.model import load_prm
from verl.rewards.prm.scorer import HFScorer
from verl.rewards.prm.spec import PRMSpec, load_adapter
from verl.rewards.prm.types import PRMInputError, ScoreRequest

REQUESTS = [
    ScoreRequest(
        f"r{n}", f"problem {n}" + "?" * (7 * n), tuple(f"step {k} of {n}\n\n" * (1 + n % 3) for k in range(n % 5))
    )
    for n in range(12)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_prm(tmp_path_factory.mktemp("prm"))


def spec(folder, **changes) -> PRMSpec:
    return PRMSpec(**({"path": str(folder), "dtype": "float32", "device": "cpu"} | changes))


def score(made: PRMSpec, requests=REQUESTS):
    async def run():
        scorer = HFScorer(made)
        await scorer.start()
        try:
            return await asyncio.gather(*(scorer(request) for request in requests), return_exceptions=True)
        finally:
            await scorer.close()

    return asyncio.run(run())


def plain(made: PRMSpec, request: ScoreRequest) -> np.ndarray:
    """One unpadded forward per input, head on every token."""
    model = load_prm(made.path, torch.float32)
    rows = [np.zeros((0, 2), np.float32)]
    for item in load_adapter(made).adapter.plan(request).inputs:
        with torch.no_grad():
            rows.append(model(torch.tensor([item.token_ids]))[0].numpy()[item.score_positions])
    return np.concatenate(rows)


@pytest.mark.parametrize("tokens", [1, 300, 100_000], ids=["one by one", "small batches", "one batch"])
def test_scores_do_not_depend_on_the_batch(folder, tokens):
    made = spec(folder, max_num_batched_tokens=tokens)
    for request, got in zip(REQUESTS, score(made), strict=True):
        assert got.logits.shape == (len(request.steps), 2) and got.logits.dtype == np.float32
        np.testing.assert_allclose(got.logits, plain(made, request), atol=1e-5, rtol=1e-5)


def test_steps_of_one_response_get_different_scores(folder):
    logits = score(spec(folder))[4].logits
    assert len(np.unique(logits[:, 0])) == len(logits) == 4


def test_legacy_scores_the_last_token(folder):
    made = spec(folder, mode="legacy")
    request = ScoreRequest("r", "1+1?", ("It is 2.\n\nAnswer: 2",))
    model = load_prm(made.path, torch.float32)
    ids = load_adapter(made).adapter.plan(request).inputs[0].token_ids
    with torch.no_grad():
        last = model(torch.tensor([ids]))[0, -1].numpy()
    np.testing.assert_allclose(score(made, [request])[0].logits, last[None], atol=1e-5)


def test_long_responses_are_scored_in_windows_or_refused(folder):
    request = ScoreRequest("long", "1+1?", tuple(f"step {k} " + "x" * 90 for k in range(30)))
    windowed = score(spec(folder), [request])[0]
    assert windowed.flags == ("windowed",) and windowed.logits.shape == (30, 2)
    np.testing.assert_allclose(windowed.logits, plain(spec(folder), request), atol=1e-5)
    refused = score(spec(folder, overlong="error"), [request])[0]
    assert isinstance(refused, PRMInputError)


def test_a_failing_forward_reaches_everyone_who_waits(folder):
    class Broken(HFScorer):
        def _forward(self, inputs):
            raise MemoryError(len(inputs))

    async def run():
        scorer = Broken(spec(folder))
        await scorer.start()
        outcomes = await asyncio.gather(*(scorer(request) for request in REQUESTS[1:4]), return_exceptions=True)
        await scorer.close()
        return outcomes

    assert [type(outcome) for outcome in asyncio.run(run())] == [MemoryError] * 3


def test_closing_in_the_middle_cancels_who_waits_and_leaves_no_error_behind(folder, caplog):
    """As an interrupted program does it: one forward pass runs, the others never begin."""

    async def run() -> list[object]:
        scorer = HFScorer(spec(folder, max_num_batched_tokens=1))
        await scorer.start()
        asked = [asyncio.ensure_future(scorer(request)) for request in REQUESTS if request.steps]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        await scorer.close()
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(run())
    cancelled = [answer for answer in answers if isinstance(answer, asyncio.CancelledError)]
    assert 0 < len(cancelled) < len(answers)
    assert not [record for record in caplog.records if record.name == "asyncio"], caplog.text


def test_nobody_runs_what_nobody_waits_for(folder):
    """A request that was cancelled (it took too long, say) does not go through the model any more."""

    async def run() -> list[int]:
        scorer = HFScorer(spec(folder, max_num_batched_tokens=1))
        await scorer.start()
        forward, seen = scorer._forward, []
        scorer._forward = lambda inputs: seen.append(len(inputs)) or forward(inputs)
        asked = [asyncio.ensure_future(scorer(request)) for request in REQUESTS if request.steps]
        await asyncio.sleep(0)
        for one in asked[1:]:
            one.cancel()
        await asked[0]
        await asyncio.wait(asked)
        await scorer.close()
        return seen

    assert len(asyncio.run(run())) <= 2, "the one that was kept, and at most one that was on its way"
