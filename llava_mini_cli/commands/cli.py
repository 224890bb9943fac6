"""The root command: the one place that turns errors into one line on stderr and an exit code."""

import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from llava_mini_cli.commands.stderr import say_error
from llava_mini_cli.errors import LlavaMiniError
from llava_mini_cli.pipelines.interrupt import Interrupted


class Cli(TyperGroup):
    """Runs a command; each returns its exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> None:
        """Ends the process with the exit code of the command."""
        sys.exit(self._run(args, prog_name or "llava-mini", complete_var, windows_expand_args, extra))

    def _run(
        self,
        args: Sequence[str] | None,
        prog_name: str,
        complete_var: str | None,
        windows_expand_args: bool,
        extra: dict[str, Any],
    ) -> int:
        try:
            return super().main(args, prog_name, complete_var, False, windows_expand_args, **extra) or 0
        except LlavaMiniError as error:
            say_error(str(error))
            return error.exit_code
        except typer.TyperException as error:  # an option that Typer itself refused
            say_error(error.format_message().replace("Value error, ", ""))
            return error.exit_code
        except Interrupted as stop:
            say_error(str(stop))
            return stop.exit_code
        except typer.Abort:
            return 1
