"""Pictures of found moments, decoded from their files. Prints nothing."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from llava_mini_cli.errors import FetchError, MediaError
from llava_mini_cli.formats.archive.moments import Moment
from llava_mini_cli.formats.archive.reader import local_name
from llava_mini_cli.formats.media_root import below
from llava_mini_cli.media.thumbnail import thumbnail

NAME_BYTES = 200  # of a medium's name in that of its picture; file systems take 255 in all


def pictures(moments: Sequence[Moment], roots: tuple[str, ...] = ()) -> Iterator[bytes | str]:
    """A JPEG of each moment's best frame, or why there is none.

    Args:
        roots: resolved folders, one of which a file must lie below; without any it may lie anywhere.
    """
    for moment in moments:
        try:
            yield thumbnail(below(local_name(moment.path), roots), moment.time)
        except (FetchError, MediaError) as error:
            yield str(error)


def picture_name(moment: Moment) -> str:
    """`003-lecture-754.5s.jpg`: the rank first, so that files sort as the moments do; a long name is cut."""
    time = "" if moment.time is None else f"-{moment.time:.1f}s"
    stem = Path(moment.file_name).stem.encode()[:NAME_BYTES].decode(errors="ignore")
    return f"{moment.rank:03d}-{stem}{time}.jpg"
