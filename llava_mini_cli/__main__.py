"""`python -m llava_mini_cli`, and the `llava-mini` script."""

import sys

from llava_mini_cli.commands.main import app


def main() -> None:
    """Runs the command line; ends the process with the exit code of the command."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:  # an answer may hold what the terminal's encoding has not
        reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
