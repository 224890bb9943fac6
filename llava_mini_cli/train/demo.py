"""The demo preset: tokenizer, vision tower, and the paper's two stages, from nothing to a checkpoint directory."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, CLIPModel, CLIPVisionConfig

from llava_mini_cli.demo.tokens import CONTEXT, write_tokenizer
from llava_mini_cli.model import LlavaMiniConfig, LlavaMiniForConditionalGeneration
from llava_mini_cli.train.demo_data import DemoData
from llava_mini_cli.train.loop import StageSettings, train_stage
from llava_mini_cli.train.packed import Mode, PackedTrainer
from llava_mini_cli.train.packing import Packer, PromptIds
from llava_mini_cli.train.pixels import EDGE, MEAN, STD
from llava_mini_cli.train.tower import WIDTH, TowerCollator, TowerData, TowerTrainer, tower_config

TOWER = StageSettings("tower", steps=1200, batch=96, learning_rate=2e-3, muon_rate=0.01, bf16=True, log_every=25)
LANGUAGE = StageSettings("language", steps=80, batch=16, learning_rate=3e-3, muon_rate=0.02, bf16=True)
STAGE1 = StageSettings("stage1", steps=80, batch=16, learning_rate=1e-3, muon_rate=0.003, bf16=True)
STAGE2 = StageSettings(
    "stage2",
    steps=6200,
    batch=16,
    learning_rate=1.5e-3,
    muon_rate=0.004,
    muon_decay=0.1,
    decay=0.15,
    bf16=True,
    log_every=20,
    save_every=100,
    workers=1,
)
HARD: dict[str, float] = {  # what is learned last counts more once pictures can be read
    **dict.fromkeys(("yesno", "video_yesno", "event_count", "brief", "rank"), 1.5),
    **dict.fromkeys(("endpoint", "path"), 2.0),
    **dict.fromkeys(("relation", "order", "direction"), 3.0),
}
DENSE = {"caption": 4.0, "json": 2.0, "video_caption": 3.0, "yesno": 0.6, "relation": 0.6, "video_yesno": 0.6}
DENSE_STEPS = range(500, 1300)  # captions say the most about a picture, so they lead until it can be read
IMAGES = 8  # of every 16 media in stage 2; the others are videos
PATCHES = (EDGE // 12) ** 2
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


def answer_weights(index: int) -> dict[str, float]:
    """How much an answer of each kind counts in stage 2, by the medium's place in the data."""
    return DENSE if index // STAGE2.batch in DENSE_STEPS else HARD


def load_tokenizer(directory: Path) -> Any:
    """The demo tokenizer, made in `directory` first if it is not there yet."""
    if not (directory / "tokenizer.json").is_file():
        write_tokenizer(directory)
    return AutoTokenizer.from_pretrained(directory)


def train_tower(work: Path, settings: StageSettings) -> CLIPModel:
    """Trains the small CLIP and writes it to `work/clip`, with its preprocessing and tokenizer beside it."""
    target = work / "clip"
    if (target / "model.safetensors").is_file():
        return CLIPModel.from_pretrained(target)
    tokenizer = load_tokenizer(work / "tokenizer")
    config = tower_config(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    torch.manual_seed(0)
    module = TowerTrainer(config)
    data = TowerData("train", settings.steps * settings.batch)
    train_stage(module, data, TowerCollator(tokenizer), work / settings.name, settings)
    write_tokenizer(target)
    (target / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
    module.clip.save_pretrained(target)
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
    model: LlavaMiniForConditionalGeneration,
    prompts: PromptIds,
    work: Path,
    settings: StageSettings,
    mode: Mode,
    trained: tuple[str, ...] | None = None,
) -> None:
    """One stage on rendered media; a finished stage is read back from `work` in place of training it again."""
    done = work / settings.name / "model.pt"
    if done.is_file():
        model.load_state_dict(torch.load(done, weights_only=True))
        return
    setattr(model.config, "_attn_implementation", "eager")  # noqa: B010  no public name; the packed mask is dense, and small heads are fastest this way
    captions = mode == "patches" and trained is not None
    data = DemoData("train", settings.steps * settings.batch, images=16 if captions else IMAGES, captions_only=captions)
    frame_tokens = {"language": 1, "patches": PATCHES, "fused": model.config.vision_tokens_per_frame}[mode]
    length = PATCHES + model.config.vision_tokens_per_frame
    packer = Packer(prompts, length, frame_tokens, answer_weights)
    train_stage(PackedTrainer(model, mode, trained), data, packer, work / settings.name, settings)
    torch.save(model.state_dict(), done)


def train_demo(work: Path) -> LlavaMiniForConditionalGeneration:
    """Every stage of the demo preset, resumed where an earlier run stopped."""
    train_tower(work, TOWER)
    tokenizer = load_tokenizer(work / "tokenizer")
    prompts = PromptIds(tokenizer)
    torch.manual_seed(0)
    model = build_model(work / "clip", tokenizer)
    run_stage(model, prompts, work, LANGUAGE, "language", ("layers", "norm", "embed_tokens", "lm_head"))
    run_stage(model, prompts, work, STAGE1, "patches", ("mm_projector",))
    run_stage(model, prompts, work, STAGE2, "fused")
    return model


def write_checkpoint(model: LlavaMiniForConditionalGeneration, work: Path, target: Path) -> None:
    """The trained model as a checkpoint directory in half precision, its CLIP (with the text half) inside it."""
    target.mkdir(parents=True, exist_ok=True)
    half = copy.deepcopy(model).half()
    half.config.vision_config, vision = None, half.config.vision_config
    half.config.mm_vision_tower = "clip"
    tensors = {name: value.contiguous() for name, value in half.state_dict().items() if ".vision_tower." not in name}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    half.config.vision_config = vision
    fields = half.config.to_dict() | {"dtype": "float16", "architectures": [type(model).__name__]}
    (target / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    write_tokenizer(target)
    (target / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
    ids = {
        "bos_token_id": fields["bos_token_id"],
        "eos_token_id": fields["eos_token_id"],
        "pad_token_id": fields["pad_token_id"],
    }
    (target / "generation_config.json").write_text(json.dumps({"do_sample": False, **ids}, indent=2) + "\n")
    clip = CLIPModel.from_pretrained(work / "clip").half()
    clip.save_pretrained(target / "clip")
    write_tokenizer(target / "clip")
    (target / "clip" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
    for file in target.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes them for the owner alone, which an installed package is not


def train_demo_model(work: Path, say: Callable[[str], None]) -> Path:
    """The demo preset from nothing, or on from where an earlier run stopped; returns the checkpoint directory."""
    say("training the demo model: vision tower, language, stage 1, stage 2 (hours on a CPU)")
    write_checkpoint(train_demo(work), work, work / "model")
    return work / "model"
