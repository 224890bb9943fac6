"""The options about workers as they are typed, and how Ray's many lines become one."""

import subprocess
import sys
from pathlib import Path

import pytest
from configured_cli import echo_engines, llava_mini

from llava_mini_cli.formats.job import Job
from llava_mini_cli.workers import ray_hands
from llava_mini_cli.workers.options import WorkerOptions
from llava_mini_cli.workers.ray_hands import RayHands

engines = pytest.fixture(autouse=True)(echo_engines)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--workers 0", "--workers must be 1 to 10000, or auto, not 0"),
        ("--workers many", "--workers must be a number or auto, not many"),
        ("--workers -1", "--workers must be a number or auto, not -1"),
        ("--workers 1.5", "--workers must be a number or auto, not 1.5"),
        ("--workers 999999999", "--workers must be a number or auto, not 999999999"),
        ("--ray here", "--ray 'here' is no address: HOST:PORT, or auto"),
        ("--ray ray://here:10001", "--ray 'ray://here:10001': give HOST:PORT of the cluster's head"),
        ("--workers 1 --worker-gpus 1.5", "--worker-gpus must be a whole number, 0.5 or 0.25, not 1.5"),
        ("--workers 1 --worker-cpus 0", "--worker-cpus must be at least 1, not 0"),
        ("--workers 1 --worker-timeout 0", "--worker-timeout must be at least 1 second and finite, not 0"),
        ("--worker-gpus 1", "--worker-gpus is about workers, and there are none; --workers or --ray asks for them"),
        ("--worker-cpus 1", "--worker-cpus is about workers"),
        ("--ship-media", "--ship-media is about workers"),
        ("--workers 2 --device cuda:1", "--device cuda:1: a worker has devices of its own; --device cuda, or none"),
    ],
)
@pytest.mark.parametrize("command", ["caption a.mp4", "when a.mp4 Dark?", "index a.mp4 -o x.index"])
def test_what_cannot_be_used_is_one_line(command: str, options: str, words: str) -> None:
    result = llava_mini(*command.split(), *options.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"llava-mini: error: {words}")
    assert result.stderr.count("\n") == 1
    assert not Path("x.index").exists()


@pytest.mark.parametrize("options", ["--workers 2", "--ray 127.0.0.1:9"])
def test_an_archive_is_asked_about_here(options: str) -> None:
    result = llava_mini("ask", "Dark?", "--index", "some.index", *options.split())
    assert result.exit_code == 2
    assert "--workers share files and URLs, not an archive" in result.stderr


def test_a_dry_run_starts_nobody() -> None:
    result = llava_mini("caption", "a.mp4", "--dry-run", "--ray", "127.0.0.1:9")
    assert result.exit_code == 0, result.stderr
    assert '"media": 1' in result.stdout


def test_ray_is_imported_for_workers_alone(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("1")
    code = (
        "import sys, cli_doubles\n"
        "sys.argv = ['llava-mini', *sys.argv[1:]]\n"
        "try:\n    cli_doubles.main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "assert not {'ray', 'llava_mini_cli.workers.crew'} & set(sys.modules)\n"
    )
    tests = str(Path(__file__).parent)
    for command in ("caption a.mp4 -q", "ask a.mp4 What? -o x.parquet -q", "when a.mp4 Dark? -q", "index --help"):
        done = subprocess.run(
            [sys.executable, "-c", code, *command.split()],
            cwd=tmp_path, capture_output=True, text=True, check=False, env={"PYTHONPATH": tests, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: Worker
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process"""
NODE = "The actor died because its node has died. Node Id: 12ab"
MISSING = """The actor died because of an error raised in its creation task, ray::Worker.__init__() (pid=1)
Traceback
ModuleNotFoundError: No module named 'llava_mini_cli'"""


@pytest.mark.parametrize(
    ("text", "why", "blamed", "hopeless"),
    [
        (DIED, "its process ended unexpectedly (SYSTEM_ERROR: Worker unexpectedly exits with a connection error code "
         "2)", True, False),
        (NODE, "its machine went down", False, False),
        (MISSING, "llava-mini-cli 0.1.0 is not installed there, or not as here: ModuleNotFoundError: No module named "
         "'llava_mini_cli'", True, True),
        ("something else", "its process ended unexpectedly", True, False),
    ],
)  # fmt: skip
def test_a_death_is_one_line(
    text: str, why: str, blamed: bool, hopeless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_hands, "__version__", "0.1.0")
    gone = RayHands(WorkerOptions(1), "cpu")._dead(RuntimeError(text))
    assert gone == (why, blamed, hopeless)


def test_only_files_that_are_there_are_sent(tmp_path: Path) -> None:
    class Store:
        def put(self, data: object) -> bytes:
            return bytes(data)  # type: ignore[call-overload]

    (tmp_path / "a.mp4").write_bytes(b"123")
    (tmp_path / "empty.mp4").touch()
    hands = RayHands(WorkerOptions(1, ship_media=True), "cpu")
    hands._ray = Store()
    jobs = [Job(str(tmp_path / name), name, (), number=0) for name in ("a.mp4", "empty.mp4", "gone.mp4")]
    jobs = [job._replace(number=number) for number, job in enumerate(jobs)]
    assert [hands._ship(job) for job in jobs] == [b"123", None, None]
    hands.let_go(jobs[0])
    assert hands._shipped == {}
    (tmp_path / "roots").mkdir()
    outside = jobs[0]._replace(roots=(str(tmp_path / "roots"),))
    assert hands._ship(outside) is None
