"""The key of a row: a digest of the item, the prompt, the model and the settings that shape the answer.

A changed file, prompt, model or setting gives another key, so that rows of different work never pass for
one another. What does not change the answer (device, batch size, decoder, deadlines) has no part in it.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from llava_mini_cli.formats.job import Prompt
from llava_mini_cli.formats.row import printable

Settings = Mapping[str, str | int | float | None]


def item_identity(path: str) -> tuple[str, int | None, int | None]:
    """Absolute path, size in bytes and mtime in nanoseconds; the last two are None for a file that is not there."""
    try:
        status = Path(path).stat()
    except OSError:
        return os.path.abspath(path), None, None  # noqa: PTH100 - must not follow links
    return os.path.abspath(path), status.st_size, status.st_mtime_ns  # noqa: PTH100


def fingerprint(item: tuple[str, int | None, int | None], prompt: Prompt, model: str, settings: Settings) -> str:
    """32 hexadecimal digits (128 bits of SHA-256) over everything that shapes the answer."""
    path, size, mtime = item
    key = [printable(path), size, mtime, prompt.name, prompt.text, model, dict(settings)]
    text = json.dumps(key, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
