"""Tables that are counted and need no memory for a model: FLOPs by component, and what frames keep."""

from llava_mini_cli.bench.counting import Components, FlopCounts, frame_bytes, llava_frame_bytes
from llava_mini_cli.bench.paper import COMPONENTS, LLAVA_TOTAL, MEMORY_MB, MINI_TOTAL_HD, TABLE_6, TABLE_14
from llava_mini_cli.bench.report import Chart, Column, Record, Table
from llava_mini_cli.bench.subject import Subject

SIDES = (1, 2, 4, 8)  # C: C * C vision tokens an image
LENGTHS = (1, 100, 1_000, 3_600, 10_800)  # frames of a video; at one a second the last is three hours
MB = 1e6
HALF = 2  # bytes of a number in 16 bits, as the paper measures

ENGINE, PLAIN, LLAVA = "Mini, engine", "Mini, plain", "LLaVA-1.5"
PAPER = {PLAIN: "Mini, paper", LLAVA: "LLaVA, paper"}
_TITLES = {  # short, so that the table fits a terminal
    "tower": "tower",
    "projection": "proj.",
    "compression": "compr.",
    "prefusion": "fusion",
    "llm": "LLM",
    "total": "total",
    "products": "products",
}


def flops_table(subject: Subject, counts: FlopCounts) -> Table:
    """FLOPs of one image and one question by component, as the paper's Table 14, at one and two pixel sizes."""
    records: list[Record] = []
    size = subject.config.vision.image_size
    assert isinstance(size, int)
    unit = "T" if counts.llava(resolution_ratio=1)["total"] > 1 else "G"
    for ratio in (1, 2):
        pixels = size * ratio
        for side in SIDES:
            fields = {"resolution_ratio": ratio, "compressor_size": side}
            paper = _papers_total(subject, pixels, side * side)
            records.append(_record(PLAIN, pixels, side * side, unit, counts.plain(**fields), paper))
            records += _papers_rows(subject, "LLaVA-Mini", PLAIN, pixels, side * side)
            records.append(_record(ENGINE, pixels, side * side, unit, counts.engine(**fields), None))
        tokens = counts.with_fields(resolution_ratio=ratio).parts_per_frame * subject.config.patch_grid**2
        paper = LLAVA_TOTAL[pixels] if subject.is_the_papers else None
        records.append(_record(LLAVA, pixels, tokens, unit, counts.llava(resolution_ratio=ratio), paper))
        records += _papers_rows(subject, "LLaVA-1.5", LLAVA, pixels, tokens)
    columns = [
        Column("model", "model"),
        Column("pixels", "px", grouped=False),
        Column("vision_tokens", "tokens", grouped=False),
        *(Column(name, title, 3) for name, title in _TITLES.items()),
        *([Column("over_paper", "over paper", 3)] if subject.is_the_papers else []),
    ]
    notes = [
        f"In {_UNITS[unit]} of operations ({unit}), counted and not timed: one image, one question, 43 text tokens. "
        "Plain computes every position of every layer; the engine leaves out, exactly, what nobody reads. Totals count "
        "attention without regard to its mask; products are those with weights alone.",
        *([_PAPERS_NOTE] if subject.is_the_papers else ()),
    ]
    chart = _flops_chart(records, size, unit)
    return Table("flops", f"FLOPs by component, {unit} operations", columns, records, notes, [chart])


_UNITS = {"T": "millions of millions", "G": "thousands of millions"}
_PAPERS_NOTE = (
    "The paper's totals are those of products with weights alone, without attention: 1.96, 8.55, 7.19 and 40.49. "
    "Attention grows with the square of the length, so at 672 px totals are a tenth above the paper's, at 336 px 3 %."
)


def _papers_total(subject: Subject, pixels: int, tokens: int) -> float | None:
    if not subject.is_the_papers or subject.config.prefusion_layer_num != 4:
        return None
    return TABLE_6.get((4, tokens)) if pixels == 336 else MINI_TOTAL_HD.get(tokens)


def _papers_rows(subject: Subject, name: str, model: str, pixels: int, tokens: int) -> list[Record]:
    """What the paper says of the components of a model, if it says it of this one."""
    told = TABLE_14.get((name, pixels)) if subject.is_the_papers else None
    first = name == "LLaVA-1.5" or (tokens == 1 and subject.config.prefusion_layer_num == 4)
    if told is None or not first:
        return []
    return [{"model": PAPER[model], "pixels": pixels, "vision_tokens": tokens, "unit": "T", **told}]


def place_of(record: Record) -> str:
    """The words below a record's bar: the model and its vision tokens."""
    tokens = record["vision_tokens"]
    return f"{str(record['model']).split(',')[0]}\n{tokens} token{'s' * (tokens != 1)}"


