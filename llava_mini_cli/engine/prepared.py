"""Prepared weights, rounded and packed, that are kept in the cache folder so that the next run begins at once.

Whoever loads a model asks for each layer by its name, and tells of each that had to be made. Where making them all
takes longer than it is worth, they are written while they are made, layer by layer, and used from the file at once: the
memory of one's own is then that of a few layers. That is known after one in 32 of them, or in the worst case at the
end: layers that were made before are written, too, as the model holds them anyway.

A run that finds another one writing the same weights waits for it. Making them as well would take as long, on half of
the cores, and twice the memory; waiting ends when the other one has finished, is gone, or wrote nothing for a minute.

Nothing here ends a run: where no file can be read or written, the weights are made in memory and one line says why.
"""

import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Self

from llava_mini_cli.config import ModelOptions, Quantization
from llava_mini_cli.engine.int8_kernels import Int8Kernel
from llava_mini_cli.engine.prepared_file import PackedLayer, PreparedReader, WritingAhead, bytes_of
from llava_mini_cli.engine.prepared_folder import (
    PART,
    WHOLE,
    check_folder,
    folder,
    lock_part,
    make_folder,
    make_room,
    mark_used,
    open_own,
    remove_left_overs,
)
from llava_mini_cli.engine.prepared_index import DamagedError
from llava_mini_cli.engine.prepared_wanted import WORTH_S, Wanted, about_weights
from llava_mini_cli.engine.quantize import restored
from llava_mini_cli.errors import first_line
from llava_mini_cli.hub import find_model, model_digest
from llava_mini_cli.model.checkpoint import load_config, look_at_weights

FIRST_SHARE = 1 / 32  # of the weights, after which it can be told how long the rest takes
_LOOK_S = 0.2  # seconds between two looks at another run


@contextmanager
def prepared_supply(options: ModelOptions, kind: Quantization, kernel: Int8Kernel) -> Generator["PreparedSupply"]:
    """The layers of a model that was packed before, or the place to keep those that are packed inside the block.

    Args:
        kernel: of layers in 8 bits.

    Raises:
        ModelNotFound, CheckpointError
    """
    checkpoint = find_model(options.model, options.revision)
    stored = look_at_weights(checkpoint, load_config(checkpoint))
    names = [name for name, one in stored.items() if len(one.shape) == 2 and name.endswith(".weight")]
    total = sum(prod(stored[name].shape) for name in names if name != "model.embed_tokens.weight")
    digest = model_digest(options.model, options.revision)
    about = about_weights({one.file for one in stored.values()}, digest, kind, kernel)
    wanted = Wanted(about, options.model, total, options.prepared_bytes, worth=WORTH_S)
    with PreparedSupply(wanted) as supply:
        yield supply


