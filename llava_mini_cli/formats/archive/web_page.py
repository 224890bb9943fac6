"""Found moments as one self-contained web page: thumbnails inside, links that open each video at its moment."""

import os
import re
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from llava_mini_cli.formats.archive.moments import Moment
from llava_mini_cli.formats.archive.reader import local_name
from llava_mini_cli.formats.shown_text import for_terminal
from llava_mini_cli.formats.web_head import web_head

_FOLLOWED = re.compile(r"(?:https?|file)://", re.IGNORECASE)
_IN_URLS = "%/:?#[]@!$&'()*+,;=~"  # characters with a meaning there

_STYLES = """
ol { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
ol { list-style: none; padding: 0; }
img, .none { aspect-ratio: 16 / 9; background: #8883; border-radius: .4rem; object-fit: contain; width: 100%; }
.none { align-items: center; display: flex; justify-content: center; }
p { margin: .2rem 0; overflow-wrap: anywhere; }
small { opacity: .7; }
"""


def page(moments: Sequence[Moment], thumbnails: Sequence[bytes | None], query: str) -> bytes:
    """The page, UTF-8; a moment without a thumbnail has an empty frame."""
    items = "".join(_item(moment, picture) for moment, picture in zip(moments, thumbnails, strict=True))
    told = f"{len(moments)} moments. A score is the cosine of the query and a frame in CLIP's space."
    text = f"{web_head(_escaped(query), _STYLES)}<p><small>{told}</small></p>\n<ol>\n{items}</ol>\n</body>\n</html>\n"
    return text.encode("utf-8", "replace")


def clock(seconds: float) -> str:
    """`1:02:03.5`, without hours where there are none."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    tail = f"{rest:04.1f}"
    return f"{hours}:{minutes:02}:{tail}" if hours else f"{minutes}:{tail}"


def link(moment: Moment) -> str | None:
    """The URL at which a browser opens the medium at the moment; None for other schemes than file, http and https."""
    if _FOLLOWED.match(moment.path):
        url = quote(moment.path.encode("utf-8", "surrogateescape"), safe=_IN_URLS)
    elif "://" in moment.path:
        return None
    else:
        url = "file://" + quote(os.fsencode(os.path.abspath(local_name(moment.path))))  # noqa: PTH100 - any name
    return url if moment.start is None else f"{url}#t={moment.start:.1f}"


def _item(moment: Moment, picture: bytes | None) -> str:
    where = link(moment)
    begin, end = ("", "") if where is None else (f'<a href="{escape(where, quote=True)}">', "</a>")
    shown = '<span class="none">no picture</span>'
    if picture is not None:
        shown = f'<img alt="" src="data:image/jpeg;base64,{b64encode(picture).decode()}">'
    time = "" if moment.start is None or moment.end is None else f"{clock(moment.start)} to {clock(moment.end)}, "
    yes = "" if moment.p_yes is None else f", yes {moment.p_yes:.2f}"
    caption = f"<p>{_escaped(moment.caption)}</p>" if moment.caption else ""
    return (
        f"<li>{begin}{shown}{end}<p>{begin}{_escaped(moment.file_name)}{end}</p>"
        f"<p><small>{time}score {moment.score:.3f}{yes}</small></p>{caption}</li>\n"
    )


def _escaped(text: str) -> str:
    return escape(for_terminal(text), quote=True)
