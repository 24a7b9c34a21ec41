# SPDX-License-Identifier: Apache-2.0
"""How results are described, written and shown."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from benchmarks import record


def test_a_run_is_described_with_everything_needed_to_repeat_it() -> None:
    head = record.describe_run("name", {"answers": 4})
    assert set(head) == {"benchmark", "command", "date", "commit", "machine", "versions", "settings"}
    assert head["machine"]["cores"] >= 1 and head["machine"]["cpu"]
    assert "pytest" in head["command"]
    assert {"python", "torch"} <= set(head["versions"])


def test_the_commit_is_that_of_the_repository() -> None:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=record.REPO, capture_output=True, text=True, check=False)
    if done.returncode:
        assert record.commit() == "unknown"
    else:
        assert done.stdout.startswith(record.commit().removesuffix("+"))


def test_results_go_where_they_are_wanted(tmp_path: Path) -> None:
    result = record.describe_run("name", {}) | {"results": {"a": 1.5}}
    path = record.write(result, str(tmp_path / "deep" / "er.json"))
    assert json.loads(path.read_text()) == result


def test_tables_line_up() -> None:
    lines = record.table(["way", "rate"], [["a", "1"], ["longer", "1,000"]]).splitlines()
    assert lines == ["| way    |  rate |", "| ------ | ----: |", "| a      |     1 |", "| longer | 1,000 |"]
