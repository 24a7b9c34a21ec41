# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from verl.data.row_file import write_rows
from verl.data.rows import read_rows
from verl.utils.errors import UserError

ROWS = [{"a": 1, "texts": ["x", "é\n"], "nested": {"b": None}}, {"a": 2, "texts": [], "late": "only here"}]


@pytest.mark.parametrize("name", ["made/rows.parquet", "made/rows.jsonl"])
def test_what_is_written_is_read_again(tmp_path, name):
    path = tmp_path / name
    write_rows(path, ROWS, "output")
    values = [row.values for row in read_rows([str(path)], "data.path", ())]
    assert [{key: value for key, value in row.items() if value is not None} for row in values] == ROWS
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_rows_that_parquet_cannot_hold_leave_the_old_file(tmp_path):
    path = tmp_path / "rows.parquet"
    write_rows(path, ROWS, "output")
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"output=.*Name a file ending in \.jsonl"):
        write_rows(path, [{"a": 1}, {"a": {"b": 2}}], "output")
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_what_json_does_not_know_is_written_as_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"a": path}], "output")
    assert json.loads(path.read_text()) == {"a": str(path)}
