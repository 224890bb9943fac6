"""Jobs as they are sent to workers: what only this process or this machine can read goes along as bytes."""

from pathlib import Path

from llava_mini_cli.errors import FetchError
from llava_mini_cli.formats.fetch.embedded import Embedded, Member
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.fetch.piped import Piped
from llava_mini_cli.formats.fetch.zipped import ZippedHere
from llava_mini_cli.formats.job import Fault, Job
from llava_mini_cli.formats.source import Source


def portable(job: Job, cache: FileCache, *, ships: bool) -> Job:
    """A job with a source that can be sent, or with the reason why it cannot be read.

    Args:
        cache: of this machine, for what has to be written to a disk to be read.
        ships: workers do not see this machine's disks.
    """
    source = job.source
    if source is None or not isinstance(source, (Member, Piped, ZippedHere) if ships else (Member, Piped)):
        return job
    try:
        return job._replace(source=_embedded(source, cache))
    except FetchError as error:
        return job._replace(fault=Fault(error.stage, error.kind, str(error)))


def _read(member: Member) -> bytes:
    """All bytes of a member. Raises `FetchError` where there are fewer."""
    data = bytearray()
    while len(data) < member.size:
        data += member.read_at(member.size - len(data), len(data))
    return bytes(data)


def _embedded(source: Source, cache: FileCache) -> Embedded:
    if isinstance(source, Member):
        return Embedded(source.name, source.suffix, _read(source))
    path = cache.get(source)
    try:
        return Embedded(source.name, source.suffix, Path(path).read_bytes())
    finally:
        cache.release(path)
