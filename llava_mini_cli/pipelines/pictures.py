"""Pictures of found moments, decoded from their files. Prints nothing."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from llava_mini_cli.errors import MediaError
from llava_mini_cli.formats.archive.moments import Moment
from llava_mini_cli.formats.archive.reader import local_name
from llava_mini_cli.media.thumbnail import thumbnail

NAME_BYTES = 200  # of a medium's name in that of its picture; file systems take 255 in all


def pictures(moments: Sequence[Moment]) -> Iterator[bytes | str]:
    """A JPEG of each moment's best frame, or why there is none."""
    for moment in moments:
        try:
            yield thumbnail(local_name(moment.path), moment.time)
        except MediaError as error:
            yield str(error)


def picture_name(moment: Moment) -> str:
    """`003-lecture-754.5s.jpg`: the rank first, so that files sort as the moments do; a long name is cut."""
    time = "" if moment.time is None else f"-{moment.time:.1f}s"
    stem = Path(moment.file_name).stem.encode()[:NAME_BYTES].decode(errors="ignore")
    return f"{moment.rank:03d}-{stem}{time}.jpg"