def _record(model: str, pixels: int, tokens: int, unit: str, found: Components, paper: float | None) -> Record:
    scale = 1.0 if unit == "T" else 1e3
    scaled = {name: round(scale * value, 6) for name, value in found.items()}
    ratio = None if paper is None else round(found["total"] / paper, 4)
    of = {"model": model, "pixels": pixels, "vision_tokens": tokens, "unit": unit}
    return {**of, **scaled, "paper": paper, "over_paper": ratio}


def _flops_chart(records: list[Record], pixels: int, unit: str) -> Chart:
    shown = [record for record in records if record["pixels"] == pixels and record["model"] in (ENGINE, LLAVA)]
    names = ("vision tower", "projection", "compression", "pre-fusion", "LLM")
    series: dict[str, list[float | None]] = {
        name: [float(record[key] or 0) for record in shown] for name, key in zip(names, COMPONENTS, strict=False)
    }
    places = [place_of(record) for record in shown]
    return Chart("stacked", f"FLOPs of one image of {pixels} px", "", f"{unit} operations", places, series)


def layers_table(counts: FlopCounts) -> Table:
    """Totals by pre-fusion layers and vision tokens, beside the paper's Table 6; of the paper's models alone."""
    records: list[Record] = []
    for (layers, tokens), paper in TABLE_6.items():
        fields = {"resolution_ratio": 1, "prefusion_layer_num": layers, "compressor_size": round(tokens**0.5)}
        engine = counts.engine(**fields)["total"]
        records.append(_beside(str(layers), tokens, counts.plain(**fields), engine, paper))
    records.append(_beside("LLaVA-1.5", 576, counts.llava(resolution_ratio=1), None, LLAVA_TOTAL[336]))
    columns = [
        Column("prefusion_layers", "pre-fusion layers"),
        Column("vision_tokens", "tokens"),
        Column("plain", "plain", 3),
        Column("products", "products", 3),
        Column("engine", "engine", 3),
        Column("paper", "paper"),
        Column("over_paper", "plain over paper", 3),
    ]
    notes = ["In T operations, 336 px; products are those with weights alone, which is what the paper counts."]
    return Table("flops_by_layers", "FLOPs beside the paper's Table 6", columns, records, notes)


def _beside(layers: str, tokens: int, plain: Components, engine: float | None, paper: float) -> Record:
    return {
        "prefusion_layers": layers,
        "vision_tokens": tokens,
        "plain": round(plain["total"], 6),
        "products": round(plain["products"], 6),
        "engine": engine and round(engine, 6),
        "paper": paper,
        "over_paper": round(plain["total"] / paper, 4),
    }


def memory_table(subject: Subject) -> Table:
    """What videos of some lengths keep beside the weights, counted, and how many frames fit; the paper's Figure 9."""
    ours = frame_bytes(subject.config, subject.number_bytes)
    llava = llava_frame_bytes(subject.config, subject.number_bytes)
    records: list[Record] = [
        {
            "frames": frames,
            "llava_mini_mb": round(frames * ours / MB, 3),
            "llava_15_mb": round(frames * llava / MB, 3),
            "times": round(llava / ours, 2),
        }
        for frames in LENGTHS
    ]
    columns = [
        Column("frames", "frames"),
        Column("llava_mini_mb", "LLaVA-Mini, MB"),
        Column("llava_15_mb", "LLaVA-1.5, MB"),
        Column("times", "times", 1),
    ]
    half = frame_bytes(subject.config, HALF) / MB, llava_frame_bytes(subject.config, HALF) / MB
    notes = [
        f"Counted in {subject.dtype_name}: vision tokens of a frame, with their keys and values in all layers, beside "
        "the weights. The model's context bounds the length of a video, too.",
        f"In 16 bits an image takes {half[0]:,.3g} MB, of LLaVA-1.5 {half[1]:,.3g} MB. The paper says "
        f"{MEMORY_MB['LLaVA-Mini']:g} and {MEMORY_MB['LLaVA-1.5']:g} MB for Vicuna-7B at 336 px.",
    ]
    marks: dict[str, float] = {}
    if (left := subject.bytes_left) is not None:
        marks["memory beside the weights"] = left / MB
        notes.append(
            f"Beside the weights there is memory here for {left // ours:,} frames, of LLaVA-1.5 {left // llava:,}."
        )
    series: dict[str, list[float | None]] = {
        "LLaVA-Mini": [frames * ours / MB for frames in LENGTHS],
        "LLaVA-1.5": [frames * llava / MB for frames in LENGTHS],
    }
    chart = Chart("lines", "Memory against the length of a video", "frames", "MB", list(LENGTHS), series, marks)
    return Table("memory", "Memory against the length of a video (counted)", columns, records, notes, [chart])
