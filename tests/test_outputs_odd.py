"""Outputs with odd things in them or in their way: parts of others, long fields, names that many media want, pipes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from cli_doubles import EchoEngine, open_made_clip
from output_rows import RUN, finished, opened, row, texts, write
from typer.testing import CliRunner, Result

from llava_mini_cli.commands.main import app
from llava_mini_cli.commands.summary import SummaryFile
from llava_mini_cli.errors import OutputError, UsageError
from llava_mini_cli.formats.disk import write_file
from llava_mini_cli.formats.job import Job, Prompt, Question
from llava_mini_cli.formats.outputs.csv import CsvRecords
from llava_mini_cli.formats.outputs.open_output import OutputOptions
from llava_mini_cli.formats.outputs.text_files import SidecarOutput

OTHER = replace(RUN, settings={"fps": 2.0})
OLD = [row(1), row(2)]


@pytest.fixture
def out(tmp_path: Path) -> str:
    """A folder of parts with two rows."""
    write(f"{tmp_path}/out/", *OLD)
    return f"{tmp_path}/out/"


def parts(folder: str) -> list[Path]:
    return sorted(Path(folder).glob("*.parquet"))


def interrupt_overwrite(folder: str, *numbers: int) -> None:
    with pytest.raises(KeyboardInterrupt), opened(folder, run=OTHER, overwrite=True) as anew:
        for number in numbers:
            anew.write(row(number))
        raise KeyboardInterrupt


def strip_record(path: Path) -> None:
    """As tools leave a part that make one of several."""
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def cut_short(path: Path) -> None:
    path.write_bytes(b"half a part")


def test_what_an_interrupted_overwrite_left_goes_when_the_next_run_ends(out: str) -> None:
    interrupt_overwrite(out, 3)
    interrupt_overwrite(out, 4)  # the flag again: now two generations are on their way out
    with pytest.raises(KeyboardInterrupt), opened(out, run=OTHER) as again:
        again.write(row(5))
        raise KeyboardInterrupt
    assert {name for name, _ in texts(out)} == {"1", "2", "3", "4", "5"}
    write(out, row(6), run=OTHER)
    assert texts(out) == [(name, "yes") for name in "456"]
    assert "leaving" not in json.loads((Path(out) / ".llava-mini" / "run").read_text())


def test_shards_that_go_on_after_an_overwrite_keep_each_others_parts(out: str) -> None:
    interrupt_overwrite(out, 3)
    first, second = opened(out, run=OTHER, shard="1/2"), opened(out, run=OTHER, shard="2/2")
    with second:
        second.write(row(4))
    assert len(parts(out)) == 3  # the second was not alone, and leaves the old part
    with first:
        first.write(row(5))
    assert texts(out) == [(name, "yes") for name in "345"]


def test_a_part_of_another_folder_is_no_part_of_an_overwrite(out: str, tmp_path: Path) -> None:
    write(f"{tmp_path}/b/", row(7))
    (part,) = parts(f"{tmp_path}/b/")
    interrupt_overwrite(out, 3)
    part.rename(Path(out) / part.name)
    write(out, row(4), run=OTHER)
    assert [name for name, _ in texts(out)] == ["3", "4", "7"]


@pytest.mark.parametrize("spoil", [cut_short, strip_record])
@pytest.mark.parametrize("name", ["part-000000-x.parquet", "compacted.parquet", "part-000099-x.parquet"])
def test_overwrite_takes_away_parts_whatever_they_are(out: str, spoil: Callable[[Path], None], name: str) -> None:
    (part,) = parts(out)
    spoil(part.rename(Path(out) / name))
    write(out, row(3), run=OTHER, overwrite=True)
    assert texts(out) == [("3", "yes")]
    assert finished(out, run=OTHER) == 1


def test_a_folder_inside_that_is_named_like_a_file_is_left_alone(out: str) -> None:
    (Path(out) / "x.parquet").mkdir()
    write(out, row(3))
    write(out, row(4), overwrite=True)
    (Path(out) / "x.parquet").rmdir()
    assert texts(out) == [("4", "yes")]


def test_without_overwrite_parts_of_others_stay(out: str) -> None:
    (part,) = parts(out)
    strip_record(part)
    write(out, row(3))
    assert [name for name, _ in texts(out)] == ["1", "2", "3"]
    part.write_bytes(b"half a part")
    with pytest.raises(UsageError, match="--overwrite starts anew"):
        opened(out)
    assert part.read_bytes() == b"half a part"


def test_a_part_that_goes_while_a_shard_begins_is_no_trouble(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from llava_mini_cli.formats.outputs import parquet_folder

    def read_too_late(path: Path) -> pq.ParquetFile:
        path.unlink(missing_ok=True)
        raise OutputError("no such file")

    monkeypatch.setattr(parquet_folder, "read_file", read_too_late)
    output = opened(out, shard="1/2")
    assert len(output.done) == 0
    output.release()


def test_a_csv_with_a_long_field_goes_on(tmp_path: Path) -> None:
    import csv

    path, long = tmp_path / "out.csv", 'a "line"\n' * 20_000
    before = csv.field_size_limit()
    write(path, row(1, long), row(2))
    began = time.process_time()
    assert finished(path) == 2
    assert time.process_time() - began < 5  # 30 s where the lines of a record were counted again with each line
    assert csv.field_size_limit() == before  # tables of the input have a limit on purpose
    with opened(path, retry_errors=True) as again:
        again.done.replaced += 1  # as if a row had been done again: the file is written anew
    assert finished(path) == 2


def test_csv_that_cannot_be_parsed_is_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_mini_cli.formats.outputs.csv.sys", SimpleNamespace(maxsize=10))
    with pytest.raises(ValueError, match="larger than field limit"):
        CsvRecords(()).mark(CsvRecords(()).encode(row(1)))


@pytest.fixture
def media(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The working directory of runs with doubles."""
    monkeypatch.setattr("llava_mini_cli.pipelines.load_engine.load_engine", EchoEngine)
    monkeypatch.setattr("llava_mini_cli.media.open.open_clip", open_made_clip)
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("abc", 1):
        (tmp_path / name).mkdir()
        (tmp_path / name / "image.jpg").write_text(f"{number}")
    return tmp_path


