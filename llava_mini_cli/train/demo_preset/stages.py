"""The demo preset: vision tower, the paper's two stages and pre-fusion in between, from nothing to a checkpoint."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copyfile, rmtree
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, CLIPModel, CLIPVisionConfig

from llava_mini_cli.demo.tokens import CONTEXT, write_tokenizer
from llava_mini_cli.model import LlavaMiniConfig, LlavaMiniForConditionalGeneration
from llava_mini_cli.train.demo_preset.demo_data import VIDEO_ASK, DemoData
from llava_mini_cli.train.demo_preset.packed_model import FusionTrainer, Mode, PackedTrainer
from llava_mini_cli.train.demo_preset.packing import Packer, PromptIds
from llava_mini_cli.train.demo_preset.pixels import EDGE, MEAN, STD
from llava_mini_cli.train.demo_preset.search_training import SearchCollator, SearchData, SearchTrainer
from llava_mini_cli.train.demo_preset.tower_training import WIDTH, TowerCollator, TowerData, TowerTrainer, tower_config
from llava_mini_cli.train.loop import StageSettings, train_stage

TOWER = StageSettings(
    "tower", steps=1200, batch=96, learning_rate=2e-3, muon_rate=0.01, bf16=True, log_every=25, workers=1
)
SEARCH = StageSettings(
    "search", steps=600, batch=96, learning_rate=1.5e-3, muon_rate=0.006, bf16=True, log_every=20, workers=1
)
SEARCH_FIRST = 50_000_000  # its pictures are not the tower's
LANGUAGE = StageSettings("language", steps=150, batch=16, learning_rate=3e-3, muon_rate=0.02, bf16=True)
STAGE1 = StageSettings("stage1", steps=80, batch=16, learning_rate=1e-3, muon_rate=0.003, bf16=True)
FUSION = StageSettings(
    "fusion", steps=600, batch=32, learning_rate=2e-3, muon_rate=0.01, bf16=True, log_every=20, workers=1
)
FUSION_IMAGES = 12  # of every 16 media in the fusion stage; the others are videos
FUSION_PARTS = ("mm_projector", "compressor", "prefusion_layers", "heads")
STAGE2 = StageSettings(
    "stage2",
    steps=4800,
    batch=16,
    learning_rate=1.5e-3,
    muon_rate=0.004,
    muon_decay=0.1,
    warmup=0.04,
    decay=0.45,
    bf16=True,
    log_every=20,
    save_every=100,
    workers=1,
)
POLISH = replace(STAGE2, name="polish", steps=2200, learning_rate=8e-4, muon_rate=0.002, warmup=0.02, decay=0.95)
Weights = dict[str, float]  # how much an answer of each kind counts; 1 where a kind is not named
DENSE: Weights = {"caption": 4.0, "json": 2.0, "video_caption": 3.0, "path": 3.0} | dict.fromkeys(
    ("yesno", "relation", "video_yesno"), 0.6
)
HARD: Weights = {
    **dict.fromkeys(("yesno", "event_count", "brief", "rank", "count", "moving", "filled"), 1.5),
    **dict.fromkeys(("endpoint", "path", "caption", "video_yesno"), 2.0),
    **dict.fromkeys(("relation", "order", "direction", "background"), 3.0),
}
LONG: Weights = {
    "caption": 4.0,
    **dict.fromkeys(("order", "background"), 3.0),
    **dict.fromkeys(("event_count", "video_yesno"), 2.5),
    **dict.fromkeys(("count", "moving", "video_caption", "appears", "vanishes", "brief"), 2.0),
    **dict.fromkeys(("yesno", "relation", "direction", "filled"), 1.5),
}
LAST: Weights = LONG | {
    "caption": 5.0,
    **dict.fromkeys(("video_yesno", "moving", "appears"), 4.0),
}
PHASES = (  # the step of stage 2 at which each begins
    (0, DENSE),  # what says the most about a picture leads until it can be read
    (600, HARD),  # then what is worked out from it
    (2600, LONG),  # then what has the most to get wrong
    (STAGE2.steps, LAST),  # in `polish`, whose data begins where that of stage 2 ends: what was weakest then
)
POLISH_ASK = VIDEO_ASK | {"video_yesno": 4}
IMAGES = 8  # of every 16 media in stage 2; the others are videos
PATCHES = (EDGE // 12) ** 2
Stage = Callable[[PackedTrainer, Path, StageSettings], None]
PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": EDGE},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": EDGE, "width": EDGE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [round(float(value), 8) for value in MEAN],
    "image_std": [round(float(value), 8) for value in STD],
}


def answer_weights(index: int) -> Weights:
    """The weight of answers of each kind in stage 2 and `polish`, by the medium's place in the data of both."""
    return [weights for begin, weights in PHASES if begin <= index // STAGE2.batch][-1]


def load_tokenizer(directory: Path) -> Any:
    """The demo tokenizer, made in `directory` first if it is not there yet."""
    if not (directory / "tokenizer.json").is_file():
        write_tokenizer(directory)
    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)


