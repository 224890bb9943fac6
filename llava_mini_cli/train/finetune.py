"""The paper's two stages for real models: which parts are trained, at which rates, from which checkpoint.

Stage 1 trains the projector on captions while the language model reads every patch; stage 2 trains projector,
compressor, pre-fusion and language model on instructions. The vision tower is never trained.
"""

import math
import os
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import UsageError, first_line
from llava_mini_cli.hub import check_model
from llava_mini_cli.model import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini_cli.model.prompt_layouts import IMAGE_TOKEN_ID
from llava_mini_cli.train.answers_loss import answer_loss
from llava_mini_cli.train.conversations import ConversationCollator, ConversationData
from llava_mini_cli.train.loop import StageSettings, train_stage
from llava_mini_cli.train.records import Record, read_records, usable
from llava_mini_cli.train.stage_resume import Fact, same_run
from llava_mini_cli.train.train_options import PAPER_RATES, Average, Stage, TrainOptions

PARTS: dict[Stage, tuple[str, ...]] = {
    1: ("mm_projector",),
    2: ("mm_projector", "compressor", "prefusion_layers", "layers", "norm", "embed_tokens", "lm_head"),
}
LORA_TARGETS = r"model\.(layers|prefusion_layers)\.\d+\.(self_attn|mlp)\.\w+_proj"


class ConversationTrainer(nn.Module):
    """The model under training on ordinary batches; `forward` gives the loss.

    Args:
        model: the model; stage: 1 or 2; average: how the loss is averaged.
    """

    def __init__(self, model: LlavaMiniForConditionalGeneration, stage: Stage, average: Average) -> None:
        super().__init__()
        self.model = model
        self.stage: Stage = stage
        self.average: Average = average
        for name, parameter in model.named_parameters():
            part = name.removeprefix("model.").split(".")[0]
            parameter.requires_grad_(part in PARTS[stage] and not name.endswith("pos_embed"))

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """Trades time for memory; Trainer calls it under `activation_checkpointing`."""
        self.model.gradient_checkpointing_enable(**settings)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        frame_counts: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The loss of one batch of `ConversationCollator`."""
        model = self.model
        if pixel_values is None or frame_counts is None:
            embeddings, mask, targets = model.model.embed_text(input_ids), attention_mask.bool(), labels
        else:
            embed = self._all_patches if self.stage == 1 else None
            embeddings, mask, targets = model.prepare_embeddings(
                input_ids, attention_mask, pixel_values, frame_counts, labels, "right", embed
            )
        logits = model(inputs_embeds=embeddings, attention_mask=mask.long()).logits
        return {"loss": answer_loss(logits, targets, self.average)}

    def _all_patches(self, pixels: torch.Tensor, ids: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        """One sample's plain text with every projected patch of every frame in place of the placeholder."""
        inner = self.model.model
        text, patches = inner.embed_text(ids), inner.encode_vision(pixels).patches.flatten(0, 1)
        (at,) = (ids == IMAGE_TOKEN_ID).nonzero().flatten().tolist()
        return torch.cat([text[:at], patches, text[at + 1 :]])


def add_lora(module: ConversationTrainer, rank: int) -> Any:
    """Freezes the Llama layers and puts low-rank adapters on them; projector and compressor stay trained whole."""
    from peft import LoraConfig, get_peft_model  # slow to import, and talks on stderr

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGETS)
    whole = {n for n, p in module.model.named_parameters() if p.requires_grad and n.startswith(WHOLE_UNDER_LORA)}
    adapted = get_peft_model(module.model, config)
    for name, parameter in adapted.named_parameters():
        if name.removeprefix("base_model.model.") in whole:
            parameter.requires_grad_(True)
    return adapted


WHOLE_UNDER_LORA = ("model.mm_projector", "model.compressor")


