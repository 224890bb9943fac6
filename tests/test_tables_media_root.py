"""`--media-root`: local media that tables, lists and archives name lie below it, with all links resolved."""

import json
import os
import subprocess
import zipfile
from pathlib import Path
from threading import Event

import pytest
from input_doubles import jobs_of

from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions
from llava_mini_cli.errors import FetchError, UsageError
from llava_mini_cli.formats.content import content_of_job
from llava_mini_cli.formats.fetch.zipped import ZippedHere
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.job import Fault, Job
from llava_mini_cli.formats.media_root import below, file_of
from llava_mini_cli.formats.source import FetchOptions
from llava_mini_cli.media.open import UNWATCHED
from llava_mini_cli.pipelines.forecast import forecast
from llava_mini_cli.pipelines.open_job import fault_of, open_or_fault
from llava_mini_cli.pipelines.settings import RunOptions

OPTIONS = RunOptions(ModelOptions("demo"), SamplingOptions(), GenerationOptions())

# The command line with doubles, which asks whoever cannot be reached again at once and not after 1, 2 and 4 seconds.
SOON_AGAIN = """
from functools import partial
import cli_doubles
from llava_mini_cli.commands.flags import input_flags
input_flags.FetchOptions = partial(input_flags.FetchOptions, backoff=0.01)
cli_doubles.main()
"""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """`root/a.jpg` and `root/in/b.jpg`, beside them `secret.jpg`, and links of all kinds."""
    (tmp_path / "root" / "in").mkdir(parents=True)
    for name in ("root/a.jpg", "root/in/b.jpg", "secret.jpg"):
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "root" / "out.jpg").symlink_to("../secret.jpg")
    (tmp_path / "root" / "good.jpg").symlink_to(tmp_path / "root" / "in" / "b.jpg")
    (tmp_path / "root" / "up").symlink_to("..")
    (tmp_path / "rootless").mkdir()
    (tmp_path / "rootless" / "c.jpg").write_bytes(b"1")
    for name in ("root/z.zip", "z.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("x.jpg", b"1")
    return tmp_path


INSIDE = ("root/a.jpg", "root/in/b.jpg", "root/in/../a.jpg", "root/good.jpg", "root/gone.jpg", "root/up/root/a.jpg")
OUTSIDE = (
    "secret.jpg", "root/out.jpg", "root/up/secret.jpg", "root/../secret.jpg", "rootless/c.jpg", "/etc/passwd",
    "gone.jpg", "/proc/self/fd/0", "/dev/stdin", "root/\0.jpg",
)  # fmt: skip


def is_refused(job: Job) -> bool:
    fault = fault_of(job)
    return fault is not None and fault.kind == "refused"


def options(disk: Path, **given: str) -> InputOptions:
    return InputOptions(media_root=str(disk / "root"), **given)  # pyright: ignore[reportArgumentType]


def test_a_table_reaches_what_lies_below(disk: Path) -> None:
    outside = [name for name in OUTSIDE if "\0" not in name]
    cells = [*INSIDE, *outside, *(f"file://{disk}/{name}" for name in (*INSIDE, *outside[:5]))]
    (disk / "t.jsonl").write_text("".join(json.dumps({"path": cell}) + "\n" for cell in cells))
    jobs = jobs_of(disk / "t.jsonl", options=options(disk))
    assert [is_refused(job) for job in jobs] == [False] * 6 + [True] * 9 + [False] * 6 + [True] * 5
    assert not any(is_refused(job) for job in jobs_of(disk / "t.jsonl"))
    assert fault_of(jobs[6]) == Fault("input", "refused", f"it lies outside of --media-root '{disk / 'root'}'")


def test_a_list_reaches_what_lies_below(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(disk)
    entries = [
        *INSIDE,
        *OUTSIDE[:5],
        "file://host/etc/passwd",
        "rootless",
        "root/up",
        "root/in",
        f"LOCAL://{disk}/z.zip",
    ]
    Path("list").write_text("\n".join(entries))
    jobs = jobs_of(options=options(disk, files_from="list"))
    assert [is_refused(job) for job in jobs] == [False] * 6 + [True] * 8 + [False, True]
    assert [job.path for job in jobs[-4:]] == ["rootless", "root/up", "root/in/b.jpg", f"{disk}/z.zip"]


def test_a_link_in_a_folder_of_a_list_leads_nowhere_else(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(disk)
    Path("list").write_text("root\n")
    jobs = jobs_of(options=options(disk, files_from="list"))
    assert {job.path: is_refused(job) for job in jobs} == {
        "root/a.jpg": False, "root/good.jpg": False, "root/in/b.jpg": False, "root/out.jpg": True,
    }  # fmt: skip


def test_what_was_typed_may_lie_anywhere_but_links_in_a_folder_lead_no_further(disk: Path) -> None:
    typed = [disk / "secret.jpg", disk / "root" / "out.jpg", disk / "rootless", disk / "root" / "*.jpg"]
    assert not any(is_refused(job) for job in jobs_of(*typed, options=options(disk)))
    (disk / "rootless" / "d.jpg").symlink_to(disk / "secret.jpg")
    (disk / "rootless" / "e.jpg").symlink_to(disk / "root" / "a.jpg")
    jobs = jobs_of(disk / "rootless", options=options(disk))
    assert [is_refused(job) for job in jobs] == [False, True, False]


def test_shards_of_a_list_lie_below(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(disk)
    for name in ("s.tar", "root/s.tar"):
        subprocess.run(["tar", "-cf", name, "secret.jpg"], check=True)
    Path("root/link.tar").symlink_to("../s.tar")
    Path("list").write_text("s.tar\nroot/s.tar\nroot/link.tar\n")
    jobs = jobs_of(options=options(disk, files_from="list"))
    assert [job.path for job in jobs] == ["s.tar", "root/s.tar/secret.jpg", "root/link.tar"]
    assert [job.fault and job.fault.kind for job in jobs] == ["refused", None, "refused"]
    assert [job.path for job in jobs_of(disk / "s.tar", options=options(disk))] == [f"{disk}/s.tar/secret.jpg"]


def test_archives_of_chained_urls_lie_below(disk: Path) -> None:
    (disk / "t.csv").write_text(
        f"path\nzip://x.jpg::file://{disk}/root/z.zip\nzip://x.jpg::file://{disk}/z.zip\nzip://x.jpg::{disk}/root/up/z.zip\n"
    )
    first, *others = [job.source for job in jobs_of(disk / "t.csv", options=options(disk))]
    assert isinstance(first, ZippedHere)
    first.write_to(disk / "copy", FetchOptions(), Event())
    assert (disk / "copy").read_bytes() == b"1"
    for source in others:
        assert isinstance(source, ZippedHere)
        with pytest.raises(FetchError, match="it lies outside of --media-root"):
            source.write_to(disk / "copy", FetchOptions(), Event())


def test_what_is_opened_is_what_was_looked_at(disk: Path) -> None:
    link = disk / "root" / "swapped.jpg"
    link.symlink_to(disk / "root" / "a.jpg")
    job = Job(str(link), "swapped.jpg", (), roots=(str(disk / "root"),))
    opened: list[str] = []

    def open_clip(path: str, *_: object, **__: object) -> Fault:
        link.unlink()
        link.symlink_to(disk / "secret.jpg")
        opened.append(os.path.realpath(path))
        return Fault("decode", "corrupt", "no picture")

    assert open_or_fault(open_clip, job, SamplingOptions(), 336, UNWATCHED) == Fault("decode", "corrupt", "no picture")  # type: ignore[arg-type]
    assert opened == [str(disk / "root" / "a.jpg")]
    refused = open_or_fault(open_clip, job, SamplingOptions(), 336, UNWATCHED)  # type: ignore[arg-type]
    assert isinstance(refused, Fault)
    assert (refused.kind, len(opened)) == ("refused", 1)
    assert fault_of(job) == refused


def test_nothing_outside_is_read_for_a_digest_or_a_forecast(disk: Path) -> None:
    outside = Job(str(disk / "secret.jpg"), "secret.jpg", (), roots=(str(disk / "root"),))
    inside = outside._replace(path=str(disk / "root" / "a.jpg"))
    item = ("x", 1, 1)
    assert content_of_job(outside, item) is None
    assert content_of_job(outside._replace(roots=()), item) == content_of_job(inside, item) is not None

    def probe(path: str, timeout: float) -> object:
        raise AssertionError(path)

    found = forecast(iter([outside]), OPTIONS, probe, None)  # type: ignore[arg-type]
    assert found.unreadable == {"refused": 1}


def test_the_root_itself_a_link_and_one_that_is_not_there(disk: Path) -> None:
    (disk / "alias").symlink_to("root")
    roots = InputOptions(media_root=str(disk / "alias")).roots
    assert roots == (str(disk / "root"),)
    assert below(str(disk / "alias" / "a.jpg"), roots) == str(disk / "root" / "a.jpg")
    assert below(str(disk / "root"), roots) == str(disk / "root")
    assert below("any", ()) == "any"
    assert below("/etc/passwd", ("/",)) == os.path.realpath("/etc/passwd")
    assert file_of(Job("x", "x", (), local="fetched", roots=roots)) == "fetched"
    with pytest.raises(UsageError, match="--media-root: there is no folder 'gone'"):
        InputOptions(media_root="gone")


def test_rows_of_a_strangers_table_through_the_command_line(disk: Path, warm_doubles: Path) -> None:
    """28 schemes of fsspec's without a package, others that are local in disguise: rows, at every run."""
    from fsspec.registry import known_implementations

    odd = sorted(set(known_implementations) - {"http", "https", "file", "local", "hf"})
    (disk / "t.csv").write_text("".join(["path\nroot/a.jpg\n", *(f"{name}://127.0.0.1/x\n" for name in odd)]))
    program = [str(warm_doubles / "python"), "-c", SOON_AGAIN]
    command = [*program, "ask", "t.csv", "-p", "What?", "-o", "o.jsonl", "--media-root", "root"]
    for _ in range(2):
        done = subprocess.run([*command, "-q"], cwd=disk, capture_output=True, text=True, check=False)
        assert done.returncode == 3, done.stderr
        rows = [json.loads(line) for line in (disk / "o.jsonl").read_text().splitlines()]
        assert len(rows) == len(odd) + 1
        assert [row["id"] for row in rows if row["status"] == "ok"] == ["root/a.jpg"]
        kinds = {row["error_type"] for row in rows if row["status"] == "error"}
        assert kinds <= {"refused", "unreadable", "unreachable"}
    typed = [*program, "ask", "ssh://127.0.0.1/x", "root/a.jpg", "-p", "What?"]
    done = subprocess.run(typed, cwd=disk, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "reading ssh:// needs a package that is not installed" in done.stderr
