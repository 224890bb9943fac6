"""Tables of answers: latency, images and frames a second, further questions, keys and values that are held.

Every ratio is of times that were taken in turn. What runs out of memory raises `MemoryError`, or what torch raises.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from llava_mini_cli.bench.answering import answer, llava_answer
from llava_mini_cli.bench.counted_tables import SIDES, place_of
from llava_mini_cli.bench.counting import FlopCounts, llava_frame_bytes, position_bytes
from llava_mini_cli.bench.made_models import AFTER, BEFORE, compressor_of
from llava_mini_cli.bench.paper import CARDS, TABLE_13
from llava_mini_cli.bench.report import Chart, Column, Record, Table
from llava_mini_cli.bench.subject import Subject
from llava_mini_cli.bench.timing import alternate, seconds
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.memory import unless_out_of_memory

NEW_TOKENS = 32
QUESTIONS = 16
HELD = (8, 24)  # frames of the videos whose keys and values are looked at
NO_LLAVA = "LLaVA-1.5 was not run: memory ran out, or its weights cannot be shared with a model in fewer bits."

Work = Callable[[], object]


def latency_table(subject: Subject, engine: Engine, rounds: int) -> Table:
    """From one image to the first token of an answer, for each number of vision tokens, as the paper's Table 13."""
    model, config = engine.model, engine.model.config
    compressors = {side: compressor_of(model, side) for side in SIDES}
    kept, own = model.model.compressor, config.compressor_size

    def first_token(side: int) -> None:
        config.compressor_size, model.model.compressor = side, compressors[side]
        answer(engine, 1)

    works: dict[str, Work] = {str(side * side): partial(first_token, side) for side in SIDES}
    if subject.llava is not None:
        works["llava"] = partial(llava_answer, subject.llava, engine, 1, 1)
    try:
        taken = alternate(rounds, subject.device, works, repeats=1 if subject.is_slow else 2)
    finally:
        config.compressor_size, model.model.compressor = own, kept
    llava = taken.get("llava")
    records = [_latency("LLaVA-Mini", side * side, taken[str(side * side)], llava, TABLE_13[side**2]) for side in SIDES]
    if llava is not None:
        patches = config.parts_per_frame * config.patch_grid**2
        records.append(_latency("LLaVA-1.5", patches, llava, llava, TABLE_13[576]))
    columns = [
        Column("model", "model"),
        Column("vision_tokens", "tokens", grouped=False),
        Column("ms", "ms here", 1),
        Column("times", "times as fast"),
        *(Column(_key(card), f"paper, {card}", 1) for card in CARDS),
        Column("paper_times", "times, A100"),
    ]
    notes = [
        "From decoded pixels to the first token, 43 text tokens, in ms. Times as fast as LLaVA-1.5 here, and on the "
        "paper's A100. The paper's figures (Table 13) are of Vicuna-7B at 336 px on its own cards.",
        *([NO_LLAVA] if llava is None else []),
    ]
    places = [place_of(record) for record in records]
    series = {"here": [cast(float, record["ms"]) for record in records]}
    chart = Chart("bars", "One image to the first token", "", "ms", places, series)
    return Table("latency", "Latency of one image", columns, records, notes, [chart])


def _key(card: str) -> str:
    return card.lower().replace(" ", "_") + "_ms"


def _latency(model: str, tokens: int, taken: float, llava: float | None, paper: tuple[float, ...]) -> Record:
    return {
        "model": model,
        "vision_tokens": tokens,
        "ms": round(1e3 * taken, 3),
        "times": llava and round(llava / taken, 4),
        **{_key(card): value for card, value in zip(CARDS, paper, strict=True)},
        "paper_times": round(TABLE_13[576][1] / paper[1], 4),
    }


