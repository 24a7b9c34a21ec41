# SPDX-License-Identifier: Apache-2.0
import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from multiprocessing import Pipe

import numpy as np
import pytest

from verl.rewards.loader import FunctionSpec, RuleItem
from verl.rewards.rule_pool import RuleVerifierPool
from verl.rewards.rule_worker import WorkerSetup
from verl.rewards.types import RewardInput
from verl.utils.errors import UserError

CUSTOM = """
import asyncio, ctypes, os, sys, time

async def compute_score(data_source, solution_str, ground_truth, extra_info, bonus=0.0):
    if solution_str == "hang":
        time.sleep(600)
    if solution_str == "async hang":
        await asyncio.sleep(600)
    if solution_str == "busy in C":
        return 9 ** 9 ** 9
    if solution_str == "raise":
        raise KeyError("no such thing")
    if solution_str == "exit":
        sys.exit(3)
    if solution_str == "hard exit":
        os._exit(7)
    if solution_str == "segfault":
        ctypes.string_at(0)
    if solution_str == "not a number":
        return "good"
    if solution_str == "pid":
        return os.getpid()
    print("a print in a reward function does no harm")
    return {"score": float(solution_str) + bonus, "pred": ground_truth, "length": len(solution_str)}
"""


def reward_input(response, truth="34", data_source="math_dapo"):
    return RewardInput("u", 0, data_source, [], response, np.zeros(0, np.int64), 0, False, truth, {"index": 1})


@pytest.fixture
def custom(tmp_path):
    path = tmp_path / "my_reward.py"
    path.write_text(CUSTOM)
    return FunctionSpec(str(path), "compute_score", {"bonus": 0.5})


def verify_all(pool_arguments, responses, **input_arguments):
    """Judge all responses at once in a pool of two workers; the verdicts and the pool's counts."""

    async def run():
        async with RuleVerifierPool(2, **pool_arguments) as pool:
            verdicts = await asyncio.gather(*(pool.verify(reward_input(r, **input_arguments)) for r in responses))
            return verdicts, pool.counts

    return asyncio.run(run())


def test_shipped_scorers_judge_by_data_source():
    responses = ["Answer: 34", "Answer: 35", "nothing"] * 20
    verdicts, counts = verify_all({"timeout_s": 30.0}, responses)
    assert [v.is_correct for v in verdicts] == [True, False, False] * 20
    assert counts == {"scored": 60, "timeout": 0, "error": 0, "restarts": 0}


def test_hostile_answers_end_in_a_verdict_that_is_not_correct():
    boxes = r"\frac{" * 300 + "1" + "}{2}" * 300
    hostile = [
        "Answer: 9^{9^{9^9}}",
        "Answer: $9^{9^{9^{9^9}}}$",
        "Answer: " + boxes,
        "Answer: " + "(" * 400 + "34",
        "Answer: " + "{" * 100_000,
        "Answer: \\boxed{" + "{" * 100_000,
        "Answer: " + "\\sqrt{" * 120 + "34" + "}" * 120,
        "Answer: 100000!!",
        "Answer: \\sum_{n=1}^{10^9} \\sin(n^n)",
        "Answer: \\int_0^1 x^{x^{x^x}} dx",
        "Answer: \x00\ud800",
        "Answer: 34 \\cdot " + "x^2 + " * 150,
    ]
    start = time.monotonic()
    verdicts, counts = verify_all({"timeout_s": 2.0}, hostile)
    assert [v.is_correct for v in verdicts] == [False] * len(hostile)
    assert all(v.detail for v in verdicts if v.status != "scored")
    assert sum(counts[status] for status in ("scored", "timeout", "error")) == len(hostile)
    assert time.monotonic() - start < 2.0 * len(hostile) + 60


SLOW = [r"9^{9^{9^{9^9}}}", r"((((9!)!)!)!)!", r"\binom{10^{12}}{5\cdot 10^{11}}", r"(a+b+c+d+e)^{400}"]
QUICK = [
    r"\left(" * 150 + "34" + r"\right)" * 150,
    "{}" * 50_000,
    r"\boxed{" * 14_000,
    r"\text{" * 20_000,
    "$" * 100_000,
    "\\" * 100_000,
    "Answer: " * 20_000,
    "9" * 100_000,
    "9" * 450 + r"\cdot " + "9" * 450,
    "\x00" * 50_000,
    "3\x004",
    "\ud83d",
    "3" + "\u0301" * 100_000,
    "\u202e43",
    "\U0001f468\u200d" * 20_000,
    "x=" * 400 + "43",
    "(-\\infty," * 20,
]


