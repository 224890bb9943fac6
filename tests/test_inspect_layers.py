"""`llava-mini inspect --layers` on tiny random models: LLaVA-Mini's own and transformers' LLaVA-1.5."""

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from archive_films import film, picture, run
from configured_cli import llava_mini
from engine_oracle import make_oracle
from PIL import Image
from tiny_checkpoints import byte_tokenizer
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava_mini_cli import needs
from llava_mini_cli.config import ModelOptions
from llava_mini_cli.engine import layer_models
from llava_mini_cli.engine.layer_attention import (
    INSTRUCTION,
    KINDS,
    RESPONSE,
    VISION,
    answer_scores,
    attention_by_layer,
    entropies,
    layer_sums,
    vision_dropped,
)
from llava_mini_cli.engine.layer_models import LayerModel, load_layer_model
from llava_mini_cli.errors import ModelError, UsageError
from llava_mini_cli.memory_there import MemoryThere
from llava_mini_cli.pipelines.inspect_layers import spans_of

QUESTION = "What is shown?"


def write_llava_15(folder: Path) -> Path:
    """A LLaVA-1.5 with random weights and 16 patches, as transformers writes one."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = None
    size = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
    config = LlavaConfig(
        text_config=LlamaConfig(**{**size, "num_hidden_layers": 3}, vocab_size=len(tokenizer)),
        vision_config=CLIPVisionConfig(**size, image_size=56, patch_size=14),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(3)
    model = LlavaForConditionalGeneration(config)
    for weight in model.model.language_model.parameters():  # so that attention is not even
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    ours = tmp_path_factory.mktemp("ours")
    make_oracle(ours)
    return {"ours": ours, "llava": write_llava_15(tmp_path_factory.mktemp("llava"))}


@pytest.fixture(scope="module")
def models(checkpoints: dict[str, Path]) -> dict[str, LayerModel]:
    return {name: load_layer_model(ModelOptions(str(path), device="cpu")) for name, path in checkpoints.items()}


def noise() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).integers(0, 256, (60, 80, 3)).astype(np.uint8)


@pytest.fixture(params=["ours", "llava"])
def model(request: pytest.FixtureRequest, models: dict[str, LayerModel]) -> LayerModel:
    return models[request.param]


def test_every_token_has_its_kind(models: dict[str, LayerModel]) -> None:
    for name, patches in (("ours", 1), ("llava", 16)):
        spoken = models[name].spoken(noise(), QUESTION, 6)
        assert int((spoken.kinds == VISION).sum()) == patches
        assert spoken.kinds[-len(spoken.answer) :].tolist() == [RESPONSE] * len(spoken.answer)
        assert int((spoken.kinds == RESPONSE).sum()) == len(spoken.answer) <= 6
        assert spoken.forward().shape[0] == len(spoken.kinds)
        _, same = answer_scores(spoken)
        assert same == len(spoken.answer)  # the model's own greedy answer is what it finds likeliest


def test_rows_add_up_to_one_and_entropies_are_plain_ones(model: LayerModel) -> None:
    spoken = model.spoken(noise(), QUESTION, 6)
    sums, maps = attention_by_layer(model.layers, spoken, maps=True)
    assert len(sums) == len(maps) == len(model.layers)
    last = int((spoken.kinds == VISION).nonzero().max())
    for found, weights in zip(sums, maps, strict=True):
        assert torch.allclose(weights.sum(-1), torch.ones(len(weights)), atol=1e-5)
        assert weights.triu(1).abs().max() == 0
        assert torch.allclose(found.weights.sum(-1), torch.ones(3, dtype=torch.float64), atol=1e-5)
        for one in range(3):
            rows = [
                number
                for number, kind in enumerate(spoken.kinds.tolist())
                if kind == one and (number > last or one == VISION)
            ]
            plain = [-sum(w * np.log(w) for w in weights[row].double().tolist() if w > 0) for row in rows]
            assert float(found.entropy[one]) == pytest.approx(np.mean(plain), abs=1e-4)
            for other in range(3):
                shares = [weights[row][spoken.kinds == other].double().numpy() for row in rows]
                assert float(found.weights[one, other]) == pytest.approx(np.mean([s.sum() for s in shares]), abs=1e-5)
                own = [s / s.sum() for s in shares if s.sum() > 0]
                within = [-sum(w * np.log(w) for w in share if w > 0) for share in own]
                if within:
                    assert float(found.within[one, other]) == pytest.approx(np.mean(within), abs=1e-4)
                else:
                    assert bool(found.within[one, other].isnan())


def test_entropies_of_known_rows() -> None:
    rows = torch.tensor([[1.0, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]], dtype=torch.float64)
    assert entropies(rows).tolist() == pytest.approx([0.0, np.log(4), np.log(2)])
    found = layer_sums(torch.eye(3)[None].float(), torch.tensor([INSTRUCTION, INSTRUCTION, RESPONSE]))
    assert found.weights[0].tolist() == [1, 0, 0]
    assert bool(found.weights[1].isnan().all())


@torch.inference_mode()
def without_vision(model: Any, spoken: Any, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The logits of all other tokens where vision is not in the sequence, each at its old position."""
    first = model.layers[0]
    given: dict[str, Any] = {}

    def take(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        given.update(named, hidden=args[0] if args else named["hidden_states"])

    hook = first.register_forward_pre_hook(take, with_kwargs=True)
    spoken.forward()
    hook.remove()
    keep = spoken.kinds != VISION
    hidden, (cos, sin) = given["hidden"][:, keep], given["position_embeddings"]
    size = int(keep.sum())
    mask = torch.full((1, 1, size, size), torch.finfo(hidden.dtype).min).triu(1)
    for layer in model.layers:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=(cos[:, keep], sin[:, keep]))
    owner = model._model
    trunk = owner.model if hasattr(owner.model, "norm") else owner.model.language_model
    return owner.lm_head(trunk.norm(hidden))[0]