class PreparedSupply:
    """The layers of one model from its file, if there is one; otherwise its file is written where that is worth it."""

    def __init__(self, wanted: Wanted, place: Path | None = None) -> None:
        """`place`: the folder of all files; None: the one in the user's cache."""
        self._wanted = wanted
        self._place = folder() if place is None else place
        self._whole = self._place / f"{wanted.key}{WHOLE}"
        self._part = self._place / f"{wanted.key}{PART}"
        self._reader: PreparedReader | None = None
        self._writer: WritingAhead | None = None
        self._keeps = wanted.bound > 0
        self._obstacle: OSError | None = None  # to any file of the folder
        self._others = False  # another run writes the file
        self._made: dict[str, PackedLayer] = {}  # not written yet
        self._began: float | None = None  # when the first layer had to be made
        self._seconds = 0.0  # since then
        self._done = 0  # numbers in the weights of the layers that were made

    def __enter__(self) -> Self:
        if self._keeps and os.path.lexists(self._place):
            try:
                check_folder(self._place)
                remove_left_overs(self._place)
                self._open()
                if self._reader is None and self._part.exists():
                    self._wait()
            except OSError as error:
                self._obstacle = error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._made.clear()
        if self._reader is not None:
            self._reader.close()
        if self._writer is None:
            return
        try:
            if error is None:
                about = {**self._wanted.about, "model": self._wanted.model, "seconds": round(self._seconds, 1)}
                self._writer.finish(about)
        except OSError as failure:
            self._say_not_kept(failure)
        finally:
            self._writer.close()

    def take(self, name: str) -> PackedLayer | None:
        """A layer over its bytes in the file, for which no memory of one's own is needed; None: it has to be made."""
        if self._others:
            self._others = False
            with suppress(OSError):
                self._wait()
        if self._reader is not None and name in self._reader.index.layers:
            try:
                return restored(*self._reader.layer(name))
            except (DamagedError, OSError, LookupError, TypeError, ValueError) as error:
                self._drop(error)
        if self._began is None:
            self._began = time.perf_counter()
        return None

    def made(self, name: str, layer: PackedLayer) -> None:
        """Tells of a layer that was just made; it is written, now or once it is clear that this is worth it."""
        assert self._began is not None, "a layer is asked for before it is made"
        self._seconds = time.perf_counter() - self._began
        self._done += layer.in_features * layer.out_features
        if not self._keeps or self._reader is not None:
            return
        try:
            if self._writer is None:
                self._made[name] = layer
                if self._is_worth_it():
                    self._begin()
            else:
                self._writer.add(name, layer)
        except OSError as error:
            self._stop(error)

    def _is_worth_it(self) -> bool:
        total = max(self._wanted.total, self._done)
        return self._done >= FIRST_SHARE * total and self._seconds / max(self._done, 1) * total > self._wanted.worth

    def _begin(self) -> None:
        """Begins the file with the layers that were made so far, unless another run writes it."""
        if self._obstacle is not None:
            raise self._obstacle
        make_folder(self._place)
        so_far = sum(bytes_of(layer) for layer in self._made.values())
        needed = so_far * max(self._wanted.total, self._done) // max(self._done, 1)
        if reason := make_room(self._place, needed, self._wanted.bound):
            raise OSError(None, reason)
        descriptor = lock_part(self._part)
        if descriptor is None:
            self._others = True
            return
        if self._whole.exists():  # another run has just finished it
            self._part.unlink()
            os.close(descriptor)
            self._others = True
            return
        self._writer = WritingAhead(descriptor, self._part, self._whole)
        while self._made:
            name = next(iter(self._made))
            self._writer.add(name, self._made.pop(name))

    def _stop(self, error: OSError) -> None:
        """From now on weights are made in memory alone. What was written stays mapped as long as the model lives."""
        self._say_not_kept(error)
        self._keeps = False
        self._made.clear()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> None:
        """Opens the whole file, if there is one; a damaged one is taken away. Raises `OSError` for one of others."""
        try:
            descriptor = open_own(self._whole)
        except FileNotFoundError:
            return
        try:
            reader = PreparedReader(descriptor)
            if any(reader.index.about.get(name) != value for name, value in self._wanted.about.items()):
                raise DamagedError("it is of other weights")
        except DamagedError as error:
            os.close(descriptor)
            self._remove_damaged(error)
            return
        mark_used(descriptor)
        self._reader = reader

    def _drop(self, error: Exception) -> None:
        """Does without the file, of which some layers may be in use; they stay mapped."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._keeps = False  # there will be none with all layers in this run
        self._remove_damaged(error)

    def _remove_damaged(self, error: Exception) -> None:
        self._wanted.say(f"prepared weights '{self._whole}' are not used and made anew: {first_line(error)}")
        with suppress(OSError):
            self._whole.unlink()

    def _wait(self) -> None:
        """Returns once no other run writes the file, which is then opened if it is there. Raises `OSError`."""
        size, since, is_said = -1, time.monotonic(), False
        while self._is_being_written():
            if not is_said:
                self._wanted.say("waiting for another run, which is preparing the same weights")
                is_said = True
            now = self._part.stat().st_size if self._part.exists() else size
            if now != size:
                size, since = now, time.monotonic()
            elif time.monotonic() - since > self._wanted.patience:
                self._wanted.say("the other run does not get on; the weights are prepared by this one, too")
                self._keeps = False
                return
            time.sleep(_LOOK_S)
        self._open()

    def _is_being_written(self) -> bool:
        try:
            descriptor = lock_part(self._part, create=False)
        except FileNotFoundError:
            return False
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is None

    def _say_not_kept(self, error: OSError) -> None:
        place = f"'{error.filename}': " if error.filename else ""
        self._wanted.say(
            f"prepared weights are not kept for the next run: {place}{error.strerror or first_line(error)}"
        )
