"""Which config file is read."""

from typing import Annotated

import typer

from llava_mini_cli.commands.configured import load_config

ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        envvar="LLAVA_MINI_CONFIG",
        show_envvar=False,
        is_eager=True,
        callback=load_config,
        expose_value=True,
        help="Read this config file instead of the usual ones; see llava-mini config.",
        show_default=False,
    ),
]
