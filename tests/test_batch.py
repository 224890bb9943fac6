"""Batches of columns in, batches of columns out: order, kinds, faults, pickles, and several batches at once."""

import asyncio
import pickle
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from broken_media import make_picture, make_video
from cli_doubles import EchoEngine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from llava_mini_cli.batch import AsyncCaptioner, Captioner, captioner
from llava_mini_cli.batch.streaming import RowsLeft
from llava_mini_cli.config import (
    EventOptions,
    GenerationOptions,
    ModelOptions,
    RunLimits,
    SamplingOptions,
    SpanOptions,
)
from llava_mini_cli.engine.request import Answer, Failure
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.job import Job, Prompt, Question, SpanKeys
from llava_mini_cli.formats.row import Row
from llava_mini_cli.pipelines.settings import RunOptions

KINDS = ("picture", "video", "bytes", "struct", "named", "gone", "nothing", "empty", "junk")
OPTIONS = RunOptions(ModelOptions("echo"), SamplingOptions(), GenerationOptions())


def made(*prompts: Prompt | str, options: RunOptions = OPTIONS, **named: Any) -> Captioner:
    return Captioner(options, prompts, engine=EchoEngine(options.model), **named)


class Cells(dict[str, Any]):
    """Cells by the names of their kinds; shown without the bytes in them."""

    def __repr__(self) -> str:
        return f"Cells({', '.join(self)})"


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A cell of each kind, by what becomes of it: `good`, or the type of its error."""
    folder = tmp_path_factory.mktemp("media")
    picture, video = folder / "a.png", folder / "v.mp4"
    make_picture(picture, 1)
    make_video(video, seconds=3)
    cells = {
        "picture": (str(picture), None),
        "video": (str(video), None),
        "bytes": (picture.read_bytes(), None),
        "struct": ({"bytes": picture.read_bytes(), "path": "x.png"}, None),
        "named": ({"bytes": None, "path": str(picture)}, None),
        "gone": (str(folder / "gone.mp4"), "not_found"),
        "nothing": (None, "bad_row"),
        "empty": ("  ", "bad_row"),
        "junk": (b"no picture", "unreadable"),
    }
    return Cells(cells)


def test_the_columns_of_the_answers_stand_beside_those_of_the_batch(media: dict[str, Any]) -> None:
    batch = {"n": [1, 2], "path": [media["picture"][0], media["gone"][0]]}
    found = made("What?")(batch)
    assert (found["n"], found["path"]) == ([1, 2], batch["path"])
    assert (found["id"], found["file_name"]) == (batch["path"], ["a.png", "gone.mp4"])
    assert (found["status"], found["error_type"]) == (["ok", "error"], [None, "not_found"])
    assert found["text"][0].startswith("What?")
    assert len(set(found["fingerprint"])) == 2
    assert list(batch) == ["n", "path"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds=st.lists(st.sampled_from(KINDS), max_size=6), prompts=st.integers(1, 2), typed=st.booleans())
def test_every_row_has_its_answer_in_its_place(
    media: dict[str, Any], kinds: list[str], prompts: int, *, typed: bool
) -> None:
    asked = made(*[f"{number} of {{n}}?" for number in range(prompts)])
    cells = [media[kind][0] for kind in kinds]
    is_typed = typed and len({type(cell) for cell in cells if cell is not None}) < 2
    batch: Any = {"media": cells, "n": [f"row {number}" for number in range(len(kinds))]}
    found = asked.__call__(pa.table({name: pa.array(values) for name, values in batch.items()}) if is_typed else batch)
    if is_typed:
        assert isinstance(found, pa.Table)
        found = found.to_pydict()
    each = [1 if media[kind][1] == "bad_row" else prompts for kind in kinds]
    expected = [(f"row {row}", number) for row, count in enumerate(each) for number in range(count)]
    assert found["n"] == [row for row, _ in expected]
    for place, (row, number) in enumerate(expected):
        error = media[kinds[int(row.split()[1])]][1]
        assert found["error_type"][place] == error
        assert found["prompt"][place] == ("" if error == "bad_row" else f"{number} of {row}?")
        assert (found["text"][place] is None) == (error is not None)


def test_questions_ids_and_times_come_from_columns(media: dict[str, Any]) -> None:
    inputs = InputOptions(
        column="clip", id_column="key", prompt_columns=("ask",), start_column="from", end_column="until"
    )
    batch = {
        "clip": [media["video"][0]] * 3,
        "key": [7, 8, 9],
        "ask": ["a?", "b?", None],
        "from": np.array([0, 1, 2]),
        "until": [1.0, 3.0, 3.0],
    }
    found = made(inputs=inputs)(batch)
    assert (found["id"], found["prompt"]) == (["7", "8", "9"], ["a?", "b?", ""])
    assert (found["start"], found["end"]) == ([0.0, 1.0, None], [1.0, 3.0, None])
    assert found["error"][2] == "batch, row 2: no question in column 'ask'"
    assert isinstance(found["from"], np.ndarray)


def test_columns_of_the_batch_that_say_which_medium_it_is_stay(media: dict[str, Any]) -> None:
    inputs = InputOptions(id_column="id")
    given = {"id": [3], "file_name": [media["picture"][0]], "media": ["x"]}
    found = made("What?")(given)
    assert ({name: found[name] for name in given}, found["status"]) == (given, ["ok"])
    batch = {"path": [media["picture"][0]], "id": [7]}
    assert made("What?", inputs=inputs)(batch)["id"] == [7]
    found = made("What?", inputs=inputs, prefix="a_")(pa.table(batch)).to_pydict()
    assert (found["id"], found["a_id"], found["a_status"]) == ([7], ["7"], ["ok"])


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("kind", [dict, pa.table])
def test_spans_repeat_the_columns_of_the_batch(media: dict[str, Any], kind: Any, *, whole: bool) -> None:
    options = replace(OPTIONS, spans=SpanOptions(every=1.0, whole=whole))
    batch = {"path": [media[name][0] for name in ("gone", "video", "picture")], "n": np.array([1, 2, 3])}
    found = made("What?", options=options)(kind(batch))
    found = found.to_pydict() if isinstance(found, pa.Table) else found
    one: list[int | None] = [None, 1] if whole else [1]
    assert list(found["n"]) == [1] * len(one) + [2] * (len(one) + 2) + [3] * len(one)
    assert found["segment"] == [*one, *one, 2, 3, *one]


def test_typed_columns_have_the_types_of_parquet_though_all_are_null(media: dict[str, Any]) -> None:
    found = made("What?")(pa.table({"path": [media["picture"][0]]}))
    assert found.schema.field("error").type == pa.string()
    assert found.schema.field("p_yes").type == pa.float64()
    none = made("What?")(pa.table({"path": pa.array([], pa.string())}))
    assert (none.num_rows, none.schema) == (0, found.schema)


@pytest.mark.parametrize(
    ("named", "prompts", "words"),
    [
        ({}, (), "there is no question"),
        ({}, ("",), "the prompt is empty"),
        ({}, ("a?", "a?"), "asked twice"),
        ({"inputs": InputOptions(keep_columns=("n",))}, ("a?",), "every column of a batch is kept"),
        ({"options": replace(OPTIONS, limits=RunLimits(media=3))}, ("a?",), "leave out `limits`"),
        ({"options": replace(OPTIONS, events=EventOptions())}, ("a?",), "`llava-mini when` does that"),
    ],
)
def test_what_makes_no_sense_is_said_when_it_is_made(named: Any, prompts: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        made(*prompts, **named)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"path": ["a", "b"], "n": [1]}, "different lengths: 1, 2"),
        ({"n": [1]}, "which column of 'batch' holds the media"),
        ({"path": ["a"], "text": [1]}, "a column 'text' already"),
        (["a.png"], "not list"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(batch: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        made("What?")(batch)


def test_a_column_that_a_question_names_must_be_there() -> None:
    with pytest.raises(UsageError, match="the prompt: 'batch' has no column 'm'; its columns are: path"):
        made("{m}?")({"path": ["a"]})


def test_a_pickled_one_loads_its_model_at_the_first_call(
    media: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[ModelOptions] = []

    def load(model: ModelOptions, **wishes: bool) -> EchoEngine:
        assert wishes == {"yes_no": True, "collects": False}
        loaded.append(model)
        return EchoEngine(model)

    monkeypatch.setattr(captioner, "load_engine", load)
    options = replace(OPTIONS, generation=GenerationOptions(yes_no=True))
    for kind in (Captioner, AsyncCaptioner):
        loaded.clear()
        first = kind(options, ["What?"], prefix="a_")
        assert len(loaded) == 1
        again = pickle.loads(pickle.dumps(first))
        assert len(loaded) == 1
        assert isinstance(again, kind)
        assert again.asking == first.asking
        if isinstance(again, Captioner):
            assert again({"path": [media["picture"][0]]})["a_status"] == ["ok"]
        else:
            assert gathered(again, {"path": [media["picture"][0]]})[0]["a_status"] == ["ok"]
        assert len(loaded) == 2


def test_pictures_in_memory_are_answered_as_their_files_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    pixels = rng.integers(0, 255, (40, 60, 3), np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right is to be made
    turned.save(tmp_path / "turned.png", exif=exif)
    options = RunOptions(ModelOptions("demo"), SamplingOptions(), GenerationOptions(max_new_tokens=8))
    cells = [
        str(tmp_path / "a.png"),
        picture,
        pixels,
        (tmp_path / "a.png").read_bytes(),
        Image.open(tmp_path / "turned.png"),
    ]
    found = Captioner(options, ["What is shown?"])({"image": cells})
    assert found["status"] == ["ok"] * 5
    assert len(set(found["text"])) == 1
    assert (found["width"], found["height"]) == ([60] * 5, [40] * 5)
    grey = Captioner(options, ["What is shown?"])
    modes = [pixels[..., 0], picture.convert("CMYK"), picture.convert("L"), pixels.astype(np.float32), pixels[None]]
    assert grey({"image": modes})["error_type"] == [None, None, None, "bad_row", "bad_row"]


def gathered(answers: AsyncCaptioner, *batches: Any) -> list[Any]:
    """The batches' rows, each as one mapping of lists, in the order in which they came."""

    async def of(batch: Any) -> Any:
        rows = [row async for row in answers(batch)]
        return {name: [value for row in rows for value in row[name]] for name in (rows[0] if rows else {})}

    async def run() -> list[Any]:
        return list(await asyncio.gather(*map(of, batches)))

    return asyncio.run(run())


@pytest.fixture
def streaming() -> Iterator[AsyncCaptioner]:
    options = replace(OPTIONS, spans=SpanOptions(every=1.0, whole=True))
    made = AsyncCaptioner(options, ["a?", "b?"], engine=EchoEngine(options.model))
    yield made
    made.close()


def test_several_batches_at_once_give_the_rows_of_each(media: dict[str, Any], streaming: AsyncCaptioner) -> None:
    cells = [cell for cell, _ in media.values()]
    batches = [{"path": cells, "n": list(range(9))}, {"path": cells[:3], "n": list("abc")}, {"path": [], "n": []}]
    found = gathered(streaming, *batches)
    streaming.close()
    alone = Captioner(streaming.asking.options, ["a?", "b?"], engine=streaming.engine)
    assert found[2] == {}
    for batch, rows in zip(batches[:2], found[:2], strict=True):
        expected = alone(batch)
        names = ("n", "prompt", "segment", "text", "error_type", "fingerprint")
        assert sorted(map(repr, zip(*(rows[name] for name in names), strict=True))) == sorted(
            map(repr, zip(*(expected[name] for name in names), strict=True))
        )


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_rows_are_awaited_until_the_last_of_any_order(seed: int, *, whole: bool) -> None:
    row = Row(
        id="0.0", file_name="a", prompt="?", status="ok", model="m", fingerprint="f", created_at=datetime.now(UTC)
    )
    keys = SpanKeys("0", 0, frozenset(), whole)
    spanned, single = Question(Prompt("?"), "0.0", spans=keys), Question(Prompt("?"), "0.1")
    rows = [replace(row, segment=number, spans=3) for number in (1, 2, 3)] + [replace(row, id="0.1")]
    rows += [row] if whole else []
    random.Random(seed).shuffle(rows)
    left = RowsLeft([Job("a", "a", (spanned, single))], whole=whole)
    for one in rows:
        assert not left.are_none
        left.came(one)
    assert left.are_none


def test_its_thread_ends_with_it(media: dict[str, Any]) -> None:
    streaming = AsyncCaptioner(OPTIONS, ["a?"], engine=EchoEngine(OPTIONS.model))
    assert gathered(streaming, {"path": [media["picture"][0]]})[0]["status"] == ["ok"]
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "batches"]
    del streaming
    thread.join(10)
    assert not thread.is_alive()


class Held(EchoEngine):
    """Answers what holds `slow` last, whatever came before."""

    def step(self) -> list[Answer | Failure]:
        self._waiting.sort(key=lambda request: "slow" in request.prompts[0])
        return super().step()


def test_a_batch_does_not_wait_for_another_and_may_be_left(media: dict[str, Any]) -> None:
    inputs = InputOptions(prompt_columns=("ask",))
    streaming = AsyncCaptioner(OPTIONS, inputs=inputs, engine=Held(OPTIONS.model))
    cell = media["picture"][0]

    async def run() -> list[str]:
        seen: list[str] = []
        left = streaming({"path": [cell] * 2, "ask": ["one", "two"]})
        seen += (await anext(left))["text"]  # pyright: ignore[reportArgumentType]
        await left.aclose()  # pyright: ignore[reportAttributeAccessIssue]
        async for row in streaming({"path": [cell], "ask": ["three"]}):
            seen += row["text"]
        return seen

    first, last = asyncio.run(run())
    assert "one" in first
    assert "three" in last
    streaming.close()
    assert "four" in gathered(streaming, {"path": [cell], "ask": ["four"]})[0]["text"][0]  # in a new thread
    streaming.close()


class Broken(EchoEngine):
    """An engine that ends at the word."""

    def step(self) -> list[Answer | Failure]:
        if "end" in self._waiting[0].prompts[0]:
            self._waiting.clear()
            raise RuntimeError("the device is gone")
        return super().step()


def test_what_ends_the_engine_is_raised_for_every_batch_and_it_can_go_on(media: dict[str, Any]) -> None:
    streaming = AsyncCaptioner(OPTIONS, inputs=InputOptions(prompt_columns=("ask",)), engine=Broken(OPTIONS.model))
    batch = {"path": [media["picture"][0]], "ask": ["end"]}

    async def run() -> list[Any]:
        async def of(batch: Any) -> list[Any]:
            return [row async for row in streaming(batch)]

        return await asyncio.gather(of(batch), of(batch), return_exceptions=True)

    assert [str(error) for error in asyncio.run(run())] == ["the device is gone"] * 2
    good = {"path": [media["picture"][0]], "ask": ["go on"]}
    assert gathered(streaming, good)[0]["status"] == ["ok"]
    streaming.close()
