"""A file of prepared weights: layers written one by one as they are made, and layers made of the mapped file.

A layer that was written is on the disk before its tensors are mapped back and the ones in memory are let go, so that a
disk that fails later never changes a weight. `prepared_index` has the file's form.
"""

import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from llava_mini_cli.engine.mapped_weights import (
    ALIGNMENT,
    can_map,
    is_packed,
    layout_of,
    mapped,
    memory_of,
    pack,
    packed_over,
    unpack,
)
from llava_mini_cli.engine.packed_linear import Int4Linear, Int8Linear
from llava_mini_cli.engine.prepared_index import (
    PAGE,
    DamagedError,
    Index,
    LayerPlace,
    PartPlace,
    check_samples,
    read_index,
    sample_of,
    write_all,
    write_index,
)
from llava_mini_cli.safe_files import is_at, sync_folder

PackedLayer = Int8Linear | Int4Linear
AHEAD = 2  # layers that are made while one is written


def bytes_of(layer: PackedLayer) -> int:
    """The bytes that a layer takes in a file, or a little less."""
    return -(-sum(memory_of(tensor).nbytes for tensor in layer.parts().values()) // PAGE) * PAGE


class PreparedWriter:
    """A file that is being written. Its name and its fate are the caller's."""

    def __init__(self, descriptor: int) -> None:
        """Begins in an empty file."""
        self._descriptor = descriptor
        self._end = PAGE  # where the next layer begins
        self._layers: dict[str, LayerPlace] = {}
        self._layouts: list[bytes] = []

    def add(self, name: str, layer: PackedLayer) -> None:
        """Writes a layer and has it use what was written. Raises `OSError`: then the layer is as it was."""
        tensors = {
            key: tensor.contiguous() if not is_packed(tensor) else tensor for key, tensor in layer.parts().items()
        }
        places: dict[str, PartPlace] = {}
        length = 0
        for key, tensor in tensors.items():
            tensor, places[key] = self._place(tensor, length)
            write_all(self._descriptor, memory_of(tensor), self._end + length)
            length += -(-places[key].length // ALIGNMENT) * ALIGNMENT
        whole = -(-length // PAGE) * PAGE
        os.ftruncate(self._descriptor, self._end + whole)
        os.fsync(self._descriptor)
        sample = sample_of(self._descriptor, self._end, whole)
        self._layers[name] = place = LayerPlace(self._end, whole, sample, layer.facts(), places)
        self._end += whole
        if not any(part.packs for part in places.values()):
            layer.use(_tensors(self._descriptor, place, self._layouts))

    def _place(self, tensor: torch.Tensor, start: int) -> tuple[torch.Tensor, PartPlace]:
        """What is written of a tensor, and its place; a packed one that cannot be mapped is unpacked."""
        packs = is_packed(tensor) and can_map() is not None
        content = unpack(tensor) if packs else tensor if is_packed(tensor) else tensor.detach().contiguous()
        layout = None
        if is_packed(content):
            description = layout_of(content)
            if description not in self._layouts:
                self._layouts.append(description)
            layout = self._layouts.index(description)
        name = str(content.dtype).removeprefix("torch.")
        return content, PartPlace(name, tuple(content.shape), start, memory_of(content).nbytes, layout, packs)

    def finish(self, about: Mapping[str, Any]) -> None:
        """Makes the file whole, on the disk. Raises `OSError`."""
        write_index(self._descriptor, self._end, Index(dict(about), tuple(self._layouts), self._layers))


class PreparedReader:
    """The layers of a whole file."""

    def __init__(self, descriptor: int) -> None:
        """Looks at the file, which the reader closes in the end.

        Raises:
            DamagedError: it is not whole. OSError: it cannot be read.
        """
        self._descriptor = descriptor
        self.index = read_index(descriptor)
        check_samples(descriptor, self.index)

    def layer(self, name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The facts and parts of a layer. Raises `DamagedError`, `OSError`, `KeyError`."""
        place = self.index.layers[name]
        try:
            return place.facts, _tensors(self._descriptor, place, self.index.layouts)
        except (ValueError, RuntimeError) as error:
            raise DamagedError(f"{name}: {error}") from error

    def close(self) -> None:
        """Closes the file; what was mapped of it stays."""
        os.close(self._descriptor)


def _tensors(descriptor: int, place: LayerPlace, layouts: Sequence[bytes]) -> dict[str, torch.Tensor]:
    """The parts of a layer over its bytes in the file."""
    memory = mapped(descriptor, place.offset, place.length)
    return {name: _tensor(memory[part.start :][: part.length], part, layouts) for name, part in place.parts.items()}


def _tensor(memory: torch.Tensor, part: PartPlace, layouts: Sequence[bytes]) -> torch.Tensor:
    if part.layout is not None:
        return packed_over(memory, part.shape, layouts[part.layout])
    tensor = memory.view(getattr(torch, part.dtype)).view(part.shape)
    return pack(tensor) if part.packs else tensor


class WritingAhead:
    """A file on its way: a thread writes one layer while the next ones are made."""

    def __init__(self, descriptor: int, part: Path, whole: Path) -> None:
        """`descriptor`: of the empty or left-over `part`, locked; it is closed in the end."""
        self._descriptor = descriptor
        self._part = part
        self._whole = whole
        os.ftruncate(descriptor, 0)
        self._writer = PreparedWriter(descriptor)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._waiting: deque[Future[None]] = deque()

    def add(self, name: str, layer: PackedLayer) -> None:
        """Has a layer written, and waits while too many are. Raises `OSError`, also of earlier ones."""
        while len(self._waiting) >= AHEAD:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._writer.add, name, layer))

    def finish(self, about: Mapping[str, Any]) -> None:
        """Gives the file its final name. Raises `OSError`."""
        while self._waiting:
            self._waiting.popleft().result()
        if is_at(self._part, self._descriptor):
            self._writer.finish(about)
            self._part.replace(self._whole)
            sync_folder(self._whole.parent)

    def close(self) -> None:
        """Takes away what did not come to its end. Layers that were written stay mapped."""
        self._thread.shutdown(cancel_futures=True)
        with suppress(OSError):
            if is_at(self._part, self._descriptor):
                self._part.unlink()
        os.close(self._descriptor)
