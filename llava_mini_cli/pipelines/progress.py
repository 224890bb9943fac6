"""The events that a run tells about itself while it goes on. Pipelines call it; whoever prints overrides it."""

from llava_mini_cli.config import WeightFormat
from llava_mini_cli.formats.row import Row
from llava_mini_cli.media.clip import ClipInfo


class Progress:
    """Called from the run's own thread, often; each call must return quickly. This one keeps everything to itself."""

    def loading(self, model: str) -> None:
        """The model is about to be loaded."""

    def loaded(self, weight_format: WeightFormat, note: str | None) -> None:
        """The model was loaded; `note`: why its weights are in fewer bits, though nobody asked, or who answers."""

    def opened(self, info: ClipInfo) -> None:
        """A medium was opened and its frames will be read."""

    def frames(self, count: int) -> None:
        """So many more frames were read."""

    def row(self, row: Row) -> None:
        """A row was written."""

    def item_done(self) -> None:
        """Every prompt of one medium has its row."""

    def noted(self, text: str) -> None:
        """Something that whoever started the run should know about it, such as that a worker died."""

    def detailed(self, text: str) -> None:
        """Something that only those want to know who look for it."""

    def warned(self, path: str, message: str) -> None:
        """Something odd about a medium that was indexed all the same."""
