"""`python -m llava_mini_cli`, and the `llava-mini` script."""

from llava_mini_cli.commands.main import app


def main() -> None:
    """Runs the command line; ends the process with the exit code of the command."""
    app()


if __name__ == "__main__":
    main()
