"""`llava-mini inspect`: the attention is the model's own, and pictures, arrays and page show it where it lies."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from archive_films import film, picture, run
from configured_cli import echo_engines, llava_mini
from engine_oracle import QUESTIONS, Oracle, make_oracle
from engine_oracle import limits as engine_limits
from evidence import object_ratios
from golden_cases import write_case
from PIL import Image
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from llava_mini_cli.config import ModelOptions, PromptLayout
from llava_mini_cli.demo import model_dir
from llava_mini_cli.engine.attention_maps import attention_maps, question_words, text_attention
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.load import load_engine
from llava_mini_cli.formats.inspected import Inspected, Section, Shown, page
from llava_mini_cli.media.clip import FrameChunk
from llava_mini_cli.media.heat_map import colours, heat_map, shown_size, strip
from llava_mini_cli.pipelines.inspect_medium import KeptFrames


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def demo() -> Engine:
    return load_engine(ModelOptions(str(model_dir()), device="cpu"))


# Attention


@torch.inference_mode()
def test_the_weights_are_those_of_the_layers_and_add_up_to_one(oracle: Oracle) -> None:
    """Against transformers' own plain attention, which hands its weights out."""
    trunk, batch = oracle.model.model, oracle.processor(images=oracle.video(1, 3)[0], text=QUESTIONS[0])
    features = trunk.vision_tower(batch["pixel_values"].flatten(0, 1)).unflatten(0, (1, -1))
    found = text_attention(trunk, features, batch["input_ids"])
    kept: list[torch.Tensor] = []
    for layer in trunk.prefusion_layers:
        assert isinstance(layer, LlamaDecoderLayer)
        layer.self_attn.register_forward_hook(lambda _, __, made: kept.append(made[1]))
    before = trunk.config._attn_implementation
    try:
        trunk.config._attn_implementation = "eager"
        trunk.fuse(batch["pixel_values"], trunk.embed_text(batch["input_ids"]), batch["input_ids"])
    finally:
        trunk.config._attn_implementation = before
        for layer in trunk.prefusion_layers:
            layer.self_attn._forward_hooks.clear()  # type: ignore[union-attr]
    assert len(found) == len(kept) == 2
    text = batch["input_ids"].shape[1]
    for mine, theirs in zip(found, kept, strict=True):
        assert torch.allclose(mine, theirs[0].mean(0)[-text:], atol=1e-6)
        assert torch.allclose(mine.sum(-1), torch.ones(text), atol=1e-5)


def test_maps_of_frames_and_words_are_rows_of_that_attention(oracle: Oracle) -> None:
    engine = oracle.engine(engine_limits())
    frames = list(oracle.video(3, 5))
    maps = attention_maps(engine, "video", frames, (64, 48), QUESTIONS[0])
    assert maps.words == ("What", "is", "shown?")
    assert maps.fusion.shape == (3, 2, 3, 16)
    assert maps.queries is not None
    assert maps.queries.shape == (3, 1, 16)
    assert maps.queries.sum(-1) == pytest.approx(np.ones((3, 1)), abs=1e-5)
    assert (maps.fusion.sum(-1) < 1).all()
    batch = oracle.processor(videos=frames[1][None], text=QUESTIONS[0])
    trunk = oracle.model.model
    with torch.inference_mode():
        features = trunk.vision_tower(batch["pixel_values"].flatten(0, 1)).unflatten(0, (1, -1))
        rows = text_attention(trunk, features, batch["input_ids"])
        _, weights = trunk.compressor(features[:, 0], need_weights=True)
    assert weights is not None
    assert maps.queries[1] == pytest.approx(weights[0].numpy(), abs=1e-6)
    places = [place for _, places in question_words(engine.prompts, QUESTIONS[0]) for place in places]
    assert len(places) >= 3
    (_, first), *_ = question_words(engine.prompts, QUESTIONS[0])
    assert maps.fusion[1, 0, 0] == pytest.approx(rows[0][first, :16].mean(0).numpy(), abs=1e-6)
    alone = attention_maps(engine, "video", frames, (64, 48), None)
    assert (alone.words, alone.fusion.shape) == ((), (3, 2, 0, 16))


