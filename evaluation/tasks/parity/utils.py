"""The paper's video benchmarks as the reference's own scripts ask and score them, on lists made by `prepare.py`.

The texts in `prompts/` and in `OPTIONS` are the reference's, word for word (github.com/ictnlp/LLaVA-Mini,
llavamini/eval/video).
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

Row = dict[str, Any]
LETTERS = "ABCDE"
OPTIONS = "Question: {question}\nOptions:\n{options}\nAnswer with one letter."
_PICTURES = (".png", ".jpg", ".jpeg")
_PROMPTS = Path(__file__).parent / "prompts"


def video_doc_to_visual(doc: Row) -> list[Any]:
    """The path of a video, or the pictures of a folder in the order of their names."""
    path = Path(doc["file"])
    if not path.is_dir():
        return [str(path)]
    frames: list[Image.Image] = []
    for name in sorted(one for one in path.iterdir() if one.name.endswith(_PICTURES)):
        with Image.open(name) as frame:
            frames.append(frame.convert("RGB"))
    return frames


def options_doc_to_text(doc: Row) -> str:
    """The prompt of MVBench and MLVU."""
    options = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, doc["options"], strict=False))
    return OPTIONS.format(question=doc["question"], options=options)


def egoschema_doc_to_text(doc: Row) -> str:
    options = {f"option{letter}": option for letter, option in zip(LETTERS, doc["options"], strict=True)}
    return (_PROMPTS / "egoschema.txt").read_text().format(question=doc["question"], **options)


def video_qa_doc_to_text(doc: Row) -> str:
    """The prompt of MSVD-QA and MSRVTT-QA."""
    return (_PROMPTS / "video_qa.txt").read_text() + doc["question"]


def activitynet_qa_doc_to_text(doc: Row) -> str:
    return (_PROMPTS / "activitynet_qa.txt").read_text() + doc["question"]


def options_process_results(doc: Row, results: Sequence[str]) -> Row:
    """Right where the answer is the right letter alone, or has it before its first bracket that closes."""
    said = results[0].strip()
    if ")" in said:
        said = said[: said.index(")")][-1:]
    return {"accuracy": {"kind": doc["kind"], "right": said == LETTERS[doc["options"].index(doc["answer"])]}}


def egoschema_process_results(doc: Row, results: Sequence[str]) -> Row:
    """Right where the first of the five capital letters in the answer is the right one."""
    said = next((LETTERS.index(letter) for letter in results[0] if letter in LETTERS), -1)
    return {"accuracy": {"kind": doc["kind"], "right": said == int(doc["answer"])}}


def mean_of_kinds(found: Sequence[Row]) -> float:
    """The mean of each kind's share of right answers, as a percentage."""
    kinds: dict[str, list[bool]] = {}
    for one in found:
        kinds.setdefault(one["kind"], []).append(one["right"])
    return 100 * sum(sum(right) / len(right) for right in kinds.values()) / len(kinds)


def word_process_results(doc: Row, results: Sequence[str]) -> Row:
    """Right where the answer's words occur in the sentence: a count that needs no judge, and is not the paper's."""
    wanted = rf"\b{re.escape(str(doc['answer']).lower())}\b"
    return {"word_match": float(re.search(wanted, results[0].lower()) is not None)}


def judged_process_results(doc: Row, results: Sequence[str]) -> Row:
    """The word match, and what lmms-eval's judge says, which is asked over the network."""
    from lmms_eval.tasks.activitynetqa.utils import activitynetqa_process_results

    return {
        **word_process_results(doc, results),
        **activitynetqa_process_results({**doc, "type": doc["kind"]}, results),
    }


def judged_score(found: Sequence[Row]) -> float:
    from lmms_eval.tasks.activitynetqa.utils import activitynetqa_aggregate_score

    return activitynetqa_aggregate_score(found, None)


def judged_accuracy(found: Sequence[Row]) -> float:
    from lmms_eval.tasks.activitynetqa.utils import activitynetqa_aggregate_accuracy

    return activitynetqa_aggregate_accuracy(found, None)
