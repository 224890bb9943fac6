"""Which media a command is about."""

from typing import Annotated

import typer

Media = Annotated[list[str], typer.Argument(metavar="MEDIA...", help="Videos, images, or folders of them.")]