def finetune(options: TrainOptions, say: Callable[[str], None]) -> Path:
    """Trains a model on a data file, or goes on with it; returns the checkpoint directory.

    Raises:
        UsageError: the data cannot be used, or an option needs what is not there.
        ModelError: the model cannot be had.
    """
    if options.bf16:
        try_bfloat16()
    check_model(options.model)  # and downloaded once the data are seen to be good
    found = read_records(options.data, options.media_root)
    if options.stage == 1:
        found = found.with_media("stage 1 trains the projector on media, and this is text alone")
    records = usable(found, options.skip_bad, say)
    same_run(_stage_directory(options), run_facts(options, records))
    processor = LlavaMiniProcessor.from_pretrained(options.model)
    model = LlavaMiniForConditionalGeneration.from_pretrained(options.model)
    module = ConversationTrainer(model, options.stage, options.average)
    adapted = add_lora(module, options.lora_rank) if options.lora_rank else None
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    say(f"{len(records)} records, {trained:,} parameters trained")
    _train(module, records, processor, options)
    if adapted is not None:
        model = adapted.merge_and_unload()
    target = options.output / "model"
    save(model, processor, target)
    return target


def try_bfloat16() -> None:
    """Has the device that will train multiply two matrices in bfloat16. Raises `UsageError`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with torch.autocast(device, torch.bfloat16):
            (torch.ones(8, 8, device=device, requires_grad=True) @ torch.ones(8, 8, device=device)).sum().backward()
    except RuntimeError as error:
        raise UsageError(f"--bf16: not to be had on {device} ({first_line(error)})") from error


def _stage_directory(options: TrainOptions) -> Path:
    return options.output / f"stage{options.stage}"


def run_facts(options: TrainOptions, records: Sequence[Record]) -> dict[str, Fact]:
    """The facts that decide a run's outcome; the model by its name, since `--model run/model -o run` replaces it."""
    names = ("model", "batch", "device_batch", "epochs", "learning_rate", "warmup", "average", "lora_rank", "seed")
    digest = sha256()
    for record in records:
        medium = record.path and os.path.abspath(record.path)  # noqa: PTH100 - must not follow links
        digest.update(repr((record.number, record.kind, medium, record.turns)).encode("utf-8", "surrogatepass"))
    return {name: getattr(options, name) for name in names} | {"records": len(records), "data": digest.hexdigest()[:16]}


def updates(records: int, epochs: float, device_batch: int, accumulate: int) -> int:
    """The number of updates in `epochs` passes. Each pass ends with one for the records left over, as in Trainer."""
    each = math.ceil(math.ceil(records / device_batch) / accumulate)
    return max(1, math.ceil(epochs * each))


def _train(
    module: ConversationTrainer, records: Sequence[Record], processor: LlavaMiniProcessor, options: TrainOptions
) -> None:
    device_batch = min(options.device_batch, options.batch)
    accumulate = options.batch // device_batch
    settings = StageSettings(
        name=_stage_directory(options).name,
        steps=updates(len(records), options.epochs, device_batch, accumulate),
        batch=device_batch,
        accumulate=accumulate,
        learning_rate=PAPER_RATES[options.stage] if options.learning_rate is None else options.learning_rate,
        warmup=options.warmup,
        bf16=options.bf16,
        gradient_checkpointing=options.gradient_checkpointing,
        log_every=1,
        save_every=options.save_every,
        seed=options.seed,
        workers=options.workers,
        shuffle=True,
    )
    data = ConversationData(records, processor, SamplingOptions())
    collator = ConversationCollator(processor.pad_token_id)
    train_stage(module, data, collator, _stage_directory(options), settings)


def save(model: LlavaMiniForConditionalGeneration, processor: LlavaMiniProcessor, target: Path) -> None:
    """Writes a checkpoint directory that `--model` takes, with the tower's weights in it."""
    model.config.unfreeze_mm_vision_tower = True  # the tower in the checkpoint counts, wherever the directory goes
    model.save_pretrained(target)
    processor.save_pretrained(target)
