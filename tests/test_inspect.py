"""`llava-mini inspect`: the attention is the model's own, and pictures, arrays and page show it where it lies."""

import io
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
from llava_mini_cli.engine import attention_maps as attention_maps_module
from llava_mini_cli.engine import layer_attention
from llava_mini_cli.engine.attention_maps import AttentionMaps, attention_maps, question_words, text_attention
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.load import load_engine
from llava_mini_cli.engine.request import Evidence, LeftOut
from llava_mini_cli.formats.inspected import Inspected, Section, Shown, page
from llava_mini_cli.media.clip import ClipInfo, FrameChunk
from llava_mini_cli.media.heat_map import colours, heat_map, shown_size, strip
from llava_mini_cli.pipelines.inspect_medium import KeptFrames, _sections


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

    def heights(weights: list[float]) -> list[list[int]]:
        """Of bars above and below the line."""
        made = strip(frames, weights, ["a", "b", "c"])
        bars = ((made == colour).all(2).sum(0) for colour in ((200, 60, 30, 255), (50, 100, 180, 255)))
        return [[int(bar[left : left + 128].max()) for left in (2, 134, 266)] for bar in bars]

    assert heights([2.0, -1.0, 0.0]) == [[64, 0, 0], [0, 32, 0]]
    assert heights([0.05, 0.0, -0.025]) == [[32, 0, 0], [0, 0, 16]]  # little is not shown as much
    assert heights([0.0, 0.0, 0.0]) == [[0, 0, 0], [0, 0, 0]]


def test_a_long_strip_has_rows() -> None:
    frames = [np.full((30, 60, 3), 10 * number, np.uint8) for number in range(11)]
    made = strip(frames, [1.0] * 11, ["0-1 s\n+1"] * 11)
    one = strip(frames[:1], [1.0], ["0-1 s\n+1"])
    assert made.shape == (2 * len(one), 8 * 132, 4)
    assert [int(made[10, 66 + 132 * place, 0]) for place in range(8)] == list(range(0, 80, 10))
    assert [int(made[len(one) + 10, 66 + 132 * place, 0]) for place in range(3)] == [80, 90, 100]
    assert not made[len(one) :, 3 * 132 :, 3].any()
    bars = (made == (200, 60, 30, 255)).all(2).sum(0)
    assert [int(bars[66 + 132 * place]) for place in range(8)] == [128] * 3 + [64] * 5


def test_a_strip_can_be_read_on_white_and_on_black() -> None:
    """What is no frame, bar or text is clear, and the text has 4 times the contrast of what may be behind it."""
    made = strip([np.full((30, 60, 3), 255, np.uint8)], [1.0], ["0-1 s\n+1"])
    below = made[64 + 4 + 2 * 64 + 4 :]
    assert (below[..., :3] == 118).all()
    assert 0 < (below[..., 3] > 128).mean() < 0.3
    light = ((118 / 255 + 0.055) / 1.055) ** 2.4
    assert min(1.05 / (light + 0.05), (light + 0.05) / 0.05) > 4


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


def test_each_span_keeps_the_frame_in_its_middle() -> None:
    """Also where fewer frames are shown; those behind the last bound are the last span's."""
    clip: Any = Clip(20)
    source = KeptFrames(clip, 2, (0.0, 4.0, 9.0, 9.5, 17.0))
    assert len(list(source)) == 4
    assert {start: time for start, (time, _) in source.of_spans.items()} == {0.0: 2.0, 4.0: 6.0, 9.0: 9.0, 9.5: 13.0}
    assert all(pixels.item() == time for time, pixels in source.of_spans.values())
    assert len(source.frames) == 2


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


# The pictures


def pixels_of(shown: Shown) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(shown.png))).astype(int)


def sections_of(kind: Any, frames: int, weights: list[float]) -> list[Section]:
    """Of grey frames of 8 x 8 pixels, 2 x 2 patches, two queries and the words `a cat`, with parts of such weights."""
    centres = np.array([(2, 2), (6, 2), (2, 6), (6, 6)], float)
    queries = np.zeros((frames, 2, 4), np.float32)
    queries[:, 0, 0] = queries[:, 1, 3] = 1
    fusion = np.zeros((frames, 1, 2, 4), np.float32)
    fusion[:, 0, 0, 1] = 0.5
    fusion[0, 0, 1, 2], fusion[1:, 0, 1, 2] = 0.4, 0.2
    maps = AttentionMaps(("a", "cat"), queries, fusion, centres, 2)
    clip: Any = Clip(frames)
    bounds = [float(number) for number in range(frames + 1)] if kind == "video" else []
    source = KeptFrames(clip, 8, bounds)
    list(source)
    grey = {time: (time, np.full((8, 8, 3), 100, np.uint8)) for time, _ in source.frames}
    source._kept, source.of_spans = list(grey.values()), grey if bounds else {}
    boxes: Any = [(x, y, x + 2, y + 2) for y in (1, 3, 5) for x in (1, 3, 5)]
    parts = [
        LeftOut(-weight, float(place), place + 1.0) if bounds else LeftOut(-weight, box=boxes[place])
        for place, weight in enumerate(weights)
    ]
    info = ClipInfo("a", kind, 8, 8, float(frames) if bounds else None, frames, 1.0)
    return list(_sections(info, source, maps, Evidence(0.0, -1.0, tuple(parts))))


