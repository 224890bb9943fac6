"""The output of a run: a file by its suffix, a folder, or standard output. Checked before a model is loaded.

Knows the formats by name; each lives in its own module and is imported when it is used.
"""

import stat
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from llava_mini_cli.config import BESIDE, SUBTITLES, AnyFormat, Existing, Format
from llava_mini_cli.errors import OutputError, UsageError
from llava_mini_cli.formats.disk import check_folder, check_target, errors_of
from llava_mini_cli.formats.outputs.companion import RunInfo
from llava_mini_cli.formats.outputs.done import Done
from llava_mini_cli.formats.outputs.output import Output, Store
from llava_mini_cli.formats.shard import Shard
from llava_mini_cli.needs import check_packages
from llava_mini_cli.paths import is_file, is_folder, is_there
from llava_mini_cli.safe_files import check_regular

if TYPE_CHECKING:
    from llava_mini_cli.formats.outputs.appended import RecordFormat

_METADATA = ("metadata.jsonl", "metadata.parquet")  # what Hugging Face datasets look for in a folder
_SUFFIXES: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".csv": "csv"}
_EXAMPLES = {"parquet": "FILE.parquet", "hf": "FOLDER/metadata.parquet"}


@dataclass(frozen=True)
class OutputOptions:
    """The place and the format of the rows, and what becomes of those that are there."""

    path: Path | None  # None: standard output, or for the formats of `BESIDE` beside the media
    format: AnyFormat
    overwrite: bool = False  # start anew
    retry_errors: bool = False  # rows that are errors are not finished work
    shard: Shard | None = None  # the share of the input that this run does
    folder: bool = False  # `path` is a folder of parts or of captions
    existing: Existing = "skip"  # what becomes of captions that are there
    csv_safe: bool = False  # no cell of a CSV file is a formula for a spreadsheet
    edl_rate: float | None = None  # rows are events, and an EDL has so many frames a second; None: rows are answers
    thumbnails: Path | Literal["column"] | None = None  # the place of small pictures; None: there are none

    def __post_init__(self) -> None:
        self._check_thumbnails()
        if self.edl_rate is not None and self.format == "hf":
            raise UsageError(f"-o '{self.path}': the metadata of a folder hold no events; name a file of another name")
        if self.existing in ("append", "prepend") and self.format in (*SUBTITLES, "edl"):
            raise UsageError(f"--existing {self.existing} is for --format txt; subtitles are written whole")
        if self.existing != "skip" and self.format not in BESIDE:
            raise UsageError(f"--existing {self.existing} is for --format txt; --overwrite starts other outputs anew")
        if self.overwrite and self.format in BESIDE:
            raise UsageError(f"--overwrite is not for --format {self.format}: --existing overwrite")
        if self.overwrite and self.folder and self.shard is not None:
            raise UsageError("--overwrite would take away what other shards write: remove the folder, or leave --shard")
        if self.shard is not None and self.format == "hf":
            raise UsageError("--shard: shards cannot share one file of metadata; name a folder of Parquet")
        if self.shard is not None and self.format in BESIDE:
            raise UsageError("--shard: shards cannot tell whose caption a text file holds; name a folder of Parquet")

    def _check_thumbnails(self) -> None:
        """Raises `UsageError` where the output and the small pictures do not go together."""
        if self.thumbnails is None:
            return
        if self.format in BESIDE:
            raise UsageError(f"--thumbnails has no place in --format {self.format}, which holds answers alone")
        if self.thumbnails == "column" and not self._is_parquet:
            words = f"{self.format} output holds their paths; name a folder, such as --thumbnails thumbnails"
            raise UsageError(f"--thumbnails column puts pictures into Parquet, and {words}")
        if isinstance(self.thumbnails, Path) and self._is_parquet:
            raise UsageError(f"--thumbnails '{self.thumbnails}': Parquet holds pictures itself: --thumbnails column")
        if isinstance(self.thumbnails, Path) and self.path and self.thumbnails.absolute() == self.path.absolute():
            raise UsageError(f"--thumbnails '{self.thumbnails}' is the output, too; name another folder")

    @property
    def _is_parquet(self) -> bool:
        return self.format == "parquet" or (self.format == "hf" and bool(self.path and self.path.suffix == ".parquet"))

    @classmethod
    def parse(
        cls,
        output: str | None,
        format: AnyFormat | None,
        *,
        overwrite: bool = False,
        retry_errors: bool = False,
        shard: str | None = None,
        existing: Existing = "skip",
        csv_safe: bool = False,
        edl_rate: float | None = None,
        thumbnails: str | None = None,
    ) -> Self:
        """From the flags of the same names. Raises `UsageError` where they do not go together."""
        share = Shard.parse(shard) if shard is not None else None
        if thumbnails == "":  # a variable that is not set
            raise UsageError("--thumbnails is empty")
        place = "column" if thumbnails == "column" else None if thumbnails is None else Path(thumbnails)
        form, path, folder = _target(output, format, is_shard=share is not None)
        return cls(path, form, overwrite, retry_errors, share, folder, existing, csv_safe, edl_rate, place)

    @property
    def is_stream(self) -> bool:
        """True if rows go to a device or a pipe, which holds no rows yet and takes no lock."""
        if self.path is None:
            return self.format not in BESIDE
        return is_there(self.path) and not _is_regular(self.path) and not self.folder

    @property
    def is_new(self) -> bool:
        """True if there is certainly no row yet, so that a run has all of its inputs to do."""
        if self.format == "txt":
            return False
        return self.overwrite or self.is_stream or self.path is None or not is_there(rows_at(self.path))

    def check(self) -> None:
        """Raises `UsageError` or `OutputError` where the output cannot be made; writes nothing.

        `PackageMissing` where the package that writes its format is not installed.
        """
        if self._is_parquet:
            check_packages(("pyarrow",))
        if isinstance(self.thumbnails, Path):
            check_folder(self.thumbnails)
        if self.path is None:
            return
        if self.folder and is_file(self.path):
            raise UsageError(f"-o '{self.path}' is a file; what is asked for goes into a folder")
        if self.is_stream and self.format not in ("jsonl", "csv"):
            raise UsageError(f"-o '{self.path}' is no file; --format {self.format} needs one")
        check_target(self.path)


