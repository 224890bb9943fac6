"""WebDataset shards -> jobs: samples, their columns, shards that are cut short or elsewhere."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from http_server import serve
from hypothesis import given, settings
from hypothesis import strategies as st
from input_doubles import asked, faults, inputs, jobs_of

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.job import Prompt
from llava_mini_cli.formats.source import FetchOptions
from llava_mini_cli.pipelines.fetch import FetchAhead

Members = Sequence[tuple[str, bytes]]


def write_tar(path: Path, members: Members, format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            archive.addfile(info, io.BytesIO(data))
    return path


def note(**values: object) -> bytes:
    return json.dumps(values).encode()


MEMBERS = [
    ("./", b""),
    ("0001.jpg", b"one"),
    ("0001.json", note(name="Ann", n=1)),
    ("0001.txt", b"a caption\n"),
    ("sub/0002.mp4", b"two"),
    ("sub/0002.json", note(name="Bob", n=2)),
    ("__index__.jpg", b"no"),
    ("._0003.jpg", b"no"),
    ("0003.json", note(name="Eve")),
    ("0003.left.png", b"left"),
    ("0003.right.png", b"right"),
    ("0003.npy", b"no"),
]


def contents(arguments: Sequence[object], tmp_path: Path) -> list[bytes]:
    """What the media of some arguments hold once they are fetched."""
    options = FetchOptions(cache_dir=tmp_path / "cache")
    with inputs(*arguments) as opened, FileCache(options) as cache, FetchAhead(opened.jobs, cache) as ahead:
        return [Path(job.file).read_bytes() for job in ahead if job.fault is None]


def test_samples_and_their_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shard = write_tar(Path("shard-000.tar"), MEMBERS)
    options = InputOptions(keep_columns=("n", "txt"), id_column="__key__")
    with inputs(shard, prompts=[Prompt("Is {name} here?")], options=options) as opened:
        jobs = list(opened.jobs)
    assert asked(jobs) == [
        ("shard-000.tar/0001.jpg", ["Is Ann here?"]),
        ("shard-000.tar/sub/0002.mp4", ["Is Bob here?"]),
        ("shard-000.tar/0003.left.png", ["Is Eve here?"]),
        ("shard-000.tar/0003.right.png", ["Is Eve here?"]),
    ]
    assert [job.file_name for job in jobs] == [job.path for job in jobs]
    assert [job.questions[0].id for job in jobs] == ["0001", "sub/0002", "0003", "0003"]
    assert [dict(job.questions[0].kept) for job in jobs[:2]] == [
        {"n": "1", "txt": "a caption"}, {"n": "2", "txt": None},
    ]  # fmt: skip
    assert jobs[0].item == (f"{tmp_path}/shard-000.tar/0001.jpg", 3, 1_700_000_000)
    assert contents([shard], tmp_path) == [b"one", b"two", b"left", b"right"]


def test_the_extension_that_is_the_medium(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("1.jpg", b"x"), ("1.seg.png", b"y"), ("2.bin", b"z"), ("2.jpg", b"w")])
    assert [job.path for job in jobs_of(shard, options=InputOptions(column="jpg"))] == [
        f"{shard}/1.jpg", f"{shard}/2.jpg",
    ]  # fmt: skip
    assert jobs_of(shard, options=InputOptions(column="bin"))[1].path == f"{shard}/2.bin"


def test_a_line_of_jsonl_is_a_row(tmp_path: Path) -> None:
    questions = note(q="Who?") + b"\n\n" + note(q="Why?") + b"\n"
    shard = write_tar(tmp_path / "a.tar", [("1.mp4", b"x"), ("1.jsonl", questions), ("1.json", note(n=7))])
    jobs = jobs_of(shard, prompts=[Prompt("{n}?")], options=InputOptions(prompt_columns=("q",)))
    assert asked(jobs) == [(f"{shard}/1.mp4", ["7?", "Who?", "7?", "Why?"])]


def test_bad_samples_are_bad_rows(tmp_path: Path) -> None:
    members = [
        ("1.jpg", b"x"), ("1.json", b"{"), ("2.json", note(name="Ann")), ("3.jpg", b"y"), ("3.json", b"[1]"),
        ("4.jpg", b"z"), ("4.json", note(other=1)), ("5.jpg", b"ok"), ("5.json", note(name="Bob")),
    ]  # fmt: skip
    shard = write_tar(tmp_path / "a.tar", members)
    jobs = jobs_of(shard, prompts=[Prompt("{name}?")])
    assert asked([job for job in jobs if job.fault is None]) == [(f"{shard}/5.jpg", ["Bob?"])]
    messages = [message.removeprefix(f"{shard}, sample ") for _, _, message in faults(jobs)]
    assert messages[0].startswith("1: 1.json: Expecting property name")
    assert messages[1:] == ["2: no image or video", "3: 3.json: not an object", "4: nothing in column 'name'"]
    assert {fault[:2] for fault in faults(jobs)} == {("input", "bad_row")}


@pytest.mark.parametrize("cut", [1, 512, 1024, 1200, 2048, 2300])
def test_a_shard_that_is_cut_short_gives_what_can_be_read_and_one_error(tmp_path: Path, cut: int) -> None:
    shard = write_tar(tmp_path / "a.tar", [(f"{number}.jpg", b"x" * 700) for number in range(4)], tarfile.USTAR_FORMAT)
    whole = 4 * (512 + 1024)  # bytes before the end of the archive
    shard.write_bytes(shard.read_bytes()[: whole - cut])
    jobs = jobs_of(shard, tmp_path / "b.jpg")
    good = [job.path for job in jobs if job.fault is None]
    readable = (whole - cut + 324) // 1536  # the padding behind the last member may be missing
    assert good == [*(f"{shard}/{number}.jpg" for number in range(readable)), f"{tmp_path}/b.jpg"]
    ((stage, kind, message),) = faults(jobs)
    assert (stage, kind) == ("input", "truncated")
    assert message.startswith("the shard cannot be read to its end: ")
    assert next(job for job in jobs if job.fault is not None).questions[0].id == str(shard)


def test_shards_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "text.tar").write_bytes(b"not a tar" * 1000)
    jobs = jobs_of(tmp_path / "empty.tar", tmp_path / "text.tar", tmp_path / "gone.tar")
    assert [(stage, kind) for stage, kind, _ in faults(jobs)] == [
        ("input", "truncated"), ("input", "truncated"), ("input", "not_found"),
    ]  # fmt: skip
    assert len(jobs) == 3


def test_a_folder_of_shards_and_a_list_of_them(tmp_path: Path) -> None:
    for number in (1, 0):
        write_tar(tmp_path / f"shard-{number}.tar", [(f"{number}.jpg", b"x")])
    names = [f"{tmp_path}/shard-0.tar/0.jpg", f"{tmp_path}/shard-1.tar/1.jpg"]
    assert [job.path for job in jobs_of(tmp_path)] == names
    assert [job.path for job in jobs_of(f"{tmp_path}/*.tar")] == names
    (tmp_path / "list").write_text("".join(f"{tmp_path}/shard-{number}.tar\n" for number in (0, 1)))
    assert [job.path for job in jobs_of(options=InputOptions(files_from=str(tmp_path / "list")))] == names


def test_unknown_columns_of_a_shard(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", MEMBERS)
    with pytest.raises(UsageError, match="has no column 'nme'; its columns are: __key__, name, n, txt"):
        jobs_of(shard, prompts=[Prompt("{nme}?")])
    with pytest.raises(UsageError, match=r"--keep-columns: .* has no column 'x'"):
        jobs_of(shard, options=InputOptions(keep_columns=("x",)))


def test_remote_shards(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", MEMBERS).read_bytes()
    with serve({"s/a.tar": shard, "s/cut.tar": shard[:2000]}) as server:
        urls = [f"{server.url}/s/a.tar?sig=secret", f"{server.url}/404/b.tar", f"{server.url}/s/cut.tar"]
        fetch = FetchOptions(cache_dir=tmp_path / "cache", backoff=0.01)
        jobs = jobs_of(*urls, fetch=fetch)
        assert [job.path for job in jobs if job.fault is None] == [
            *(f"{urls[0]}/{name}" for name in ("0001.jpg", "sub/0002.mp4", "0003.left.png", "0003.right.png")),
            f"{urls[2]}/0001.jpg",
        ]  # fmt: skip
        assert [fault[:2] for fault in faults(jobs)] == [("fetch", "not_found"), ("input", "truncated")]
        assert jobs[0].item == (f"{server.url}/s/a.tar/0001.jpg", 3, 1_700_000_000)
        assert contents(urls[:1], tmp_path) == [b"one", b"two", b"left", b"right"]


NAMES = st.text(
    alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0/."), min_size=1, max_size=40
).filter(lambda name: not name.startswith("__"))


@settings(deadline=None, max_examples=50)
@given(names=st.lists(NAMES, min_size=1, max_size=5, unique=True))
def test_any_member_name_survives(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    shard = write_tar(tmp_path_factory.mktemp("shard") / "a.tar", [(f"{name}.jpg", name.encode()) for name in names])
    jobs = jobs_of(shard)
    assert [job.path for job in jobs] == [f"{shard}/{name}.jpg" for name in names]
