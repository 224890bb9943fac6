"""The options of the commands, each declared once: a frozen dataclass for each group, one field for each option.

A command takes whole groups (`def ask(flags: QuestionFlags, ...)`); `with_flags` gives Typer the single options behind
them. An option is named after its field (`max_frames`: `--max-frames`), unless the field says otherwise. Imports
nothing heavy, so that --help is quick.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any

from llava_mini_cli.commands.flags.answer_flags import AnswerFlags
from llava_mini_cli.commands.flags.evidence_flags import EvidenceFlags
from llava_mini_cli.commands.flags.frame_flags import FitFlags, FrameFlags
from llava_mini_cli.commands.flags.input_flags import InputFlags
from llava_mini_cli.commands.flags.model_flags import ModelFlags
from llava_mini_cli.commands.flags.output_flags import OutputFlags
from llava_mini_cli.commands.flags.prompt_flags import PromptFlags
from llava_mini_cli.commands.flags.run_flags import RunFlags
from llava_mini_cli.commands.flags.span_flags import SpanFlags
from llava_mini_cli.commands.flags.talk_flags import TalkFlags
from llava_mini_cli.commands.flags.worker_flags import WorkerFlags


@dataclass(frozen=True)
class QuestionFlags:
    """The options that `ask` and `caption` have in common, in the order of --help."""

    inputs: InputFlags
    frames: FrameFlags
    fit: FitFlags
    spans: SpanFlags
    prompts: PromptFlags
    answer: AnswerFlags
    evidence: EvidenceFlags
    model: ModelFlags
    outputs: OutputFlags
    run: RunFlags
    workers: WorkerFlags
    talk: TalkFlags


def with_flags(command: Callable[..., int]) -> Callable[..., int]:
    """`command` with the signature that Typer reads: in place of each group of flags, the fields of the group.

    Typer calls the result with one value for each option; the groups are made of these, and `command` is called with
    the groups. Groups may hold groups. Checks in a group's `__post_init__` run before the command does.
    """

    @wraps(command)
    def run(**values: Any) -> int:
        return _call(command, values)

    run.__signature__ = Signature(list(_options(command)))  # pyright: ignore[reportAttributeAccessIssue]
    return run


def _options(function: Callable[..., Any]) -> Iterator[Parameter]:
    """The parameters of a command, or of a group, with the fields of every group in the place of the group."""
    for parameter in signature(function).parameters.values():
        if _is_group(parameter):
            yield from _options(parameter.annotation)
        else:  # by keyword, so that one without a default may follow one that has a default
            yield parameter.replace(kind=Parameter.KEYWORD_ONLY)


def _call(function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """Calls a command, or makes a group, from the values of all options by name."""
    return function(
        **{
            name: _call(parameter.annotation, values) if _is_group(parameter) else values[name]
            for name, parameter in signature(function).parameters.items()
        }
    )


def _is_group(parameter: Parameter) -> bool:
    return is_dataclass(parameter.annotation)
