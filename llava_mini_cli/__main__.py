"""`python -m llava_mini_cli`, and the `llava-mini` script."""

import os
import sys
import threading
from contextlib import suppress

from llava_mini_cli.commands.main import app


def main() -> None:
    """Runs the command line; ends the process with the exit code of the command."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:  # an answer may hold what the terminal's encoding has not
        reconfigure(errors="backslashreplace")
    try:
        app()
    except SystemExit as end:
        _end_without_waiting(end.code)
        raise


def _end_without_waiting(code: str | int | None) -> None:
    """Ends the process at once if threads are left: the interpreter would wait for some, and fail over others.

    Such a thread reads a picture that hangs, or a pipe to which nobody writes. All that was written is closed by now.
    """
    if threading.active_count() == 1:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # whoever read it is gone
            stream.flush()
    os._exit(code if isinstance(code, int) else code is not None)


if __name__ == "__main__":
    main()
