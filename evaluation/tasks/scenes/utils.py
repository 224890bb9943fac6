"""Rendered scenes as tasks of lmms-eval: what is shown, asked and right. The data are made by `make_scenes.py`."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

Row = dict[str, Any]
Likely = tuple[float, bool]  # what a model says of a continuation: its loss, and whether it would be written


def scene_doc_to_visual(doc: Row) -> list[Any]:
    """A picture as Pillow has it, a video as the path of its file."""
    if doc["media"] == "video":
        return [doc["file"]]
    with Image.open(doc["file"]) as picture:
        return [picture.convert("RGB")]


def scene_doc_to_choice(doc: Row) -> list[str]:
    return doc["choices"]


def scene_doc_to_target(doc: Row) -> str:
    return doc["answer"]


def scene_process_answer(doc: Row, results: Sequence[str]) -> Row:
    return {"exact_match": float(results[0].strip() == doc["answer"])}


def scene_process_choices(doc: Row, results: Sequence[Likely]) -> Row:
    losses = [loss for loss, _ in results]
    return {"acc": float(doc["choices"][losses.index(min(losses))] == doc["answer"])}


def scene_process_target(doc: Row, results: Sequence[Likely]) -> Row:
    (found,) = results
    return {"acc": float(found[1]), "loss": found[0]}
