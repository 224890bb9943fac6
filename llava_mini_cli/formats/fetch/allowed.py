"""The URLs that tables, lists and archives may name. What the user typed himself is his own, and not looked at here."""

from llava_mini_cli.errors import FetchError
from llava_mini_cli.formats.fetch.hosts import check_place, place_of
from llava_mini_cli.formats.fetch.urls import is_remote, local_path

# Servers and stores. What else fsspec knows is local in disguise (memory, dir, reference, the caches), reads its
# settings from the URL (github, jupyter, dask, lakefs) or may mean the local disk (hdfs).
SCHEMES = frozenset(
    {"http", "https", "s3", "s3a", "gs", "gcs", "hf", "abfs", "abfss", "az", "adl", "oss"}
    | {"ftp", "sftp", "ssh", "smb", "webdav", "webdavs"}
)
MOST_NESTED = 4  # archives within each other


def check_url(url: str, hosts: tuple[str, ...]) -> None:
    """Raises `FetchError` of the kind `refused` unless a table may name the URL.

    Of `http` and `https` the hosts are not looked at here, but where each of them is asked.
    """
    scheme = url.partition("://")[0].lower()
    if scheme == "zip":
        words = f"a table or list names a file in a zip as zip://FILE::ARCHIVE, {MOST_NESTED} deep at most"
        raise FetchError("refused", words)
    if scheme not in SCHEMES:
        raise FetchError("refused", f"{scheme}:// is not among what a table or list may name; as an argument it is")
    if scheme in ("http", "https"):
        return
    if "::" in url:
        raise FetchError("refused", "a table or list may chain URLs only for a file in a zip, as zip://FILE::ARCHIVE")
    check_place(place_of(url), hosts)


def zip_parts(url: str) -> tuple[str, str] | None:
    """The member and the archive of `zip://MEMBER::ARCHIVE`, whose archive is a URL or a path; None for other URLs."""
    scheme, _, rest = url.partition("://")
    member, found, archive = rest.partition("::")
    if scheme.lower() != "zip" or not found or not member.strip("/") or not archive:
        return None
    if archive.lower().count("zip://") >= MOST_NESTED or ("::" in archive and not is_remote(archive)):
        return None
    return member.strip("/"), archive if is_remote(archive) else local_path(archive)
