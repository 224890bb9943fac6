"""Times as people write them: 90, 90.5, 1:30, 1:02:03.5, 1m30s, 2h."""

import re

_CLOCK = re.compile(r"(?:(?:(\d+):)?([0-5]?\d|\d+):)?(\d+(?:\.\d*)?)")
_UNITS = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d*)?)s)?")


def seconds_of(text: str) -> float:
    """The seconds that a time stands for. Raises `ValueError` where it is none."""
    match = _CLOCK.fullmatch(text) or _UNITS.fullmatch(text)
    if not match or not any(match.groups()):
        raise ValueError(f"'{text}' is not a time such as 90, 1:30 or 1m30s")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def clock(seconds: float) -> str:
    """`1:02:03.5`, without hours where there are none."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    tail = f"{rest:04.1f}"
    return f"{hours}:{minutes:02}:{tail}" if hours else f"{minutes}:{tail}"
