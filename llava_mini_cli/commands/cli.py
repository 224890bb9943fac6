"""The root command: the one place that turns errors into one line on stderr and an exit code."""

import errno
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from llava_mini_cli.commands.stderr import say_error
from llava_mini_cli.errors import LlavaMiniError, is_fault
from llava_mini_cli.needs import words_for
from llava_mini_cli.pipelines.interrupt import Interrupted

# Errors of writing. Whatever a command opens by name has errors of its own, so they are those of standard output.
_OF_WRITING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})


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
            os.getcwd()  # noqa: PTH109
        except OSError:
            say_error("the working directory is not there any more; change to one that is")
            return 1
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
        except BaseException as error:
            if not is_fault(error):
                raise
            if isinstance(error, OSError) and error.filename is None and error.errno in _OF_WRITING:
                say_error(f"cannot write standard output: {(error.strerror or str(error)).lower()}")
                return 1
            if (words := words_for(error)) is not None:
                say_error(words)
                return 1
            if {"-v", "--verbose"} & set(sys.argv if args is None else args):
                raise
            say_error(f"{type(error).__name__}: {error}; this is a fault of llava-mini, -v shows where")
            return 1