def rates_table(subject: Subject, engine: Engine, rounds: int) -> Table:
    """Images and frames a second, and what each further question about a video costs."""
    images, frames, batches = (2, 2, (1, 2)) if subject.is_slow else (8, 8, (1, 4, 8))
    works: dict[str, Work] = {
        "images": partial(answer, engine, 1, 1, NEW_TOKENS, images),
        "video": partial(answer, engine, frames),
        "questions": partial(answer, engine, frames, QUESTIONS),
    }
    batch = None if subject.llava is None else _best_batch(subject, engine, batches)
    if batch is not None:
        works["llava"] = partial(llava_answer, subject.llava, engine, batch, NEW_TOKENS)
    taken = alternate(rounds, subject.device, works, warm=True)
    llava = None if batch is None else batch / taken["llava"]
    rate, video = images / taken["images"], taken["video"]
    further = (taken["questions"] - video) / (QUESTIONS - 1)
    counts = FlopCounts(subject.config)
    one, two = (counts.engine(questions)["total"] for questions in (1, 2))
    columns = [
        Column("figure", "figure"),
        Column("llava_mini", "LLaVA-Mini", 3),
        Column("llava_15", "LLaVA-1.5", 3),
        Column("ratio", "ratio", 2),
    ]
    records = [
        _figure(f"images a second, {NEW_TOKENS} new tokens each", rate, llava),
        _figure(f"frames a second, a video of {frames} frames", frames / video),
        _figure(f"{QUESTIONS} questions about it, in units of one", taken["questions"] / video),
        _figure("each further question, share of the first", further / video),
        _figure("a further question about an image, share of the first by FLOPs", (two - one) / one),
    ]
    tried = f"LLaVA-1.5 in batches of {batch}, the quickest of {', '.join(map(str, batches))}." if batch else NO_LLAVA
    notes = [f"Images: {images} at once through the engine; {tried} Videos: to the first token of each answer."]
    return Table("rates", "Images, frames and questions", columns, records, notes)


def _figure(name: str, value: float, llava: float | None = None) -> Record:
    told, ratio = (None, None) if llava is None else (round(llava, 4), round(value / llava, 4))
    return {"figure": name, "llava_mini": round(value, 4), "llava_15": told, "ratio": ratio}


def _best_batch(subject: Subject, engine: Engine, batches: tuple[int, ...]) -> int | None:
    """The batch in which LLaVA-1.5 answers most images a second, of those that fit the memory."""
    taken: dict[int, float] = {}
    for batch in batches:
        work = partial(llava_answer, subject.llava, engine, batch, NEW_TOKENS)
        found = unless_out_of_memory(seconds, work, subject.device)
        if found is None:
            break
        taken[batch] = found / batch
    return min(taken, key=lambda batch: taken[batch], default=None)


def held_table(subject: Subject, engine: Engine) -> Table:
    """Keys and values that an image or frame holds, looked at while there are answers, beside what is counted."""
    config = subject.config
    held = [answer(engine, frames, new_tokens=2) for frames in HELD]
    counted = config.vision_tokens_per_frame * position_bytes(config, subject.number_bytes)
    records: list[Record] = [_held("LLaVA-Mini", (held[1] - held[0]) / (HELD[1] - HELD[0]), counted)]
    if subject.llava is not None:
        found: Any = llava_answer(subject.llava, engine, 1, 1).past_key_values
        whole = sum(layer.keys.nbytes + layer.values.nbytes for layer in found.layers)
        positions = found.get_seq_length()
        each = whole * (positions - BEFORE - AFTER) / positions
        records.append(_held("LLaVA-1.5", each, llava_frame_bytes(config, subject.number_bytes)))
    columns = [Column("model", "model"), Column("measured_mb", "MB", 3), Column("counted_mb", "counted, MB", 3)]
    notes = [
        f"Tensors of keys and values in {subject.dtype_name}; of LLaVA-Mini those that a video of {HELD[1]} frames "
        f"holds and one of {HELD[0]} does not, divided by the frames.",
    ]
    return Table("memory_held", "Memory of an image or frame (measured)", columns, records, notes)


def _held(model: str, measured: float, counted: int) -> Record:
    return {"model": model, "measured_mb": round(measured / 1e6, 6), "counted_mb": round(counted / 1e6, 6)}