def test_after_each_hostile_answer_the_same_worker_slot_judges_rightly():
    """One worker only: whatever an answer does to it, the next verdict is a right one, and none is lost."""

    async def run():
        async with RuleVerifierPool(1, 1.5) as pool:
            verdicts = []
            for hostile in [*SLOW, *QUICK]:
                verdicts.append(await pool.verify(reward_input(f"Answer: {hostile}")))
                after = await pool.verify(reward_input("Answer: 34"))
                assert (after.status, after.is_correct) == ("scored", True), hostile[:40]
            return verdicts, pool.counts

    verdicts, counts = asyncio.run(run())
    assert not any(verdict.is_correct for verdict in verdicts)
    assert [verdict.status for verdict in verdicts[: len(SLOW)]] == ["timeout"] * len(SLOW)
    assert counts["timeout"] == counts["restarts"] >= len(SLOW)
    assert sum(counts[status] for status in ("scored", "timeout", "error")) == 2 * len(verdicts)


def test_a_worker_keeps_to_its_memory_and_lives_on(tmp_path):
    """The worker's own program, told a limit as the pool tells it one for the shipped scorers."""
    path = tmp_path / "hungry.py"
    path.write_text("def compute_score(solution_str, **rest): return len(bytes(int(solution_str)))\n")
    ours, theirs = Pipe()
    with theirs:
        command = [sys.executable, "-m", "verl.rewards.rule_worker", str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=(theirs.fileno(),))
    with ours, process:
        ours.send(WorkerSetup(60.0, 3 << 30, FunctionSpec(str(path))))
        assert ours.recv() == ""
        answers = []
        for size in (10, 4 << 30, 20):
            ours.send([RuleItem("x", str(size), "", {})])
            answers += ours.recv()
        ours.close()
        assert process.wait(timeout=20) == 0
    assert [(one.status, one.score) for one in answers] == [("scored", 10.0), ("error", 0.0), ("scored", 20.0)]
    assert answers[1].detail.startswith("MemoryError")


BATCH = """
import os, time

calls = 0

def compute_score(data_sources, solution_strs, ground_truths, extra_infos):
    global calls
    calls += 1
    if "hang" in solution_strs:
        time.sleep(600)
    if "raise" in solution_strs:
        raise KeyError("no such thing")
    if "crash" in solution_strs:
        os._exit(7)
    if "short" in solution_strs:
        return [1.0]
    ranked = sorted(solution_strs)
    return [{"score": ranked.index(s), "calls": calls} if s != "bad" else "bad" for s in solution_strs]
"""


@pytest.fixture
def batch_function(tmp_path):
    path = tmp_path / "my_batch_reward.py"
    path.write_text(BATCH)
    return FunctionSpec(str(path), takes_batch=True)


def judge_batches(function, *batches, timeout_s=20.0):
    async def run():
        async with RuleVerifierPool(1, timeout_s, function) as pool:
            return [await pool.verify_batch([reward_input(text) for text in batch]) for batch in batches], pool.counts

    return asyncio.run(run())


def test_a_batch_is_judged_in_one_call(batch_function):
    (first, second), counts = judge_batches(batch_function, ["c", "a", "b"], ["z"])
    assert [(v.score, v.metrics["calls"]) for v in first] == [(2.0, 1.0), (0.0, 1.0), (1.0, 1.0)]
    assert [(v.score, v.metrics["calls"]) for v in second] == [(0.0, 2.0)]
    assert counts == {"scored": 4, "timeout": 0, "error": 0, "restarts": 0}


def test_one_unreadable_result_spoils_its_own_response_alone(batch_function):
    (verdicts,), _ = judge_batches(batch_function, ["a", "bad", "c"])
    assert [v.status for v in verdicts] == ["scored", "error", "scored"]


@pytest.mark.parametrize(
    ("trouble", "status", "detail", "restarts"),
    [
        ("hang", "timeout", "within 1.5 s", 1),
        ("raise", "error", "KeyError: 'no such thing'", 0),
        ("crash", "error", "exit code 7", 2),
        ("short", "error", "1 results for a batch of 3", 0),
    ],
)
def test_a_batch_call_that_fails_is_the_verdict_on_all_of_it(batch_function, trouble, status, detail, restarts):
    (failed, after), counts = judge_batches(batch_function, ["a", trouble, "c"], ["b", "a"], timeout_s=1.5)
    assert [v.status for v in failed] == [status] * 3
    assert all(detail in v.detail for v in failed)
    assert [v.score for v in after] == [1.0, 0.0]
    assert counts[status] == 3 and counts["restarts"] == restarts


