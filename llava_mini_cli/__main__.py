"""`python -m llava_mini_cli`, and the `llava-mini` script."""

import os
import sys
import threading
from contextlib import suppress

from llava_mini_cli.at_exit import end_all
from llava_mini_cli.commands.stderr import say_error, say_trace, to_nowhere
from llava_mini_cli.needs import words_for

try:
    from llava_mini_cli.commands.main import app
except ImportError as error:  # Typer is missing, or broken
    if (words := words_for(error)) is None:
        raise
    say_error(words)
    sys.exit(1)


def main() -> None:
    """Runs the command line; ends the process with the exit code of the command."""
    _open_closed_streams()
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:  # an answer may hold what the terminal's encoding has not
        reconfigure(errors="backslashreplace")
    try:
        app()
    except SystemExit as end:
        code = end.code
    except Exception as error:  # noqa: BLE001 - a fault of ours, with -v
        say_trace(error)
        code = 1
    else:
        return
    code = _flushed(code)
    _end_without_waiting(code)
    sys.exit(code)


def _open_closed_streams() -> None:
    """Gives standard streams that the caller closed (`2>&-`) a place, so that no file that is opened later takes it.

    What is read there is empty and what is said there goes nowhere; results that are written there fail, and the run
    says so.
    """
    for descriptor, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            to_nowhere(descriptor, flags)
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115


def _flushed(code: str | int | None) -> str | int | None:
    """The exit code, once standard output is flushed: 1 where that fails, which is said unless its reader went away."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = code or 1
    except OSError as error:
        if not code:  # otherwise the command has said so
            say_error(f"cannot write standard output: {(error.strerror or str(error)).lower()}")
        code = code or 1
    else:
        return code
    to_nowhere(1)  # or the interpreter would try once more, and say so in its own words
    return code


def _end_without_waiting(code: str | int | None) -> None:
    """Ends the process at once if threads are left: the interpreter would wait for some, and fail over others.

    Such a thread reads a picture that hangs, or a pipe to which nobody writes. All that was written is closed by now.
    """
    if threading.active_count() == 1:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # whoever read it is gone
            stream.flush()
    end_all()
    os._exit(code if isinstance(code, int) else code is not None)


if __name__ == "__main__":
    main()
