"""The paper's ablations at demo scale: pre-fusion layers, tokens a frame, queries or pooling, no compression.

    python benchmarks/ablations.py WORK --steps 250

WORK is a directory of `llava-mini train --preset demo` whose tower, language stage and stage 1 are finished. Every
variant starts from those and is trained for the same number of steps on the same examples, first on what pre-fusion is
asked (where there is any, or compression), then in stage 2; far fewer than the shipped model had: compare the variants
with each other, not with the model card. Results go to benchmarks/results/ablations.{json,md,png}; finished variants
are not trained again, and two processes may share the work (`--variants`).
"""

import argparse
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch

from llava_mini_cli.model import LlavaMiniForConditionalGeneration
from llava_mini_cli.train.demo_preset.demo_data import DemoData, RenderedMedium
from llava_mini_cli.train.demo_preset.packed_model import FusionTrainer, Mode, PackedTrainer
from llava_mini_cli.train.demo_preset.packing import Packer, PromptIds
from llava_mini_cli.train.demo_preset.stages import (
    DENSE,
    FUSION,
    FUSION_PARTS,
    PATCHES,
    STAGE2,
    build_model,
    load_tokenizer,
)
from llava_mini_cli.train.loop import train_stage

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
VALIDATION = 400  # media that the variants are scored on
FUSION_STEPS = 150
GROUPS = {"image": 10, "video": 0}  # images of every 16 media


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str
    table: str  # of the paper
    prefusion: int = 2
    side: int = 1  # C: C * C tokens a frame
    pooling: bool = False
    mode: Mode = "fused"  # patches: no compression and no pre-fusion, as LLaVA

    @property
    def file_name(self) -> str:
        return re.sub(r"\W+", "_", self.name).strip("_")


VARIANTS = (
    Variant("no pre-fusion", "7", prefusion=0),
    Variant("1 pre-fusion layer", "7", prefusion=1),
    Variant("2 pre-fusion layers, 1 token, queries", "7, 8, 10"),
    Variant("average pooling, 1 token", "8", pooling=True),
    Variant("4 tokens", "6, 10", side=2),
    Variant("average pooling, 4 tokens", "8", side=2, pooling=True),
    Variant("9 tokens", "6, 10", side=3),
    Variant("no compression (36 tokens), no pre-fusion", "6", prefusion=0, mode="patches"),
)


def start(work: Path, tokenizer: Any, variant: Variant) -> LlavaMiniForConditionalGeneration:
    """The variant's model: parts that every variant has come from stage 1, the others are new."""
    torch.manual_seed(0)
    model = build_model(
        work / "clip",
        tokenizer,
        prefusion_layer_num=variant.prefusion,
        compressor_size=variant.side,
        compressor_type="average" if variant.pooling else "query",
    )
    trained = torch.load(work / "stage1" / "model.pt", weights_only=True)
    own = model.state_dict()
    trained = {name.removeprefix("model."): value for name, value in trained.items() if not name.startswith("heads")}
    shared = {k: v for k, v in trained.items() if k in own and own[k].shape == v.shape and "compressor" not in k}
    model.load_state_dict(shared, strict=False)
    return model


@torch.inference_mode()
def right_answers(trainer: PackedTrainer, packer: Packer, media: Sequence[RenderedMedium]) -> float:
    """Share of answers of which every token is the likeliest, given the true ones before it."""
    right, asked = 0, 0
    for medium in media:
        batch = packer([medium])
        read = trainer.embedded(batch["pixel_values"], batch["text_ids"], batch["fusion"])
        found = trainer.logits(*read, batch["llm"]).argmax(-1) == batch["llm"]["token"]
        at = 0
        for question in medium.questions:
            length = len(packer.prompts.answer(question.answer))
            right += bool(found[at : at + length].all())
            asked += 1
            at += length
    return right / asked


def run(work: Path, out: Path, variant: Variant, steps: int) -> None:
    """Trains and scores one variant; the result goes to its own file in `out`."""
    name = variant.file_name
    tokenizer = load_tokenizer(work / "tokenizer")
    model = start(work, tokenizer, variant)
    trainer = PackedTrainer(model, variant.mode)
    each = PATCHES if variant.mode == "patches" else variant.side**2
    packer = Packer(PromptIds(tokenizer), PATCHES + variant.side**2, each, lambda _: DENSE)
    if variant.mode == "fused":
        trainer.train_only(FUSION_PARTS)
        first = dataclasses.replace(FUSION, name=f"{name}_fusion", steps=FUSION_STEPS, save_every=FUSION_STEPS)
        data = DemoData("train", first.steps * first.batch, images=12, longest=40)
        train_stage(FusionTrainer(trainer), data, packer, out / first.name, first)
        trainer.train_only(None)
    settings = dataclasses.replace(STAGE2, name=name, steps=steps, save_every=steps)
    train_stage(trainer, DemoData("train", steps * settings.batch, longest=40), packer, out / name, settings)
    trainer.eval()
    row: dict[str, Any] = {"variant": variant.name, "tables": variant.table, "steps": steps, "tokens": each}
    for group, images in GROUPS.items():
        data = DemoData("validation", VALIDATION, images=16 if images else 0, longest=40)
        row[group] = right_answers(trainer, packer, [data[i] for i in range(VALIDATION)])
    (out / f"{name}.json").write_text(json.dumps(row))


def finished(out: Path, steps: int) -> list[dict[str, Any]]:
    """The results of the variants that are finished, in the table's order."""
    files = [out / f"{variant.file_name}.json" for variant in VARIANTS]
    rows = [json.loads(file.read_text()) for file in files if file.is_file()]
    return [row for row in rows if row["steps"] == steps]


def write(rows: list[dict[str, Any]]) -> None:
    """The table and the plot."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "ablations.json").write_text(json.dumps(rows, indent=2) + "\n")
    lines = ["| variant | paper's table | tokens a frame | image answers | video answers |", "|---|---|---|---|---|"]
    for row in rows:
        shares = f"{100 * row['image']:.1f} % | {100 * row['video']:.1f} %"
        lines.append(f"| {row['variant']} | {row['tables']} | {row['tokens']} | {shares} |")
    note = f"\n{rows[0]['steps']} steps of stage 2 each, one seed; {VALIDATION} validation media a column.\n"
    (RESULTS / "ablations.md").write_text("\n".join(lines) + "\n" + note)
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(rows) + 1.5))
    places = range(len(rows))
    axes.barh([p + 0.2 for p in places], [100 * r["image"] for r in rows], 0.4, label="images")
    axes.barh([p - 0.2 for p in places], [100 * r["video"] for r in rows], 0.4, label="videos")
    axes.set_yticks(list(places), [r["variant"] for r in rows])
    axes.invert_yaxis()
    axes.set(xlabel="answers right, %", xlim=(0, 100))
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(RESULTS / "ablations.png", dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--variants", type=int, nargs="*", help="numbers from 0; all when none is given")
    arguments = parser.parse_args()
    chosen = VARIANTS if not arguments.variants else [VARIANTS[i] for i in arguments.variants]
    out = arguments.work / "ablations"
    for variant in chosen:
        if variant.name not in {row["variant"] for row in finished(out, arguments.steps)}:
            run(arguments.work, out, variant, arguments.steps)
        write(finished(out, arguments.steps))


if __name__ == "__main__":
    main()