def llava_mini(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [*arguments, "-m", "echo"])
    assert result.exit_code == code, result.stderr
    return result


def captions(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*.txt"))}


@pytest.mark.parametrize("output", [[], ["-o", "caps/"]])
def test_shards_do_not_write_text_files(media: Path, output: list[str]) -> None:
    result = llava_mini("ask", "a", "What?", "-f", "txt", "--shard", "1/2", *output, code=2)
    assert "--shard: shards cannot tell" in result.stderr
    assert not captions(media)


@pytest.mark.parametrize("given", ["{}/a/image.jpg", "work/../work/a/image.jpg"])
def test_media_of_one_base_name_keep_their_captions_in_any_order(media: Path, given: str) -> None:
    work = media / "work"
    work.mkdir()
    for name in "abc":
        (media / name).rename(work / name)
    names = [given.format(work).replace("/a/", f"/{name}/") for name in "abc"]
    first: dict[str, str] = {}
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0], [2]):
        Path("list").write_text("".join(f"{names[each]}\n" for each in order))
        llava_mini("ask", "--files-from", "list", "What?", "-f", "txt", "-o", "caps/", "--existing", "overwrite")
        first = first or captions(Path("caps"))
        assert captions(Path("caps")) == first
    assert sorted(first.values()) == ["What? [1]\n", "What? [2]\n", "What? [3]\n"]
    assert first["image.txt"] == "What? [1]\n"
    Path("list").write_text("".join(f"{name}\n" for name in reversed(names)))
    assert "3 were there" in llava_mini("ask", "--files-from", "list", "What?", "-f", "txt", "-o", "caps/").stderr


def test_media_that_share_no_name_keep_the_plain_ones(media: Path) -> None:
    (media / "a" / "image.mov").write_text("4")
    llava_mini("ask", str(media / "a"), "What?", "-f", "txt", "-o", "caps/")
    assert captions(media / "caps") == {"image.txt": "What? [1]\n", "image.mov.txt": "What? [4]\n"}


@pytest.mark.parametrize("given", ["/data/{}/image.jpg", "data{}/image.jpg", "/data/image.jpg"])
def test_many_media_of_one_name_cost_no_more_than_others(tmp_path: Path, given: str) -> None:
    """By different paths, or one medium with many questions."""
    output = SidecarOutput(tmp_path / "caps", "skip")
    assert output.done.is_there is not None
    began = time.process_time()
    for number in range(3000):
        question = Question(Prompt(f"{number}"), "")
        assert not output.done.is_there(Job(given.format(number), "image.jpg", (question,)), question)
    output.release()
    assert time.process_time() - began < 3  # 14 s where each name was tried


