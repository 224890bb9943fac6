"""Work in pieces that may run out of memory: the one place that frees, halves and tries again.

A piece changes nothing before all that it needs memory for is made. So a piece that ran out can be done again, whole or
in halves, and nothing is done twice or lost. Knows nothing of what the pieces do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llava_mini_cli.engine.memory import unless_out_of_memory
from llava_mini_cli.errors import DeviceLost

MOST_TRIES = 5  # to say what failed, which needs next to no memory

More = Sequence["Piece"]  # what is to be done next, before anything else


@dataclass(eq=False, slots=True)
class Piece:
    """Some work, and what becomes of it where memory runs out. Each function returns the pieces that follow."""

    do: Callable[[], More]
    fail: Callable[[], More]  # after a second try, for what cannot be halved
    halves: Callable[[], More] = tuple  # the same work in parts; none if it is about one row
    was_tried: bool = False


def work_off(pieces: More) -> None:
    """Does some pieces, one after the other, each with all that follows from it.

    Raises:
        DeviceLost: the device does not work any more, or there is no memory even to say what failed.
    """
    left = list(reversed(pieces))
    while left:
        more = unless_out_of_memory(left[-1].do)
        if more is None:
            more = _after_shortage(left[-1])
        left[-1:] = reversed(more)
        del more  # a piece holds what it is about


def _after_shortage(piece: Piece) -> More:
    if halves := unless_out_of_memory(piece.halves):
        return halves
    if not piece.was_tried:
        piece.was_tried = True
        return [piece]
    for _ in range(MOST_TRIES):
        more = unless_out_of_memory(piece.fail)
        if more is not None:
            return more
    raise DeviceLost(
        "no memory is left to go on with; what was answered is written, and the same command does the rest"
    )


@dataclass(eq=False, slots=True)
class Once:
    """A function that is not called again where it ran out of memory, as nobody knows how far it came."""

    function: Callable[[], None]
    was_called: bool = False

    def __call__(self) -> More:
        if self.was_called:
            raise MemoryError("it ran out of memory when it was called before")
        self.was_called = True
        self.function()
        return ()
