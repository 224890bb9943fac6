"""Messages on stderr: one line each, and silence from the libraries below unless -v is given."""

import logging
import os
import sys
import warnings


def say(text: str) -> None:
    """One line on stderr, whatever `text` holds; file names may hold newlines, terminal codes or broken UTF-8."""
    print(terminal_line(text), file=sys.stderr, flush=True)


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


def hush_libraries(*, verbose: bool) -> None:
    """Keeps warnings, logs and progress bars of the libraries off stderr. Call before they are imported.

    With `verbose` they say what they say by default. A variable that the user has set stays as it is.
    """
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
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
