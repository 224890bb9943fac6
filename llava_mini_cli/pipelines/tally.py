"""The counts of a run so far. One place counts; whoever reports reads."""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from llava_mini_cli.config import WeightFormat
from llava_mini_cli.errors import PASSING_KINDS
from llava_mini_cli.formats.row import Row

if TYPE_CHECKING:  # pyarrow comes with it, and most runs need none
    from llava_mini_cli.formats.archive.newest import Damage

LISTED = 20  # failed media that are remembered by name

Stop = Literal["limit", "max_failures"]


class FailedMedium(NamedTuple):
    """One failed medium, for the list at the end."""

    id: str
    error_type: str
    error: str


@dataclass
class Tally:
    """Counts of one run. A medium has failed when one of its rows has."""

    media: int = 0  # finished: every question has its row
    media_failed: int = 0
    media_skipped: int = 0  # every row was there already
    answered: int = 0  # rows
    failed: int = 0
    events: int | None = None  # stretches in which questions hold; None: nobody asks for them
    skipped: int = 0  # rows that were there already
    errors_skipped: int = 0  # errors among them
    known_by_content: int = 0  # of those that were there, rows whose files were moved or touched since
    frames: int = 0
    video_s: float = 0.0  # length of the finished videos
    failures: Counter[str] = field(default_factory=Counter[str])  # rows, by error type
    listed: list[FailedMedium] = field(default_factory=list[FailedMedium])  # the first failed media
    dropped: int = 0  # media of an archive whose files are gone
    damage: "list[Damage]" = field(default_factory=list["Damage"])  # parts of an archive that could not be read
    converted: bool = False  # an archive of an older format is of the newest one now
    weight_format: WeightFormat | None = None  # in which the model was loaded; None: it was not needed
    stopped_by: Stop | None = None  # the limit that left work undone

    @property
    def failed_in_passing(self) -> int:
        """Failed rows whose reason lay in the moment; the next run does them again by itself."""
        return sum(self.failures[kind] for kind in PASSING_KINDS)

    def row(self, row: Row, *, fails_medium: bool) -> None:
        """Counts a row; `fails_medium`: it is the first failed one of its medium."""
        if row.status == "ok":
            self.answered += 1
        else:
            self.fail(row.id, row.error_type or "unknown", row.error or "", fails_medium=fails_medium)

    def fail(self, id: str, error_type: str, error: str, *, fails_medium: bool = True) -> None:
        """Counts what failed."""
        self.failed += 1
        self.failures[error_type] += 1
        if not fails_medium:
            return
        self.media_failed += 1
        if len(self.listed) < LISTED:
            self.listed.append(FailedMedium(id, error_type, error))
