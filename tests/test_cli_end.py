"""How the process ends: errors as one line and an exit code, and threads that nobody waits for."""

import os
import signal
import threading

import pytest
import typer
from typer.testing import CliRunner

from llava_mini_cli import __main__, errors
from llava_mini_cli.commands.cli import Cli
from llava_mini_cli.pipelines.interrupt import Interrupted


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (errors.UsageError("no\nway"), 2, "llava-mini: error: no way\n"),
        (errors.ModelError("gone"), 1, "llava-mini: error: gone\n"),
        (errors.OutputLocked("held"), 75, "llava-mini: error: held\n"),
        (typer.BadParameter("Value error, odd"), 2, "llava-mini: error: Invalid value: odd\n"),
        (Interrupted(signal.SIGTERM), 143, "llava-mini: error: interrupted by SIGTERM\n"),
        (typer.Abort(), 1, ""),
        (typer.Exit(4), 4, ""),
        (5, 5, ""),
        (None, 0, ""),
    ],
)
def test_what_ends_a_command_is_one_line_and_a_code(raised: object, code: int, said: str) -> None:
    app = typer.Typer(cls=Cli, pretty_exceptions_enable=False)

    @app.command()
    def one() -> object:
        if isinstance(raised, BaseException):
            raise raised
        return raised

    @app.command()
    def two() -> None: ...

    result = CliRunner().invoke(app, ["one"])
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", said)


def test_the_exit_codes_and_stages_of_errors() -> None:
    codes = {
        1: [errors.ModelNotFound, errors.CheckpointError, errors.ArchiveError, errors.OutputError],
        2: [errors.UsageError],
    }
    assert [kind.exit_code for code in codes for kind in codes[code]] == [code for code in codes for _ in codes[code]]
    assert (errors.OutputLocked.exit_code, errors.LlavaMiniError.exit_code) == (75, 1)
    for kind, stage in ((errors.FetchError, "fetch"), (errors.MediaError, "decode"), (errors.PromptError, "prompt")):
        error = kind("timeout", "slow")
        assert (error.stage, error.kind, str(error), error.exit_code) == (stage, "timeout", "slow", 1)
    assert errors.MEDIA_ERROR_KINDS[0] == "not_found"
    assert len(errors.MEDIA_ERROR_KINDS) == 16
    assert set(errors.MEDIA_ERROR_KINDS) > errors.PASSING_KINDS


@pytest.mark.parametrize(("code", "threads", "ended"), [(3, 2, 3), (None, 2, 0), ("text", 2, 1), (3, 1, None)])
def test_threads_that_are_left_do_not_keep_the_process(
    code: object, threads: int, ended: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []

    def app() -> None:
        raise SystemExit(code)

    monkeypatch.setattr(__main__, "app", app)
    monkeypatch.setattr(threading, "active_count", lambda: threads)
    monkeypatch.setattr(os, "_exit", codes.append)
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == code
    assert codes == ([] if ended is None else [ended])


def test_an_answer_that_the_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, str]] = []
    monkeypatch.setattr("sys.stdout.reconfigure", lambda **how: told.append(how), raising=False)
    monkeypatch.setattr(__main__, "app", lambda: None)
    __main__.main()
    assert told == [{"errors": "backslashreplace"}]
