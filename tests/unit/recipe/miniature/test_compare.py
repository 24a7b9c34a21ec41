# SPDX-License-Identifier: Apache-2.0
"""The comparison of methods: command lines compose, runs are started, resumed and counted, numbers are right."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from recipe.miniature.compare import command_of, environment_of, record_comparison, unfinished
from recipe.miniature.launcher import Launcher
from recipe.miniature.methods import BY_NAME, METHODS, RULE_SCRIPT
from recipe.miniature.plots import mean_series, smoothed
from recipe.miniature.provenance import commit, digests, machine
from recipe.miniature.report import numbers, write_report
from recipe.miniature.runs import PlannedRun, Sizes, plan_runs, write_json
from recipe.miniature.summary import Spread, first_step, gains, judge_answers, read_comparison
from scripts.generate_config_reference import EXAMPLES, example_arguments
from verl.config import PPOTrainerConfig
from verl.config.hydra import load_config
from verl.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[4]
SIZES = Sizes(steps=20, test_freq=10, val_samples=2)
QUIET = Console(file=io.StringIO())


def answer(problem: str, response: str, is_correct: bool) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": problem}], "response": response, "is_correct": is_correct}


GOOD = answer("1+1+1+1+1", "1+1=2\n\n2+1=3\n\n3+1=4\n\n4+1=5\n\nAnswer: 5", True)
LUCKY = answer("1+1+1+1+1", "1+1=2\n\n2+1=4\n\n4+1=4\n\n4+1=5\n\nAnswer: 5", True)
REPEATS = answer("1+1+1+1+1", "1+1=2\n\n1+1=2\n\nAnswer: 3", False)


def leave_run(run: PlannedRun, accuracies: Sequence[float], *, prm: bool = True) -> None:
    """Write what the trainer leaves: a validation at 0, 10 and 20, and metrics of every step."""
    rows: list[dict[str, Any]] = [{"step": 0, "val/acc/mean@2": accuracies[0]}]
    for step in range(1, run.sizes.steps + 1):
        row: dict[str, Any] = {"step": step, "response/length/mean": 30.0 - step, "timing_s/step": 1.0 + (step == 1)}
        row |= {"prm/auc/mean": 0.5 if step <= 10 else None, "reward/exposed/share": 0.25} if prm else {}
        if step % run.sizes.test_freq == 0:
            row["val/acc/mean@2"] = accuracies[step // run.sizes.test_freq]
        rows.append(row)
    dumps = run.folder / "validation"
    dumps.mkdir(parents=True)
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (dumps / "0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (LUCKY, REPEATS)))
    (dumps / "20.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (GOOD, GOOD)))
    write_json(run.folder / "run.json", {"arguments": run.arguments, "commit": "abc"})


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """Two methods with two finished seeds each; a third that was not started, a fourth that ended early."""
    out = tmp_path / "out"
    names = ["rule_only", "grpo_ps", "papo", "legacy"]
    about = {
        "sizes": {"steps": 20, "test_freq": 10, "val_samples": 2},
        "assets": {"policy/model.safetensors": "0123"},
        "commands": ["bash recipe/miniature/compare.sh A B"],
        "date": "2026-01-02",
        "machine": {"processor": "P", "cores": "2"},
        "methods": names,
        "seeds": [1, 2],
    }
    write_json(out / "comparison.json", about)
    runs = {(run.method.name, run.seed): run for run in plan_runs(out, names, [1, 2], SIZES)}
    leave_run(runs["rule_only", 1], [0.4, 0.5, 0.7], prm=False)
    leave_run(runs["rule_only", 2], [0.4, 0.6, 0.8], prm=False)
    leave_run(runs["grpo_ps", 1], [0.4, 0.65, 0.6])
    leave_run(runs["grpo_ps", 2], [0.4, 0.45, 0.5])
    leave_run(runs["legacy", 1], [0.4, 0.45, 0.5])
    cut = runs["legacy", 1].folder / "metrics.jsonl"
    cut.write_text("".join(cut.read_text().splitlines(keepends=True)[:6]) + '{"step": 6, "respo')
    return out


def test_spread_is_the_sample_deviation() -> None:
    assert (Spread((0.7, 0.8)).mean, Spread((0.7, 0.8)).std) == pytest.approx((0.75, 0.05 * math.sqrt(2)))
    assert Spread((0.7,)).as_dict() == {"mean": 0.7, "std": None, "min": 0.7, "max": 0.7, "values": [0.7]}
    assert Spread(()).as_dict() == {"mean": None, "std": None, "min": None, "max": None, "values": []}


def test_first_step_at_a_level() -> None:
    curve = {0: 0.4, 10: 0.61, 20: 0.6, 30: 0.59}
    assert (first_step(curve, 0.6), first_step(curve, 0.4), first_step(curve, 0.62)) == (10, 0, None)


def test_answers_are_judged_by_the_truth() -> None:
    judged = judge_answers([GOOD, LUCKY, REPEATS, answer("1+1+1+1+1", " \n\n", False)])
    assert judged == {
        "right": 0.5,
        "sound": 0.25,
        "steps": 13 / 4,
        "repeated": 0.25,
        "empty": 0.25,
        "one_step": 0.0,
        # 4 of 4, 2 of 4 (2+1=4, 4+1=4 are wrong), 1 of 2
        "right_steps": 7 / 10,
    }
    assert judge_answers([]) == {}


def test_numbers_of_a_comparison(comparison: Path) -> None:
    read = read_comparison(comparison, (0.6, 0.7, 0.9))
    assert read.methods == ["rule_only", "grpo_ps"]
    assert read.missing == {
        "papo seed 1": "not started",
        "legacy seed 1": "ended at step 5 of 20",
        "papo seed 2": "not started",
        "legacy seed 2": "not started",
    }
    assert gains(read, "grpo_ps").values == pytest.approx((-0.1, -0.3))
    found = numbers(read, (0.6, 0.7, 0.9))
    ps, rule = found["methods"]["grpo_ps"], found["methods"]["rule_only"]
    assert ps["accuracy_after"]["values"] == [0.6, 0.5]
    assert rule["accuracy_over_training"]["values"] == pytest.approx([0.6, 0.7])
    assert rule["first_step_at"] == {"0.6": [20, 10], "0.7": [20, 20], "0.9": [None, None]}
    assert ps["first_step_at"]["0.6"] == [10, None]
    lengths = ps["monitors"]["response/length/mean"]
    assert (lengths["first"]["mean"], lengths["last"]["mean"]) == (30 - 5.5, 30 - 15.5)
    auc = ps["monitors"]["prm/auc/mean"]
    assert (auc["first"]["mean"], auc["last"]["mean"]) == (0.5, None)
    assert "prm/auc/mean" not in rule["monitors"]
    assert ps["runs"][0]["answers"]["0"]["sound"] == 0.0 and ps["runs"][0]["answers"]["20"]["sound"] == 1.0


def test_report_says_what_there_is_and_what_is_missing(comparison: Path) -> None:
    files = write_report(comparison)
    assert {path.parent for path in files} == {comparison / "results" / "2026-01-02"}
    assert [path.name for path in files] == ["table.md", "table.json", "accuracy.png", "after.png", "monitors.png"]
    text = files[0].read_text()
    assert "- legacy seed 1: ended at step 5 of 20" in text and "- papo seed 2: not started" in text
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "never (0 of 2)" in text and "| 10 (1 of 2) |" in text
    accuracy = next(line for line in text.splitlines() if line.startswith("| grpo_ps | 2 |"))
    assert accuracy == (
        "| grpo_ps | 2 | 0.400 ± 0.000 | 0.550 ± 0.071 [0.500, 0.600] | 0.600, 0.500 | -0.200 ± 0.141 | 0.550 ± 0.106 |"
    )
    assert rows["rule_only"] == "| rule_only | 1.00 ± 0.00 | - |", "the time table is the last; the first step is out"
    data = files[1].read_text()
    assert json.loads(data)["missing"]["papo seed 1"] == "not started"
    assert str(comparison) not in data + text, "the report is to be committed: no folder of this machine"
    assert "trainer.seed=1" in json.loads(data)["methods"]["grpo_ps"]["runs"][0]["arguments"]
    for path in files[2:]:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG") and 5_000 < len(content) < 200_000
    assert write_report(comparison, comparison / "again")[0].read_text() == text


def test_a_report_of_nothing_is_refused(comparison: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no comparison\.json"):
        write_report(tmp_path)
    for folder in comparison.glob("*/seed_*"):
        shutil.rmtree(folder)
    with pytest.raises(UserError, match="has no finished run"):
        write_report(comparison)


def test_series_are_averaged_over_seeds_and_smoothed(comparison: Path) -> None:
    read = read_comparison(comparison)
    one, two = read.of("grpo_ps")
    changed = replace(two, series={**two.series, "prm/auc/mean": [0.7] * 20})
    assert mean_series([one, changed], "prm/auc/mean") == pytest.approx([0.6] * 10 + [0.7] * 10)
    assert mean_series(read.of("rule_only"), "prm/auc/mean") == []
    assert smoothed([1.0, math.nan, 3.0, 5.0], width=2) == [1.0, 1.0, 3.0, 4.0]


def compose(run: PlannedRun) -> PPOTrainerConfig:
    """Give the configuration that a run's real command line makes: `settings.sh`, the example script, the method."""
    listing = 'source recipe/miniature/settings.sh "$1"; printf "%s\\n" "${MINIATURE_ARGS[@]}"'
    shown = subprocess.run(
        ["bash", "-euc", listing, "x", "/assets"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = {"MODEL_PATH": "/assets/policy", "PRM_PATH": "/assets/prm", "OUTPUT_DIR": str(run.folder)}
    sizes = dict.fromkeys(("NNODES", "N_GPUS_PER_NODE", "PRM_NNODES", "PRM_GPUS_PER_NODE"), "1")
    extra = (*shown.stdout.splitlines(), *run.arguments)
    arguments = example_arguments(EXAMPLES / run.method.script, extra, {**paths, **sizes})
    return load_config("ppo_trainer", arguments[2:], PPOTrainerConfig).config


@pytest.mark.parametrize("name", BY_NAME)
def test_every_method_composes(name: str, tmp_path: Path) -> None:
    (run,) = plan_runs(tmp_path, [name], [7], Sizes(steps=60, test_freq=20, val_samples=3))
    config = compose(run)
    assert config.reward_model.enable == (run.method.script != RULE_SCRIPT)
    assert f"algorithm.adv_estimator={config.algorithm.adv_estimator}" in run.method.overrides
    trainer = config.trainer
    assert (trainer.seed, trainer.total_training_steps, trainer.test_freq) == (7, 60, 20)
    assert (trainer.save_freq, trainer.export_hf, trainer.rollout_data_dir) == (0, False, None)
    assert trainer.run_dir == str(tmp_path / name / "seed_7")
    assert config.data.seed is None, "the order of the prompts follows trainer.seed"
    assert config.actor_rollout_ref.rollout.val_kwargs.n == 3
    assert config.data.train_batch_size * config.actor_rollout_ref.rollout.n == 128, "the same number of samples"
    assert config.ray_kwargs.ray_init["address"] == "local"


def test_methods_are_what_their_names_say(tmp_path: Path) -> None:
    configs = {run.method.name: compose(run) for run in plan_runs(tmp_path, list(BY_NAME), [1], SIZES)}
    process = {name: config.reward_model.process_reward for name, config in configs.items()}
    assert {name: config.algorithm.adv_estimator for name, config in configs.items()} == {
        "rule_only": "grpo",
        "legacy": "grpo",
        "eq12_scalar": "grpo",
        "grpo_ps": "grpo_ps",
        "grpo_minform": "grpo_minform",
        "papo": "papo",
        "grpo_ps_half": "grpo_ps",
    }
    assert (process["legacy"].mode, process["eq12_scalar"].mode, process["grpo_ps"].mode) == (
        "legacy",
        "scalar",
        "step",
    )
    assert (process["grpo_minform"].score_space, process["papo"].score_space) == ("signed", "prob")
    assert [process[name].beta for name in ("legacy", "eq12_scalar", "grpo_ps")] == [0.75] * 3
    assert [method.name for method in METHODS] == list(BY_NAME)[: len(METHODS)]


def test_runs_go_seed_by_seed_and_unknown_names_are_refused(tmp_path: Path) -> None:
    runs = plan_runs(tmp_path, ["papo", "legacy", "papo"], [3, 1, 3], SIZES)
    assert [run.name for run in runs] == ["papo seed 3", "legacy seed 3", "papo seed 1", "legacy seed 1"]
    with pytest.raises(UserError, match="known are rule_only, legacy"):
        plan_runs(tmp_path, ["popo"], [1], SIZES)


def test_a_run_brings_its_own_ray_and_this_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/elsewhere", str(ROOT)]))
    (run,) = plan_runs(tmp_path, ["papo"], [1], SIZES)
    environment = environment_of(run)
    assert "RAY_ADDRESS" not in environment
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/elsewhere"]
    assert environment["OUTPUT_DIR"] == str(run.folder)
    assert command_of(run, Path("/assets"))[-len(run.arguments) :] == run.arguments


def make_assets(folder: Path, weights: bytes = b"w") -> Path:
    for name in ("policy/model.safetensors", "prm/model.safetensors", "data/train.parquet", "data/test.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(weights)
    return folder


def test_a_second_call_adds_to_the_first_and_refuses_to_mix(tmp_path: Path) -> None:
    assets, out = make_assets(tmp_path / "assets"), tmp_path / "out"
    record_comparison(assets, out, plan_runs(out, ["papo"], [1], SIZES), "first")
    record_comparison(assets, out, plan_runs(out, ["legacy"], [1, 2], SIZES), "second")
    about = json.loads((out / "comparison.json").read_text())
    assert (about["methods"], about["seeds"], about["commands"]) == (["papo", "legacy"], [1, 2], ["first", "second"])
    with pytest.raises(UserError, match="holds runs with sizes"):
        record_comparison(assets, out, plan_runs(out, ["papo"], [1], replace(SIZES, steps=30)), "third")
    make_assets(assets, b"other")
    with pytest.raises(UserError, match="holds runs with assets"):
        record_comparison(assets, out, plan_runs(out, ["papo"], [1], SIZES), "fourth")
    with pytest.raises(UserError, match=r"has no .*policy/model\.safetensors"):
        record_comparison(tmp_path / "none", out, plan_runs(out, ["papo"], [1], SIZES), "fifth")


def test_finished_runs_are_kept_and_others_started_anew(comparison: Path) -> None:
    runs = plan_runs(comparison, ["rule_only", "legacy"], [1], SIZES)
    assert [run.name for run in unfinished(runs, QUIET)] == ["legacy seed 1"]
    assert runs[0].is_finished and not runs[1].folder.exists()
    write_json(runs[0].folder / "run.json", {"arguments": [*runs[0].arguments, "actor_rollout_ref.rollout.n=4"]})
    with pytest.raises(UserError, match=r"finished with other arguments \(actor_rollout_ref.rollout.n=4\)"):
        unfinished(runs, QUIET)


TRAINER = """
import json, os, pathlib, signal, subprocess, sys, time
folder, kind = pathlib.Path(os.environ["OUTPUT_DIR"]), sys.argv[1]
print("training", kind, flush=True)
if kind == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / "pids").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)
steps = 20 if kind == "ends" else 5
with (folder / "metrics.jsonl").open("a") as file:
    for step in range(steps + 1):
        file.write(json.dumps({"step": step, "val/acc/mean@2": 0.4 + step / 100}) + "\\n")
sys.exit(3 if kind == "fails" else 0)
"""


def launcher(kinds: dict[int, str], limit_s: float, console: Console = QUIET) -> Launcher:
    """A launcher of programs that do, by the seed, what trainers do."""
    return Launcher(
        lambda run: [sys.executable, "-c", TRAINER, kinds[run.seed]],
        lambda run: {**os.environ, "OUTPUT_DIR": str(run.folder)},
        ROOT,
        console,
        limit_s=limit_s,
        start_gap_s=0.0,
    )


def is_alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_failing_run_stops_no_other_and_a_hanging_one_is_ended(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    runs = plan_runs(tmp_path, ["papo"], [1, 2, 3, 4], SIZES)
    kinds = {1: "fails", 2: "hangs", 3: "stops", 4: "ends"}
    outcomes = {one.run.seed: one for one in launcher(kinds, 6.0, console).run_all(runs, jobs=2)}
    assert {seed: one.failure for seed, one in outcomes.items()} == {
        1: "exit code 3 after step 5",
        2: "ended after 0.1 minutes",
        3: "ended at step 5 of 20",
        4: "",
    }
    assert outcomes[1].log_tail() == "training fails"
    assert "papo seed 4: accuracy 0.400 -> 0.600" in console.file.getvalue()
    assert json.loads((runs[3].folder / "run.json").read_text())["arguments"] == runs[3].arguments
    assert not any(is_alive(int(pid)) for pid in (runs[1].folder / "pids").read_text().split())


PROGRAM = """
import signal, sys
from pathlib import Path
from recipe.miniature.compare import exit_on_signal
from recipe.miniature.runs import Sizes, plan_runs
from tests.unit.recipe.miniature.test_compare import launcher
signal.signal(signal.SIGTERM, exit_on_signal)
launcher({1: "hangs", 2: "hangs"}, 60.0).run_all(plan_runs(Path(sys.argv[1]), ["papo"], [1, 2], Sizes()), jobs=2)
"""


def test_ending_the_comparison_ends_its_runs(tmp_path: Path) -> None:
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT)
    files = [tmp_path / "papo" / f"seed_{seed}" / "pids" for seed in (1, 2)]
    deadline = time.monotonic() + 60
    while not all(path.exists() and len(path.read_text().split()) == 2 for path in files):
        assert time.monotonic() < deadline and program.poll() is None
        time.sleep(0.1)
    for _ in range(2):  # `timeout` and a cluster send it more than once
        program.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    assert program.wait(60) == 128 + signal.SIGTERM
    assert not any(is_alive(int(pid)) for path in files for pid in path.read_text().split())


def test_provenance(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert digests([tmp_path / "a"]) == {f"{tmp_path.name}/a": "ba7816bf8f01"}
    assert {"processor", "cores", "memory", "system", "torch"} <= set(machine())
    assert commit(tmp_path) == "unknown"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "a"], ["commit", "-q", "-m", "m"]):
        subprocess.run([*git, *arguments], check=True)
    clean = commit(tmp_path)
    (tmp_path / "a").write_bytes(b"abcd")
    assert len(clean) == 12 and commit(tmp_path) == f"{clean}+changes"
