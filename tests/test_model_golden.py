"""The model computes what the reference implementation computes: intermediates, logits and greedy ids."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_doubles import ArrayFrames
from golden_cases import CASES, OWN, Scenario, scenarios, write_case

from llava_mini_cli.config import GenerationOptions, ModelOptions
from llava_mini_cli.engine.encode import encode
from llava_mini_cli.engine.load import make_engine
from llava_mini_cli.engine.pack import pack_prompts
from llava_mini_cli.engine.request import Answer, Request
from llava_mini_cli.model import LlavaMiniForConditionalGeneration, LlavaMiniProcessor

Loaded = tuple[LlavaMiniForConditionalGeneration, LlavaMiniProcessor]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    out: dict[str, Loaded] = {}
    for case in CASES:
        checkpoint = write_case(case, tmp_path_factory.mktemp(case))
        model = LlavaMiniForConditionalGeneration.from_pretrained(checkpoint)
        out[case] = model, LlavaMiniProcessor.from_pretrained(checkpoint)
    return out


def media_of(scenario: Scenario, processor: LlavaMiniProcessor) -> dict[str, torch.Tensor]:
    """The pixels of a scenario, made from the raw pictures by our own preprocessing."""
    raw = scenario.inputs()
    if scenario.name == "text_only":
        return {}
    if scenario.name == "video":
        batch = processor(videos=raw["video_frames"], text="x")
    elif scenario.name.startswith("batch2"):
        batch = processor(images=[raw["imgA"], raw["imgB"]], text=["x", "x"])
    else:
        batch = processor(images=raw["imgB" if scenario.name == "image_b" else "imgA"], text="x")
    return {name: batch[name] for name in ("pixel_values", "frame_counts")}


class Recorder:
    """Keeps what the modules of the figure put out during one forward."""

    def __init__(self, model: LlavaMiniForConditionalGeneration) -> None:
        self.seen: dict[str, list[torch.Tensor]] = {}
        trunk = model.model
        self.hooks = [
            trunk.vision_tower.register_forward_hook(self._keep("clip_features")),
            trunk.compressor.register_forward_hook(self._keep("compressor_out", first=True)),
            trunk.mm_projector.register_forward_hook(self._keep("projected")),
            trunk.prefusion_layers[0].register_forward_pre_hook(self._keep_input("prefusion_in")),
            trunk.layers[0].register_forward_pre_hook(self._keep_input("inputs_embeds")),
            *(
                layer.register_forward_hook(self._keep(f"prefusion_out_layer.{number}"))
                for number, layer in enumerate(trunk.prefusion_layers)
            ),
        ]

    def _keep(self, name: str, first: bool = False) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            self.seen.setdefault(name, []).append(output[0] if first else output)

        return hook

    def _keep_input(self, name: str) -> Any:
        def hook(_: Any, inputs: tuple[Any, ...]) -> None:
            self.seen.setdefault(name, []).append(inputs[0])

        return hook

    def close(self) -> Iterator[tuple[str, torch.Tensor]]:
        for hook in self.hooks:
            hook.remove()
        for name, parts in self.seen.items():
            if name == "projected":
                yield "proj_compressed", parts[-1]
            else:
                yield name, torch.cat(parts) if len({part.shape[1:] for part in parts}) == 1 else parts[0]


def assert_close(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Within 1e-5 of the largest value, or 2e-4 absolute; `theirs` may hold the first frames only."""
    ours = ours.reshape(-1, *theirs.shape[-2:])[: theirs.numel() // theirs[..., :, :].shape[-2:].numel()]
    theirs = theirs.reshape(ours.shape)
    error = (ours - theirs).abs().max().item()
    assert error <= max(2e-4, 1e-5 * theirs.abs().max().item()), (name, error)


@pytest.mark.parametrize("scenario", list(scenarios()), ids=str)
def test_forward_and_greedy_ids_equal_the_reference(scenario: Scenario, loaded: dict[str, Loaded]) -> None:
    model, processor = loaded[scenario.case]
    want = scenario.tensors()
    media = media_of(scenario, processor)
    if "pixel_values" in want:
        assert torch.equal(media["pixel_values"], want["pixel_values"].flatten(0, -5))
    left = "leftcfg" in scenario.name
    model.config.tokenizer_padding_side = "left" if left else "right"
    text = {name: want[name] for name in ("input_ids", "labels", "attention_mask") if name in want}
    recorder = Recorder(model)
    with torch.no_grad():
        output = model(**text, **media)
    seen = dict(recorder.close())
    real = want["out_attention_mask"] if "out_attention_mask" in want else torch.ones(output.logits.shape[:2]).bool()
    assert_close("logits", output.logits[real], want["logits"][real])
    for name, tensor in seen.items():
        if name in want and not scenario.name.startswith("batch2"):
            assert_close(name, tensor, want[name])
    if "labels" in want:
        assert output.loss.item() == pytest.approx(want["loss"].item(), rel=1e-5)
    if "greedy_ids" in want:
        text.pop("labels", None)
        ids = model.generate(**text, **media, max_new_tokens=want["greedy_ids"].shape[1])
        assert torch.equal(ids[:, : want["greedy_ids"].shape[1]], want["greedy_ids"][:, : ids.shape[1]])


@pytest.mark.parametrize(
    "scenario",
    [s for s in scenarios() if s.root == OWN and s.name in ("image", "video", "zero_token", "placeholder_mid")],
    ids=str,
)
def test_packed_encoding_equals_the_reference(scenario: Scenario, loaded: dict[str, Loaded]) -> None:
    """The engine's shared, skipping way of computing gives the same frame tokens and fused text."""
    model, processor = loaded[scenario.case]
    want = scenario.tensors()
    pixels = media_of(scenario, processor)["pixel_values"]
    pack = pack_prompts([want["input_ids"][0].tolist()])
    encoded = encode(model.model, pixels, [pack] * len(pixels))
    assert_close("tokens", encoded.tokens, want["compressed_image_features"])
    if "fusion_text_features" in want:
        assert_close("text", encoded.fused, want["fusion_text_features"])


def test_the_processor_lays_a_whole_prompt_out_as_the_reference_does(loaded: dict[str, Loaded]) -> None:
    scenario = Scenario(OWN, "mini-llama3-hd", "image")
    _, processor = loaded[scenario.case]
    batch = processor(
        images=scenario.inputs()["imgA"], text="What is the text on this cake?", prompt_layout="reference"
    )
    assert torch.equal(batch["input_ids"], scenario.tensors()["input_ids"])


@pytest.mark.parametrize("case", CASES)
def test_saving_and_loading_keeps_every_answer(case: str, loaded: dict[str, Loaded], tmp_path: Path) -> None:
    model, processor = loaded[case]
    model.save_pretrained(tmp_path, max_shard_size="4MB")
    processor.save_pretrained(tmp_path)
    again = LlavaMiniForConditionalGeneration.from_pretrained(tmp_path)
    batch = LlavaMiniProcessor.from_pretrained(tmp_path)(
        images=Scenario(OWN, case, "image").inputs()["imgA"], text="What?"
    )
    saved = model.state_dict()
    assert all(torch.equal(value, saved[key]) for key, value in again.state_dict().items())
    with torch.no_grad():
        assert_close("logits", again(**batch).logits, model(**batch).logits)


def test_the_engine_answers_with_the_reference_ids(loaded: dict[str, Loaded]) -> None:
    scenario = Scenario(OWN, "mini-llama3-hd", "video")
    model, processor = loaded[scenario.case]
    want = scenario.tensors()
    engine = make_engine(model, processor, ModelOptions(model="x", prompt_layout="reference", batch_size=4))
    frames = ArrayFrames(scenario.inputs()["video_frames"])
    options = GenerationOptions(max_new_tokens=want["greedy_ids"].shape[1])
    question = "What happened in this video?"
    (answer,) = engine.run([Request("video", "video", frames, (question,), options)])
    assert isinstance(answer, Answer)
    assert list(answer.token_ids) == want["greedy_ids"][0, : len(answer.token_ids)].tolist()
