"""Times on a command line, as `formats.timecodes` reads them."""

import typer

from llava_mini_cli.formats.timecodes import seconds_of


def parse_time(text: str | float) -> float:
    """Seconds; a default is a number already. Raises Typer's error for a bad parameter, which names the option."""
    if not isinstance(text, str):
        return text
    try:
        return seconds_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
