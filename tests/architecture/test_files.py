# SPDX-License-Identifier: Apache-2.0
"""Every file carries its licence line, names no registry and no path of one machine; shell scripts are sound."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT, all_files, imports_of, label, parse, python_files

SPDX = "SPDX-License-Identifier: Apache-2.0"
TEXT_SUFFIXES = {".cfg", ".md", ".py", ".sbatch", ".sh", ".toml", ".txt", ".yaml", ".yml", ".cpu", ".cuda", ""}
# Put together here so that this file does not hold what it looks for.
HOSTS = tuple(
    ".".join(parts)
    for parts in (("pypi", "org"), ("pythonhosted", "org"), ("pytorch", "org/whl"), ("nvidia", "com/pypi"))
)
# The images' own user is called verl.
MACHINE_PATHS = re.compile(r"(?<![\w.~{}$*/-])/(?:work|root|home/(?!verl\b)\w+|Users/\w+|opt/(?:wheels|pypi))(?:/|\b)")


def shell_files() -> list[Path]:
    return [path for path in all_files() if path.suffix in (".sh", ".sbatch") or label(path) == ".ci/run"]


def is_program(path: Path) -> bool:
    """Tell a script that is run from one that is sourced: the latter has no interpreter line."""
    return path.read_text().startswith("#!")


def text_files() -> list[Path]:
    return [path for path in all_files() if path.suffix in TEXT_SUFFIXES and path.name != "LICENSE"]


def test_python_files_begin_with_the_licence_line_and_a_docstring() -> None:
    bare = [label(path) for path in python_files() if not path.read_text().startswith(f"# {SPDX}\n")]
    assert not bare, f"first line is not '# {SPDX}': {bare}"


def test_library_modules_say_what_they_are() -> None:
    bare = [
        label(path)
        for path in python_files("verl", "recipe", "Application")
        if not (parse(path).body and _docstring(path))
    ]
    assert not bare, f"no module docstring: {bare}"


def _docstring(path: Path) -> bool:
    first = parse(path).body[0]
    return hasattr(first, "value") and isinstance(getattr(first.value, "value", None), str)


def test_scripts_and_dockerfiles_carry_the_licence_line() -> None:
    wanted = [*shell_files(), *(ROOT / "docker").glob("Dockerfile.*")]
    bare = [label(path) for path in wanted if SPDX not in "".join(path.read_text().splitlines(keepends=True)[:3])]
    assert not bare, f"no '# {SPDX}' in the first three lines: {bare}"


def test_licence_is_the_whole_apache_text() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("host", HOSTS)
def test_no_registry_is_named(host: str) -> None:
    wrong = [label(path) for path in text_files() if host in path.read_text(errors="replace")]
    assert not wrong, f"{host} is named in {wrong}; let the environment say it (TORCH_INDEX, pip's own settings)"


def test_no_path_of_one_machine() -> None:
    wrong = [
        f"{label(path)}:{number}: {line.strip()[:100]}"
        for path in text_files()
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if MACHINE_PATHS.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_print_in_the_library() -> None:
    wrong = [f"{label(path)}: {line}" for path in python_files("verl") for line in _print_lines(path)]
    assert not wrong, "\n".join(wrong)


def _print_lines(path: Path) -> list[int]:
    return [number for number, line in enumerate(path.read_text().splitlines(), 1) if re.match(r"\s*print\(", line)]


def test_no_import_inside_a_function() -> None:
    wrong = []
    for path in python_files("verl", "recipe", "Application"):
        top = {
            line for each in _module_level(path) for line in range(each.lineno, (each.end_lineno or each.lineno) + 1)
        }
        wrong += [f"{label(path)}:{each.line} {each.module}" for each in imports_of(path) if each.line not in top]
    assert not wrong, "\n".join(wrong)


def _module_level(path: Path) -> list:
    """Statements outside every function and class."""
    return [
        node for node in parse(path).body if type(node).__name__ not in ("FunctionDef", "AsyncFunctionDef", "ClassDef")
    ]


@pytest.mark.parametrize("path", shell_files(), ids=label)
def test_shell_script_is_sound(path: Path) -> None:
    parsed = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, timeout=60)
    assert parsed.returncode == 0, parsed.stderr
    program = Path(sys.executable).with_name("shellcheck")
    assert program.exists(), f"{program} is missing: bash scripts/setup_env.sh installs it"
    # SC1091: sourced files are checked as files of their own. SC2034: what such a file sets is read by who sources it.
    left_out = "SC1091" if is_program(path) else "SC1091,SC2034"
    checked = subprocess.run([program, "-e", left_out, str(path)], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout


def test_shell_scripts_stop_at_errors() -> None:
    programs = [path for path in shell_files() if is_program(path)]
    loose = [label(path) for path in programs if "set -euo pipefail" not in path.read_text()]
    assert not loose, f"no 'set -euo pipefail': {loose}"
