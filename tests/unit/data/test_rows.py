# SPDX-License-Identifier: Apache-2.0
import json

import pyarrow
import pyarrow.parquet
import pytest

from verl.data.rows import read_rows
from verl.utils.errors import UserError

KEY = "data.train_files"


def test_rows_of_several_files_come_in_order_with_their_places(tmp_path):
    lines = tmp_path / "a.jsonl"
    lines.write_text(json.dumps({"x": 1}) + "\n\n" + json.dumps({"x": 2}) + "\n", encoding="utf-8")
    table = tmp_path / "b.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"x": [{"y": [1, 2]}]}), table)
    rows = read_rows([str(lines), str(table)], KEY, ["x"])
    assert [row.values for row in rows] == [{"x": 1}, {"x": 2}, {"x": {"y": [1, 2]}}]
    assert [row.place for row in rows] == [f"{lines} line 1", f"{lines} line 3", f"{table} row 1"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"x": 1}\n{"x": \n', "a.jsonl line 2.*not a JSON value"),
        ("a.jsonl", b"[1]\n", "line 1.*not a JSON object"),
        ("a.jsonl", b"\n\n", "no rows"),
        ("a.jsonl", b"\xff\xfe\n", "UTF-8"),
        ("a.jsonl", b'{"y": 1, "z": 2}\n', "no column 'x'; it has 'y', 'z'"),
        ("a.parquet", b"not parquet at all", "not readable as parquet"),
        ("a.csv", b"x\n1\n", "ending in .parquet"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_rows([str(path)], KEY, ["x"])
    assert str(caught.value).startswith(f"{KEY}=") and str(path) in str(caught.value)


def test_missing_files_folders_and_empty_lists_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_rows([str(tmp_path / "none.parquet")], KEY, [])
    with pytest.raises(UserError, match="folder"):
        read_rows([str(tmp_path)], KEY, [])
    with pytest.raises(UserError, match="at least one"):
        read_rows([], KEY, [])