def test_an_unknown_data_source_is_the_users_error_and_not_a_score():
    with pytest.raises(UserError, match="data_source='poems'"):
        verify_all({"timeout_s": 30.0}, ["Answer: 34"], data_source="poems")


def test_a_custom_function_judges_anything_or_says_why_not(custom):
    bad = ["hang", "async hang", "busy in C", "raise", "exit", "hard exit", "segfault", "not a number"]
    responses = ["1", *bad, "-2"]
    verdicts, counts = verify_all({"timeout_s": 1.5, "function": custom}, responses, data_source="poems")
    by_response = dict(zip(responses, verdicts, strict=True))
    assert (by_response["1"].score, by_response["1"].predicted, by_response["1"].metrics) == (1.5, "34", {"length": 1})
    assert (by_response["-2"].score, by_response["-2"].is_correct) == (-1.5, False)
    assert {r: by_response[r].status for r in bad} == {
        r: "timeout" if "hang" in r or "busy" in r else "error" for r in bad
    }
    for response, detail in {
        "hang": "within 1.5 s",
        "raise": "KeyError: 'no such thing'",
        "exit": "SystemExit: 3",
        "hard exit": "exit code 7",
        "segfault": "SIGSEGV",
        "not a number": "score must be a number, not str",
    }.items():
        assert detail in by_response[response].detail
    assert counts["scored"] == 2 and counts["timeout"] == 3 and counts["error"] == 5
    # Each time-out costs a worker, each crash two: the item is tried once more.
    assert counts["restarts"] == 3 + 2 * 2


def test_an_idle_worker_that_is_killed_is_replaced_and_nothing_is_lost(custom):
    async def run():
        async with RuleVerifierPool(1, 30.0, custom) as pool:
            before = await pool.verify(reward_input("pid"))
            os.kill(int(before.score), signal.SIGKILL)
            after = await pool.verify(reward_input("pid"))
            return before, after, pool.counts

    before, after, counts = asyncio.run(run())
    assert after.status == "scored" and after.score != before.score
    assert counts == {"scored": 2, "timeout": 0, "error": 0, "restarts": 1}


def is_gone(pid):
    """Whether the process has ended; one that nobody waited for yet has ended too."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until_gone(pid, seconds=20.0):
    end = time.monotonic() + seconds
    while not is_gone(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return is_gone(pid)


def test_close_ends_the_workers_also_one_that_hangs(custom):
    async def run():
        pool = RuleVerifierPool(1, 60.0, custom)
        pid = int((await pool.verify(reward_input("pid"))).score)
        hanging = asyncio.create_task(pool.verify(reward_input("hang")))
        await asyncio.sleep(0.2)
        pool.close()
        verdict = await hanging
        with pytest.raises(RuntimeError, match="closed"):
            await pool.verify(reward_input("1"))
        return pid, verdict

    pid, verdict = asyncio.run(run())
    assert verdict.status == "error"
    assert wait_until_gone(pid)


def test_workers_do_not_outlive_a_killed_parent(custom):
    program = f"""
        import asyncio, os, signal
        import numpy as np
        from verl.rewards.loader import FunctionSpec
        from verl.rewards.rule_pool import RuleVerifierPool
        from verl.rewards.types import RewardInput

        async def run():
            pool = RuleVerifierPool(1, 30.0, FunctionSpec({custom.path!r}))
            verdict = await pool.verify(RewardInput("u", 0, "x", [], "pid", np.zeros(0), 0, False, "", {{}}))
            print(int(verdict.score - 0), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(run())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert wait_until_gone(int(done.stdout.split()[-1]))


def test_a_function_that_no_worker_can_load_is_the_users_error(tmp_path):
    path = tmp_path / "fine_here.py"
    path.write_text("def compute_score(**kwargs): return 1\n")

    async def run():
        async with RuleVerifierPool(1, 30.0, FunctionSpec(str(path), "other_name")):
            pass

    with pytest.raises(UserError, match="other_name"):
        asyncio.run(run())


@pytest.mark.parametrize(("num_workers", "timeout_s"), [(0, 1.0), (1, 0.0), (1, float("nan"))])
def test_impossible_sizes_are_refused(num_workers, timeout_s):
    with pytest.raises(UserError):
        RuleVerifierPool(num_workers, timeout_s)


def test_a_worker_loads_nothing_heavy():
    program = "import sys, verl.rewards.rule_worker; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    heavy = {"torch", "ray", "vllm", "transformers", "tensordict", "pandas", "pyarrow", "datasets", "hydra"}
    assert heavy.isdisjoint(loaded.stdout.split())
    assert "math_verify" in loaded.stdout.split()
