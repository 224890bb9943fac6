"""What was found out about one medium, as files of a folder: pictures, arrays, and one self-contained web page."""

import io
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.formats.disk import errors_of, write_own_file
from llava_mini_cli.formats.shown_text import for_terminal
from llava_mini_cli.formats.web_head import web_head

PAGE, ARRAYS = "index.html", "arrays.npz"

_STYLES = """
.heats { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(13rem, 40%), 1fr)); }
.heats.large { grid-template-columns: repeat(auto-fill, minmax(min(28rem, 100%), 1fr)); }
figure { margin: 0; }
figure.wide { grid-column: 1 / -1; overflow-x: auto; }
img { background: #8883; border-radius: .4rem; display: block; max-width: 100%; }
figure.wide img { background: none; border-radius: 0; max-width: none; }
.scale { background: linear-gradient(90deg, #000004, #420a68, #932667, #dd513a, #fca50a, #fcffa4);
  border-radius: .2rem; display: inline-block; height: .8rem; vertical-align: middle; width: 12rem; }
dl { display: grid; gap: .2rem 1rem; grid-template-columns: max-content 1fr; }
dd { margin: 0; overflow-wrap: anywhere; }
"""


class Shown(NamedTuple):
    """A picture: its file's name, its bytes, and what it shows in words."""

    name: str
    png: bytes
    caption: str
    is_wide: bool = False  # it has a row of the page for itself


class Section(NamedTuple):
    """Pictures under a heading."""

    heading: str
    note: str  # what the pictures are, in a sentence; "" where the heading says it
    pictures: tuple[Shown, ...]
    is_part: bool = False  # of the section before, whose heading is above its own
    is_large: bool = False  # its pictures have text, which must be read


@dataclass(frozen=True)
class Inspected:
    """What was found out about one medium."""

    path: str
    extent: str  # what of it is shown, in words
    question: str | None
    answer: str | None
    likelihoods: tuple[float, float] | None  # of the answer, and to the same prompt with no medium
    sections: tuple[Section, ...]
    arrays: Mapping[str, NDArray[Any]]
    warnings: tuple[str, ...]


def write_inspected(found: Inspected, folder: Path) -> None:
    """Writes everything into a folder, which is made. Raises `OutputError`."""
    with errors_of(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for section in found.sections:
        for picture in section.pictures:
            write_own_file(folder / picture.name, picture.png)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **found.arrays)  # pyright: ignore[reportArgumentType]
    write_own_file(folder / ARRAYS, buffer.getvalue())
    write_own_file(folder / PAGE, page(found))


def page(found: Inspected) -> bytes:
    """The page, UTF-8, with the pictures inside."""
    facts = {"Medium": found.path, "Shown": found.extent, "Question": found.question, "Answer": found.answer}
    if found.likelihoods is not None:
        facts["Likelihood"] = "{:.3g}, and {:.3g} to the same prompt without the medium".format(*found.likelihoods)
    for warning in found.warnings:
        facts["Warning"] = warning
    listed = "".join(f"<dt>{name}</dt><dd>{_escaped(value)}</dd>\n" for name, value in facts.items() if value)
    scale = '<p><small>Colours: none <span class="scale"></span> most.</small></p>\n'
    sections = "".join(map(_section, found.sections))
    head = web_head(_escaped(f"llava-mini inspect {Path(found.path).name}"), _STYLES)
    return f"{head}<dl>\n{listed}</dl>\n{scale}{sections}</body>\n</html>\n".encode("utf-8", "replace")


def _section(section: Section) -> str:
    note = f"<p><small>{_escaped(section.note)}</small></p>\n" if section.note else ""
    figures = "".join(map(_figure, section.pictures))
    kind = "h3" if section.is_part else "h2"
    size = "heats large" if section.is_large else "heats"
    heats = f'<div class="{size}">\n{figures}</div>\n' if figures else ""
    return f"<{kind}>{_escaped(section.heading)}</{kind}>\n{note}{heats}"


def _figure(picture: Shown) -> str:
    data = b64encode(picture.png).decode()
    caption = f"<figcaption><small>{_escaped(picture.caption)}</small></figcaption>" if picture.caption else ""
    kind = ' class="wide"' if picture.is_wide else ""
    return (
        f'<figure{kind}><img alt="{_escaped(picture.caption)}" src="data:image/png;base64,{data}">{caption}</figure>\n'
    )


def _escaped(text: str) -> str:
    return escape(for_terminal(text), quote=True)
