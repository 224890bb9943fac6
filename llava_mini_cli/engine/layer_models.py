"""Models whose layers are looked into: LLaVA-Mini and those of the LLaVA family that transformers loads, alike."""

from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils.logging import disable_progress_bar

from llava_mini_cli.config import ModelOptions
from llava_mini_cli.engine.layer_attention import INSTRUCTION, RESPONSE, VISION, Forward, Spoken
from llava_mini_cli.engine.load import load_engine
from llava_mini_cli.errors import CheckpointError, ModelError, UsageError, first_line, is_fault
from llava_mini_cli.hub import find_model
from llava_mini_cli.memory_there import memory_there
from llava_mini_cli.model import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.preprocess import Preprocessor
from llava_mini_cli.model.pretrained import pick_device, pick_dtype
from llava_mini_cli.model.prompt_layouts import IMAGE_TOKEN_ID, PromptBuilder
from llava_mini_cli.model.tokenizer_files import ANY_CLASS, check_image_template, check_tokenizer
from llava_mini_cli.model.weight_headers import read_json

Picture = NDArray[np.uint8]  # [height, width, 3]


class LayerModel(Protocol):
    """A model with a stack of decoder layers that reads pictures among its text."""

    layers: nn.ModuleList

    def spoken(self, picture: Picture, question: str, new_tokens: int) -> Spoken:
        """A question about a picture with the model's own greedy answer.

        Raises:
            PromptError: the question cannot be asked.
            UsageError: the model says nothing.
        """
        ...


def load_layer_model(options: ModelOptions) -> LayerModel:
    """The model of a checkpoint, with attention that hands out its weights.

    Raises:
        UsageError, ModelError: it cannot be loaded, does not fit the memory or is of another family; one line says why.
    """
    directory = find_model(options.model, options.revision)
    if read_json(directory / "config.json").get("model_type") == LlavaMiniConfig.model_type:
        engine = load_engine(options)
        return OwnModel(engine.model, engine.processor.preprocessor, engine.prompts)
    if options.quantize is not None or options.compile:
        raise UsageError("--quantize and --compile are for LLaVA-Mini's own checkpoints")
    return _family_model(directory, options)


class OwnModel:
    """LLaVA-Mini: the layers of its language model, behind pre-fusion."""

    def __init__(
        self, model: LlavaMiniForConditionalGeneration, preprocessor: Preprocessor, prompts: PromptBuilder
    ) -> None:
        model.set_attn_implementation("eager")
        self.layers = model.model.layers
        self._model, self._preprocessor, self._prompts = model, preprocessor, prompts

    @torch.inference_mode()
    def spoken(self, picture: Picture, question: str, new_tokens: int) -> Spoken:
        """As `LayerModel.spoken`."""
        model = self._model
        ids = torch.tensor([self._prompts.question_ids(question)], device=model.device)
        pixels = self._preprocessor.image(torch.from_numpy(picture).to(model.device))[None].to(model.dtype)
        asked, _, _ = model.prepare_embeddings(ids, None, pixels, None, None, "left")
        answer = _answer(cast(Any, model.generate)(ids, pixels, max_new_tokens=new_tokens)[0], model, question)
        embedded = torch.cat([asked, model.model.embed_text(answer[None]).to(asked.dtype)], dim=1)
        place, count = int((ids[0] == IMAGE_TOKEN_ID).nonzero()), model.config.vision_tokens_per_frame
        kinds = _kinds(asked.shape[1], len(answer), torch.arange(place, place + count))
        return Spoken(_reading(lambda: cast(Any, model)(inputs_embeds=embedded).logits[0]), kinds, answer)


class FamilyModel:
    """A LLaVA model of transformers, whose prompt holds one token for each patch."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.layers = _layers_of(model)
        self._model, self._processor = model, processor
        token = getattr(model.config, "image_token_id", None) or getattr(model.config, "image_token_index", None)
        if not isinstance(token, int):
            raise CheckpointError("the model names no token that stands for patches of an image")
        self._token = token

    @torch.inference_mode()
    def spoken(self, picture: Picture, question: str, new_tokens: int) -> Spoken:
        """As `LayerModel.spoken`."""
        given = self._processor(images=picture, text=self._prompt(question), return_tensors="pt").to(self._model.device)
        given["pixel_values"] = given["pixel_values"].to(self._model.dtype)
        ids = given["input_ids"]
        never = [self._token]  # which would ask for another image
        out = self._model.generate(**given, max_new_tokens=new_tokens, do_sample=False, suppress_tokens=never)[0]
        answer = _answer(out[ids.shape[1] :], self._model, question)
        whole = {**given, "input_ids": torch.cat([ids, answer[None]], dim=1)}
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        kinds = _kinds(ids.shape[1], len(answer), (ids[0] == self._token).nonzero().flatten().cpu())
        return Spoken(_reading(lambda: self._model(**whole).logits[0]), kinds, answer)

    def _prompt(self, question: str) -> str:
        if getattr(self._processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": question}]
            turns = [{"role": "user", "content": content}]
            prompt = self._processor.apply_chat_template(turns, add_generation_prompt=True)
            if self._processor.image_token not in prompt:
                raise CheckpointError("the model's chat template puts no image into the prompt")
            return prompt
        return f"USER: {self._processor.image_token}\n{question} ASSISTANT:"


def _reading(forward: Forward) -> Forward:
    """The function, without anything that training would need."""
    return torch.inference_mode()(forward)


def _kinds(asked: int, said: int, vision: torch.Tensor) -> torch.Tensor:
    kinds = torch.full((asked + said,), INSTRUCTION)
    kinds[vision], kinds[asked:] = VISION, RESPONSE
    return kinds


def _answer(ids: torch.Tensor, model: Any, question: str) -> torch.Tensor:
    """What was said before an end."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    said = [token for token in ids.tolist() if token not in ends]
    if not said:
        raise UsageError(f"the model says nothing to '{question}'")
    return torch.tensor(said, device=ids.device)


def _layers_of(model: Any) -> nn.ModuleList:
    """The decoder layers of the language model inside a model of transformers."""
    for names in (("model", "language_model", "layers"), ("language_model", "model", "layers"), ("model", "layers")):
        found = model
        for name in names:
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList) and all(hasattr(layer, "self_attn") for layer in found):
            return found
    raise CheckpointError(f"a {model.config.model_type} model has no decoder layers that are known here")


def _family_model(directory: Path, options: ModelOptions) -> FamilyModel:
    device = pick_device(options.device)
    needed = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    if not needed:
        raise ModelError(f"model {options.model}: no weights in *.safetensors")
    there = memory_there()
    if device.type == "cpu" and there is not None and there.bytes < needed:
        raise UsageError(
            f"model {options.model}: its weights are {needed / 2**30:.1f} GiB, "
            f"and {there.source} leaves {there.bytes / 2**30:.1f} GiB"
        )
    check_tokenizer(directory, ANY_CLASS)
    disable_progress_bar()
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    dtype = "auto" if options.dtype == "auto" else pick_dtype(options.dtype, device)
    try:
        processor = AutoProcessor.from_pretrained(directory, **local)
        check_image_template(directory, processor)
        model = AutoModelForImageTextToText.from_pretrained(
            directory, **local, attn_implementation="eager", dtype=dtype, use_safetensors=True
        )
        return FamilyModel(cast(Any, model).to(device).eval(), processor)
    except ModelError:
        raise
    except BaseException as error:  # whatever transformers raises about files of strangers
        if is_fault(error):
            raise ModelError(f"model {options.model}: transformers cannot load it: {first_line(error)}") from error
        raise
