"""What a server does last before its first fork, so that no run of the command does it again."""

import atexit
import gc

from typer.testing import CliRunner

from llava_mini_cli.commands.main import app


def make_ready() -> None:
    """Imports what Typer imports once a command line is read, and takes all objects from the collector.

    A collection in a fork would write to each object that it looks at, and so copy nearly all memory of the server.
    """
    refused = CliRunner().invoke(app, ["ask", "--limit", "word"])
    assert refused.exit_code == 2
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # some libraries tell of objects that are left when the server ends
