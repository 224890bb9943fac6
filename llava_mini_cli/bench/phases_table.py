"""The phases of the engine's work, each beside plain matrix products of its own layers' shapes in the same run."""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch

from llava_mini_cli.bench.counting import flops, prefill_lengths
from llava_mini_cli.bench.made_models import meta_model
from llava_mini_cli.bench.report import Column, Record, Table
from llava_mini_cli.bench.subject import Subject
from llava_mini_cli.bench.timing import LayerProducts, alternate
from llava_mini_cli.engine.encode import encode
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.language_model import PrefillItem
from llava_mini_cli.engine.llm.generate import DecodeBatch, decode, prefill
from llava_mini_cli.engine.pack import pack_prompts


class _Phase(NamedTuple):
    """A piece of the engine's work."""

    name: str
    work: Callable[[], object]
    counted: Callable[[], object] | None  # the same without numbers; None: its products are all there is to count
    repeats: int


def phases_table(subject: Subject, engine: Engine, rounds: int) -> Table:
    """How much of the rate of plain products each phase reaches."""
    records: list[Record] = []
    for phase in _phases(engine, subject.is_slow):
        products = LayerProducts(engine.model, phase.work)
        works = {"phase": phase.work, **products.works(subject.device)}
        taken = alternate(rounds, subject.device, works, repeats=phase.repeats)
        limit = products.flops / products.whole(taken)
        whole = products.flops if phase.counted is None else flops(phase.counted).whole
        rate = whole / taken["phase"]
        records.append(
            {
                "phase": phase.name,
                "ms": round(1e3 * taken["phase"], 3),
                "gflops": round(rate / 1e9, 2),
                "limit_gflops": round(limit / 1e9, 2),
                "share": round(rate / limit, 4),
                "products_share": round(products.whole(taken) / taken["phase"], 4),
            }
        )
    columns = [
        Column("phase", "phase"),
        Column("ms", "ms", 1),
        Column("gflops", "GFLOP/s", 1),
        Column("limit_gflops", "torch.matmul, GFLOP/s", 1),
        Column("share", "share reached"),
        Column("products_share", "share without attention"),
    ]
    notes = [
        "The limit is torch.matmul of the phase's own layers, shape by shape, in turn with the phase. Share reached: "
        "operations a second of the phase, in encoding with attention, over those of the limit; the last column leaves "
        "attention out. Above 1 the engine's library for products is quicker than torch.matmul.",
    ]
    return Table("phases", "Share of this machine's own matrix rate", columns, records, notes)


def _phases(engine: Engine, is_slow: bool) -> list[_Phase]:
    model, config = engine.model, engine.model.config

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape).to(model.device, model.model.dtype)

    pack = pack_prompts([engine.prompts.question_ids("0")])
    prefix, tail = (random(length, config.hidden_size) for length in prefill_lengths(pack, config, 1))
    item = PrefillItem(prefix, (tail,))
    size = cast(int, config.vision.image_size)
    chunk = 1 if is_slow else engine.limits.chunk_frames
    pixels = random(chunk, config.parts_per_frame, 3, size, size)
    cache, _ = prefill(model, [item])
    batch = DecodeBatch(cache, torch.zeros(1, dtype=torch.int64, device=model.device))
    token = torch.ones(1, dtype=torch.int64, device=model.device)
    bare = meta_model(type(config).from_fields(config.to_dict()))

    def encoding(frames: int) -> _Phase:
        return _Phase(
            f"encode {frames} frame{'s' * (frames > 1)}",
            lambda: encode(model.model, pixels[:frames], [pack] * frames),
            lambda: encode(bare.model, torch.zeros(pixels[:frames].shape), [pack] * frames),
            1,
        )

    return [
        *map(encoding, sorted({1, chunk})),
        _Phase("prefill 1 frame", lambda: prefill(model, [item]), None, 1 if is_slow else 3),
        _Phase("step of 1 answer", lambda: decode(model, [batch], token), None, 3),
    ]