def _write_beside(work: Path, target: Path) -> None:
    """Writes the tokenizer that a run's stages were trained with, and the preprocessing, beside a model."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted((work / "tokenizer").iterdir()):
        copyfile(file, target / file.name)
    _write_json(target / "preprocessor_config.json", PREPROCESSOR)


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n")


def train_tower(work: Path, tower: StageSettings, search: StageSettings) -> CLIPModel:
    """Trains the small CLIP and writes it to `work/clip`, with its preprocessing and tokenizer beside it."""
    target = work / "clip"
    if (target / "model.safetensors").is_file():
        return CLIPModel.from_pretrained(target)
    tokenizer = load_tokenizer(work / "tokenizer")
    config = tower_config(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    torch.manual_seed(0)
    module = TowerTrainer(config)
    data = TowerData("train", tower.steps * tower.batch)
    train_stage(module, data, TowerCollator(tokenizer), work / tower.name, tower)
    pairs = SearchData("train", search.steps * search.batch, first=SEARCH_FIRST)
    train_stage(SearchTrainer(module.clip), pairs, SearchCollator(tokenizer), work / search.name, search)
    unfinished = target.with_suffix(".tmp")
    _write_beside(work, unfinished)
    module.clip.save_pretrained(unfinished)
    rmtree(target, ignore_errors=True)
    unfinished.replace(target)
    return module.clip


def demo_config(tokenizer: Any, vision: CLIPVisionConfig, **changes: Any) -> LlavaMiniConfig:
    """The demo model's shape: 3.2 million parameters, one token a frame; `changes` are for ablations."""
    fields: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 192,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "max_position_embeddings": CONTEXT,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.05,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "vision_config": vision,
        "mm_vision_tower": "clip",
        "mm_hidden_size": WIDTH,
        "prefusion_layer_num": 2,
        "image_aspect_ratio": "square",
    }
    return LlavaMiniConfig(**(fields | changes))


def build_model(tower: Path, tokenizer: Any, **changes: Any) -> LlavaMiniForConditionalGeneration:
    """An untrained demo model around a trained tower; `changes` to its configuration are for ablations."""
    vision = CLIPModel.from_pretrained(tower).vision_model
    model = LlavaMiniForConditionalGeneration(demo_config(tokenizer, vision.config, **changes))
    model.model.vision_tower.vision_tower.load_state_dict(vision.state_dict())
    return model


def run_stage(
    trainer: PackedTrainer, work: Path, settings: StageSettings, trained: tuple[str, ...] | None, stage: Stage
) -> None:
    """Runs one stage of the model; a finished one is read back from `work` in place of training it again.

    `trained`: the parts that are trained, as of `PackedTrainer`.
    """
    done = work / settings.name / "model.pt"
    if done.is_file():
        trainer.load_state_dict(torch.load(done, weights_only=True))
        return
    trainer.train_only(trained)
    stage(trainer, work / settings.name, settings)
    unfinished = done.with_suffix(".tmp")
    torch.save(trainer.state_dict(), unfinished)
    unfinished.replace(done)


def packed_stage(prompts: PromptIds, mode: Mode, images: int, answers: bool = True, **data_options: Any) -> Stage:
    """A stage on packed media, `images` of every 16 of them images; without `answers`, pre-fusion alone is asked.

    `data_options`: more of `DemoData`'s.
    """

    def stage(trainer: PackedTrainer, directory: Path, settings: StageSettings) -> None:
        trainer.mode = mode
        number = trainer.model.config.vision_tokens_per_frame
        frame_tokens = {"language": 1, "patches": PATCHES, "fused": number}[mode]
        length = settings.steps * settings.batch
        data = DemoData("train", length, images=images, **data_options)
        packer = Packer(prompts, PATCHES + number, frame_tokens, answer_weights)
        train_stage(trainer if answers else FusionTrainer(trainer), data, packer, directory, settings)

    return stage


def train_demo(work: Path) -> LlavaMiniForConditionalGeneration:
    """Runs every stage of the demo preset, from where an earlier run stopped; returns the model."""
    train_tower(work, TOWER, SEARCH)
    tokenizer = load_tokenizer(work / "tokenizer")
    prompts = PromptIds(tokenizer)
    torch.manual_seed(0)
    trainer = PackedTrainer(build_model(work / "clip", tokenizer))
    language = packed_stage(prompts, "language", IMAGES)
    run_stage(trainer, work, LANGUAGE, ("layers", "norm", "embed_tokens", "lm_head"), language)
    captions = packed_stage(prompts, "patches", 16, captions_only=True)
    run_stage(trainer, work, STAGE1, ("mm_projector",), captions)
    fusion = packed_stage(prompts, "fused", FUSION_IMAGES, answers=False)
    run_stage(trainer, work, FUSION, FUSION_PARTS, fusion)
    run_stage(trainer, work, STAGE2, None, packed_stage(prompts, "fused", IMAGES))
    after = STAGE2.steps * STAGE2.batch
    run_stage(trainer, work, POLISH, None, packed_stage(prompts, "fused", IMAGES, first=after, video_ask=POLISH_ASK))
    return trainer.model


def write_checkpoint(model: LlavaMiniForConditionalGeneration, work: Path, target: Path) -> None:
    """Writes the trained model as a checkpoint directory in half precision, its CLIP (with the text half) inside it."""
    target.mkdir(parents=True, exist_ok=True)
    half = copy.deepcopy(model).half()
    half.config.vision_config, vision = None, half.config.vision_config
    half.config.mm_vision_tower = "clip"
    tensors = {name: value.contiguous() for name, value in half.state_dict().items() if ".vision_tower." not in name}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    half.config.vision_config = vision
    fields = half.config.to_dict() | {"dtype": "float16", "architectures": [type(model).__name__]}
    (target / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    ids = {name: fields[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(target / "generation_config.json", {"do_sample": False, **ids})
    CLIPModel.from_pretrained(work / "clip").half().save_pretrained(target / "clip")
    for directory in (target, target / "clip"):
        _write_beside(work, directory)
    for file in target.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes them for the owner alone, which an installed package is not


def train_demo_model(work: Path, say: Callable[[str], None]) -> Path:
    """Trains the demo preset from nothing, or from where an earlier run stopped; returns the checkpoint directory."""
    say("training the demo model: vision tower, search, language, stage 1, fusion, stage 2, polish (hours on a CPU)")
    write_checkpoint(train_demo(work), work, work / "model")
    return work / "model"
