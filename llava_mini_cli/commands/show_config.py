"""`llava-mini config`: every option's value and where it comes from."""

import sys
from collections import Counter
from typing import Any, cast

import typer

from llava_mini_cli.commands.config_files import LOCAL_FILE, config_files, user_file
from llava_mini_cli.commands.configured import Origin, configured_commands, origins, unknown_variables
from llava_mini_cli.commands.flags.talk_flags import ConfigFile
from llava_mini_cli.commands.stderr import say, say_warning, terminal_line
from llava_mini_cli.formats.shown_text import for_json


def config(context: typer.Context, config: ConfigFile = None) -> int:
    """Show every option's value and where it comes from.

    The value of an option is the one on the command line, or else the one of
    its environment variable (--max-frames: LLAVA_MINI_MAX_FRAMES), or else the
    one in ./llava-mini.toml, or else the one in the user's config.toml. Keys
    of a file are long options without dashes (max-frames = 16); those in a
    table with the name of a command are for that command alone. A switch is
    true or false in a file, and its --no- option turns it off again.

    The values are a table at a terminal, otherwise one JSON line for each.
    """
    import json  # here and not above, so that --help is quick

    rows = merged(context, config)
    for name in unknown_variables(context):
        say_warning(f"{name} is set, but no option has this name")
    if not sys.stdout.isatty():
        for key, commands, origin in rows:
            print(for_json(json.dumps(_record(key, commands, origin), ensure_ascii=False, default=str)))
        return 0
    _show(rows)
    read = [str(file) for file in config_files(config)]
    usual = [str(file) for file in (user_file(), LOCAL_FILE) if file is not None]
    say(f"config files: {', '.join(read)}" if read else f"no config file; the usual ones are {' and '.join(usual)}")
    return 0


Row = tuple[str, tuple[str, ...], Origin]


def merged(context: typer.Context, config: str | None) -> list[Row]:
    """Every option once for each value that it has, with the commands that it has it for."""
    found: dict[str, list[tuple[Origin, list[str]]]] = {}
    for name, command in configured_commands(context).items():
        for key, origin in origins(command.parsed_without_flags(context, config)):
            same = [commands for other, commands in found.setdefault(key, []) if other == origin]
            if same:
                same[0].append(name)
            else:
                found[key].append((origin, [name]))
    return [(key, tuple(commands), origin) for key, values in found.items() for origin, commands in values]


def _record(key: str, commands: tuple[str, ...], origin: Origin) -> dict[str, Any]:
    return {
        "option": key,
        "value": origin.value,
        "source": origin.source,
        "place": origin.place,
        "commands": list(commands),
    }


def _shown(value: Any) -> str:
    """A value as it would be typed, more or less."""
    if isinstance(value, list | tuple):
        return ", ".join(_shown(one) for one in cast("list[Any]", value))
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _show(rows: list[Row]) -> None:
    """A table for a person; what is not a default stands out."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("option", "value", "from", "for", box=None, pad_edge=False, header_style="bold")
    values = Counter(key for key, _, _ in rows)
    for key, commands, origin in rows:
        style = "" if origin.source == "default" else "bold"
        place = Text(terminal_line(origin.place or origin.source), style=style or "dim")
        only = ", ".join(commands) if values[key] > 1 else ""  # one value for all that have the option
        table.add_row(f"--{key}", Text(terminal_line(_shown(origin.value)), style=style), place, only)
    Console().print(table)
