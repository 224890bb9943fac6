"""What folders hold that looks like media and is none: passed over, counted once, brought back by --include."""

from collections.abc import Sequence
from pathlib import Path

import fsspec
import media_films as films
import pytest
from input_doubles import WHAT, touch

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.inputs.passed_over import PassedOver, is_text
from llava_mini_cli.formats.inputs.read import open_inputs
from llava_mini_cli.formats.source import FetchOptions
from llava_mini_cli.media.open import is_media_path

SOURCE = b"export const answer: number = 42;\nGreat();\n" * 20


def packets(length: int, at: int, count: int = 5) -> bytes:
    return b"".join((b"\0" * at + b"\x47").ljust(length, b"a") for _ in range(count))


def found(
    *arguments: object,
    options: InputOptions = InputOptions(),  # noqa: B008 - frozen
    times: int = 1,
) -> tuple[list[str], PassedOver]:
    """The names that count, read so many times, and what was passed over."""
    passed_over = PassedOver()
    with FileCache(FetchOptions()) as cache:
        names = [str(argument) for argument in arguments]
        opened = open_inputs(names, WHAT, is_media_path, cache, options, passed_over)
        jobs = [job.file_name for job in opened.jobs]
        for _ in range(times - 1):
            assert opened.again is not None
            assert [job.file_name for job in opened.again()] == jobs
    return jobs, passed_over