def test_the_pictures_of_an_image_are_what_they_say() -> None:
    plain, carried, queries, words = sections_of("image", 1, [0.2, -3.0, 0.1, *[0.0] * 6])
    assert [one.name for one in (*plain.pictures, *carried.pictures)] == ["picture.png", "evidence.png"]
    assert [one.caption for one in (*queries.pictures, *words.pictures)] == ["query 1", "query 2", "“a”", "“cat”"]
    assert not any(one.is_part for one in (plain, carried, queries, words))
    blocks = pixels_of(carried.pictures[0])
    middles = [blocks[56 * down, 56 * across].sum() for down in (2, 4, 6) for across in (2, 4, 6)]
    assert middles[0] > middles[2] > middles[1] == middles[3]  # what speaks against the answer is as dark as nothing
    assert tuple(blocks[10, 10]) == (100, 100, 100)  # beyond what the model sees
    little = pixels_of(sections_of("image", 1, [0.05, *[0.0] * 8])[1].pictures[0])
    assert little[112, 112].sum() < middles[0]
    for place, shown in zip((0, 3, 1, 2), (*queries.pictures, *words.pictures), strict=True):
        heat = pixels_of(shown)
        bright = [heat[112 + 224 * down, 112 + 224 * across].sum() for down in (0, 1) for across in (0, 1)]
        assert bright.index(max(bright)) == place
        assert len(set(bright)) == 2


def test_the_pictures_of_a_video_are_what_they_say() -> None:
    plain, carried, queries, words, *each = sections_of("video", 2, [1.0, -0.5])
    assert [one.caption for one in plain.pictures] == ["0.0 s", "1.0 s"]
    assert [one.caption for one in queries.pictures] == [
        "0.0 s, query 1", "0.0 s, query 2", "1.0 s, query 1", "1.0 s, query 2",
    ]  # fmt: skip
    assert (words.pictures, words.is_part) == ((), False)
    assert [(one.heading, one.is_part, [shown.name for shown in one.pictures]) for one in each] == [
        ("“a”", True, ["frame-01-word-01.png", "frame-02-word-01.png"]),
        ("“cat”", True, ["frame-01-word-02.png", "frame-02-word-02.png"]),
    ]
    first, second = (pixels_of(one)[336, 112].sum() for one in each[1].pictures)
    assert first > second  # one scale for all frames of a word
    (shown,) = carried.pictures
    bars = pixels_of(shown)[..., :3]
    assert shown.is_wide
    assert [int((bars[:, 66 + 132 * number] == (200, 60, 30)).all(1).sum()) for number in (0, 1)] == [64, 0]
    assert [int((bars[:, 66 + 132 * number] == (50, 100, 180)).all(1).sum()) for number in (0, 1)] == [0, 32]


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
    assert re.findall("<h3>(.*?)</h3>", html) == ["“What”", "“shapes”", "“appear?”"]
    assert done.stdout.strip() in html
    strip_of_spans = np.asarray(Image.open(tmp_path / "out" / "evidence.png"))
    shown = [strip_of_spans[64, 2 + 132 * number + 64, :3].argmax() for number in range(5)]
    assert shown == [0, 0, 2, 2, 2]  # red for two seconds, then blue


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


@pytest.mark.parametrize("layers", [False, True])
def test_a_shortage_of_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: bool) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(
        layer_attention if layers else attention_maps_module, "attention_by_layer" if layers else "attention_maps", full
    )
    Image.fromarray(picture("red circle")).save(tmp_path / "a.png")
    more = ["--layers"] if layers else []
    done = run("inspect", tmp_path / "a.png", "What is it?", "-m", "demo", "-q", "-o", tmp_path / "out", *more)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"llava-mini: error: '{tmp_path / 'a.png'}': memory ran out; ")
    assert (done.stderr.count("\n"), (tmp_path / "out").exists()) == (1, False)


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
