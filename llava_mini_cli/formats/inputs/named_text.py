"""Texts as the command line and files give them: with or without a name before, and in valid Unicode or not."""

import re

NAMED = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)=(.*)", re.DOTALL)  # `NAME=TEXT`; what is before the first = is a word


def encodes(text: str) -> bool:
    """True if a text is valid Unicode, without the half characters that stand for broken bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
