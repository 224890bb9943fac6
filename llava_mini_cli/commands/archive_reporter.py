"""Progress of `index` on stderr: as the other commands', with warnings by medium."""

from llava_mini_cli.commands.reporter import Reporter


class ArchiveReporter(Reporter):
    """Implements `pipelines.index.IndexProgress`."""

    def warned(self, path: str, message: str) -> None:
        """Something odd about a medium that was indexed all the same."""
        if not self._quiet:
            self._warn(f"{path}: {message}")
