# SPDX-License-Identifier: Apache-2.0
"""The reference of all keys as text: YAML with every default, and a table. Made from the dataclasses, never read back.

Writes no file: `scripts/generate_config_reference.py` does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from verl.config.convert import to_plain
from verl.config.schema import KeySpec, describe_type, tree_of

_UNIT = re.compile(r"\s*Unit: ([^.]+)\.$")


def render_yaml(root: type, title: str) -> str:
    """Write every key of a root with its default and meaning.

    Args:
        root: Root dataclass.
        title: First comment line.

    Returns:
        YAML text that composes to the dataclass defaults.
    """
    lines = [
        f"# {title}",
        "# Made by scripts/generate_config_reference.py from the dataclasses in verl/config; do not edit.",
        "",
    ]
    shown: list[str] = []
    for spec in tree_of(root).leaves.values():
        *sections, name = spec.key.split(".")
        for depth, section in enumerate(sections):
            if shown[: depth + 1] != sections[: depth + 1]:
                shown = sections[: depth + 1]
                lines.append(f"{'  ' * depth}{section}:")
        shown = sections
        indent = "  " * len(sections)
        lines.append(f"{indent}# {spec.doc}")
        lines.append(f"{indent}{_quoted_name(name)}: {_yaml_value(to_plain(spec.default))}")
    return "\n".join(lines) + "\n"


def _quoted_name(name: str) -> str:
    return (
        json.dumps(name) if name in ("n", "y", "on", "off", "yes", "no") else name
    )  # YAML 1.1 reads these as booleans


def _yaml_value(value: Any) -> str:
    if isinstance(value, float):
        return _yaml_float(value)
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z][\w./-]*", value) is not None and value.lower() not in ("null", "true", "false")
        return value if plain else json.dumps(value)
    if isinstance(value, list):
        return f"[{', '.join(_yaml_value(item) for item in value)}]"
    return json.dumps(value)  # true, false, null, numbers and {} read the same in JSON and YAML


def _yaml_float(value: float) -> str:
    text = repr(value)
    # YAML 1.1 wants a dot in the mantissa: 1e-06 would be a text
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def split_unit(doc: str) -> tuple[str, str]:
    """Split a field's docstring into meaning and unit.

    Args:
        doc: Docstring on one line, perhaps ending in `Unit: tokens.`

    Returns:
        (meaning, unit or "").
    """
    match = _UNIT.search(doc)
    return (doc[: match.start()], match.group(1)) if match else (doc, "")


def render_table(root: type, columns: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the keys of a root as Markdown tables, one per section.

    Args:
        root: Root dataclass.
        columns: Name of an example to its full plain configuration; a cell is filled where it differs from the default.

    Returns:
        Markdown text.
    """
    sections: dict[str, list[KeySpec]] = {}
    for spec in tree_of(root).leaves.values():
        sections.setdefault(spec.key.rpartition(".")[0], []).append(spec)
    return "\n".join(_section_table(section, specs, columns) for section, specs in sections.items())


def _section_table(section: str, specs: Sequence[KeySpec], columns: Mapping[str, Mapping[str, Any]]) -> str:
    header = ["key", "type", "default", "unit", "meaning", *columns]
    lines = [f"### `{section}`" if section else "### top level", "", _row(header), _row(["---"] * len(header))]
    for spec in specs:
        meaning, unit = split_unit(spec.doc)
        limits = f" ({spec.limits.describe()})" if spec.limits is not None else ""
        default = to_plain(spec.default)
        cells = [
            f"`{spec.key.rpartition('.')[2]}`",
            describe_type(spec.type) + limits,
            f"`{_yaml_value(default)}`",
            unit,
            meaning,
        ]
        for plain in columns.values():
            value = _look_up(plain, spec.key)
            cells.append("" if value == default else f"`{_yaml_value(value)}`")
        lines.append(_row(cells))
    return "\n".join([*lines, ""])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _look_up(plain: Mapping[str, Any], key: str) -> Any:
    value: Any = plain
    for name in key.split("."):
        value = value[name]
    return value
