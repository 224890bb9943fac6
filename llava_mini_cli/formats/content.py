"""A digest of what a medium holds, by which it is known again wherever it lies and whatever its date says.

Of a large file three parts are read, at its beginning, in its middle and at its end: a change that keeps the size and
all three goes unnoticed. Formats that compress change behind every change, so pictures without compression are read
whole. Knows nothing of rows.
"""

import os
from collections.abc import Callable, Iterator
from hashlib import blake2b

from llava_mini_cli.errors import FetchError
from llava_mini_cli.formats.job import ItemIdentity, Job
from llava_mini_cli.formats.media_root import file_of
from llava_mini_cli.formats.source import PartlyRead
from llava_mini_cli.plain_files import open_plain

WHOLE = 1 << 20  # bytes; a file up to this is read whole
PART = 1 << 16  # bytes of each of the three parts of a larger one
PLAIN_WHOLE = 1 << 26  # bytes; a picture without compression up to this is read whole
_CHUNK = 1 << 20
_PLAIN = (b"BM", b"II*\0", b"MM\0*", *(b"P%d" % number for number in range(1, 8)))  # BMP, TIFF, Netpbm

ReadAt = Callable[[int, int], bytes]  # so many bytes, from this offset; fewer at the end


def content_of(size: int, read_at: ReadAt) -> str:
    """The size and a digest of 80 bits, `SIZE-DIGEST`. Raises what `read_at` raises."""
    digest = blake2b(digest_size=10)
    is_whole = size <= WHOLE or (size <= PLAIN_WHOLE and read_at(4, 0).startswith(_PLAIN))
    parts = [(0, size)] if is_whole else [(0, PART), ((size - PART) // 2, PART), (size - PART, PART)]
    for begin, length in parts:
        for chunk in _chunks(read_at, begin, length):
            digest.update(chunk)
    return f"{size}-{digest.hexdigest()}"


def _chunks(read_at: ReadAt, begin: int, length: int) -> Iterator[bytes]:
    end = begin + length
    while begin < end and (chunk := read_at(min(end - begin, _CHUNK), begin)):
        begin += len(chunk)
        yield chunk


def file_content(path: str, size: int) -> str | None:
    """The content of a file of that size; None where it cannot be read, or is none."""
    try:
        descriptor = open_plain(path)
        try:
            return content_of(size, lambda count, offset: os.pread(descriptor, count, offset))
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return None


def content_of_job(job: Job, item: ItemIdentity) -> str | None:
    """The content of a job's medium, read from where it lies; None where nothing but its place tells what it is.

    That is so for what is not there, and for a URL, behind which nobody has looked before it is downloaded.
    """
    size = item[1]
    if job.content is not None or size is None or size < 0:  # the header of a shard's member may say anything
        return job.content
    if isinstance(job.source, PartlyRead):
        try:
            return content_of(size, job.source.read_at)
        except FetchError:
            return None
    if job.item is not None or job.fault is not None:
        return None
    file = file_of(job)
    return file_content(file, size) if isinstance(file, str) else None


def size_of(content: str) -> int:
    """The size that a content begins with."""
    return int(content.partition("-")[0])
