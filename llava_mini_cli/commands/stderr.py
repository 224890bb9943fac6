"""Messages on stderr: one line each, and silence from the libraries below unless -v is given."""

import logging
import os
import sys
import traceback
import warnings
from contextlib import suppress

from llava_mini_cli.formats.shown_text import for_terminal

KNOWN_TO_DEMO = (
    "llava-mini: the demo model knows rendered shapes on plain backgrounds and nothing else; "
    "about anything else its answers mean nothing"
)


def say(text: str) -> None:
    """One line on stderr, whatever `text` holds; file names may hold newlines, terminal codes or broken UTF-8.

    Nobody may be left to read it, or a disk behind it may be full: then this line and all later ones go nowhere.
    """
    try:
        print(terminal_line(text), file=sys.stderr, flush=True)
    except OSError:
        to_nowhere(2)


def to_nowhere(descriptor: int, flags: int = os.O_RDWR) -> None:
    """Has a descriptor lead to the null device, whatever it led to."""
    nowhere = os.open(os.devnull, flags)
    if nowhere != descriptor:  # the lowest that is free was taken, which is this one if it was closed
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def say_error(text: str) -> None:
    """One line that names the program and the error."""
    say(f"llava-mini: error: {text}")


def say_warning(text: str) -> None:
    """One line that names the program and what is odd."""
    say(f"llava-mini: warning: {text}")


def terminal_line(text: str) -> str:
    """`text` with runs of white space as one space, anything unprintable escaped, and URLs without credentials."""
    if "://" in text:
        from llava_mini_cli.formats.fetch.urls import scrubbed  # seldom needed, and --help shall be quick

        text = scrubbed(text)
    words = " ".join(text.split())
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in words)


def say_trace(error: BaseException) -> None:
    """The traceback of an error on stderr, whatever the texts in it hold."""
    with suppress(OSError):
        print(for_terminal("".join(traceback.format_exception(error))), end="", file=sys.stderr, flush=True)


class _PlainRecord(logging.LogRecord):
    """A library's message, which may quote a name or a text of a stranger."""

    def getMessage(self) -> str:  # noqa: N802 - logging calls it so
        return for_terminal(super().getMessage())


def hush_libraries(*, verbose: bool) -> None:
    """Keeps warnings, logs and progress bars of the libraries off stderr. Call before they are imported.

    With `verbose` they say what they say by default. A variable that the user has set stays as it is.
    """
    logging.setLogRecordFactory(_PlainRecord)
    if verbose:
        return
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())
    # transformers imports torchao when it is installed, and that has torch log about torchao's own enums.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
