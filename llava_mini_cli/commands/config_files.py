"""Config files: which there are, and what they set for which command.

    $XDG_CONFIG_HOME/llava-mini/config.toml, then ./llava-mini.toml, which wins; --config FILE instead of both

A key is a long flag without its dashes. Keys at the top are for every command that has the flag, those of a table for
the command of its name. Knows the flags by name only; their values are parsed as if they had been typed.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from llava_mini_cli.errors import UsageError
from llava_mini_cli.paths import is_file

LOCAL_FILE = "llava-mini.toml"

Flags = Mapping[str, "Kind"]  # the flags of one command, by key


@dataclass(frozen=True)
class Kind:
    """The form of a flag on the command line."""

    is_switch: bool  # takes no value
    is_repeated: bool


@dataclass(frozen=True)
class Setting:
    """One value of a config file, as the text that would be typed, and the place where it stands."""

    value: str | bool | list[str]
    file: Path
    key: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}"


def config_files(named: str | None) -> tuple[Path, ...]:
    """The files that are read, weakest first. Raises `UsageError` where the named one is not there."""
    if named is not None:
        if not is_file(named):
            raise UsageError(f"--config '{named}': no such file")
        return (Path(named),)
    return tuple(path for path in (user_file(), Path(LOCAL_FILE)) if path is not None and is_file(path))


def user_file() -> Path | None:
    """The path of the user's own config file; None for a user without a home directory."""
    folder = os.environ.get("XDG_CONFIG_HOME")
    try:
        return Path(folder or Path.home() / ".config") / "llava-mini" / "config.toml"
    except RuntimeError:
        return None


def read_settings(files: tuple[Path, ...], commands: Mapping[str, Flags], command: str) -> dict[str, Setting]:
    """The settings of one command by key; later files win, and in each file the command's own table.

    Raises:
        UsageError: a file that is no TOML, a key that no command knows, or a value that is no flag's.
    """
    settings: dict[str, Setting] = {}
    for file in files:
        content = _parse(file)
        general = {key: value for key, value in content.items() if not isinstance(value, dict)}
        tables = {key: cast("dict[str, Any]", value) for key, value in content.items() if isinstance(value, dict)}
        for setting_key, setting in _checked(file, general, commands, None):
            if setting_key in commands[command]:
                settings[setting_key] = setting
        for name, table in tables.items():
            found = dict(_checked(file, table, commands, name))
            if name == command:
                settings |= found
    return settings


def _parse(file: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(file.read_text("utf-8-sig"))  # some editors begin a file with a byte order mark
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise UsageError(f"{file}: not a TOML file: {error}") from None


def _checked(
    file: Path, values: Mapping[str, Any], commands: Mapping[str, Flags], table: str | None
) -> Iterator[tuple[str, Setting]]:
    """The settings of one table, or of the top of a file (`table` None)."""
    if table is not None and table not in commands:
        raise UsageError(f"{file}: [{table}]: no command has this name")
    for written, value in values.items():
        key = written.replace("_", "-")
        shown = written if table is None else f"[{table}] {written}"
        among = commands.values() if table is None else [commands[table]]
        kinds = [flags[key] for flags in among if key in flags]
        if not kinds:
            owner = "any command" if table is None else f"'{table}'"
            raise UsageError(f"{file}: {shown}: not a flag of {owner}")
        yield key, Setting(_as_typed(f"{file}: {shown}", value, kinds[0]), file, shown)


def _as_typed(place: str, value: Any, kind: Kind) -> str | bool | list[str]:
    if kind.is_switch:
        if not isinstance(value, bool):
            raise UsageError(f"{place}: must be true or false, not {value!r}")
        return value
    values = cast("list[Any]", value if isinstance(value, list) else [value])
    if isinstance(value, list) and not kind.is_repeated:
        raise UsageError(f"{place}: takes one value, not a list")
    for one in values:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise UsageError(f"{place}: must be a text or a number, not {one!r}")
    texts = [str(one) for one in values]
    return texts if kind.is_repeated else texts[0]
