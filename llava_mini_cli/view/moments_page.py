"""What `search` found as one file that holds the page, the moments and their pictures."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from llava_mini_cli.formats.archive.moments import Moment
from llava_mini_cli.view.facets import CHUNK, Facets, chunk_script
from llava_mini_cli.view.media import MediaPlaces, file_url
from llava_mini_cli.view.page.document import document
from llava_mini_cli.view.shown_rows import shown_row


def moments_page(moments: Sequence[Moment], pictures: Sequence[bytes | None], query: str) -> bytes:
    """The page, UTF-8, which loads nothing but the media themselves; `pictures` are JPEGs, one for each moment."""
    places, facets = MediaPlaces(Path()), Facets()
    rows = list[dict[str, object]]()
    for moment, picture in zip(moments, pictures, strict=True):
        address = None if picture is None else f"data:image/jpeg;base64,{b64encode(picture).decode()}"
        told = asdict(moment)
        row = {
            "n": len(rows), "path": moment.path, "file": moment.file_name, "kind": moment.media, "segment": moment.rank,
            "text": moment.caption, "status": "ok", "p": told["score"] if moment.p_yes is None else moment.p_yes,
            "duration": moment.duration_s, **{name: told[name] for name in ("start", "end", "time")},
        }  # fmt: skip
        rows.append(shown_row(row, places, address, lambda n, path: file_url(path), every_type=True))
        facets.add(rows[-1])
    checked = any(moment.p_yes is not None for moment in moments)
    scripts = [facets.script("Probability" if checked else "Score")]
    scripts += [chunk_script(at // CHUNK, rows[at : at + CHUNK]) for at in range(0, len(rows), CHUNK)]
    return document(query, "inside", [*scripts, "llavaMini.start();\n"])
