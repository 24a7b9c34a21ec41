# SPDX-License-Identifier: Apache-2.0
"""The door: a command line becomes a typed, frozen, checked configuration.

    argv -> overrides -> present names, known keys -> Hydra composes -> plain dicts -> old spellings -> dataclasses
         -> checks across sections

The only file that knows Hydra and OmegaConf; nothing past it sees a DictConfig. All mistakes are shown at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl.config.convert import convert, to_plain, unknown_key
from verl.config.migrate import Migration, find_entry, rename
from verl.config.problems import Problem, nearest, raise_all
from verl.config.schema import Tree, tree_of
from verl.utils.errors import UserError

SHIPPED_CONFIGS = Path(__file__).resolve().parents[1] / "trainer" / "config"
"""Folder of the shipped YAML files (generated from the dataclasses)."""

T = TypeVar("T")


@dataclass(frozen=True)
class LoadedConfig(Generic[T]):
    """What the door hands out.

    Example:
        `loaded = load_config("ppo_trainer", ["data.train_files=train.parquet", ...], PPOTrainerConfig)`
    """

    config: T
    """The root dataclass, checked."""
    notices: tuple[str, ...]
    """What the user should know: old spellings, keys without effect. One line each, to be logged once."""
    resolved: dict[str, Any]
    """The whole configuration as plain data, for the run's folder and wandb."""


@dataclass(frozen=True)
class CommandLine:
    """The arguments of an entry point, taken apart."""

    config_name: str
    """YAML file without suffix."""
    config_dir: str | None
    """The user's own folder of YAML files (it may build on the shipped ones); None = the shipped ones."""
    overrides: tuple[str, ...]
    """KEY=VALUE arguments."""
    wants_help: bool
    """Whether -h or --help was given."""


@runtime_checkable
class _Checked(Protocol):
    """A root that can check itself across sections."""

    def problems(self) -> list[Problem]: ...

    def notices(self) -> list[str]: ...


_NAME_OPTIONS = ("--config-name", "-cn")
_DIR_OPTIONS = ("--config-path", "-cp", "--config-dir", "-cd")


def parse_command_line(arguments: Sequence[str], default_name: str) -> CommandLine:
    """Take the arguments of an entry point apart.

    Args:
        arguments: `sys.argv[1:]`.
        default_name: Configuration used when none is named.

    Returns:
        The parts.

    Raises:
        UserError: for an option that does not exist here, or one without its value.
    """
    name, folder, wants_help = default_name, None, False
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        option, equals, value = argument.partition("=")
        if argument in ("-h", "--help"):
            wants_help = True
        elif option in _NAME_OPTIONS + _DIR_OPTIONS:
            if not equals and not rest:
                raise UserError.for_key(option, "", "needs a value", f"Write {option}=NAME")
            value = value if equals else rest.pop(0)
            name, folder = (value, folder) if option in _NAME_OPTIONS else (name, value)
        elif argument.startswith("-"):
            key = option.lstrip("-")
            mend = f"Write {key}={value or 'VALUE'}, without dashes" if key else "Write KEY=VALUE"
            raise UserError.for_key(option, value, "is not an option (only --config-name, --config-path, --help)", mend)
        else:
            overrides.append(argument)
    return CommandLine(name.removesuffix(".yaml"), folder, tuple(overrides), wants_help)


def load_config(
    config_name: str, overrides: Sequence[str], root: type[T], config_dir: str | None = None
) -> LoadedConfig[T]:
    """Compose, convert and check a configuration.

    Args:
        config_name: YAML file without suffix, e.g. `ppo_trainer`.
        overrides: KEY=VALUE arguments; the last one for a key wins.
        root: Root dataclass.
        config_dir: The user's own folder of YAML files; None = the shipped ones.

    Returns:
        The configuration with its notices. Files and models named in it are not looked for: see `files.check_files`.

    Raises:
        UserError: one message with every mistake found: key, value, what is allowed, the mend.
    """
    tree = tree_of(root)
    migration = Migration(tree)
    problems: list[Problem] = []
    accepted = [line for text in overrides if (line := _accept(text, tree, migration, problems)) is not None]
    try:
        plain = _compose(config_name, accepted, config_dir)
    except _NotComposedError as error:
        raise_all([*problems, error.problem])
        raise AssertionError("a problem is always raised") from None
    config, wrong_values = convert(migration.run(plain), root, tree)
    problems += [*migration.problems, *wrong_values]
    notices = migration.notices
    if isinstance(config, _Checked):
        # A key that is already wrong stands at its default now; mistakes that involve it would mislead.
        wrong = {key for problem in problems for key in problem.keys}
        problems += [problem for problem in config.problems() if not wrong.intersection(problem.keys)]
        notices = [*notices, *config.notices()]
    raise_all(problems)
    return LoadedConfig(config, tuple(dict.fromkeys(notices)), to_plain(config))


