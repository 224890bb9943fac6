"""The ffmpeg that decodes: where it is. Nothing of it is run here."""

import os
import shutil
import sys
from functools import cache
from pathlib import Path

from llava_mini_cli.errors import LlavaMiniError


@cache
def _found_ffmpeg(prefix: Path, search: str | None) -> str:
    """The ffmpeg that comes with imageio-ffmpeg, else one of this Python's environment, else one on the search path.

    imageio-ffmpeg would run it to see that it is one: an `ffmpeg -version` that is killed makes another ffmpeg the one
    that decodes, or ends the run because there is none.
    """
    try:
        import imageio_ffmpeg  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        bundled: list[Path] = []
    else:
        bundled = sorted(Path(imageio_ffmpeg.__file__).with_name("binaries").glob("ffmpeg-*"))
    for path in (*bundled, prefix / "bin" / "ffmpeg"):
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    named = shutil.which("ffmpeg", path=search)
    if named is None:
        raise LlavaMiniError("there is no ffmpeg to decode videos with: python -m pip install imageio-ffmpeg")
    return named


def ffmpeg_binary() -> str:
    """Absolute path of ffmpeg: what IMAGEIO_FFMPEG_EXE names, or else the one of imageio-ffmpeg, or of the system."""
    named = os.environ.get("IMAGEIO_FFMPEG_EXE") or _found_ffmpeg(Path(sys.prefix), os.environ.get("PATH"))
    return str(Path(named).absolute())
