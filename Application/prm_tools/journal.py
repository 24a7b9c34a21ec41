# SPDX-License-Identifier: Apache-2.0
"""What a run has done so far, on disk, so that an interrupted one goes on. One process writes at a time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from verl.utils.errors import UserError

_BLOCK_BYTES = 1 << 20


def fingerprint(file: str) -> str:
    """Return a hash of a file's content.

    Args:
        file: Its path.
    """
    digest = xxhash.xxh3_128()
    with Path(file).expanduser().open("rb") as content:
        while block := content.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


class Journal:
    """Results by row number, appended to a JSON Lines file as they come; its first line says which run it is of.

    Example:
        >>> with Journal(Path("out.journal"), {"prm": "p"}, "--output") as journal:
        ...     journal.add({0: {"traj_score": 0.5}})
        >>> journal.results[0]["traj_score"]
        0.5
    """

    def __init__(self, path: Path, run: Mapping[str, Any], option: str, begin_again: bool = False) -> None:
        """Open the journal, and read what an interrupted run has left in it.

        Args:
            path: Its file.
            run: Everything that results depend on, as JSON.
            option: The option that says where, for messages.
            begin_again: Whether to forget what is in it.

        Raises:
            UserError: Another process writes it, or it is of a run with other settings.
        """
        self.path = path
        self._option = option
        self._file = path.open("a+b")
        try:
            self._lock()
            if begin_again:
                self._file.truncate(0)
            self.results = self._read(dict(run))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        """Return itself."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close the file; it stays on disk."""
        self._file.close()

    def add(self, results: Mapping[int, Mapping[str, Any]]) -> None:
        """Keep results; they are on disk when this returns.

        Args:
            results: By row number. A row that has a result already keeps it.
        """
        fresh = {row: dict(result) for row, result in results.items() if row not in self.results}
        self._append({"row": row, **result} for row, result in fresh.items())
        self.results.update(fresh)

    def remove(self) -> None:
        """End the run: delete the file."""
        self.path.unlink(missing_ok=True)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError.for_key(
                self._option, str(self.path), "another process is writing this", "Wait for it, or name another file"
            ) from error

    def _read(self, run: dict[str, Any]) -> dict[int, dict[str, Any]]:
        self._file.seek(0)
        lines = self._file.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):  # the process was killed while it wrote this line
            self._file.truncate(sum(map(len, lines[:-1])))
            lines.pop()
        if len(lines) < 2:  # nothing was done yet: whatever settings that was for
            self._file.truncate(0)
            self._append([{"run": run}])
            return {}
        told, *results = (json.loads(line) for line in lines)
        changed = sorted(name for name in run.keys() | told["run"].keys() if run.get(name) != told["run"].get(name))
        if changed:
            raise UserError.for_key(
                self._option,
                str(self.path),
                f"an unfinished run with another {', '.join(changed)} left this",
                "Give the same settings to go on with it, or --overwrite to begin again",
            )
        return {result.pop("row"): result for result in results}

    def _append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        self._file.write(b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines))
        self._file.flush()
        os.fsync(self._file.fileno())