@pytest.mark.parametrize("case", ["mini-llama3", "mini-vicuna"])
@pytest.mark.parametrize("layout", ["trained", "reference"])
@pytest.mark.parametrize(
    "question",
    [
        "a",
        "apple or Zzebra",
        "What is it?",
        "Zz",
        "Is the <image-placeholder> red, now?",
        "  two\nlines  here ",
        "naïve 你好 x",
    ],
)
def test_the_words_of_a_question_are_found_in_its_prompt(
    tmp_path_factory: pytest.TempPathFactory, case: str, layout: PromptLayout, question: str, prompts: dict[str, Any]
) -> None:
    made = prompts[case](layout)
    ids = made.question_ids(question)
    words = question_words(made, question)
    places = [place for _, own in words for place in own]
    assert places == sorted(set(places))
    assert [word for word, _ in words if word.isspace() or not word] == []
    if "placeholder" not in question:
        said = made.tokenizer.decode([ids[place] for place in range(places[0], places[-1] + 1)])
        assert said.split() == question.split()
        assert [word for word, _ in words] == question.split()


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cases = ("mini-llama3", "mini-vicuna")
    return {case: Oracle(write_case(case, tmp_path_factory.mktemp(case))).processor.prompts for case in cases}


def test_the_word_of_an_object_attends_to_the_object(demo: Engine) -> None:
    """Some of the scenes of benchmarks/evidence.py: at least three times as much to a patch on it as elsewhere."""
    ratios = np.array([object_ratios(demo, 90_000 + number) for number in range(10)])
    assert ratios[:, -2].min() >= 3


# Pictures


def test_heat_lies_over_the_part_of_the_picture_that_a_patch_shows() -> None:
    """A medium of 200 x 100 whose middle square alone is seen, by 2 x 2 patches."""
    centres = np.array([(75, 25), (125, 25), (75, 75), (125, 75)], float)
    shown = np.full((50, 100, 3), 200, np.uint8)
    made = heat_map(shown, np.array([0.0, 0.0, 0.0, 2.0]), centres, (200, 100), 2.0).astype(int)
    assert (made[:, :25] == 200).all()
    assert (made[:, 75:] == 200).all()
    hot = made.sum(2) > 600
    hot[:, :25] = hot[:, 75:] = False
    assert np.argwhere(hot).min(0).tolist() == [25, 50]
    assert np.argwhere(hot).max(0).tolist() == [49, 74]
    none = heat_map(shown, np.zeros(4), centres, (200, 100), 0.0)
    assert (none[10, 40] == none[40, 60]).all()
    assert heat_map(shown, np.ones(1), np.array([(100.0, 50.0)]), (200, 100), 1.0).shape == (50, 100, 3)


def test_more_is_brighter_and_nothing_is_beyond_the_scale() -> None:
    bright = colours(np.linspace(-0.5, 1.5, 101)).astype(int) @ np.array([299, 587, 114])
    assert (np.diff(bright) >= 0).all()
    assert bright[0] == bright[25]
    assert bright[-1] == bright[75]


def test_a_strip_has_a_bar_for_each_frame() -> None:
    frames = [np.full((30, 60, 3), level, np.uint8) for level in (10, 90, 170)]
    made = strip(frames, [2.0, -1.0, 0.0], ["a", "b", "c"]).astype(int)
    red, blue = (made == (200, 60, 30)).all(2).sum(0), (made == (50, 100, 180)).all(2).sum(0)
    assert [int(red[left : left + 128].max()) for left in (2, 134, 266)] == [64, 0, 0]
    assert [int(blue[left : left + 128].max()) for left in (2, 134, 266)] == [0, 32, 0]
    assert strip(frames[:1], [0.0], ["a"]).shape[2] == 3


