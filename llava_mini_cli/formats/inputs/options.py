"""How inputs are read: which files of a folder count, and what the columns of a table mean."""

from dataclasses import dataclass

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.media_root import roots_of


@dataclass(frozen=True)
class InputOptions:
    """Options of the inputs; the defaults take every medium and keep no column."""

    recursive: bool = True  # folders to the bottom
    include: tuple[str, ...] = ()  # globs; of folders and globs only what one of them matches
    exclude: tuple[str, ...] = ()  # globs; files and folders that are passed over
    files_from: str | None = None  # a list of media, a line each; - is standard input
    null: bool = False  # the list is separated by NUL bytes
    column: str | None = None  # of tables: where the media are; of shards: the extension that is the medium
    id_column: str | None = None  # what rows carry as their id; None: the medium
    prompt_columns: tuple[str, ...] = ()  # columns that hold questions
    keep_columns: tuple[str, ...] = ()  # columns that rows carry on
    keep_all: bool = False  # every column
    start_column: str | None = None  # of tables: where the stretch begins that a row asks about, in seconds
    end_column: str | None = None  # and where it ends
    media_root: str | None = None  # a folder; local media that tables and lists name must lie below it

    def __post_init__(self) -> None:
        if self.null and self.files_from is None:
            raise UsageError("-0 needs --files-from")
        if self.files_from == "":
            raise UsageError("--files-from is empty")
        roots_of(self.media_root)
        for flag, names in (("--prompt-column", self.prompt_columns), ("--keep-columns", self.keep_columns)):
            for name in names:
                if not name or names.count(name) > 1:
                    raise UsageError(f"{flag} names the column '{name}' twice" if name else f"{flag} is empty")

        if self.start_column is not None and self.start_column == self.end_column:
            raise UsageError(f"--start-column and --end-column both name the column '{self.start_column}'")

    @property
    def has_spans(self) -> bool:
        """True if rows of tables ask about stretches of their media."""
        return self.start_column is not None or self.end_column is not None

    @property
    def roots(self) -> tuple[str, ...]:
        """The folder of --media-root with all links resolved, as jobs have it."""
        return roots_of(self.media_root)

    @property
    def column_flags(self) -> tuple[str, ...]:
        """The flags that were given and need an input with columns."""
        given = {
            "--column": self.column is not None,
            "--id-column": self.id_column is not None,
            "--start-column": self.start_column is not None,
            "--end-column": self.end_column is not None,
            "--prompt-column": bool(self.prompt_columns),
            "--keep-columns": bool(self.keep_columns) or self.keep_all,
        }
        return tuple(flag for flag, is_given in given.items() if is_given)