@pytest.mark.parametrize(
    "name",
    [
        "@eaDir", "#recycle", "$RECYCLE.BIN", "$Recycle.Bin", "__MACOSX", ".@__thumb", "lost+found", "@Recycle",
        "System Volume Information", "RECYCLER", ".Trash-1000", ".Trashes", ".thumbnails", "LOST.DIR", "FOUND.000",
    ],
)  # fmt: skip
def test_thumbnails_and_bins_are_passed_over(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a.jpg", f"{name}/a.jpg", f"x/{name}/a.jpg/deep/T.JPG", f"x/{name}/b.mp4", f"x/{name}/note.txt")
    names, passed_over = found(tmp_path)
    assert names == ["a.jpg"]
    assert passed_over.counts == {f".jpg in {name}": 2, f".mp4 in {name}": 1}
    assert str(passed_over) == f"2 .jpg in {name}, 1 .mp4 in {name}"


def test_folders_of_the_users_own_count(tmp_path: Path) -> None:
    touch(tmp_path, "Trash/a.jpg", "thumbs/b.jpg", "@home/c.jpg", "#1/d.jpg", "found.it/e.jpg", ".hidden/f.jpg")
    names, passed_over = found(tmp_path)
    assert names == ["#1/d.jpg", "@home/c.jpg", "Trash/a.jpg", "found.it/e.jpg", "thumbs/b.jpg"]
    assert not passed_over.counts
    assert str(passed_over) == ""


def test_a_bin_behind_a_link_is_not_entered(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.jpg", "elsewhere/b.jpg")
    (tmp_path / "in/#recycle").symlink_to(tmp_path / "elsewhere")
    names, passed_over = found(tmp_path / "in")
    assert (names, str(passed_over)) == (["a.jpg"], "")


def test_snapshots_are_not_entered(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "#snapshot/1/a.jpg", "#snapshot/2/a.jpg")
    names, passed_over = found(tmp_path)
    assert (names, str(passed_over)) == (["a.jpg"], "1 #snapshot folders")


@pytest.mark.parametrize(
    ("include", "names"),
    [
        (("@eaDir",), ["@eaDir/a.jpg", "x/@eaDir/a.jpg"]),
        (("*.jpg", "@ea*"), ["b.jpg", "@eaDir/a.jpg", "x/@eaDir/a.jpg"]),
        (("**/@eaDir/**",), ["@eaDir/a.jpg", "x/@eaDir/a.jpg"]),
        (("x/@eaDir/*.jpg",), ["x/@eaDir/a.jpg"]),
        (("*",), ["b.jpg", "@eaDir/a.jpg", "x/@eaDir/a.jpg"]),
        (("*.jpg",), ["b.jpg"]),
        (("*/*/*.jpg", "b.*"), ["b.jpg"]),
    ],
)
def test_include_brings_thumbnails_back(tmp_path: Path, include: tuple[str, ...], names: list[str]) -> None:
    touch(tmp_path, "b.jpg", "@eaDir/a.jpg", "x/@eaDir/a.jpg")
    assert found(tmp_path, options=InputOptions(include=include))[0] == names


def test_what_was_not_asked_for_is_not_counted(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp4", "@eaDir/a.jpg", "@eaDir/a.mp4", "c.psd", "x/@eaDir/a.mp4", ".d.psd")
    (tmp_path / "a.ts").write_bytes(SOURCE)
    assert str(found(tmp_path, options=InputOptions(include=("*.mp4",)))[1]) == "2 .mp4 in @eaDir"
    options = InputOptions(exclude=("*.psd", "*.ts", "@eaDir"))
    assert not found(tmp_path, options=options)[1].counts
    options = InputOptions(recursive=False)
    assert found(tmp_path, options=options)[1].counts == {".psd": 1, ".ts that are text": 1, "hidden .psd": 1}


def test_hidden_files_are_counted_and_brought_back_by_their_own_names(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", ".b.jpg", "x/._c.JPG", ".d.txt", ".git/e.jpg")
    names, passed_over = found(tmp_path)
    assert (names, str(passed_over)) == (["a.jpg"], "2 hidden .jpg")
    for include, brought in (("*.jpg", ["a.jpg"]), (".*.jpg", [".b.jpg"]), (".[_b]*", [".b.jpg", "x/._c.JPG"])):
        assert found(tmp_path, options=InputOptions(include=(include,)))[0] == brought


def test_a_hidden_folder_is_brought_back_by_its_own_name_alone(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", ".@__thumb/b.jpg", ".git/c.jpg")
    assert found(tmp_path, options=InputOptions(include=("*",)))[0] == ["a.jpg"]
    assert found(tmp_path, options=InputOptions(include=(".@__thumb",)))[0] == [".@__thumb/b.jpg"]


def test_a_bin_that_cannot_be_read_is_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "lost+found/b.jpg")
    (tmp_path / "lost+found").chmod(0)
    try:
        assert found(tmp_path)[0] == ["a.jpg"]
    finally:
        (tmp_path / "lost+found").chmod(0o755)


@pytest.mark.parametrize("name", ["a.ts", "a.mts", "a.TS", "a.nut", "syslog.264"])
@pytest.mark.parametrize(
    "source",
    [
        SOURCE,
        b"G" * 100,
        b"G".ljust(188, b"x"),
        "\ufeffGrüße();".encode("utf-16"),
        "Grüße".encode("latin-1"),
    ],
)
def test_texts_with_the_suffix_of_a_stream_are_passed_over(tmp_path: Path, name: str, source: bytes) -> None:
    touch(tmp_path, "b.jpg")
    (tmp_path / name).write_bytes(source)
    names, passed_over = found(tmp_path)
    assert names == ["b.jpg"]
    assert passed_over.counts == {f"{Path(name).suffix.lower()} that are text": 1}
    assert found(tmp_path / name)[0] == [name]  # named, it is tried
    for include in (f"*{Path(name).suffix}", "*"):
        assert name in found(tmp_path, options=InputOptions(include=(include,)))[0]
    assert found(f"{tmp_path}/*")[0] == ["b.jpg"]
    assert found(f"{tmp_path}/*{Path(name).suffix}")[0] == [name]


@pytest.mark.parametrize(
    "stream",
    [
        packets(188, 0), packets(192, 4), packets(204, 0), packets(188, 0, 2),
        packets(188, 0)[100:],  # begins within a packet; not a text either
        b"\0\0\0\x18ftypmp42", b"", b"\x07noise",
    ],
)  # fmt: skip
def test_whatever_is_no_text_counts(tmp_path: Path, stream: bytes) -> None:
    """A stream that is damaged or of another kind becomes a row, not a silent gap."""
    (tmp_path / "a.ts").write_bytes(stream.replace(b"a" * 100, b"\0" + b"a" * 99))
    assert found(tmp_path)[0] == ["a.ts"]


def test_packets_of_letters_are_a_stream(tmp_path: Path) -> None:
    for at, (length, begin) in enumerate([(188, 0), (204, 0)]):
        (tmp_path / f"{at}.ts").write_bytes(packets(length, begin))
        assert not is_text(str(tmp_path / f"{at}.ts"))


def test_a_real_stream_counts(tmp_path: Path) -> None:
    for name, how in (("a.ts", ("-f", "mpegts")), ("b.mts", ("-f", "mpegts", "-mpegts_m2ts_mode", "1"))):
        films.film(tmp_path / name, 10, *films.H264, *how)
    assert found(tmp_path)[0] == ["a.ts", "b.mts"]


def test_suffixes_that_are_not_read_are_counted_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.PSD", "x/c.psd", "x/d.svg", "x/e.txt", "x/f.mp3", "x/@eaDir/g.psd", "x/h")
    names, passed_over = found(tmp_path, times=3)
    assert (names, str(passed_over)) == (["a.jpg"], "2 .psd, 1 .svg, 1 .psd in @eaDir")
    Path(tmp_path / "list").write_text(f"{tmp_path}/x\n{tmp_path}/a.jpg\n")
    assert (
        str(found(options=InputOptions(files_from=str(tmp_path / "list")), times=2)[1])
        == "1 .psd, 1 .svg, 1 .psd in @eaDir"
    )
    assert found(f"{tmp_path}/**")[1].counts == passed_over.counts


def test_a_folder_of_nothing_else_says_what_it_holds(tmp_path: Path) -> None:
    touch(tmp_path, "b.psd", "@eaDir/a.jpg")
    words = r"no images or videos in the folder '.*' \(passed over: 1 .psd, 1 .jpg in @eaDir\)$"
    with pytest.raises(UsageError, match=words):
        found(tmp_path)
    with pytest.raises(UsageError, match="no file matches"):
        found(f"{tmp_path}/*")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("**/*.jpg", ["a.jpg", "x/b.jpg"]),
        ("**", ["a.jpg", "x/b.jpg"]),
        ("**/@eaDir/*.jpg", ["x/@eaDir/c.jpg"]),
        ("x/@*/*", ["@eaDir/c.jpg"]),
        ("x/@eaDir/*", ["c.jpg"]),
    ],
)
def test_globs_take_thumbnails_that_they_name(tmp_path: Path, pattern: str, names: Sequence[str]) -> None:
    touch(tmp_path, "a.jpg", "x/b.jpg", "x/@eaDir/c.jpg")
    taken, passed_over = found(f"{tmp_path}/{pattern}")
    assert taken == names
    assert passed_over.counts == ({".jpg in @eaDir": 1} if len(names) == 2 else {})


def test_a_folder_of_thumbnails_that_is_named_is_read(tmp_path: Path) -> None:
    touch(tmp_path, "@eaDir/c.jpg", "@eaDir/d/e.jpg")
    assert found(tmp_path / "@eaDir")[0] == ["c.jpg", "d/e.jpg"]


def test_files_on_a_server_are_told_by_their_names_alone() -> None:
    memory = fsspec.filesystem("memory")  # pyright: ignore[reportUnknownMemberType]
    for name in ("a.jpg", "b.ts", "c.psd", "@eaDir/d.jpg", "x/@eaDir/e.jpg", "x/f.txt"):
        memory.pipe_file(f"/passed/{name}", SOURCE)
    try:
        names, passed_over = found("memory://passed/")
        assert (names, passed_over.counts) == (["a.jpg", "b.ts"], {".jpg in @eaDir": 2, ".psd": 1})
        assert found("memory://passed/**/@eaDir/*.jpg")[0] == ["@eaDir/d.jpg", "x/@eaDir/e.jpg"]
        assert found("memory://passed/**/*.jpg")[0] == ["a.jpg"]
        options = InputOptions(include=("@eaDir",))
        assert found("memory://passed/", options=options)[0] == ["@eaDir/d.jpg", "x/@eaDir/e.jpg"]
        with pytest.raises(UsageError, match="no images or videos match"):
            found("memory://passed/*.psd")
    finally:
        memory.rm("/passed", recursive=True)


def test_files_are_listed_while_they_are_found(tmp_path: Path) -> None:
    listed: list[tuple[str, str]] = []
    passed_over = PassedOver(lambda path, what: listed.append((path, what)))
    passed_over.add("a/b.psd", ".psd")
    first, second = (tell() for tell in [passed_over.once()] * 2)
    first("a/c.psd", ".psd")
    second("a/c.psd", ".psd")
    assert listed == [("a/b.psd", ".psd"), ("a/c.psd", ".psd")]
    assert str(passed_over) == "2 .psd"


def test_counts_are_easy_to_read() -> None:
    passed_over = PassedOver()
    passed_over.counts.update({".svg": 3, ".psd": 12345})
    assert str(passed_over) == "12,345 .psd, 3 .svg"
