"""The columns that a page knows of a row, whichever output of ours the row is in, as SQL of DuckDB.

Nothing of a row's content becomes SQL: names of columns are looked up in a fixed list, and values are parameters.
"""

from collections.abc import Mapping
from functools import partial

# What the page knows of a row, and its type in DuckDB. `n` numbers the rows in the order in which they were read.
COLUMNS: Mapping[str, str] = {
    "n": "BIGINT",
    "part": "INTEGER",  # number of the file that the row is in
    "place": "BIGINT",  # of the row in that file
    "medium": "UBIGINT",  # hash of the path, by which rows of one medium are found
    "path": "VARCHAR",  # path or URL of the medium, as the run named it
    "file": "VARCHAR",
    "kind": "VARCHAR",  # image or video
    "segment": "INTEGER",
    "start": "DOUBLE",  # seconds
    "end": "DOUBLE",
    "time": "DOUBLE",  # seconds, the best moment: of a search, or of the highest probability
    "name": "VARCHAR",  # of the question
    "prompt": "VARCHAR",
    "question": "VARCHAR",  # the name, or the prompt where it has none
    "text": "VARCHAR",
    "status": "VARCHAR",
    "error": "VARCHAR",
    "error_type": "VARCHAR",
    "error_stage": "VARCHAR",
    "warning": "VARCHAR",
    "label": "VARCHAR",  # the choice
    "probs": "VARCHAR",  # JSON, the probability of each choice
    "p": "DOUBLE",  # the one number of the row: of yes, of the choice, the highest of an event, or a score
    "scored": "BOOLEAN",  # that number is a score
    "duration": "DOUBLE",  # seconds
    "width": "INTEGER",  # pixels
    "height": "INTEGER",
    "evidence": "VARCHAR",  # JSON
    "fields": "VARCHAR",  # JSON
    "sought": "VARCHAR",  # what a search looks in, in lower case
    "picture": "VARCHAR",  # path of a picture relative to the output; empty: it is in the Parquet file
}
# Probabilities along a video, by the hashes of its path and of the question.
TRACK_COLUMNS: Mapping[str, str] = {
    "n": "BIGINT",
    "part": "INTEGER",
    "medium": "UBIGINT",
    "question": "UBIGINT",
    "time": "DOUBLE",
    "p": "DOUBLE",
}
READ_AS_TEXT: tuple[str, ...] = (  # columns of outputs, as JSON lines and CSV are read
    "id", "path", "file_name", "media", "segment", "rank", "start", "end", "time", "prompt_name", "prompt", "text",
    "caption", "status", "error", "error_type", "error_stage", "warning", "choice", "choice_probs", "p_yes", "p_mean",
    "p_peak", "peak_at", "score", "duration_s", "width", "height", "evidence", "json", "thumbnail",
)  # fmt: skip
NAMES_A_MEDIUM = ("id", "path", "file_name")  # one of which every output of ours has
LONGEST_TEXT = 65536  # characters of a text that a page shows; the rest is cut


SHOWN = tuple(name for name in COLUMNS if name not in ("sought", "scored"))


