# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from verl.config.convert import convert, to_plain
from verl.config.fields import free_mapping, limited, path_field
from verl.config.schema import tree_of


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A section."""

    rate: float = limited(0.5, above=0.0)
    """Rate."""
    mode: Literal["fast", "slow"] = "fast"
    """Mode."""


@dataclass(frozen=True, kw_only=True)
class Root:
    """A root."""

    count: int = limited(3, low=1)
    """Count."""
    on: bool = False
    """Switch."""
    name: str = "x"
    """Name."""
    limit: int | None = None
    """Limit."""
    files: tuple[str, ...] = path_field(())
    """Files."""
    pair: tuple[float, float] = (0.0, 1.0)
    """Pair."""
    points: tuple[tuple[float, float], ...] = ()
    """Points."""
    extra: Mapping[str, Any] = free_mapping()
    """Anything."""
    inner: Inner = field(default_factory=Inner)
    """Section."""


def converted(**plain: Any) -> Root:
    config, problems = convert(plain, Root, tree_of(Root))
    assert not problems
    return config


def fault(**plain: Any) -> str:
    config, problems = convert(plain, Root, tree_of(Root))
    assert len(problems) == 1
    assert config == Root(), "a wrong value must leave the default"
    return problems[0].line()


def test_right_values() -> None:
    config = converted(
        count=5,
        on=True,
        name="run",
        limit=None,
        files=["a", "b"],
        pair=[0, 2],
        points=[[0, 1], [2, 0.5]],
        extra={"a": {"b": [1]}},
        inner={"rate": 1, "mode": "slow"},
    )
    assert config == Root(
        count=5,
        on=True,
        name="run",
        files=("a", "b"),
        pair=(0.0, 2.0),
        points=((0.0, 1.0), (2.0, 0.5)),
        extra={"a": {"b": [1]}},
        inner=Inner(rate=1.0, mode="slow"),
    )
    assert isinstance(config.inner.rate, float)


def test_missing_keys_take_the_default() -> None:
    assert converted() == Root()


def test_null_for_a_section_means_its_defaults() -> None:
    assert converted(inner=None) == Root()


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"count": True}, "count=True: must be a whole number"),
        ({"count": 2.0}, "Write 2."),
        ({"count": 2.5}, "must be a whole number"),
        ({"count": "3"}, "must be a whole number"),
        ({"count": None}, "must be int, not null"),
        ({"count": 0}, "must be at least 1"),
        ({"on": 1}, "must be True or False"),
        ({"on": "true"}, "must be True or False"),
        ({"name": True}, "must be a text"),
        ({"name": 1.5}, "must be a text"),
        ({"name": ["a"]}, "must be a text"),
        ({"limit": "no"}, "must be a whole number"),
        ({"files": 3}, "must be a list of text"),
        ({"files": ""}, "must be a list of text"),
        ({"files": [1.5]}, "must be a text"),
        ({"pair": [1.0]}, "must be a list of 2 values"),
        ({"pair": 1.0}, "Write [float,float]"),
        ({"points": [[1.0]]}, "must be a list of 2 values"),
        ({"extra": [1]}, "must be a mapping"),
        ({"inner": {"rate": "1e-6x"}}, "inner.rate='1e-6x': must be a finite number"),
        ({"inner": {"rate": float("nan")}}, "must be a finite number"),
        ({"inner": {"rate": False}}, "must be a finite number"),
        ({"inner": {"rate": 0.0}}, "must be above 0"),
        ({"inner": {"mode": "fats"}}, "allowed: fast | slow. Did you mean 'fast'?"),
        ({"inner": 3}, "is a section, not a value"),
        ({"coutn": 3}, "coutn=3: unknown key. Did you mean count?"),
        ({"inner": {"rat": 3}}, "unknown key. Did you mean inner.rate?"),
    ],
)
def test_wrong_values(plain: dict[str, Any], said: str) -> None:
    assert said in fault(**plain)


def test_all_faults_are_collected() -> None:
    _, problems = convert({"count": 0, "on": 3, "inner": {"rate": "x"}, "nope": 1}, Root, tree_of(Root))
    assert [problem.key for problem in problems] == ["count", "on", "inner.rate", "nope"]


def test_whole_number_stands_for_a_text_and_one_text_for_a_list() -> None:
    config = converted(name=20250101, files="a")
    assert (config.name, config.files) == ("20250101", ("a",))


def test_home_folder_is_expanded_in_paths_only() -> None:
    config = converted(files=["~/a", "b~"], name="~/a")
    assert config.files == (str(Path.home() / "a"), "b~")
    assert config.name == "~/a"


def test_to_plain_and_back() -> None:
    config = converted(files=["a"], points=[[0, 1]], extra={"a": 1})
    plain = to_plain(config)
    assert plain["points"] == [[0.0, 1.0]]
    assert converted(**plain) == config
