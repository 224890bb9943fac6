"""Captions where training tools look for them: text files beside the media, and Hugging Face metadata."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_doubles import EchoEngine, open_made_clip
from PIL import Image
from typer.testing import CliRunner, Result

from llava_mini_cli.commands.main import app
from llava_mini_cli.errors import OutputLocked
from llava_mini_cli.formats.outputs.companion import RunInfo
from llava_mini_cli.formats.outputs.open_output import OutputOptions, open_output

LlavaMini = Callable[..., Result]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The working directory, with a few media for doubles."""
    monkeypatch.setattr("llava_mini_cli.pipelines.load_engine.load_engine", EchoEngine)
    monkeypatch.setattr("llava_mini_cli.media.open.open_clip", open_made_clip)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for name, text in {"a.jpg": "1", "b.jpg": "unopenable", "deep/c.jpg": "1"}.items():
        (tmp_path / "photos" / name).write_text(text)
    return tmp_path


def llava_mini(*arguments: str, code: int = 3) -> Result:
    """A run; by default one of the media fails."""
    result = CliRunner().invoke(app, ["ask", *arguments, "-m", "echo"])
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    return result


def captions(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*.txt"))}


def test_captions_beside_the_media_keep_those_that_are_there(folder: Path) -> None:
    (folder / "photos" / "a.txt").write_text("by hand")
    result = llava_mini("photos", "What?", "-f", "txt")
    assert captions(folder / "photos") == {"a.txt": "by hand", "deep/c.txt": "What? [1]\n"}
    assert "1 were there" in result.stderr
    llava_mini("photos", "Why?", "-f", "txt")
    assert captions(folder / "photos") == {"a.txt": "by hand", "deep/c.txt": "What? [1]\n"}
    assert not list((folder / "photos").rglob(".*"))


@pytest.mark.parametrize(
    ("existing", "expected"),
    [
        ("overwrite", "What? [1]\n"),
        ("append", "by hand What? [1]\n"),
        ("prepend", "What? [1] by hand\n"),
    ],
)
def test_what_becomes_of_captions_that_are_there(folder: Path, existing: str, expected: str) -> None:
    (folder / "photos" / "a.txt").write_text("by hand\n")
    for _ in range(2):  # the same command again does not write the same text behind itself
        llava_mini("photos", "What?", "-f", "txt", "--existing", existing)
        assert captions(folder / "photos") == {"a.txt": expected, "deep/c.txt": "What? [1]\n"}


def test_captions_mirrored_into_a_folder(folder: Path) -> None:
    llava_mini("photos", "What?", "-f", "txt", "-o", "captions")
    assert captions(folder / "captions") == {"a.txt": "What? [1]\n", "deep/c.txt": "What? [1]\n"}
    assert not captions(folder / "photos")
    options = OutputOptions.parse("captions", "txt")
    held = open_output(options, RunInfo("echo", {}))
    with pytest.raises(OutputLocked, match=f"pid {os.getpid()}"):
        open_output(options, RunInfo("echo", {}))
    held.release()


def test_several_questions_have_a_file_each(folder: Path) -> None:
    arguments = ["photos", "-p", "tags=What?", "-p", "Why?", "-f", "txt"]
    llava_mini(*arguments)
    expected = {
        f"{name}.{part}.txt": f"{text} [1]\n"
        for name in ("a", "deep/c")
        for part, text in (("2", "Why?"), ("tags", "What?"))
    }
    assert captions(folder / "photos") == expected
    (folder / "photos" / "a.2.txt").unlink()
    result = llava_mini(*arguments)
    assert captions(folder / "photos") == expected
    assert "3 were there" in result.stderr


def test_captions_of_media_with_very_long_names(folder: Path) -> None:
    names = ["é" * 125 + end for end in ("a.jpg", "b.jpg")]  # 255 bytes each, and their captions' names would be 257
    for name in names:
        (folder / "photos" / name).write_text("1")
    for _ in range(2):
        llava_mini("photos", "-p", "What?", "-p", "Why?", "-f", "txt", "-o", "out/")
        written = [path.name for path in (folder / "out").iterdir() if path.name.startswith("é")]
        assert len(written) == 4
        assert all(len(os.fsencode(name)) <= 255 for name in written)


def test_media_of_the_same_base_name_do_not_share_a_caption(folder: Path) -> None:
    (folder / "photos" / "a.png").write_text("2")
    (folder / "more").mkdir()
    (folder / "more" / "a.jpg").write_text("3")
    for _ in range(2):
        llava_mini("photos", "more", "-p", "What?", "-f", "txt", "-o", "out/")
        assert captions(folder / "out") == {
            "a.txt": "What? [1]\n",
            "a.png.txt": "What? [2]\n",
            "a.jpg.txt": "What? [3]\n",
            "deep/c.txt": "What? [1]\n",
        }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-f", "txt", "-o", "-"], "--format txt needs a file or a folder: -o FOLDER"),
        (["-f", "txt", "--overwrite"], "--existing overwrite"),
        (["-o", "x.jsonl", "--existing", "append"], "--existing append is for --format txt"),
        (["-f", "hf"], "--format hf needs a file or a folder: -o FOLDER/metadata.parquet"),
        (["-f", "hf", "-o", "rows.jsonl"], "--format hf writes metadata.jsonl or metadata.parquet"),
        (["-o", "photos/metadata.jsonl", "--shard", "1/2"], "--shard: shards cannot share"),
        (["-o", "photos/deep/metadata.jsonl"], "is not among them"),
    ],
)
def test_what_cannot_be_asked_for(folder: Path, arguments: list[str], words: str) -> None:
    result = llava_mini("photos", "What?", *arguments, code=2)
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def make_pictures(folder: Path) -> None:
    for name in ("a.jpg", "deep/c.jpg"):
        Image.new("RGB", (8, 8), "red").save(folder / name)
    (folder / "b.jpg").write_text("unopenable")


