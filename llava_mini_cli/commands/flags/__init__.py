"""The options of the commands, each declared once: a frozen dataclass for each group, one field for each option.

A command takes whole groups (`def ask(arguments: Arguments, flags: QuestionFlags)`); `with_flags` gives Typer the
single options behind them. Imports nothing heavy, so that --help is quick.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, TypeGuard, get_type_hints

from llava_mini_cli.commands.flags.answer_flags import AnswerFlags
from llava_mini_cli.commands.flags.frame_flags import FrameFlags
from llava_mini_cli.commands.flags.input_flags import InputFlags
from llava_mini_cli.commands.flags.model_flags import ModelFlags
from llava_mini_cli.commands.flags.output_flags import OutputFlags
from llava_mini_cli.commands.flags.prompt_flags import PromptFlags
from llava_mini_cli.commands.flags.run_flags import RunFlags
from llava_mini_cli.commands.flags.talk_flags import TalkFlags


@dataclass(frozen=True)
class QuestionFlags:
    """What `ask` and `caption` have in common, in the order of --help."""

    prompts: PromptFlags
    inputs: InputFlags
    outputs: OutputFlags
    run: RunFlags
    talk: TalkFlags
    model: ModelFlags
    frames: FrameFlags
    answer: AnswerFlags


def with_flags(command: Callable[..., int]) -> Callable[..., int]:
    """`command` as Typer reads it: every parameter that is a group of flags is replaced by the group's options.

    Groups may hold groups. Checks in a group's `__post_init__` run before the command does.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if _is_group(hint)}
    parameters = [
        expanded
        for parameter in inspect.signature(command).parameters.values()
        for expanded in (_options(groups[parameter.name]) if parameter.name in groups else (_named(parameter),))
    ]

    def run(**values: Any) -> int:
        filled = {name: _fill(group, values) for name, group in groups.items()}
        own = {name: values[name] for name in hints if name in values and name not in groups}
        return command(**own, **filled)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(run)["__signature__"] = inspect.Signature(parameters, return_annotation=int)
    return run


def _named(parameter: inspect.Parameter) -> inspect.Parameter:
    """A parameter of the command's own, which may have a default and still stand before a group."""
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)


def _is_group(hint: object) -> TypeGuard[type]:
    return isinstance(hint, type) and is_dataclass(hint)


def _options(group: type) -> Iterator[inspect.Parameter]:
    """The options of a group and of the groups in it, as keyword parameters."""
    for field, hint in _fields(group):
        if _is_group(hint):
            yield from _options(hint)
        else:
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            yield inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=default)


def _fill(group: type, values: Mapping[str, Any]) -> Any:
    """An instance of a group from the values of all options by name."""
    return group(
        **{field.name: _fill(hint, values) if _is_group(hint) else values[field.name] for field, hint in _fields(group)}
    )


@cache
def _fields(group: type) -> tuple[tuple[Field[Any], Any], ...]:
    """The fields of a group with their resolved types."""
    hints = get_type_hints(group, include_extras=True)
    return tuple((field, hints[field.name]) for field in fields(group))