def _accept(text: str, tree: Tree, migration: Migration, problems: list[Problem]) -> str | None:
    """Turn one override into the one given to Hydra: present name, key forced (known keys were checked here)."""
    written = text.partition("=")[0].lstrip("+~").strip().replace("@", ".")
    if not written or ("=" not in text and not text.startswith("~")):
        mend = "Write KEY=VALUE as one word, without spaces around ="
        problems.append(Problem(text, "", "is not KEY=VALUE", mend))
        return None
    if written.split("/")[0].split(".")[0] == "hydra":
        migration.note_without_effect("hydra.*", written)
        return None
    key, value = rename(written, tree), text.partition("=")[2]
    if not tree.knows(key) and find_entry(key, tree) is None:
        problems.append(unknown_key(written, value, tree))
        return None
    if key != written:
        migration.note_rename(written, key)
    if text.startswith("~"):
        return f"~{key}"
    readable = _readable(key, value, tree, problems)
    return None if readable is None else f"++{key}={readable}"


def _readable(key: str, value: str, tree: Tree, problems: list[Problem]) -> str | None:
    """Make sure that Hydra reads the value as one value; a text that it cannot read is quoted for the user."""
    if tree.holds_text(key) and not _is_one_value(key, value):
        value = _quote(value, is_list=not tree.is_text(key))
    try:
        override = OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException:
        mend = f"Quote it twice, for the shell and for Hydra: '{key}=\"{value}\"'; a list is [a,b], a mapping {{a: 1}}"
        problems.append(Problem(key, value, "Hydra cannot read this value", mend))
        return None
    if override.is_sweep_override():
        problems.append(Problem(key, value, "would be several runs (a sweep)", f"Write a list as {key}=[{value}]"))
        return None
    if key in tree.sections and not isinstance(override.value(), Mapping):
        mend = f"Set a key below it, e.g. {next(leaf for leaf in tree.leaves if leaf.startswith(key + '.'))}=VALUE"
        problems.append(Problem(key, value, "is a section, not a value", mend))
        return None
    return value


def _quote(value: str, *, is_list: bool) -> str:
    """Quote a text (or each text of a list) that Hydra cannot read bare, such as ~/a=b.parquet."""
    bracketed = value.startswith("[") and value.endswith("]")
    half_bracketed = value.startswith("[") != value.endswith("]")
    if "'" in value or '"' in value or half_bracketed or (is_list and "," in value and not bracketed):
        return value
    if is_list and bracketed:
        return f"[{','.join(_quote(item.strip(), is_list=False) for item in value[1:-1].split(','))}]"
    return f"'{value}'"


def _is_one_value(key: str, value: str) -> bool:
    try:
        return not OverridesParser.create().parse_override(f"{key}={value}").is_sweep_override()
    except HydraException:
        return False


class _NotComposedError(Exception):
    """Hydra or OmegaConf could not build the configuration."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.line())
        self.problem = problem


def _compose(config_name: str, overrides: Sequence[str], config_dir: str | None) -> dict[str, Any]:
    folder = SHIPPED_CONFIGS if config_dir is None else Path(config_dir).expanduser().resolve()
    if not folder.is_dir():
        problem = Problem("--config-path", config_dir, "is not a folder", "Name the folder of your YAML files")
        raise _NotComposedError(problem)
    if folder != SHIPPED_CONFIGS:
        overrides = [*overrides, f"hydra.searchpath=[file://{SHIPPED_CONFIGS}]"]
    try:
        with initialize_config_dir(config_dir=str(folder), version_base="1.3"):
            composed = compose(config_name, overrides=list(overrides))
    except MissingConfigException as error:
        raise _NotComposedError(_missing_config(config_name, folder, error)) from None
    except (HydraException, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        problem = Problem("--config-name", config_name, f"cannot be composed: {reason}", "Correct that")
        raise _NotComposedError(problem) from None
    return _resolve(composed)


def _resolve(composed: DictConfig) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "configuration"
        written: Any = OmegaConf.to_container(composed, resolve=False)
        for name in key.split("."):
            written = written.get(name, "") if isinstance(written, Mapping) else ""
        reason = str(error).splitlines()[0]
        problem = Problem(key, written, f"cannot be resolved ({reason})", "Name a key that exists, as ${section.key}")
        raise _NotComposedError(problem) from None
    return {str(key): value for key, value in plain.items()} if isinstance(plain, Mapping) else {}


def _missing_config(config_name: str, folder: Path, error: MissingConfigException) -> Problem:
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if (folder / f"{config_name}.yaml").is_file():
        reason = " ".join(str(error).split(". ")[0].split())
        return Problem("--config-name", config_name, reason, "Correct the defaults list of that file")
    near = nearest(config_name, names)
    mend = f"Did you mean {near}?" if near else "Name one of them, or give --config-path=FOLDER"
    return Problem("--config-name", config_name, f"{folder} holds: {', '.join(names) or 'no YAML file'}", mend)
