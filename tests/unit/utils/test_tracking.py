# SPDX-License-Identifier: Apache-2.0
"""Metrics read back from what each writer left on disk; wandb runs offline, without a key."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from verl.utils.tracking import JsonlWriter, RunInfo, TensorBoardWriter, Tracker, WandbWriter, has_wandb_key


class Recorder:
    """A writer that remembers."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.is_closed = False

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append((step, dict(metrics)))

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def run(tmp_path: Path) -> RunInfo:
    return RunInfo(tmp_path / "run", "project", "experiment", {"trainer": {"seed": 1}})


def rows_of(run: RunInfo) -> list[dict[str, float | None]]:
    def refuse(name: str) -> float:
        raise ValueError(f"{name} is no JSON")

    lines = (run.run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_jsonl_has_one_object_per_step_readable_at_once(run: RunInfo) -> None:
    writer = JsonlWriter(run)
    writer.write(1, {"actor/loss": 0.5, "tokens": 3})
    assert rows_of(run) == [{"step": 1, "actor/loss": 0.5, "tokens": 3}]
    writer.write(2, {"actor/loss": math.nan, "up": math.inf, "down": -math.inf})
    assert rows_of(run)[1] == {"step": 2, "actor/loss": None, "up": None, "down": None}
    writer.close()


def test_jsonl_of_a_resumed_run_goes_on_in_the_same_file(run: RunInfo) -> None:
    for step in (1, 2):
        writer = JsonlWriter(run)
        writer.write(step, {"x": 1.0})
        writer.close()
    assert [row["step"] for row in rows_of(run)] == [1, 2]


def test_jsonl_takes_numbers_of_numpy(run: RunInfo) -> None:
    writer = JsonlWriter(run)
    writer.write(1, {"a": np.float32(0.5), "b": np.int64(2), "c": np.bool_(True)})
    writer.close()
    assert rows_of(run) == [{"step": 1, "a": 0.5, "b": 2, "c": 1}]


def test_tensorboard_scalars_are_read_back(run: RunInfo) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = TensorBoardWriter(run)
    writer.write(1, {"actor/loss": 0.5, "tokens": 3})
    writer.write(4, {"actor/loss": 0.25})
    writer.close()
    events = accumulator.EventAccumulator(str(run.run_dir / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"actor/loss", "tokens"}
    assert [(event.step, event.value) for event in events.Scalars("actor/loss")] == [(1, 0.5), (4, 0.25)]


def test_tracker_writes_everywhere_and_always_the_file(run: RunInfo) -> None:
    recorder = Recorder()
    tracker = Tracker(("console", "tensorboard"), run, extra=[recorder])
    tracker.write(1, {"x": 2.0})
    assert recorder.rows == [(1, {"x": 2.0})]
    assert not recorder.is_closed
    tracker.close()
    assert recorder.is_closed
    assert rows_of(run) == [{"step": 1, "x": 2.0}]
    assert list((run.run_dir / "tensorboard").iterdir())


# ---- wandb ----


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment in which wandb finds no key; returns where it would look for a netrc file."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_a_key_is_found_in_the_environment(no_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_wandb_key()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("machine api.wandb.ai login user password secret\n", True),
        ("machine example.org login user password secret\n", False),
        ("this is no netrc file\n", False),
        ("", False),
    ],
)
def test_a_key_is_found_in_the_netrc_file(no_key: Path, text: str, found: bool) -> None:
    no_key.write_text(text)
    no_key.chmod(0o600)
    assert has_wandb_key() is found


def test_netrc_of_the_home_folder_counts(no_key: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NETRC")
    (tmp_path / "home").mkdir()
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    netrc.chmod(0o600)
    assert has_wandb_key()


def test_wandb_without_a_key_records_offline_and_says_so(
    no_key: Path, run: RunInfo, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("wandb")
    # pytest's standard input raises when it is read: a question at the prompt would fail this test
    with caplog.at_level(logging.WARNING, logger="verl.utils.tracking"):
        writer = WandbWriter(run)
    writer.write(3, {"actor/loss": 0.5})
    writer.close()
    assert "offline" in caplog.text and "wandb sync" in caplog.text
    (recorded,) = (run.run_dir / "wandb").glob("offline-run-*/run-*.wandb")
    # wandb's own process goes on writing for a moment after `finish` has returned
    deadline_s = time.monotonic() + 60
    while b"actor/loss" not in recorded.read_bytes() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert b"actor/loss" in recorded.read_bytes()
    assert b"experiment" in recorded.read_bytes()


def test_wandb_mode_is_the_users(
    no_key: Path, run: RunInfo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    writer = WandbWriter(run)
    writer.write(1, {"x": 1.0})
    writer.close()
    assert "verl.utils.tracking" not in {record.name for record in caplog.records}
    assert not list(run.run_dir.glob("wandb/offline-run-*"))
