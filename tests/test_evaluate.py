"""The plug-in for lmms-eval: answers do not depend on what is around a question, and media are looked at once."""

import random
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module, metadata
from math import inf
from pathlib import Path
from typing import Any

import lmms_doubles
import numpy as np
import pytest
from engine_oracle import Oracle, make_oracle
from lmms_doubles import GenerationResult, Instance
from PIL import Image
from test_engine_labels import loop

from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions
from llava_mini_cli.demo.__main__ import write_video
from llava_mini_cli.demo.scenes import generator
from llava_mini_cli.demo.videos import random_video
from llava_mini_cli.formats.job import Job, Prompt, Question
from llava_mini_cli.media.open import open_clip
from llava_mini_cli.pipelines.answer import answer
from llava_mini_cli.pipelines.settings import RunOptions

QUESTIONS = ("What is shown?", "How many are there?", "Red?", "Where is it?", "Is it a cat?")
WORDS = {"max_new_tokens": 6, "do_sample": False, "until": ["\n\n"]}
Row = dict[str, Any]
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate") / "tiny"


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> Oracle:
    return make_oracle(checkpoint)


@pytest.fixture(scope="module")
def make(checkpoint: Path, oracle: Oracle) -> Iterator[Make]:
    """Makes the model as lmms-eval does, with the rows of one task."""
    with lmms_doubles.installed():
        plugin = import_module("llava_mini_cli.evaluate.plugin")

        def made(rows: Sequence[Row] = (), **arguments: object) -> Any:
            model = plugin.LlavaMini(**{"pretrained": str(checkpoint), "batch_size": 1} | arguments)
            model.task_dict = {"task": {"test": list(rows)}}
            return model

        yield made


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two pictures and a video."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(1)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (40, 64, 3), np.uint8)).save(folder / name)
    video = random_video(generator("heldout", 3), "heldout", "move", 3)
    write_video(str(folder / "c.mp4"), video, 3, 4)
    return [folder / name for name in ("a.png", "b.png", "c.mp4")]


def picture(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return opened.convert("RGB")


def show(row: Row) -> list[Any]:
    """A picture in memory, a video by its file."""
    path: Path = row["path"]
    return [str(path)] if path.suffix == ".mp4" else [picture(path)]


def written(text: str, row: int, shown: Callable[[Row], object] = show, **more: object) -> Instance:
    return Instance("generate_until", (text, {**WORDS, **more}, shown, row, "task", "test"))


def chosen(text: str, target: object, row: int) -> Instance:
    return Instance("loglikelihood", (text, target, show, row, "task", "test"))


def texts(found: Sequence[GenerationResult]) -> list[str]:
    return [one.text for one in found]


def rows_of(media: Sequence[Path]) -> list[Row]:
    return [{"path": path, "answer": "blue"} for path in media]


def test_the_entry_point_leads_to_the_class(make: Make) -> None:
    (entry,) = metadata.entry_points(group="lmms_eval.models", name="llava_mini")
    found = entry.load()()
    assert (found.model_id, found.chat_class_path) == ("llava_mini", None)
    module, name = found.simple_class_path.rsplit(".", 1)
    assert isinstance(make(), getattr(import_module(module), name))


def test_answers_are_those_of_ask_in_any_order_and_alone(make: Make, checkpoint: Path, media: list[Path]) -> None:
    options = RunOptions(ModelOptions(str(checkpoint)), SamplingOptions(), GenerationOptions(max_new_tokens=6))
    model = make(rows_of(media))
    jobs = (
        Job(str(path), path.name, tuple(Question(Prompt(text), f"{row} {text}") for text in QUESTIONS))
        for row, path in enumerate(media)
    )
    expected = {row.id: row for row in answer(jobs, model.engine, options)}
    assert len({row.text for row in expected.values()}) > 5
    asked = [(text, row) for row in range(len(media)) for text in QUESTIONS]
    random.Random(7).shuffle(asked)
    found = model.generate_until([written(text, row) for text, row in asked])
    for (text, row), one in zip(asked, found, strict=True):
        other = expected[f"{row} {text}"]
        assert one.text == other.text
        assert one.token_counts.input_tokens == other.prompt_tokens + other.vision_tokens
        assert one.token_counts.output_tokens == other.completion_tokens
    for text, row in asked[:3]:
        assert texts(make(rows_of(media)).generate_until([written(text, row)])) == [expected[f"{row} {text}"].text]


def test_a_medium_is_looked_at_once(make: Make, media: list[Path]) -> None:
    """However many questions there are, and in however many rows of the data set it stands."""
    model = make(rows_of([*media, *media]))
    with open_clip(media[2], SamplingOptions()) as clip:
        frames = 1 + 1 + len([chunk_time for chunk in clip for chunk_time in chunk.times])
    model.generate_until([written(text, row) for row in range(6) for text in QUESTIONS])
    assert model.engine.frames_encoded == frames
    model.loglikelihood([chosen(text, choice, row) for row in range(6) for text in QUESTIONS for choice in "xyz"])
    assert model.engine.frames_encoded == 2 * frames


def test_each_shape_of_a_continuation(make: Make, oracle: Oracle, media: list[Path]) -> None:
    model = make(rows_of(media))
    pixels = np.array(picture(media[0]))[None]
    choices = ("red", "blue", "blue car")
    scores = loop(oracle, pixels, QUESTIONS[0], choices)
    asked = [chosen(QUESTIONS[0], f" {choice}", 0) for choice in choices]  # as `multiple_choice` has them
    asked.append(chosen(QUESTIONS[0], lambda row: row["answer"], 0))  # as `loglikelihood` does
    asked.append(chosen(QUESTIONS[0], "blue", 0))  # the same once more
    asked += [Instance("loglikelihood", ("Red?", choice)) for choice in choices]  # about nothing
    asked += [Instance("loglikelihood", ("", choice)) for choice in choices]  # as `acc_mutual_info` has them
    found = [tuple(one.text) for one in model.loglikelihood(asked)]
    expected = [*scores, scores[1], scores[1], *loop(oracle, None, "Red?", choices)]
    assert [-loss for loss, _ in found[:-3]] == pytest.approx(expected, abs=1e-3)
    assert all(0 < loss < inf for loss, _ in found[-3:])
    assert not {loss for loss, _ in found[-3:]} & {loss for loss, _ in found[:-3]}
    assert all(isinstance(greedy, bool) for _, greedy in found)
    assert [one.text.strip() for one in model.loglikelihood(asked[:1])] == [""]  # nothing for the cache to keep


def test_what_would_be_written_is_greedy_and_nothing_else(make: Make, media: list[Path]) -> None:
    model = make(rows_of(media), pretrained="demo")
    asked = [("What is moving?", 2), ("What colour is the background?", 2), ("How many shapes are there?", 2)]
    told = texts(model.generate_until([written(text, row, max_new_tokens=32) for text, row in asked]))
    found = model.loglikelihood(
        [chosen(text, choice, row) for (text, row), said in zip(asked, told, strict=True)
         for choice in (said, f"{said} circle", said.split()[0], "orange")]
    )  # fmt: skip
    greedy = [one.text[1] for one in found]
    expected = [choice == said for said in told for choice in (said, f"{said} circle", said.split()[0], "orange")]
    assert greedy == expected
    assert sum(greedy) >= 3


def test_the_mean_over_tokens_on_request(make: Make, oracle: Oracle, media: list[Path]) -> None:
    model = make(rows_of(media), choice_score="mean")
    pixels = np.array(picture(media[0]))[None]
    for image, seen in (
        (chosen("Red?", "blue car", 0), pixels),
        (Instance("loglikelihood", ("Red?", "blue car")), None),
    ):
        (score,) = loop(oracle, seen, "Red?", ("blue car",))
        length = len(oracle.processor.prompts("trained").answer_ids(["blue car"])[0]) + 1
        (found,) = model.loglikelihood([image])
        assert -found.text[0] == pytest.approx(score / length, abs=1e-4)


def test_a_question_about_no_medium(make: Make, oracle: Oracle) -> None:
    model = make([{}])
    (found,) = model.generate_until([written("What is red?", 0, lambda row: None)])
    batch = oracle.processor(text="What is red?")
    ids = oracle.model.generate(**batch, max_new_tokens=6)[0]
    assert found.text == oracle.processor.decode(ids)
    assert found.token_counts.input_tokens == batch["input_ids"].shape[1]
    with pytest.raises(SystemExit, match=r"row 0: the prompt .* exceed the model's context"):
        model.generate_until([written("word " * 9000, 0, lambda row: [])])
    with pytest.raises(SystemExit, match="says where a picture goes, and there is none"):
        model.generate_until([written("What is <image>?", 0, lambda row: [])])


def test_several_pictures(make: Make, oracle: Oracle, media: list[Path]) -> None:
    def three(row: Row) -> list[object]:
        return [[picture(media[0])], (picture(media[1]), picture(media[0]))]

    ask = [written("What is shown?", 0, three)]
    with pytest.raises(
        SystemExit, match=r"^llava_mini: task \(test\), row 0: shows 3 pictures; llava-mini looks at one"
    ):
        make([{}]).generate_until(ask)
    middle = make(rows_of(media), several_images="middle")
    assert texts(middle.generate_until(ask)) == texts(
        make(rows_of(media)).generate_until([written("What is shown?", 1)])
    )
    film = make([{}], several_images="video")
    size = film.engine.frame_size
    frames = [np.array(picture(media[number])) for number in (0, 1, 0)]
    from llava_mini_cli.geometry import nearest_index

    squashed = [one[nearest_index(40, size)][:, nearest_index(64, size)] for one in frames]
    ids = oracle.model.generate(**oracle.processor(videos=np.stack(squashed), text="What is shown?"), max_new_tokens=6)[
        0
    ]
    assert texts(film.generate_until(ask)) == [oracle.processor.decode(ids)]
    assert film.engine.frames_encoded == 3


def test_several_pictures_are_known_again_by_those_that_are_looked_at(make: Make, media: list[Path]) -> None:
    first, second = (picture(path) for path in media[:2])
    rows = [{"shown": [first, second, first]}, {"shown": [second, second, first]}]
    ask = [written("What is shown?", row, lambda row: row["shown"]) for row in range(2)]
    middle = make(rows, several_images="middle")
    assert len(set(texts(middle.generate_until(ask)))) == 1
    assert middle.engine.frames_encoded == 1
    film = make(rows, several_images="video")
    film.generate_until(ask)
    assert film.engine.frames_encoded == 6


def test_an_answer_ends_where_the_task_says(make: Make, media: list[Path]) -> None:
    model = make(rows_of(media))
    (whole,) = texts(model.generate_until([written("What is shown?", 0)]))
    assert len(whole) > 2
    cut = model.generate_until([written("What is shown?", 0, until=[whole[2], "never"])])
    assert texts(cut) == [whole[: whole.index(whole[2])]]
    assert texts(model.generate_until([written("What is shown?", 0, until=whole[2])])) == texts(cut)


def test_the_same_question_drawn_again_gets_another_answer(make: Make, media: list[Path]) -> None:
    model = make(rows_of(media))
    ask = written("What is shown?", 0, do_sample=True, temperature=1.0, max_new_tokens=12)
    found = texts(model.generate_until([ask] * 4))
    assert len(set(found)) > 1
    assert texts(model.generate_until([ask] * 4)) == found


REFUSED = [
    ({"fsp": 1}, "model_args: there is no 'fsp'; there are pretrained, revision, device"),
    ({"workers": 2}, "model_args: workers cannot be had: a task's pictures are in this process alone. lmms-eval "),
    ({"ray": "auto"}, "model_args: ray cannot be had: a task's pictures"),
    ({"fps": -1}, "model_args: fps must be above 0"),
    ({"fps": "fast"}, "model_args: fps must be a number, not 'fast'"),
    ({"fps": True}, "model_args: fps must be a number, not 'True'"),
    ({"max_frames": 2.5}, "model_args: max_frames must be a whole number, not 2.5"),
    ({"max_frames": 0}, "model_args: max_frames must be at least 1"),
    ({"max_new_tokens": 0}, "model_args: max_new_tokens must be at least 1"),
    ({"dtype": "float8"}, "model_args: dtype float8: must be one of"),
    ({"llm": "both"}, "model_args: llm both: must be one of own, vllm, auto"),
    ({"quantize": "int3"}, "model_args: quantize int3: must be one of"),
    ({"device": "abacus"}, "model_args: device abacus: no device has this name"),
    ({"prompt_layout": "mine"}, "model_args: prompt_layout must be one of trained, reference, not 'mine'"),
    ({"decoder": "vlc"}, "model_args: decoder must be one of auto, decord, ffmpeg"),
    ({"fit": "perhaps"}, "model_args: fit must be True or False"),
    ({"choice_score": "max"}, "model_args: choice_score must be one of sum, mean"),
    ({"several_images": 3}, "model_args: several_images must be one of error, video, middle"),
    ({"failures": "ignore"}, "model_args: failures must be one of stop, empty"),
    ({"pretrained": True}, "model_args: pretrained must be a text"),
    ({"pretrained": "no/where"}, "model no/where: not in the cache"),
]


@pytest.mark.parametrize(("arguments", "line"), REFUSED, ids=lambda value: str(value)[:20])
def test_a_bad_argument_is_one_line(make: Make, arguments: dict[str, object], line: str) -> None:
    with pytest.raises(SystemExit) as stop:
        make(**arguments)
    assert str(stop.value).startswith(f"llava_mini: {line}")
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"num_beams": 4}, "the task wants num_beams=4; llava-mini does not search with beams"),
        ({"max_new_tokens": "many"}, "generation_kwargs: max_new_tokens must be a number"),
        ({"do_sample": True, "temperature": "hot"}, "temperature must be a number"),
        ({"do_sample": True, "temperature": 1.0, "top_p": 2}, "generation_kwargs: --top-p must be in"),
    ],
)
def test_bad_options_of_a_task_are_one_line(
    make: Make, media: list[Path], options: dict[str, object], line: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        make(rows_of(media)).generate_until([written("Red?", 0, **options)])
    assert str(stop.value).startswith(f"llava_mini: {line.replace('--top-p', 'top_p')}")


def test_a_missing_medium_stops_before_anything_is_computed(make: Make, media: list[Path], tmp_path: Path) -> None:
    model = make(rows_of([*media, tmp_path / "gone.mp4"]))
    asked = [written("Red?", row) for row in range(4)]
    for run in (model.generate_until, model.loglikelihood):
        ours = asked if run == model.generate_until else [chosen("Red?", "yes", row) for row in range(4)]
        with pytest.raises(SystemExit, match=r"^llava_mini: .*gone\.mp4: no such file \(failures=empty goes on"):
            run(ours)
    assert model.engine.frames_encoded == 0


def test_a_broken_medium_and_a_bad_prompt_are_empty_on_request(
    make: Make, media: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.mp4").write_bytes(media[2].read_bytes()[:500])
    paths = [media[0], tmp_path / "broken.mp4", tmp_path / "gone.mp4"]
    model = make(rows_of(paths), failures="empty")
    alone = texts(make(rows_of(paths)).generate_until([written("Red?", 0)]))
    found = model.generate_until([written("Red?", row) for row in range(3)] + [written("a <image> b", 0)])
    assert texts(found) == [*alone, "", "", ""]
    assert [one.token_counts.output_tokens is None for one in found] == [False, True, True, True]
    scored = model.loglikelihood([chosen("Red?", "yes", 1), chosen("Red?", "yes", 0), chosen("Red?", " ", 0)])
    assert [one.text[0] == inf for one in scored] == [True, False, True]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("llava_mini: ")]
    assert len(lines) == len(set(lines)) == 4
    assert any("gone.mp4: no such file; it counts as an empty answer" in line for line in lines)
    with pytest.raises(SystemExit, match=r"broken\.mp4"):
        make(rows_of(paths)).generate_until([written("Red?", 1)])


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        (["a.mp4", "b.mp4"], "shows 2 media at once; llava-mini looks at one"),
        ([{"array": [0.0]}], "shows a thing of type dict; llava-mini looks at pictures and videos"),
        (3, "shows a thing of type int"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line(make: Make, shown: object, line: str) -> None:
    with pytest.raises(SystemExit) as stop:
        make([{}]).generate_until([written("Red?", 0, lambda row: shown)])
    assert str(stop.value).startswith(f"llava_mini: task (test), row 0: {line}")


def test_tasks_of_several_rounds_are_refused(make: Make) -> None:
    with pytest.raises(SystemExit, match="generate_until_multi_round is not supported"):
        make().generate_until_multi_round([])


def test_the_model_is_let_go(make: Make) -> None:
    model = make()
    assert model.device == model.engine.model.device  # which lmms-eval asks for when it has several processes
    model.clean()
    assert model.is_clean
    assert not hasattr(model, "engine")


def test_each_process_of_several_has_a_card_of_its_own() -> None:
    from llava_mini_cli.evaluate.arguments import read_arguments

    assert read_arguments({}, 2, 4).model.device == "cuda:2"
    assert read_arguments({"device": "cuda"}, 1, 4).model.device == "cuda:1"
    assert read_arguments({"device": "cpu"}, 1, 4).model.device == "cpu"
    assert read_arguments({"device": "cuda"}, 0, 1).model.device == "cuda"
    assert read_arguments({"revision": 12, "fps": None}).model.revision == "12"


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "I;16"])
def test_a_picture_in_memory_has_the_pixels_of_its_file(mode: str, tmp_path: Path, make: Make) -> None:
    from llava_mini_cli.media.given import picture_clip
    from llava_mini_cli.media.open import Unwatched

    rng = np.random.default_rng(4)
    values = rng.integers(0, 255, (37, 90), np.uint8)
    deep = Image.fromarray(values.astype(np.uint16) * 257)
    made = deep if mode == "I;16" else Image.fromarray(rng.integers(0, 255, (37, 90, 3), np.uint8)).convert(mode)
    made.save(tmp_path / "picture.png")
    for still in (make().engine.still, None):
        opened = open_clip(tmp_path / "picture.png", SamplingOptions(), opening=Unwatched(still))
        given = picture_clip("picture", made, Unwatched(still))
        assert (opened.info.width, opened.info.height) == (given.info.width, given.info.height)
        for one, other in zip(opened, given, strict=True):
            assert np.array_equal(one.pixels, other.pixels)
