"""Files that folders hold, that look like media and are passed over: said once, with a count by suffix."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llava_mini_cli.commands.flags import TalkFlags
from llava_mini_cli.commands.stderr import say

if TYPE_CHECKING:  # imported where it is used, so that --help is quick
    from llava_mini_cli.formats.inputs.passed_over import PassedOver


@contextmanager
def left_out(talk: TalkFlags) -> Generator["PassedOver"]:
    """Counts them while inputs are read, and says so at the end; with -v each is listed when it is found."""
    from llava_mini_cli.formats.inputs.passed_over import PassedOver

    passed_over = PassedOver(_list if talk.verbose else None)
    try:
        yield passed_over
    finally:
        is_read = not isinstance(sys.exception(), BrokenPipeError)
        if passed_over.counts and not talk.quiet and is_read:
            hint = "" if talk.verbose else " (-v lists them)"
            say(f"llava-mini: passed over in folders: {passed_over}{hint}")


def _list(path: str, what: str) -> None:
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stderr):
        say(f"passed over: {path} ({what})")
