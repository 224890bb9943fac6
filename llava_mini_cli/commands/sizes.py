"""Sizes as people write them on a command line: 500MB, 10GB, 1.5G, 4096."""

import re

import typer

_SIZE = re.compile(r"(\d+(?:\.\d*)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str | int) -> int:
    """Bytes, in steps of 1024; a default is a number already. Raises Typer's error, which names the option."""
    if not isinstance(text, str):
        return text
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise typer.BadParameter(f"'{text}' is not a size such as 500MB or 10GB")
    return int(float(match[1]) * 1024 ** _POWERS[match[2].lower()])
