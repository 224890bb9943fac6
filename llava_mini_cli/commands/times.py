"""Times as people write them on a command line: 90, 90.5, 1:30, 1:02:03.5, 1m30s, 2h."""

import re

import typer

_CLOCK = re.compile(r"(?:(?:(\d+):)?([0-5]?\d|\d+):)?(\d+(?:\.\d*)?)")
_UNITS = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d*)?)s)?")


def parse_time(text: str | float) -> float:
    """Seconds; a default is a number already. Raises Typer's error for a bad parameter, which names the option."""
    if not isinstance(text, str):
        return text
    match = _CLOCK.fullmatch(text) or _UNITS.fullmatch(text)
    if not match or not any(match.groups()):
        raise typer.BadParameter(f"'{text}' is not a time such as 90, 1:30 or 1m30s")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds
