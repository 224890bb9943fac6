"""vLLM's process: an engine, fed through a connection until that is closed.

Units of one prefix share it once it is computed, and not before: the first goes alone, the others when it has begun to
answer. No more are handed to vLLM than it answers at once, as each brings its whole prompt.
"""

import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from llava_mini_cli.engine.vllm.left_files import take_away
from llava_mini_cli.engine.vllm.messages import (
    Counted,
    Drop,
    Finish,
    Groups,
    Ready,
    Said,
    Start,
    Unit,
    from_bytes,
    to_bytes,
)
from llava_mini_cli.engine.vllm.vllm_engine import make_engine, sampling_params

GRACE_SECONDS = 20.0  # for vLLM to end processes and to free memory that it shares with them
PROMPT_BYTES = 4 << 30  # of prompts that vLLM holds at once: each is whole, its prefix included


@dataclass(eq=False)
class _Shared:
    """A prefix and the units behind it that were not begun."""

    prefix: torch.Tensor
    waiting: deque[Unit]
    begun: int | None = None  # the unit that computes the prefix
    is_known: bool = False  # it was computed

    def next(self) -> Unit | None:
        """The unit that may go next; None where none may."""
        return self.waiting[0] if self.waiting and (self.begun is None or self.is_known) else None


@dataclass(eq=False)
class _Running:
    """A unit that vLLM has."""

    unit: Unit
    shared: _Shared
    tokens: int = 0  # that were told


@dataclass(eq=False)
class Server:
    """Hands units to an engine and tells what becomes of them."""

    engine: Any
    params: Callable[[Unit], Any]  # how a unit is to be sampled, in vLLM's terms
    sequences: int  # handed over at once
    positions: int  # that a prompt and its answer may take
    end_ids: tuple[int, ...]
    groups: deque[_Shared] = field(default_factory=deque[_Shared])
    running: dict[int, _Running] = field(default_factory=dict[int, _Running])
    said: list[Said | Counted] = field(default_factory=list[Said | Counted])
    asked: int = 0
    known: int = 0
    names: dict[int, str] = field(default_factory=dict[int, str])  # vLLM's, of running units
    most_bytes: int = PROMPT_BYTES  # of the prompts of running units, but for a single one

    @property
    def is_idle(self) -> bool:
        """True if there is nothing to do."""
        return not self.running and not any(shared.waiting for shared in self.groups)

    def take(self, message: Groups | Drop) -> None:
        """Takes a message in."""
        if not isinstance(message, Drop):
            self.groups += [_Shared(group.prefix, deque(group.units)) for group in message]
            return
        dropped = set(message.numbers)
        for shared in self.groups:
            shared.waiting = deque(unit for unit in shared.waiting if unit.number not in dropped)
        for number in dropped:
            if (one := self.running.pop(number, None)) is not None:
                self.engine.abort_request([self.names.pop(number)], internal=True)
                self._over(one)

    def step(self) -> list[Said | Counted]:
        """Hands over what there is room for, and one step of vLLM. Returns what is to be told."""
        self._hand_over()
        if self.running:
            for output in self.engine.step():
                self._heard(output)
            if self.running and not self.engine.has_unfinished_requests():
                self._lose()
        self.said, said = [], self.said
        return said

    def _hand_over(self) -> None:
        for shared in list(self.groups):
            while (unit := shared.next()) is not None and self._has_room(shared, unit):
                shared.waiting.popleft()
                self._begin(shared, unit)
            if not shared.waiting:
                self.groups.remove(shared)

    def _has_room(self, shared: _Shared, unit: Unit) -> bool:
        held = sum(one.shared.prefix.nbytes + one.unit.tail.nbytes for one in self.running.values())
        fits = held + shared.prefix.nbytes + unit.tail.nbytes <= self.most_bytes
        return not self.running or (len(self.running) < self.sequences and fits)

    def _begin(self, shared: _Shared, unit: Unit) -> None:
        size = len(shared.prefix) + len(unit.tail)
        if size >= self.positions:
            words = f"the prompt takes {size} positions, and vLLM has room for {self.positions}"
            self.said.append(Said(unit.number, finish="too_long", message=words))
            return
        try:
            self.names[unit.number] = self.engine.add_request(
                str(unit.number),
                {"prompt_embeds": torch.cat([shared.prefix, unit.tail])},
                self.params(unit),
            )
        except Exception as error:  # noqa: BLE001 - vLLM has many, and this request alone is concerned
            self.said.append(Said(unit.number, finish="refused", message=_line(error)))
            return
        self.running[unit.number] = _Running(unit, shared)
        if shared.begun is None:
            shared.begun = unit.number

    def _heard(self, output: Any) -> None:
        number = int(output.request_id.partition("-")[0])
        one = self.running.get(number)
        if one is None:
            return
        (told,) = output.outputs
        one.shared.is_known = True
        tokens, finish = list(told.token_ids), _finish(told.finish_reason)
        if finish == "stop" and tokens and tokens[-1] in self.end_ids and not one.unit.is_scored:
            tokens.pop()
        scores, is_finite = self._scores(one, told)
        one.tokens += len(tokens)
        message = ""
        if finish == "length" and one.tokens < one.unit.new_tokens:
            finish, message = "too_long", f"the prompt and its answer take more than vLLM's {self.positions} positions"
        self.said.append(Said(number, tuple(tokens), scores, is_finite, finish, message))
        if finish is not None:
            del self.running[number], self.names[number]
            self._over(one)
            self.asked += len(one.shared.prefix) + len(one.unit.tail)
            self.known += output.num_cached_tokens or 0
            if self.is_idle:
                self.said.append(Counted(self.asked, self.known))

    def _scores(self, one: _Running, told: Any) -> tuple[dict[int, float], bool]:
        """The wanted log-probabilities of the first token, and whether those of all new ones are numbers."""
        rows = told.logprobs or []
        is_finite = all(
            isfinite(row[token].logprob) for row, token in zip(rows, told.token_ids, strict=False) if token in row
        )
        if one.tokens or not rows or not one.unit.wanted:
            return {}, is_finite
        return {token: rows[0][token].logprob for token in one.unit.wanted}, is_finite

    def _lose(self) -> None:
        """vLLM has nothing left to do, so it will say no more of what it was given."""
        for number, one in self.running.items():
            self.said.append(Said(number, finish="lost"))
            self._over(one)
        self.running.clear()
        self.names.clear()

    def _over(self, one: _Running) -> None:
        """A unit is over; where it was to compute the prefix and did not, the next one does."""
        if one.shared.begun == one.unit.number and not one.shared.is_known:
            one.shared.begun = None


