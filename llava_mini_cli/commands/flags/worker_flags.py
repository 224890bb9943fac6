"""Options for a run over several devices or machines."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from llava_mini_cli.commands.times import parse_time
from llava_mini_cli.errors import UsageError

if TYPE_CHECKING:  # imported where they are used, so that --help is quick
    from llava_mini_cli.workers.options import WorkerOptions

_option = partial(typer.Option, rich_help_panel="Workers")


@dataclass(frozen=True)
class WorkerFlags:
    """The options as given; `workers.options` checks them."""

    workers: Annotated[
        str | None,
        _option(
            metavar="N|auto",
            help="Number of processes that each load the model and share the media; auto is as many as there is room "
            "for. Needs the extra llava-mini-cli\\[ray].",
            show_default="none, the work is done here",
        ),
    ] = None
    ray: Annotated[
        str | None,
        _option(
            metavar="ADDRESS",
            help="Ray cluster whose machines the workers run on, as HOST:PORT of its head; auto is the one of this "
            "machine.",
            show_default="this machine alone",
        ),
    ] = None
    worker_gpus: Annotated[
        float | None, _option(metavar="N", help="GPUs of each worker.", show_default="1, or 0 on a machine without")
    ] = None
    worker_cpus: Annotated[
        int | None,
        _option(metavar="N", help="Processor cores of each worker.", show_default="its share of those of its machine"),
    ] = None
    worker_timeout: Annotated[
        float,
        _option(
            parser=parse_time,
            metavar="TIME",
            help="Time without a sign after which a worker is killed.",
            show_default="10m",
        ),
    ] = 600.0
    ship_media: Annotated[
        bool,
        _option(help="Media files are sent to the workers, where these do not see the disk that the files lie on."),
    ] = False

    def options(self) -> "WorkerOptions | None":
        """The options, checked; None where no worker is asked for. Raises `UsageError`."""
        from llava_mini_cli.workers.options import WorkerOptions

        if self.workers is None and self.ray is None:
            for flag, is_given in (
                ("--worker-gpus", self.worker_gpus is not None),
                ("--worker-cpus", self.worker_cpus is not None),
                ("--ship-media", self.ship_media),
            ):
                if is_given:
                    raise UsageError(f"{flag} is about workers, and there are none; --workers or --ray asks for them")
            return None
        count = self.workers or "auto"
        if count != "auto" and not (count.isascii() and count.isdecimal() and len(count) < 9):
            raise UsageError(f"--workers must be a number or auto, not {count}")
        return WorkerOptions(
            "auto" if count == "auto" else int(count),
            self.ray,
            self.worker_gpus,
            self.worker_cpus,
            self.worker_timeout,
            self.ship_media,
        )
