# SPDX-License-Identifier: Apache-2.0
"""The weight sync benchmark: the receiving process takes every byte in, and rates come from reports."""

from __future__ import annotations

import json
from multiprocessing import Pipe
from pathlib import Path
from threading import Thread

import pytest
import torch

from benchmarks.weight_sync import copy_seconds, main, receive, summarise
from verl.weight_sync.base import SyncReport
from verl.weight_sync.bundle import write_bundle


def test_the_receiver_reads_bundles_and_tells_what_went_wrong(tmp_path: Path) -> None:
    weights = {"a": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3), "b": torch.ones(4)}
    manifest, _ = write_bundle(weights.items(), tmp_path / "bundle", with_digests=True)
    ours, theirs = Pipe()
    worker = Thread(target=receive, args=(theirs, {n: (tuple(t.shape), t.dtype) for n, t in weights.items()}))
    worker.start()
    answers = [ours.recv()]
    wrong = manifest.to_dict() | {"digests": ["0" * 16] * 2}
    for payload in (manifest.to_dict(), wrong, manifest.to_dict() | {"path": str(tmp_path / "gone")}):
        ours.send(payload)
        answers.append(ours.recv())
    ours.send(None)
    worker.join(timeout=30)
    assert answers[:2] == ["", ""] and not worker.is_alive()
    assert answers[2].startswith("WeightDigestError") and answers[3].startswith("FileNotFoundError")


def test_rates_from_reports() -> None:
    reports = [SyncReport(1, 2, 100, 1.0, 1.0), SyncReport(2, 2, 100, 1.0, 3.0), SyncReport(3, 2, 100, 1.0, 1.0)]
    found = summarise(reports, copied_s=0.5)
    assert found == {"bytes_per_s": 50.0, "write_s": 1.0, "load_s": 1.0, "over_copy": 0.25}
    assert copy_seconds({"a": torch.ones(8)}) > 0


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    assert main(["--shape", "tiny", "--layers", "1", "--repeats", "1", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert set(result["results"]) == {"plain", "with digests"} and result["work"]["bytes"] > 10_000
    assert "copy in memory" in capsys.readouterr().out
