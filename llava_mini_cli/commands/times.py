"""Times on a command line, as `formats.timecodes` reads them, and long ones in words."""

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


def in_words(seconds: float) -> str:
    """A time that was estimated, in two figures or so: 0.05 s, 1.2 s, 45 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 10:
        return f"{seconds:.{2 if seconds < 1 else 1}f} s"
    for unit, smaller, size, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        parts = round(seconds / part)
        if parts * part >= size:
            whole, rest = divmod(parts, size // part)
            return f"{whole} {unit} {rest} {smaller}" if rest else f"{whole} {unit}"
    return f"{round(seconds)} s"
