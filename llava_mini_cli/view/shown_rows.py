"""Rows as a page gets them: JSON without nulls, with the addresses of picture and medium."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llava_mini_cli.view.media import MediaPlaces, link, shown_type

_OF_THE_TABLE = ("part", "place", "medium", "picture")  # columns that a page does not need


def shown_row(
    row: Mapping[str, Any],
    places: MediaPlaces,
    picture: str | None,
    address: Callable[[int, Path], str],
    *,
    every_type: bool = False,
) -> dict[str, Any]:
    """One row.

    Args:
        row: the row's columns, as `RowTable.rows` gives them.
        picture: the address of its small picture, if it has one.
        address: makes the address of a medium of the row's number and its file.
        every_type: also a medium of a kind that no browser shows has an address, by which something else may open it.
    """
    shown = {name: value for name, value in row.items() if value is not None and name not in _OF_THE_TABLE}
    for name in ("probs", "evidence", "fields"):
        if name in shown:
            shown[name] = _parsed(shown[name])
    if picture is not None:
        shown["picture"] = picture
    web = link(row["path"] or "")
    if web is not None:
        shown["link"] = web
        return shown
    file = places.medium(row)
    if file is None:
        shown["gone"] = True
        return shown
    kind = shown_type(file)
    if kind is not None or every_type:
        shown["source"] = address(row["n"], file)
    if kind is not None:
        shown.setdefault("kind", kind.partition("/")[0])
    return shown


def _parsed(text: str) -> Any:
    """JSON of a stranger; None where it is none."""
    try:
        return json.loads(text, parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        return None
