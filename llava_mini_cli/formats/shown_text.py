"""Text of strangers (answers, names, prompts) as it may go to a terminal, into JSON, CSV, text files and web pages.

Control characters move the cursor, set titles and answer for the user on a terminal; some others reorder the line that
they are in. Both are shown as escapes such as `\\x1b`. Spreadsheets take cells that begin like a formula for one.
"""

import re

_CONTROLS = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff"  # all but tab and line ends; halves of pairs with them
_REORDERING = "\u202a-\u202e\u2066-\u2069"  # embeddings, overrides and isolates of the direction of writing
# A text that is printable as a whole holds none of them, which is told forty times as quickly as by an expression.
_IN_FILES = re.compile(f"[{_CONTROLS}]")
_AT_TERMINALS = re.compile(f"[{_CONTROLS}{_REORDERING}]|\r(?!\n)")
_FORMULA = re.compile(r"[\t\r]|[\s\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]")  # the last four are full-width forms
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def for_terminal(text: str) -> str:
    """`text` without control characters but line ends and tabs, and without what reorders a line."""
    return text if text.isprintable() else _AT_TERMINALS.sub(_escape, text)


def without_controls(text: str) -> str:
    """`text` without control characters but line ends and tabs, for files that somebody may look at in a terminal."""
    return text if text.isprintable() else _IN_FILES.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def for_json(text: str) -> str:
    """JSON of the same meaning, in which `for_terminal` would find nothing."""
    if (text.isascii() and "\x7f" not in text) or text.isprintable():  # JSON itself escapes those below 0x20
        return text
    return _AT_TERMINALS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def safe_cell(text: str) -> str:
    """The text of a CSV cell with an apostrophe in front where a spreadsheet would take it for a formula; no number."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text
