"""What there is of a picture that is cut short, read by a process of its own: Pillow's switch for it is global.

python -m llava_mini_cli.media.salvage FILE      height and width, as 4 bytes each, then RGB
"""

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from llava_mini_cli.errors import MediaError
from llava_mini_cli.media.image import FORMATS, to_rgb

_SIZE = struct.Struct("<II")


def salvage(path: Path, broken: MediaError, timeout: float) -> NDArray[np.uint8]:
    """Upright RGB `[height, width, 3]`; how the missing part looks is up to the format.

    Raises:
        MediaError: `broken`, where nothing can be had; or a timeout, in seconds.
    """
    command = [sys.executable, "-m", __name__, str(path.absolute())]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise MediaError("timeout", f"the picture could not be read within {timeout:g} s") from None
    if done.returncode or len(done.stdout) < _SIZE.size:
        raise broken
    height, width = _SIZE.unpack_from(done.stdout)
    return np.frombuffer(done.stdout, np.uint8, offset=_SIZE.size).reshape(height, width, 3).copy()


def main() -> None:
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    with Image.open(sys.argv[1], formats=FORMATS) as picture:
        pixels = to_rgb(picture)
    sys.stdout.buffer.write(_SIZE.pack(*pixels.shape[:2]) + pixels.tobytes())


if __name__ == "__main__":
    main()