def selection(there: Mapping[str, str], place: str) -> str:
    """A list of expressions, one for each of `COLUMNS` behind `part`, over a table with other columns.

    Args:
        there: names and DuckDB types of the columns that the table has.
        place: an SQL expression for the number of a row in its file; `n` is that plus the parameter `$base`.
    """

    text, number = partial(_text, there), partial(_number, there)
    path, name, prompt = text(*NAMES_A_MEDIUM), f"nullif({text('prompt_name')}, '')", text("prompt")
    error = text("error")
    failed = f"CASE WHEN coalesce({error}, '') != '' THEN 'error' ELSE 'ok' END"
    probs, highest = _choices(there.get("choice_probs"))
    expressions = {
        "place": place,
        "medium": f"hash({path})",
        "path": path,
        "file": text("file_name", "id", "path"),
        "kind": text("media"),
        "segment": number("segment", "rank", kind="INTEGER"),
        "start": number("start"),
        "end": number("end"),
        "time": number("time", "peak_at"),
        "name": name,
        "prompt": prompt,
        "question": f"coalesce({name}, {prompt})",
        "text": text("text", "caption"),
        "status": f"coalesce(nullif({text('status')}, ''), {failed})",
        "error": error,
        "error_type": f"nullif({text('error_type')}, '')",
        "error_stage": text("error_stage"),
        "warning": text("warning"),
        "label": f"nullif({text('choice')}, '')",
        "probs": probs,
        "p": f"coalesce({number('p_yes')}, {highest}, {number('p_peak', 'p_mean', 'score')})",
        "scored": f"coalesce({number('p_yes')}, {highest}, {number('p_peak', 'p_mean')}) IS NULL"
        f" AND {number('score')} IS NOT NULL",
        "duration": number("duration_s"),
        "width": number("width", kind="INTEGER"),
        "height": number("height", kind="INTEGER"),
        "evidence": _json("evidence", there),
        "fields": _json("json", there),
        "sought": f"lower(concat_ws(chr(10), {text('text', 'caption')}, {error}, {text('file_name', 'id', 'path')}))",
        "picture": _picture(there.get("thumbnail")),
    }
    rest = ", ".join(f'{expressions[column]} AS "{column}"' for column in COLUMNS if column in expressions)
    return f"$base + {place} AS n, $part AS part, {rest}"


def track_selection(there: Mapping[str, str], place: str) -> str:
    """The same for the rows of a track: the probability of yes at a time."""
    path, name, prompt = (_text(there, *names) for names in (NAMES_A_MEDIUM, ("prompt_name",), ("prompt",)))
    return (
        f"$base + {place} AS n, $part AS part, hash({path}) AS medium,"
        f" hash(coalesce(nullif({name}, ''), {prompt})) AS question,"
        f" {_number(there, 'time', 'start')} AS time, {_number(there, 'p_yes')} AS p"
    )


def _text(there: Mapping[str, str], *names: str) -> str:
    found = [f'substr(CAST("{name}" AS VARCHAR), 1, {LONGEST_TEXT})' for name in names if name in there]
    return f"coalesce({', '.join(found)})" if found else "NULL"


def _number(there: Mapping[str, str], *names: str, kind: str = "DOUBLE") -> str:
    found = [f'try_cast("{name}" AS {kind})' for name in names if name in there]
    return f"coalesce({', '.join(found)})" if found else "NULL"


def _choices(kind: str | None) -> tuple[str, str]:
    """The probabilities as JSON, and the highest of them: in Parquet they are a list, elsewhere a JSON object."""
    if kind is None:
        return "NULL", "NULL"
    if kind.startswith("STRUCT"):
        pairs = "list_transform(choice_probs, lambda one: struct_pack(k := one.choice, v := one.probability))"
        values = "list_transform(choice_probs, lambda one: one.probability)"
        return f"CAST(to_json(map_from_entries({pairs})) AS VARCHAR)", f"list_max({values})"
    given = "CAST(choice_probs AS VARCHAR)"
    valid = f"CASE WHEN json_valid({given}) THEN {given} END"
    return valid, f"list_max(map_values(try_cast(try_cast({valid} AS JSON) AS MAP(VARCHAR, DOUBLE))))"


def _json(name: str, there: Mapping[str, str]) -> str:
    kind = there.get(name)
    if kind is None:
        return "NULL"
    if kind in ("VARCHAR", "JSON"):
        given = f'CAST("{name}" AS VARCHAR)'
        return f"CASE WHEN json_valid({given}) AND length({given}) <= {LONGEST_TEXT} THEN {given} END"
    return f'CAST(to_json("{name}") AS VARCHAR)'


def _picture(kind: str | None) -> str:
    if kind is None:
        return "NULL"
    return "CASE WHEN thumbnail IS NOT NULL THEN '' END" if kind == "BLOB" else "nullif(CAST(thumbnail AS VARCHAR), '')"
