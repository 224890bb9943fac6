"""A command whose options may be set by a flag, an environment variable or a config file; the first of these wins.

Typer does the looking up. Here every option gets its variable, LLAVA_MINI_ and its long flag, the files are put
behind the variables, and an error says where the value at fault comes from.
"""

import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, cast, get_args

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from llava_mini_cli.commands.config_files import HARMLESS, LOCAL_FILE, Kind, Setting, config_files, read_settings
from llava_mini_cli.commands.stderr import say_warning
from llava_mini_cli.errors import UsageError

PREFIX = "LLAVA_MINI_"

_META = "llava_mini_cli.settings"  # where a context keeps what its files say
_SAID = "llava_mini_cli.left_out"  # and the settings of which it was said that they are left out
_UNSET = frozenset({"help", "version", "config"})  # flags that make no sense in a file


class ConfiguredCommand(TyperCommand):
    """A command with a `--config` option whose callback is `load_config`."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        for key, option in options_of(self).items():
            option.show_envvar = option.envvar is not None  # --help names the few that are declared, not all
            option.envvar = variable(key)
            if option.multiple:  # one value a line: questions hold spaces
                vars(option)["envvar_list_splitter"] = "\n"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Typer does; a bad value from a file or the environment is an error that names its place."""
        with _naming_the_place(ctx):
            return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As Typer does, without the --no- name of a switch that is off anyway: it undoes a config file, no more."""
        for option in options_of(self).values():
            if option.default is False:
                option.secondary_opts = []
        super().format_help(ctx, formatter)

    def parsed_without_flags(self, parent: typer.Context, config: str | None) -> typer.Context:
        """A context with the values that the options have when none is typed but `--config`."""
        context = typer.Context(self, parent=parent, info_name=self.name)
        typed: dict[str, Any] = {} if config is None else {"config": config}
        options = [param for param in self.params if isinstance(param, TyperOption)]
        with _naming_the_place(context):
            for option in sorted(options, key=lambda option: not option.is_eager):
                if not option.required or option.consume_value(context, typed)[0] is not None:
                    option.handle_parse_result(context, typed, [])
        return context

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; an error about a flag that was not typed names the place that sets it."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            text = str(error)
            for key, option in options_of(self).items():
                if f"--{key} " in f"{text} " and (place := _place(ctx, option.name)):
                    raise UsageError(f"{place}: {text}") from None
            raise


@dataclass(frozen=True)
class Origin:
    """An option's value and where it comes from."""

    value: Any
    source: str  # flag, environment, file, default, or required for one that has no value
    place: str | None  # the variable, or the file and its key


def load_config(context: typer.Context, named: str | None) -> str | None:
    """Callback of `--config`, which is eager: reads the files before Typer looks for the other options' values."""
    command = cast(TyperCommand, context.command)
    settings: dict[str, Setting] = {}
    if isinstance(command, ConfiguredCommand) and not context.resilient_parsing:  # completion must not fail
        found = Path(LOCAL_FILE) if named is None else None
        settings, left_out = read_settings(config_files(named), _flags_of_all(context), command.name or "", found)
        _say_left_out(context, left_out)
    names = {key: option.name for key, option in options_of(command).items()}
    context.default_map = {names[key]: setting.value for key, setting in settings.items()}
    context.meta[_META] = {names[key]: setting for key, setting in settings.items()}
    return named


def _say_left_out(context: typer.Context, settings: list[Setting]) -> None:
    """One line that names the settings which do not count; each once, however many commands are looked at."""
    said: set[str] = context.meta.setdefault(_SAID, set())
    names = list(dict.fromkeys(setting.key for setting in settings if setting.key not in said))
    said.update(names)
    if names:
        say_warning(
            f"{LOCAL_FILE}: {', '.join(names)}: left out, as a config file that is only found in the working directory "
            f"may neither write nor load; --config {LOCAL_FILE} makes it count"
        )


def origins(context: typer.Context) -> Iterator[tuple[str, Origin]]:
    """Every option of a parsed command with its value and source, by key."""
    for key, option in options_of(cast(TyperCommand, context.command)).items():
        source = _source(context, option.name) if option.name in context.params else "required"
        yield key, Origin(context.params.get(option.name), source, _place(context, option.name))


def given_options(context: typer.Context) -> frozenset[str]:
    """Keys of a parsed command's options that somebody set: on the command line, in a variable or in a file."""
    return frozenset(key for key, origin in origins(context) if origin.source not in ("default", "required"))


def options_of(command: Any) -> dict[str, TyperOption]:
    """The options of a command by key, which is the long flag without its dashes."""
    options = [param for param in command.params if isinstance(param, TyperOption)]
    keyed = {opt[2:]: option for option in options for opt in option.opts if opt.startswith("--")}
    return {key: option for key, option in keyed.items() if key not in _UNSET}


def harmless_options(command: Any) -> frozenset[str]:
    """Keys of the options whose annotation says that a file in the working directory may set them."""
    parameters = signature(command.callback).parameters
    return frozenset(
        key for key, option in options_of(command).items() if HARMLESS in get_args(parameters[option.name].annotation)
    )


def configured_commands(context: typer.Context) -> Mapping[str, ConfiguredCommand]:
    """The commands that read config files, by name."""
    root = cast(TyperGroup, context.find_root().command)
    return {name: command for name, command in root.commands.items() if isinstance(command, ConfiguredCommand)}


def variable(key: str) -> str:
    """The environment variable of a key."""
    return PREFIX + key.upper().replace("-", "_")


def unknown_variables(context: typer.Context) -> list[str]:
    """Variables with our prefix that set nothing: misspelt, most likely."""
    known = {variable(key) for command in configured_commands(context).values() for key in options_of(command)}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known | {variable("config")})


@contextmanager
def _naming_the_place(context: Any) -> Generator[None]:
    """Turns Typer's error about a value that was not typed into one that names its file and key, or its variable."""
    try:
        yield
    except typer.BadParameter as error:
        place = None if error.param is None else _place(context, error.param.name)
        if place is None:
            raise
        raise UsageError(f"{place}: {error.message.removeprefix('Value error, ')}") from None


def _flags_of_all(context: typer.Context) -> dict[str, dict[str, Kind]]:
    return {name: _kinds(command) for name, command in configured_commands(context).items()}


def _kinds(command: ConfiguredCommand) -> dict[str, Kind]:
    harmless = harmless_options(command)
    return {
        key: Kind(bool(option.is_flag), option.multiple, key in harmless) for key, option in options_of(command).items()
    }


def _source(context: Any, name: str) -> str:
    source = context.get_parameter_source(name)
    names = {"COMMANDLINE": "flag", "ENVIRONMENT": "environment", "DEFAULT_MAP": "file"}
    return names.get(source.name if source else "", "default")


def _place(context: Any, name: str) -> str | None:
    """The variable, or file and key, that sets an option; None for one that was typed or is a default."""
    source = _source(context, name)
    if source == "file":
        return str(context.meta[_META][name])
    if source == "environment":
        return next(variable(key) for key, option in options_of(context.command).items() if option.name == name)
    return None
