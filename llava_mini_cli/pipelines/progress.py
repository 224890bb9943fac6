"""What a run tells about itself while it goes on. Pipelines call it; whoever prints implements it."""

from typing import Protocol

from llava_mini_cli.formats.row import Row
from llava_mini_cli.media.clip import ClipInfo


class Progress(Protocol):
    """Called from the run's own thread, often; each call must return quickly."""

    def loading(self, model: str) -> None:
        """The model is about to be loaded."""
        ...

    def opened(self, info: ClipInfo) -> None:
        """A medium was opened and its frames will be read."""
        ...

    def frames(self, count: int) -> None:
        """So many more frames were read."""
        ...

    def row(self, row: Row) -> None:
        """A row was written."""
        ...

    def item_done(self) -> None:
        """Every prompt of one medium has its row."""
        ...
