# SPDX-License-Identifier: Apache-2.0
"""Applies the table of old spellings to plain data. Knows neither Hydra nor any section by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from verl.config.convert import to_plain
from verl.config.legacy import ENTRIES, VALUES, Entry, NoEffect, Refused, Renamed, TotalPerStep
from verl.config.problems import Problem
from verl.config.schema import Tree

_ABSENT = object()


def find_entry(key: str, tree: Tree) -> Entry | None:
    """Look a key up in the table of old spellings.

    Args:
        key: Full key as the user wrote it.
        tree: Keys of the root; an entry that leads to a section the root does not have is passed over.

    Returns:
        The first entry that covers the key, or None for a present (or unknown) key.
    """
    for entry in ENTRIES:
        section = entry.old.removesuffix(".*")
        covered = key == entry.old or (section != entry.old and (key == section or key.startswith(section + ".")))
        if covered and (not isinstance(entry, Renamed) or tree.has_section_of(entry.new)):
            return entry
    return None


def rename(key: str, tree: Tree) -> str:
    """Give the present name of a key; a key that is not merely renamed stays as it is.

    Args:
        key: Full key as the user wrote it.
        tree: Keys of the root.

    Returns:
        The present key.
    """
    entry = find_entry(key, tree)
    while isinstance(entry, Renamed):
        key = entry.new.removesuffix(".*") + key[len(entry.old.removesuffix(".*")) :]
        entry = find_entry(key, tree)
    return key


class Migration:
    """One pass over the user's plain data: present spellings out, notices and problems collected.

    Example:
        `migration = Migration(tree); plain = migration.run({"reward": {"num_workers": 8}})` gives
        `{"reward_model": {"num_verifier_workers": 8}}` and one notice.
    """

    def __init__(self, tree: Tree) -> None:
        """Start a pass.

        Args:
            tree: Keys of the root that the data is for; entries that lead elsewhere are left alone (unknown keys).
        """
        self.tree = tree
        self.problems: list[Problem] = []
        self._renamed: list[str] = []
        self._without_effect: dict[str, list[str]] = {}
        self._refused: set[str] = set()

    @property
    def notices(self) -> list[str]:
        """What was read differently from how it was written, one line each."""
        silent = [f"{', '.join(keys)}: no effect here, {why}" for why, keys in self._without_effect.items()]
        return [*self._renamed, *silent]

    def note_rename(self, old: str, new: str) -> None:
        """Remember that a key was renamed before the data was composed."""
        self._renamed.append(f"{old} is read as {new}")

    def note_without_effect(self, entry_key: str, written: str) -> None:
        """Remember that a key was dropped before the data was composed.

        Args:
            entry_key: The key's entry in the table.
            written: The key as the user wrote it.
        """
        why = next(entry.why for entry in ENTRIES if isinstance(entry, NoEffect) and entry.old == entry_key)
        self._without_effect.setdefault(why, []).append(written)

    def run(self, plain: Mapping[str, Any]) -> dict[str, Any]:
        """Translate all old spellings.

        Args:
            plain: Nested dicts as composed.

        Returns:
            Nested dicts in which every old key is renamed or dropped.
        """
        result: dict[str, Any] = {}
        late: list[tuple[str, Any]] = []
        for key, value in _leaves(plain):
            if key.rpartition(".")[2] == "_target_":
                self._without_effect.setdefault("sections have fixed types", []).append(key)
            elif find_entry(key, self.tree) is None or self._is_present(key):
                _put(result, key, self._present_value(key, value))
            else:
                late.append((key, value))
        for key, value in late:
            self._old_key(key, value, result)
        return result

    def _is_present(self, key: str) -> bool:
        return key in self.tree.leaves or key in self.tree.sections

    def _old_key(self, key: str, value: Any, result: dict[str, Any]) -> None:
        entry = find_entry(key, self.tree)
        if isinstance(entry, Renamed):
            if isinstance(value, Mapping) and not value:
                return  # an empty section says nothing
            new = rename(key, self.tree)
            if find_entry(new, self.tree) is not None and not self._is_present(new):
                self._old_key(new, value, result)
                return
            self._move(key, new, value, result)
        elif isinstance(entry, TotalPerStep):
            self._per_rank(entry, value, result)
        elif isinstance(entry, NoEffect):
            self._no_effect(entry, key, value)
        elif isinstance(entry, Refused) and entry.old not in self._refused:
            self._refused.add(entry.old)
            self.problems.append(Problem(key, value, entry.why, entry.mend))

    def _move(self, old: str, new: str, value: Any, result: dict[str, Any]) -> None:
        value = self._present_value(new, value)
        spec = self.tree.leaves.get(new)
        present = _get(result, new)
        untouched = spec is not None and present == to_plain(spec.default)
        if isinstance(present, Mapping) and isinstance(value, Mapping):
            value = {**present, **value}
        elif present is not _ABSENT and not untouched and present != value:
            said = f"says the same as {new}={present!r}, with another value"
            self.problems.append(Problem(old, value, said, f"Keep only {new}", (new,)))
            return
        self.note_rename(old, new)
        _put(result, new, value)

    def _per_rank(self, entry: TotalPerStep, value: Any, result: dict[str, Any]) -> None:
        if value is None:
            return
        ranks = _number(result, "trainer.nnodes", 1) * _number(result, "trainer.n_gpus_per_node", 8)
        ranks //= max(1, _number(result, "actor_rollout_ref.actor.ulysses_sequence_parallel_size", 1))
        if not isinstance(value, int) or isinstance(value, bool) or ranks < 1 or value % ranks:
            allowed = f"counts all ranks together and must be a multiple of their number, {ranks}"
            self.problems.append(Problem(entry.old, value, allowed, f"Use {entry.new} (sequences on one rank)"))
            return
        self._move(entry.old, entry.new, value // ranks, result)

    def _no_effect(self, entry: NoEffect, key: str, value: Any) -> None:
        if entry.harmless is None or value in entry.harmless:
            self._without_effect.setdefault(entry.why, []).append(key)
            return
        allowed = f"only {' or '.join(str(choice) for choice in entry.harmless)} is accepted ({entry.why})"
        self.problems.append(Problem(key, value, allowed, entry.mend))

    def _present_value(self, key: str, value: Any) -> Any:
        table = VALUES.get(key)
        if table is None:
            return value
        if isinstance(value, list):
            return [self._one_value(key, item, table) for item in value]
        return self._one_value(key, value, table)

    def _one_value(self, key: str, value: Any, table: dict[Any, Any]) -> Any:
        if type(value) not in (str, int, type(None)) or value not in table:
            return value
        self._renamed.append(f"{key}={value!r} is read as {table[value]!r}")
        return table[value]


def _leaves(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in plain.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        # A dot inside a name belongs to a library's own key; such a mapping is taken as it is.
        if isinstance(value, Mapping) and value and not any("." in str(inner) for inner in value):
            yield from _leaves(value, key)
        else:
            yield key, value


def _put(result: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        inner = result.get(section)
        if not isinstance(inner, dict):
            inner = result[section] = {}
        result = inner
    result[name] = value


def _get(result: Mapping[str, Any], key: str) -> Any:
    value: Any = result
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return _ABSENT
        value = value[name]
    return value


def _number(result: Mapping[str, Any], key: str, default: int) -> int:
    value = _get(result, key)
    return value if isinstance(value, int) and not isinstance(value, bool) else default
