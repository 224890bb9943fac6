"""The part that is there of a picture that is cut short, read by a process of its own: Pillow's switch is global.

python -m llava_mini_cli.media.salvage FILE      height and width, as 4 bytes each, then RGB
"""

import struct
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile

from llava_mini_cli.errors import MediaError
from llava_mini_cli.media.child import Child, StalledError, python_command
from llava_mini_cli.media.image import open_picture, to_rgb

_SIZE = struct.Struct("<II")


def salvage(path: Path, broken: MediaError, timeout: float) -> NDArray[np.uint8]:
    """Upright RGB `[height, width, 3]` of a picture that is cut short; how the missing part looks is up to the format.

    Raises:
        MediaError: `broken`, where nothing can be read; or of kind timeout, after `timeout` seconds.
    """
    size = bytearray(_SIZE.size)
    with closing(Child(python_command(__name__, str(path.absolute()), reads=(path,)), timeout)) as child:
        try:
            if child.read_into(memoryview(size)) < len(size):
                raise broken
            height, width = _SIZE.unpack(size)
            pixels = np.empty((height, width, 3), np.uint8)
            if child.read_into(pixels.data.cast("B")) < pixels.nbytes:
                raise broken
        except StalledError:
            raise MediaError("timeout", f"the picture could not be read within {timeout:g} s") from None
    return pixels


def main() -> None:
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    picture = open_picture(Path(sys.argv[1]))
    assert picture is not None
    with picture:
        pixels = to_rgb(picture)
    sys.stdout.buffer.write(_SIZE.pack(*pixels.shape[:2]))
    sys.stdout.buffer.write(pixels.data)


if __name__ == "__main__":
    main()