@pytest.mark.parametrize("output", [[], ["-o", "caps/"]])
def test_bad_rows_of_a_table_need_no_caption(media: Path, output: list[str]) -> None:
    (media / "people.csv").write_text('path\na/image.jpg\n""\nb/image.jpg\n""\n""\n')
    arguments = ["ask", "people.csv", "What?", "-f", "txt", "--summary-json", "s.json", *output]
    llava_mini(*arguments, code=3)
    where = media / "caps" if output else media
    assert captions(where) == {"a/image.txt": "What? [1]\n", "b/image.txt": "What? [2]\n"}
    told = json.loads((media / "s.json").read_text())
    assert (told["rows_answered"], told["rows_failed"], told["rows_skipped"]) == (2, 3, 0)


def test_a_caption_may_have_a_long_name(media: Path) -> None:
    name = "ü" * 123 + "long"  # 250 bytes
    (media / "a" / f"{name}.jpg").write_text("5")
    llava_mini("ask", f"a/{name}.jpg", "What?", "-f", "txt")
    assert (media / "a" / f"{name}.txt").read_text() == "What? [5]\n"
    assert not list(media.rglob("*.tmp"))


def test_a_file_that_cannot_be_put_in_place_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="too long"):
        write_file(tmp_path / ("x" * 256), b"")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("existing", ["append", "prepend"])
def test_a_caption_in_latin_1_is_written_on(media: Path, existing: str) -> None:
    (media / "a" / "image.txt").write_bytes(b"caf\xe9\n")
    llava_mini("ask", "a", "What?", "-f", "txt", "--existing", existing)
    expected = [b"caf\xe9", b"What? [1]"]
    assert (media / "a" / "image.txt").read_bytes() == b" ".join(expected[:: 1 if existing == "append" else -1]) + b"\n"


def test_a_prompt_column_may_have_any_name(media: Path) -> None:
    (media / "t.csv").write_text("path,q/en,q_en\na/image.jpg,What?,Why?\n")
    llava_mini("ask", "t.csv", "--prompt-column", "q/en", "--prompt-column", "q_en", "-f", "txt")
    assert captions(media / "a") == {"image.q_en.txt": "What? [1]\n", "image.jpg.q_en.txt": "Why? [1]\n"}


def test_an_output_without_a_name_is_refused() -> None:
    for format in (None, "txt", "jsonl", "parquet"):
        with pytest.raises(UsageError, match="-o is empty"):
            OutputOptions.parse("", format)


def summary_file(path: Path | str) -> SummaryFile:
    parsed = SummaryFile.parse(str(path), rows_on_stdout=False)
    assert parsed is not None
    return parsed


def test_a_summary_goes_through_a_pipe(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    summary_file(pipe).write({"media": 1})
    reader.join(10)
    assert json.loads(read[0]) == {"media": 1}
    assert pipe.is_fifo()


def test_a_summary_goes_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to("real/there.json")
    for number in range(2):  # it leads nowhere at first
        summary_file(link).write({"media": number})
        assert json.loads((tmp_path / "real" / "there.json").read_text()) == {"media": number}
    assert link.is_symlink()
    assert len(list(tmp_path.rglob("*"))) == 3


def test_a_summary_does_not_replace_a_device() -> None:
    master, terminal = os.openpty()  # not /dev/null, which a run as root could replace
    try:
        summary_file(os.ttyname(terminal)).write({"media": 1})
        assert json.loads(os.read(master, 100)) == {"media": 1}
    finally:
        os.close(terminal)
        os.close(master)


def test_a_summary_behind_a_descriptor_is_added_to_what_is_there(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    code = (
        "from llava_mini_cli.commands.summary import SummaryFile\n"
        "SummaryFile.parse('/dev/fd/2', rows_on_stdout=False).write({})\n"
        "SummaryFile.parse('/dev/fd/1', rows_on_stdout=False).write({})\n"
    )
    with log.open("a") as stderr:
        done = subprocess.run([sys.executable, "-c", code], stderr=stderr, stdout=subprocess.PIPE, check=True)
    assert (log.read_text(), done.stdout) == ("before\n{}\n", b"{}\n")


@pytest.mark.parametrize(
    ("target", "words"), [("", "is a folder"), ("gone/s.json", "its folder"), ("x" * 300, "too long")]
)
def test_a_summary_that_could_not_be_written_is_refused(
    target: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words):
        summary_file(target)


def test_a_summary_tells_of_any_path(media: Path) -> None:
    output = os.fsdecode(b"caf\xe9.jsonl")
    llava_mini("ask", "a", "What?", "-o", output, "--summary-json", "s.json")
    assert json.loads((media / "s.json").read_bytes())["output"] == "caf\\xe9.jsonl"
    assert not list(media.glob(".*.tmp"))