@pytest.fixture
def pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pictures that `datasets` can read and one that nobody can; the run itself sees doubles."""
    real = open_made_clip

    def open_any(path: str, *arguments: Any, **options: Any) -> Any:
        if Path(path).read_bytes().startswith(b"\xff\xd8"):
            path = str(folder / "one.txt")
        return real(path, *arguments, **options)

    (folder / "one.txt").write_text("1")
    monkeypatch.setattr("llava_mini_cli.media.open.open_clip", open_any)
    make_pictures(folder / "photos")
    return folder / "photos"


def dataset(folder: Path, cache: Path) -> list[tuple[str, str]]:
    """What `datasets` makes of a folder: the path of each image with its text."""
    from datasets import load_dataset
    from datasets.utils import disable_progress_bars

    disable_progress_bars()
    rows = load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(cache))["train"]
    assert all(image.size == (8, 8) for image in rows["image"])
    return sorted(zip(rows["prompt"], rows["text"], strict=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.parquet"])
def test_datasets_reads_a_captioned_folder(pictures: Path, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.mktemp("cache")
    output = f"photos/{name}"
    llava_mini("photos", "What?", "-o", output)
    assert dataset(pictures, cache) == [("What?", "What? [1]")] * 2
    assert "3 were there (1 failed" in llava_mini("photos", "What?", "-o", output).stderr
    Image.new("RGB", (8, 8), "blue").save(pictures / "b.jpg")  # repaired: its error is no longer of this file
    llava_mini("photos", "-p", "What?", "-p", "Why?", "-o", output, code=0)
    assert dataset(pictures, cache) == [("What?", "What? [1]")] * 3 + [("Why?", "Why? [1]")] * 3
    stem = name.removeprefix("metadata")
    assert sorted(path.name for path in pictures.glob(".*")) == [
        f".metadata.rows{stem}",
        f".metadata.rows{stem}.llava-mini",
    ]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.parquet"])
def test_metadata_that_somebody_changed_are_not_replaced(pictures: Path, name: str) -> None:
    path = pictures / name
    path.write_text('{"file_name": "a.jpg", "text": "by hand"}\n')
    before = path.read_bytes()
    result = llava_mini("photos", "What?", "-o", f"photos/{name}", code=2)
    assert "was not written by llava-mini, or was changed since" in result.stderr
    assert path.read_bytes() == before
    llava_mini("photos", "What?", "-o", f"photos/{name}", "--overwrite")
    written = path.read_bytes()
    llava_mini("photos", "What?", "-o", f"photos/{name}")
    assert path.read_bytes() == written
    path.write_bytes(before)
    llava_mini("photos", "Why?", "-o", f"photos/{name}", code=2)
    assert path.read_bytes() == before


def test_metadata_are_written_after_a_run_that_was_killed_before(pictures: Path) -> None:
    llava_mini("photos", "What?", "-o", "photos/metadata.jsonl")
    written = (pictures / "metadata.jsonl").read_text()
    assert [json.loads(line)["file_name"] for line in written.splitlines()] == ["a.jpg", "deep/c.jpg"]
    (pictures / "metadata.jsonl").unlink()
    llava_mini("photos", "What?", "-o", "photos/metadata.jsonl")
    assert (pictures / "metadata.jsonl").read_text() == written
