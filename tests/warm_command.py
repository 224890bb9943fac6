"""`llava-mini` and `python` without the seconds in which each start imports torch.

`warm_command` makes two commands that hand their arguments, working directory, environment, standard streams and bound
on data (`ulimit -d`) to a server, which has imported everything once. A fork of it is the run: a process of its own
that runs the command, or the code that `python` is given, and ends as any Python does. Where `RUN_PID` is in the
environment, the run first writes its process id to the file of that name, for whoever wants to kill it. Starting cold
is tested elsewhere (`test_cli_real`, `test_cli_process`).
"""

import atexit
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from runpy import run_module, run_path
from types import ModuleType
from typing import Any

# What a server imports; the `main` of the first is the command.
_ROWS = (
    "pandas", "pyarrow.parquet", "duckdb", "rich.table", "tqdm", "fsspec", "llava_mini_cli.commands.main",
    "llava_mini_cli.commands.left_out", "llava_mini_cli.commands.reporter", "llava_mini_cli.commands.summary",
    "llava_mini_cli.pipelines.answer", "llava_mini_cli.pipelines.index_options",
    "llava_mini_cli.formats.outputs.appended", "llava_mini_cli.formats.outputs.parquet_file",
    "llava_mini_cli.formats.outputs.parquet_folder",
)  # fmt: skip
DOUBLES = ("cli_doubles", *_ROWS)
REAL = ("llava_mini_cli.__main__", "llava_mini_cli.engine.load", "llava_mini_cli.pipelines.find", *_ROWS)

CLIENT = """\
#!{python} -ISE
import json, os, resource, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
allowed = resource.getrlimit(resource.RLIMIT_DATA)
asked = json.dumps([sys.argv, os.getcwd(), dict(os.environ), allowed]).encode()
socket.send_fds(server, [len(asked).to_bytes(4, "big")], [0, 1, 2])
server.sendall(asked)
sys.exit(int(server.makefile().read()))
"""


@contextmanager
def warm_command(modules: tuple[str, ...]) -> Generator[Path]:
    """A folder with `llava-mini` and `python`, while there is a server for it that has imported some modules."""
    with tempfile.TemporaryDirectory(prefix="warm", dir="/tmp") as folder:  # the path of a socket is short
        yield from _served_in(Path(folder), modules)


def _served_in(folder: Path, modules: tuple[str, ...]) -> Generator[Path]:
    address, binaries = str(folder / "server"), folder / "bin"
    # What is read from the environment at an import is read here, before a test has set anything.
    settings = {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(
        [sys.executable, "-P", __file__, address, *modules],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | settings,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    binaries.mkdir()
    for name in ("llava-mini", "python"):
        (binaries / name).write_text(CLIENT.format(python=sys.executable, address=address))
        (binaries / name).chmod(0o755)
    try:
        assert server.stdout.readline() == b"ready\n"
        yield binaries
    finally:
        server.stdin.close()
        server.stdout.close()
        server.wait(60)


def started(command: Sequence[str | Path], told: Path, **more: Any) -> tuple["subprocess.Popen[Any]", int]:
    """A run of a warm command that has begun, and its own process id, which is in the file `told`, too.

    The process that is returned ends when the run does: with the run's exit code, or 256 less the signal that ended it.
    """
    told.unlink(missing_ok=True)
    process = subprocess.Popen(command, env=os.environ | {"RUN_PID": str(told)}, **more)
    end = time.monotonic() + 60
    while not (told.exists() and told.read_text()):
        assert time.monotonic() < end, "no run began"
        time.sleep(0.01)
    return process, int(told.read_text())


def main() -> None:
    """Serves until standard input ends; returns from `_served` in the process of each run alone."""
    address, *modules = sys.argv[1:]
    for name in modules:
        import_module(name)
    import_module("warm_parser").make_ready()
    if _served(address):
        _end(_python if Path(sys.argv[0]).name == "python" else import_module(modules[0]).main)


def _python() -> None:
    """Runs what a command line of Python names: `-c CODE`, `-m MODULE`, `-` or a script, with its arguments."""
    what, *given = sys.argv[1:]
    if what in ("-c", "-"):
        code = given.pop(0) if what == "-c" else sys.stdin.read()
        sys.argv = [what, *given]
        sys.path.insert(0, "")
        sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), vars(sys.modules["__main__"]))
    elif what == "-m":
        sys.argv = given
        sys.path.insert(0, str(Path.cwd()))
        run_module(given[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [what, *given]
        sys.path.insert(0, str(Path(what).resolve().parent))
        run_path(what, run_name="__main__")


def _end(run: Callable[[], None]) -> None:
    """Runs a command and ends this process with its exit code, as the interpreter would, but leaves the memory be."""
    code = None
    try:
        run()
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()  # pyright: ignore[reportAttributeAccessIssue]
    os._exit(code if isinstance(code, int) else code is not None)


def _served(address: str) -> bool:
    """True in a process that is to be a run; false when there will be no more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([listener, 0], [], [])
            if 0 in ready:
                return False
            client, _ = listener.accept()
            if not os.fork():
                break
            client.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, streams, _, _ = socket.recv_fds(client, 4, 3)  # pyright: ignore[reportCallIssue]
    asked = client.makefile("rb").read(int.from_bytes(length, "big"))
    if run := os.fork():
        _, status = os.waitpid(run, 0)
        client.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    client.close()
    _become(*json.loads(asked), streams)
    return True


def _become(
    arguments: list[str], folder: str, environment: dict[str, str], allowed: tuple[int, int], streams: list[int]
) -> None:
    """Takes over what a process has from the one that started it."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    if told := environment.get("RUN_PID"):
        Path(told).write_text(str(os.getpid()))
    resource.setrlimit(resource.RLIMIT_DATA, allowed)


if __name__ == "__main__":
    main()
