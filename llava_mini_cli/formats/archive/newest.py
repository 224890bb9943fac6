"""The rows of `media` that count, of those that all parts hold: the newest of each path, and where its frames are."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def newest_rows(media: pa.Table) -> pa.Table:
    """The row with the highest number for each path; of rows with the same number, that of the highest part."""
    if not len(media):
        return media
    codes = media["path"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.lexsort((media["part"].to_numpy(), media["medium"].to_numpy(), codes))
    last = np.append(codes[order][1:] != codes[order][:-1], True)
    return media.take(np.sort(order[last]))


def with_frames(newest: pa.Table, rows: pa.Table) -> pa.Table:
    """The rows with `medium` and `part` of their frames; one whose frames are not there any more is left out."""
    places = {name: newest.schema.get_field_index(name) for name in ("medium", "part")}
    for name in places:
        newest = newest.append_column(f"row_{name}", newest[name])
    moved = newest["frames_of"].is_valid().to_numpy()
    if not moved.any():
        return newest
    own = rows.filter(rows["frames_of"].is_null())
    number, part = own["medium"].to_numpy(), own["part"].to_numpy()
    order = np.lexsort((part, number))
    wanted = pc.coalesce(newest["frames_of"], newest["medium"]).to_numpy()
    last = np.searchsorted(number[order], wanted, "right") - 1  # in the highest part that has it
    found = np.isin(wanted, number)
    there = np.where(moved & found, part[order][np.maximum(last, 0)] if len(part) else -1, newest["part"].to_numpy())
    newest = newest.set_column(places["medium"], "medium", pa.array(wanted))
    return newest.set_column(places["part"], "part", pa.array(there)).filter(pa.array(~moved | found))
