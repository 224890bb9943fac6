"""Progress of `index` on stderr. As the other commands', with failures and warnings by medium."""

import time

from llava_mini_cli.commands.reporter import Reporter


class ArchiveReporter(Reporter):
    """Implements `pipelines.index.IndexProgress`."""

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._began

    def medium_failed(self, path: str, message: str) -> None:
        self.failed += 1
        self._say_once(f"llava-mini: error: {path}: {message}")

    def medium_warned(self, path: str, message: str) -> None:
        if not self._quiet:
            self._say_once(f"llava-mini: warning: {path}: {message}")
