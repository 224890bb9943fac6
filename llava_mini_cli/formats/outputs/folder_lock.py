"""The locks of a folder that a run writes into: for all of it, or for one shard of it beside other shards.

In the hidden sub-folder `.llava-mini` are `lock`, which shards share and any other run has for itself; `shard-IofN`,
one run at a time; and `run`, the settings that the rows share, locked only while somebody reads or writes it.
"""

from contextlib import suppress
from pathlib import Path

from llava_mini_cli.errors import OutputLocked
from llava_mini_cli.formats.disk import errors_of
from llava_mini_cli.formats.lock import FileLock
from llava_mini_cli.formats.shard import Shard
from llava_mini_cli.safe_files import make_own_folder

HIDDEN = ".llava-mini"  # readers of a folder pass over names that begin with a dot


class FolderLock:
    """Held from the moment it is made until `release`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hidden = folder / HIDDEN
        self._made = not folder.exists()
        with errors_of(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with errors_of(self._hidden):
            make_own_folder(self._hidden)
        self._held: list[FileLock] = []
        self.alone = True  # whether no other shard was there when this run began

    def take(self, shard: Shard | None) -> None:
        """To be called once, inside `notes`, so that one run at a time begins.

        Raises:
            OutputLocked: another run holds the folder or the shard.
        """
        try:
            self._held.append(FileLock(self._hidden / "lock", self._folder))
        except OutputLocked:
            if shard is None:
                raise
            self._held.append(FileLock(self._hidden / "lock", self._folder, shared=True))
            self.alone = False
        if shard is not None:
            self._held[0].share()
            self._held.append(FileLock(self._hidden / f"shard-{shard.tag}", self._folder / f"shard {shard}"))
            self._check_no_other_split(shard)

    def _check_no_other_split(self, shard: Shard) -> None:
        """Shards of another number of shares would do the same work again."""
        for path in self._hidden.glob("shard-*"):
            if not path.name.endswith(f"of{shard.count}"):
                FileLock(path, self._folder).release(remove=True)

    def notes(self) -> FileLock:
        """The file with the settings that the rows share, locked as long as a `with` block lasts; others wait."""
        return FileLock(self._hidden / "run", self._folder, wait=True)

    def release(self) -> None:
        """Lets go. A folder that was made for this run and got no part is taken away again."""
        unused = self._made and not any(path.name != HIDDEN for path in self._folder.glob("*"))
        for lock in reversed(self._held):
            lock.release(remove=unused or lock.path.name != "lock")
        if unused and self.alone:
            with suppress(OSError):
                (self._hidden / "run").unlink()
                self._hidden.rmdir()
                self._folder.rmdir()
