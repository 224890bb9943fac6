"""A medium whose bytes were put into Ray's object store, for workers that do not see the disk that it lies on."""

from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, cast

from llava_mini_cli.errors import FetchError, first_line
from llava_mini_cli.formats.fetch.new_file import CHUNK, NewFile
from llava_mini_cli.formats.source import FetchOptions


@dataclass(frozen=True, eq=False)
class Shipped:
    """The bytes behind a reference of Ray's."""

    name: str  # the absolute path, where it lies
    path: str  # as the user gave it
    place: Any  # ray.ObjectRef of uint8 [bytes]

    @property
    def suffix(self) -> str:
        """The suffix of its name."""
        return Path(self.path).suffix

    def write_to(self, path: Path, options: FetchOptions, stopped: Event) -> None:
        """Copies the bytes to a new file. Raises as `Source.write_to` does."""
        import ray  # only where there are workers

        try:
            data: memoryview = memoryview(cast(Any, ray).get(self.place, timeout=options.timeout))
        except Exception as error:  # noqa: BLE001 - of Ray's many
            raise FetchError("unreachable", f"it could not be sent to the worker: {first_line(error)}") from None
        options.check_size(0, len(data))
        with NewFile(path, options) as target:
            for place in range(0, len(data), CHUNK):
                target.write(bytes(data[place : place + CHUNK]))