@pytest.mark.parametrize(("size", "shown"), [((64, 48), (448, 336)), ((3, 3000), (1, 448)), ((9000, 9000), (448, 448))])
def test_pictures_of_any_size_are_shown_at_one(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert shown_size(size) == shown


class Clip:
    """A clip of numbered frames in chunks of five."""

    def __init__(self, count: int) -> None:
        self.count, self.is_closed = count, False

    def __iter__(self) -> Iterator[FrameChunk]:
        for start in range(0, self.count, 5):
            times = np.arange(start, min(start + 5, self.count), dtype=float)
            yield FrameChunk(times.astype(np.uint8)[:, None, None, None], times)

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("count", [1, 3, 8, 9, 16, 33, 200])
def test_the_frames_that_are_kept_are_spread_over_all(count: int) -> None:
    clip: Any = Clip(count)
    kept = KeptFrames(clip, 8)
    assert sum(len(chunk.times) for chunk in kept) == count
    times = [time for time, _ in kept.frames]
    assert times == [float(pixels.item()) for _, pixels in kept.frames]
    assert len(times) == min(8, count)
    assert times == sorted(set(times))
    assert times[0] == 0
    assert np.diff([*times, count]).max(initial=0) <= 2 * -(-count // 8)
    assert kept.ready()
    kept.close()
    assert clip.is_closed


# The page


def test_a_page_loads_nothing_and_shows_what_strangers_wrote_as_text() -> None:
    shown = Shown("a.png", b"png", "<b>bold</b>")
    section = Section("Head & shoulders", "", (shown, shown._replace(is_wide=True, caption="")))
    evil = '<img src="https://example.org/x">\x1b[31m'
    made = page(Inspected(f"{evil}.png", "", evil, evil, (0.5, 0.001), (section,), {}, (evil,))).decode()
    assert "<b>" not in made
    assert "\x1b" not in made
    assert set(re.findall(r'(?:src|href)="([a-z]+:)', made)) == {"data:"}
    assert "<script" not in made
    assert "default-src 'none'" in made
    assert "Head &amp; shoulders" in made
    assert made.count("&lt;img src=") == 4  # medium, question, answer, warning
    assert "0.5, and 0.001 to the same prompt without the medium" in made


# The command


def inspected(folder: Path) -> tuple[set[str], dict[str, np.ndarray[Any, Any]], str]:
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        return {one.name for one in folder.iterdir()}, dict(arrays), (folder / "index.html").read_text()


def test_a_video_has_a_strip_and_maps_of_each_frame(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", ["red circle"] * 2 + ["blue square"] * 3)
    done = run(
        "inspect", tmp_path / "a.mp4", "What shapes appear?", "-m", "demo", "-o", tmp_path / "out", "--frames", "3"
    )
    assert (done.exit_code, done.stdout.count("\n")) == (0, 1)
    assert "index.html" in done.stderr
    names, arrays, html = inspected(tmp_path / "out")
    frames = [f"frame-{number:02d}" for number in (1, 2, 3)]
    kinds = ["", "-query-01", "-word-01", "-word-02", "-word-03"]
    assert names == {f"{one}{kind}.png" for one in frames for kind in kinds} | {
        "evidence.png",
        "index.html",
        "arrays.npz",
    }
    assert arrays["words"].tolist() == ["What", "shapes", "appear?"]
    assert (arrays["fusion"].shape, arrays["queries"].shape) == ((3, 2, 3, 36), (3, 1, 36))
    assert arrays["spans"].tolist() == [[number, number + 1] for number in range(5)]
    assert arrays["evidence"].shape == (5,)
    assert arrays["centres"].min() > 0
    assert arrays["centres"].max() < 192
    assert html.count("<img ") == len(names) - 2
    assert done.stdout.strip() in html


def test_a_picture_without_a_question_has_the_queries_alone(tmp_path: Path) -> None:
    Image.fromarray(picture("red circle")).save(tmp_path / "a.png")
    done = run("inspect", tmp_path / "a.png", "-m", "demo", "-q", "-o", tmp_path / "new" / "out")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    names, arrays, html = inspected(tmp_path / "new" / "out")
    assert names == {"picture.png", "picture-query-01.png", "index.html", "arrays.npz"}
    assert arrays["words"].size == 0
    assert "carried" not in html
    heat = np.asarray(Image.open(tmp_path / "new" / "out" / "picture-query-01.png"))
    assert heat.shape == (448, 448, 3)


def test_one_frame_is_a_video_too(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", ["red circle"])
    done = run("inspect", tmp_path / "a.mp4", "What is moving?", "-m", "demo", "-q", "-o", tmp_path / "out")
    assert (done.exit_code, done.stderr) == (0, "")
    names, arrays, _ = inspected(tmp_path / "out")
    assert {"frame-01.png", "evidence.png"} < names
    assert arrays["spans"].tolist() == [[0.0, 1.0]]


engines = pytest.fixture(echo_engines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.png"], "'none.png': no such file"),
        (["."], "'.': a folder, not a file"),
        (["text.mp4"], "'text.mp4': "),
        (["empty.mp4"], "'empty.mp4': the file is empty"),
        (["a.png", " "], "the question is empty"),
        (["a.png", "--frames", "0"], "--frames must be from 1 to 64, not 0"),
        (["a.png", "--frames", "65"], "--frames must be from 1 to 64, not 65"),
        (["a.png", "-o", "text.mp4"], "cannot write 'text.mp4': 'text.mp4' is not a folder"),
        (["a.png", "Is <image> here?", "-m", "demo"], "the prompt holds <image>"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture("red circle")).save("a.png")
    Path("text.mp4").write_text("no video at all")
    Path("empty.mp4").touch()
    output = [] if "-o" in arguments else ["-o", "out"]
    done = llava_mini("inspect", *arguments, *output)
    assert done.exit_code in (1, 2)
    assert done.stdout == ""
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert not Path("out").exists()
