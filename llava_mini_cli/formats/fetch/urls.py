"""URLs as text: told from paths, shown without credentials, and without what a new signature changes.

Imports nothing heavy; `fetch.download` downloads.
"""

import re
from glob import has_magic
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_SIGNATURE = re.compile(  # parameters of signed URLs (S3, Google, Azure, CloudFront) and common names of secrets
    r"(x-amz-.*|x-goog-.*|signature|sig|expires|awsaccesskeyid|googleaccessid|policy|key-pair-id"
    r"|se|sp|sv|sr|st|skoid|sktid|skt|ske|sks|skv|.*token|api_?key|password)",
    re.IGNORECASE,
)


def parts_of(url: str) -> SplitResult:
    """The parts of a URL, also of one that is none, such as `http://[www.example.com]/a.jpg`: cells hold anything."""
    try:
        return urlsplit(url)
    except ValueError:
        scheme, _, rest = url.partition("://")
        rest, _, fragment = rest.partition("#")
        rest, _, query = rest.partition("?")
        host, slash, path = rest.partition("/")
        return SplitResult(scheme, host, slash + path, query, fragment)


def is_valid(url: str) -> bool:
    """True if a URL can be parsed."""
    try:
        urlsplit(url)
    except ValueError:
        return False
    return True


def is_remote(name: str) -> bool:
    """True if a name is a URL of something that is not on this disk."""
    match = _URL.match(name)
    return match is not None and match[1].lower() not in ("file", "local")


def local_path(name: str) -> str:
    """The path of a file:// URL; anything else as it is."""
    match = _URL.match(name)
    return unquote(parts_of(name).path) if match and match[1].lower() in ("file", "local") else name


def plain_name(name: str) -> str:
    """The path within a URL, whose suffix names the format; a path as it is."""
    return parts_of(name).path if is_remote(name) else name


def shown(name: str) -> str:
    """A URL without user, password and query, for messages; a path as it is."""
    if "://" not in name or not is_remote(name):
        return name
    parts = parts_of(name)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "…" if parts.query else "", ""))


def without_signature(url: str) -> str:
    """A URL without what changes when it is signed again, so that it stands for the same file."""
    parts = parts_of(url)
    query = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if not _SIGNATURE.fullmatch(pair[0])]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, urlencode(query), ""))


def scrubbed(text: str) -> str:
    """A text with the URLs in it shown without credentials."""
    return _URL_IN_TEXT.sub(lambda match: shown(match[0]), text) if "://" in text else text


def has_listing(url: str) -> bool:
    """True if a URL means several files: a folder or a glob of a store that can list them."""
    return not url.lower().startswith(("http://", "https://")) and (url.endswith("/") or has_magic(url))