def _finish(reason: str | None) -> Finish | None:
    if reason is None:
        return None
    return reason if reason in ("stop", "length") else "lost"  # pyright: ignore[reportReturnType]


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def serve(connection: Connection, folder: Path) -> None:
    """Works until the connection is closed; `folder` is that of temporary files."""
    start: Start = from_bytes(connection.recv_bytes())
    grace = GRACE_SECONDS if start.tensor_parallel > 1 else 0.0
    threading.Thread(target=_end_with, args=(connection, grace, folder), name="hung up", daemon=True).start()
    engine = make_engine(start)
    try:
        _serve(connection, start, engine)
    finally:
        if start.tensor_parallel > 1:
            engine.engine_core.shutdown()


def _serve(connection: Connection, start: Start, engine: Any) -> None:
    from vllm import __version__

    ready = Ready(engine.model_config.max_model_len, __version__)
    connection.send_bytes(to_bytes(ready))
    params = partial(sampling_params, ends=start.end_ids)
    server = Server(engine, params, start.sequences, ready.positions, start.end_ids)
    while True:
        while server.is_idle or connection.poll():
            server.take(from_bytes(connection.recv_bytes()))
        if said := server.step():
            connection.send_bytes(to_bytes(said))


def _end_with(connection: Connection, grace: float, folder: Path) -> None:
    """Ends this process some seconds after whoever started it is gone, also while it loads or computes."""
    hung_up = select.poll()
    hung_up.register(connection.fileno(), 0)
    hung_up.poll()
    time.sleep(grace)
    take_away(folder)
    os._exit(0)


def main() -> None:
    """The process's life; its arguments: the number of its connection's descriptor, its folder of temporary files."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    folder = Path(sys.argv[2])
    try:
        with Connection(int(sys.argv[1])) as connection:
            serve(connection, folder)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        take_away(folder)  # whoever asked is gone


if __name__ == "__main__":
    main()
