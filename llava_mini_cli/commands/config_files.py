"""Config files: which there are, and what they set for which command.

    $XDG_CONFIG_HOME/llava-mini/config.toml, then ./llava-mini.toml, which wins; --config FILE instead of both

A key is a long flag without its dashes. Keys at the top are for every command that has the flag, those of a table for
the command of its name. Knows the flags by name only; their values are parsed as if they had been typed.

./llava-mini.toml may be somebody else's, as the folder may be: of what it sets only the flags count that are declared
`HARMLESS`. The user's own file and one that --config names set every flag.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from llava_mini_cli.errors import UsageError
from llava_mini_cli.paths import is_file

LOCAL_FILE = "llava-mini.toml"
MOST_BYTES = 1 << 16  # of a config file

# Stands in the annotation of an option that a file in the working directory may set: one that neither writes nor loads
# anything, names no input, fetches nothing and raises no bound on time, memory or disk. Others are left out from there.
HARMLESS = "harmless"

Flags = Mapping[str, "Kind"]  # the flags of one command, by key


@dataclass(frozen=True)
class Kind:
    """The form of a flag on the command line."""

    is_switch: bool  # takes no value
    is_repeated: bool
    is_harmless: bool = False  # may be set by a file that was only found


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


def read_settings(
    files: tuple[Path, ...], commands: Mapping[str, Flags], command: str, found: Path | None = None
) -> tuple[dict[str, Setting], list[Setting]]:
    """The settings of one command by key, and those that are left out.

    Later files win, and in each file the command's own table.

    Args:
        found: the file among them that nobody named; its settings count only for flags that are harmless.

    Raises:
        UsageError: a file that is no TOML, a key that no command knows, or a value that is no flag's.
    """
    settings: dict[str, Setting] = {}
    left_out: list[Setting] = []
    flags = commands[command]
    for file in files:
        for key, setting in _for_command(file, commands, command):
            if file == found and not flags[key].is_harmless:
                left_out.append(setting)
            else:
                settings[key] = setting
    return settings, left_out


def _for_command(file: Path, commands: Mapping[str, Flags], command: str) -> Iterator[tuple[str, Setting]]:
    """What a file sets for one command, the command's own table last. Every setting of the file is checked."""
    content = _parse(file)
    general = {key: value for key, value in content.items() if not isinstance(value, dict)}
    tables = {key: cast("dict[str, Any]", value) for key, value in content.items() if isinstance(value, dict)}
    yield from [pair for pair in _checked(file, general, commands, None) if pair[0] in commands[command]]
    checked = {name: list(_checked(file, table, commands, name)) for name, table in tables.items()}
    yield from checked.get(command, [])


def _parse(file: Path) -> dict[str, Any]:
    import tomllib

    try:
        with file.open("rb") as opened:
            content = opened.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UsageError(f"{file}: larger than {MOST_BYTES >> 10} KiB, which no config file is")
        return tomllib.loads(content.decode("utf-8-sig"))  # some editors begin a file with a byte order mark
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except RecursionError:
        raise UsageError(f"{file}: not a TOML file: lists or tables too deep inside each other") from None
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
        if isinstance(one, int) and one.bit_length() > 64:  # Python refuses to write out the longest ones
            raise UsageError(f"{place}: the number is too large")
    texts = [str(one) for one in values]
    return texts if kind.is_repeated else texts[0]