def test_dropping_from_the_first_layer_on_is_a_prompt_without_vision(
    model: LayerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken = model.spoken(noise(), QUESTION, 6)
    plain = spoken.forward()
    with torch.inference_mode(), vision_dropped(model.layers, range(len(model.layers)), spoken.kinds):
        dropped = spoken.forward()
    wanted = without_vision(model, spoken, monkeypatch)
    assert torch.allclose(dropped[spoken.kinds != VISION], wanted, atol=1e-4)
    assert not torch.allclose(dropped, plain, atol=1e-3)
    assert torch.equal(spoken.forward(), plain)  # nothing stays behind


def test_dropping_in_some_layers_changes_what_comes_behind_the_vision_tokens(model: LayerModel) -> None:
    spoken = model.spoken(noise(), QUESTION, 6)
    plain = spoken.forward()
    last = int((spoken.kinds == VISION).nonzero().max())
    for span in spans_of(len(model.layers)):
        with torch.inference_mode(), vision_dropped(model.layers, span, spoken.kinds):
            dropped = spoken.forward()
        assert torch.allclose(dropped[: last + 1], plain[: last + 1], atol=1e-5)
        assert not torch.allclose(dropped[last + 1 :], plain[last + 1 :], atol=1e-4)
    with torch.inference_mode(), vision_dropped(model.layers, (), spoken.kinds):
        assert torch.equal(spoken.forward(), plain)


@pytest.mark.parametrize(
    ("count", "spans"),
    [(1, [(0, 1)]), (3, [(0, 1), (1, 2), (2, 3), (0, 3)]), (32, [*((n, n + 4) for n in range(0, 32, 4)), (0, 32)])],
)
def test_spans_cover_all_layers(count: int, spans: list[tuple[int, int]]) -> None:
    assert [(span.start, span.stop) for span in spans_of(count)] == spans
    assert sorted(layer for span in spans_of(19)[:-1] for layer in span) == list(range(19))


# The command


@pytest.mark.parametrize("name", ["ours", "llava"])
def test_tables_plots_and_a_page_are_written(checkpoints: dict[str, Path], tmp_path: Path, name: str) -> None:
    (tmp_path / "pictures").mkdir()
    for number, shown in enumerate(("red circle", "blue square")):
        Image.fromarray(picture(shown)).save(tmp_path / "pictures" / f"{number}.png")
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    (tmp_path / "questions.txt").write_text("What is shown?\nWhich colour?\n")
    command = ("inspect", tmp_path / "pictures", "--layers", "--prompt-file", tmp_path / "questions.txt", "-q")
    done = run(*command, "-m", checkpoints[name], "-o", tmp_path / "out", "--max-new-tokens", "4", "--device", "cpu")
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    layers = 2 if name == "ours" else 3
    names = {one.name for one in (tmp_path / "out").iterdir()}
    plots = {"attention.png", "entropy.png", "drops.png"}
    maps = {f"map-layer-{layer:02d}.png" for layer in range(1, layers + 1)}
    assert names == plots | maps | {"layers.csv", "drops.csv", "index.html"}
    assert all(Image.open(tmp_path / "out" / one).size[0] > 100 for one in plots | maps)
    with (tmp_path / "out" / "layers.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == layers * 9
    for layer in range(1, layers + 1):
        for source in KINDS:
            own = [float(row["weight"]) for row in rows if (row["layer"], row["source"]) == (str(layer), source)]
            assert sum(own) == pytest.approx(1, abs=1e-5)
    with (tmp_path / "out" / "drops.csv").open() as stream:
        drops = list(csv.DictReader(stream))
    assert [(row["first_layer"], row["last_layer"]) for row in drops][-1] == ("1", str(layers))
    assert {row["questions"] for row in drops} == {"4"}
    assert len({row["log_likelihood"] for row in drops}) == 1
    assert all(0 <= float(row["same_tokens"]) <= 1 for row in drops)
    html = (tmp_path / "out" / "index.html").read_text()
    assert html.count("<img ") == len(plots | maps)
    assert html.partition('class="heats large"')[2].partition("</div>")[0].count("<img ") == len(plots)
    assert "<dd>2 questions about 2 pictures</dd>" in html


def test_a_model_that_does_not_fit_is_told_before_it_is_read(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_models, "memory_there", lambda: MemoryThere(1000, "the machine"))
    with pytest.raises(UsageError, match=r"its weights are 0\.0 GiB, and the machine leaves 0\.0 GiB"):
        load_layer_model(ModelOptions(str(checkpoints["llava"]), device="cpu"))


def pipe(path: Path) -> None:
    """A file that whoever opens it waits for."""
    path.unlink()
    os.mkfifo(path)


def broken(change: Callable[[Path], object]) -> Callable[[Path, Path], Path]:
    def made(llava: Path, folder: Path) -> Path:
        for file in llava.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        change(folder)
        return folder

    return made


def template(text: str) -> Callable[[Path], object]:
    """A chat template that a processor takes."""
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights in"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"nothing at all"), "transformers cannot load it"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "transformers cannot load it"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json: the tokenizer cannot be read"),
        (lambda folder: pipe(folder / "tokenizer_config.json"), "tokenizer_config.json: not a regular file"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "none"}'), "transformers cannot load it"),
        (template("{% for _ in range(99999) %}{{ messages }}{% endfor %}"), "it writes more than 1048576 characters"),
        (template("{{ messages[0].content.upper() }}"), "chat_template: cannot be used .UndefinedError"),
        (template("{{ ''.__class__.__mro__ }}"), "chat_template: cannot be used .SecurityError"),
        (template("{{ raise_exception('none\\nof it') }}"), "cannot be used .ValueError: none of it"),
    ],
)
def test_a_checkpoint_that_cannot_be_looked_into_is_one_line(
    checkpoints: dict[str, Path], tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    path = broken(change)(checkpoints["llava"], tmp_path)
    with pytest.raises(ModelError, match=words) as caught:
        load_layer_model(ModelOptions(str(path), device="cpu"))
    assert "\n" not in str(caught.value)


def test_a_chat_template_of_parts_is_tried_as_it_is_used(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    text = "{% for part in messages[0].content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
    path = broken(template(text))(checkpoints["llava"], tmp_path)
    loaded = load_layer_model(ModelOptions(str(path), device="cpu"))
    assert len(loaded.spoken(noise(), QUESTION, 2).answer) > 0


def test_a_chat_template_without_an_image_is_refused(models: dict[str, LayerModel]) -> None:
    processor = models["llava"]._processor  # type: ignore[attr-defined]
    processor.chat_template = "{{ 'USER: What is shown? ASSISTANT:' }}"
    try:
        with pytest.raises(ModelError, match="puts no image into the prompt"):
            models["llava"].spoken(noise(), QUESTION, 4)
    finally:
        processor.chat_template = None


def test_options_of_our_own_engine_are_refused_for_others(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="--quantize and --compile are for"):
        load_layer_model(ModelOptions(str(checkpoints["llava"]), device="cpu", quantize="int8"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.png", "--layers"], "--layers needs a QUESTION or --prompt-file, not both"),
        (["a.png", "What?", "--layers", "--prompt-file", "q.txt"], "--layers needs a QUESTION or --prompt-file"),
        (["a.png", "What?", "--prompt-file", "q.txt"], "--prompt-file goes with --layers"),
        (["none.png", "What?", "--layers"], "'none.png': no such file"),
        (["empty", "What?", "--layers"], "'empty' holds no pictures"),
        (["a.mp4", "What?", "--layers"], "--layers looks at pictures, and this is a video"),
        (["bad.png", "What?", "--layers"], "'bad.png': "),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture("red circle")).save("a.png")
    film(Path("a.mp4"), ["red circle"])
    Path("bad.png").write_text("no picture")
    Path("q.txt").write_text("What?\n")
    Path("empty").mkdir()
    done = llava_mini("inspect", *arguments, "-m", "demo", "-o", "out", "-q")
    assert (done.exit_code, done.stdout, Path("out").exists()) == (2, "", False)
    assert words in " ".join(done.stderr.replace("│", " ").split())


def test_without_matplotlib_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "is_installed", lambda name: name != "matplotlib")
    Image.fromarray(picture("red circle")).save(tmp_path / "a.png")
    done = llava_mini(
        "inspect", str(tmp_path / "a.png"), "What?", "--layers", "-m", "demo", "-o", str(tmp_path / "out")
    )
    assert (done.exit_code, "--layers needs matplotlib: pip install 'llava-mini-cli[plot]'" in done.stderr) == (2, True)
