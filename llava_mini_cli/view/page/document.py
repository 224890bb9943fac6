"""The document around the rows: from disk, from a server, or whole in one file. Only scripts of ours run in it."""

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Literal

from llava_mini_cli.formats.shown_text import for_terminal

From = Literal["disk", "server", "inside"]

STYLES, SCRIPT = "view.css", "view.js"
_NOTHING_ELSE = "default-src 'none'; base-uri 'none'; form-action 'none'"
_SELF, _SELF_OR_FILE = "'self'", "'self' file:"
_BESIDE = "script-src {0}; style-src {0}; img-src {0} data:; media-src {0}"
POLICIES: dict[From, str] = {
    "disk": f"{_NOTHING_ELSE}; {_BESIDE.format(_SELF_OR_FILE)}",  # where it has no origin, browsers go by the scheme
    "server": f"{_NOTHING_ELSE}; {_BESIDE.format(_SELF)}; connect-src 'self'",
    "inside": f"{_NOTHING_ELSE}; img-src data: file:; media-src file:",
}


def asset(name: str) -> bytes:
    """The style sheet or the script."""
    return (files(__name__.rpartition(".")[0]) / name).read_bytes()


def document(title: str, source: From, scripts: Sequence[str] = ()) -> bytes:
    """The document, UTF-8.

    Args:
        title: of the page; any text.
        scripts: for "disk" the files that scripts are in beside the page, for "inside" scripts themselves.
    """
    policy, styles = POLICIES[source], f'<link rel="stylesheet" href="{STYLES}">'
    if source == "inside":
        css, texts = asset(STYLES).decode(), [asset(SCRIPT).decode(), *scripts]
        hashes = " ".join(_hash(text) for text in texts)
        policy += f"; script-src {hashes}; style-src {_hash(css)}"
        styles = f"<style>{css}</style>"
        added = "\n".join(f"<script>{text}</script>" for text in texts)
    else:
        added = "\n".join(f'<script src="{name}"></script>' for name in (SCRIPT, *scripts))
    parts = {
        "{from}": source,
        "{policy}": escape(policy, quote=False).replace('"', "&quot;"),
        "{title}": escape(for_terminal(title)),
        "{styles}": styles,
        "{scripts}": added,
    }
    text = (files(__name__.rpartition(".")[0]) / "view.html").read_text("utf-8")
    for name, value in parts.items():
        if name not in ("{styles}", "{scripts}"):  # which may hold anything, the names of the other parts too
            text = text.replace(name, value)
    head, _, rest = text.partition("{styles}")
    middle, _, end = rest.rpartition("{scripts}")
    return "".join((head, styles, middle, added, end)).encode("utf-8", "replace")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
