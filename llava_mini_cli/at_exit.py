"""What ends with the program, also where it does not wait for the interpreter's own end."""

from collections.abc import Callable

_ENDS: list[Callable[[], object]] = []


def at_the_end(end: Callable[[], object]) -> None:
    """Has something called when the program ends. It may be called twice, and takes a bounded time."""
    _ENDS.append(end)


def end_all() -> None:
    """Calls what is to be called, the newest first."""
    while _ENDS:
        _ENDS.pop()()