def _target(output: str | None, format: AnyFormat | None, *, is_shard: bool) -> tuple[AnyFormat, Path | None, bool]:
    """Format, path, and whether the path is a folder. Raises `UsageError` where they do not go together."""
    if output is None or output == "-":
        if format in BESIDE and output is None:
            return format, None, False
        if format not in (None, "jsonl", "csv"):
            raise UsageError(f"--format {format} needs a file or a folder: -o {_EXAMPLES.get(format, 'FOLDER')}")
        return format or "jsonl", None, False
    if not output:  # a variable that is not set; Path would take it for the folder that one is in
        raise UsageError("-o is empty")
    path = Path(output)
    as_folder = output.endswith("/") or is_folder(path)
    if format == "hf" or (format is None and path.name in _METADATA):
        path = path / "metadata.parquet" if as_folder else path
        if path.name not in _METADATA:
            raise UsageError(f"-o '{output}': --format hf writes {' or '.join(_METADATA)} into the captioned folder")
        return "hf", path, False
    if format in BESIDE:
        return format, path, True
    form = format or ("parquet" if as_folder else _format_of(path))
    if as_folder and form != "parquet":
        raise UsageError(f"-o '{output}' is a folder; name a file, such as {path / f'out.{form}'}")
    return form, path, as_folder or (form == "parquet" and is_shard)


def _is_regular(path: Path) -> bool:
    return stat.S_ISREG(path.stat().st_mode)


def _format_of(path: Path) -> Format:
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        known = ", ".join(_SUFFIXES)
        raise UsageError(f"-o '{path}': the suffix must be one of {known}, or name the format with -f")
    return _SUFFIXES[suffix]


def rows_at(path: Path) -> Path:
    """The path of an output's rows as they are now: a Parquet file that was not finished is still in parts."""
    if path.name in _METADATA and not is_there(path):
        path = path.with_name(f".{path.stem}.rows{path.suffix}")
    parts = path.with_name(f"{path.name}.parts")
    return parts if is_folder(parts) else path


def open_output(options: OutputOptions, run: RunInfo) -> Output:
    """The output of a run, locked, with what it holds already.

    Raises:
        OutputLocked: another run is writing it.
        OutputError: it cannot be written or locked.
        UsageError: it holds rows of other settings, or was not written by llava-mini.
    """
    if isinstance(options.thumbnails, Path):
        from llava_mini_cli.formats.outputs.thumbnail_folder import ThumbnailFolder

        beside = Path() if options.path is None or options.is_stream else options.path.resolve().parent
        return ThumbnailFolder(options.thumbnails, open_output(replace(options, thumbnails=None), run), beside)
    path, anew, retry = options.path, options.overwrite, options.retry_errors
    if path is not None and path.is_symlink() and options.format != "hf":
        path = path.resolve()  # what the user typed may be a link: it stays, and what it leads to is replaced
    if options.edl_rate is not None and options.format in BESIDE:
        from llava_mini_cli.formats.outputs.event_files import EventFiles

        return EventFiles(path, options.existing, options.format, options.edl_rate)
    if options.format in SUBTITLES:
        from llava_mini_cli.formats.outputs.subtitles import SubtitleOutput

        return SubtitleOutput(path, options.existing, options.format)
    if options.format == "txt":
        from llava_mini_cli.formats.outputs.text_files import SidecarOutput

        return SidecarOutput(path, options.existing)
    if options.format == "hf" and path is not None:
        from llava_mini_cli.formats.outputs.huggingface import HuggingFaceOutput, store_path

        form: Format = "parquet" if path.suffix == ".parquet" else "jsonl"
        with errors_of(path):
            check_regular(path)
        with errors_of(store_path(path)):
            check_regular(store_path(path), alone=True)
        store = open_output(replace(options, path=store_path(path), format=form), run)
        assert isinstance(store, Store)
        return HuggingFaceOutput(path, store, overwrite=anew)
    if options.format == "parquet" and path is not None:
        from llava_mini_cli.formats.outputs.parquet_file import ParquetFileOutput
        from llava_mini_cli.formats.outputs.parquet_folder import ParquetFolderOutput

        if options.folder:
            return ParquetFolderOutput(path, run, options.shard, overwrite=anew, retry_errors=retry)
        return ParquetFileOutput(path, run, overwrite=anew, retry_errors=retry)
    records = _record_format(options, run)
    if path is None or options.is_stream:
        from llava_mini_cli.formats.outputs.stream import StreamOutput

        if path is None:
            return StreamOutput(sys.stdout.buffer, "standard output", records)
        try:
            return StreamOutput(path.open("wb", buffering=0), str(path), records, owned=True)
        except OSError as error:
            raise OutputError(f"cannot write '{path}': {error.strerror}") from error
    from llava_mini_cli.formats.outputs.appended import AppendedOutput

    return AppendedOutput(path, records, run, overwrite=anew, retry_errors=retry)


def done_at(options: OutputOptions, run: RunInfo) -> Done:
    """The rows that an output holds already. Makes nothing, and leaves the output as it is.

    Raises:
        OutputLocked, OutputError, UsageError: as `open_output`.
    """
    path = options.path
    if options.format not in BESIDE and (options.is_stream or path is None or not is_there(rows_at(path))):
        return Done()
    output = open_output(options, run)
    output.release()
    return output.done


def _record_format(options: OutputOptions, run: RunInfo) -> "RecordFormat":
    if options.format == "csv":
        from llava_mini_cli.formats.outputs.csv import CsvRecords

        return CsvRecords((*run.kept, *run.asked), run.fields.names if run.fields else (), safe=options.csv_safe)
    from llava_mini_cli.formats.outputs.jsonl import JsonLines

    return JsonLines()
