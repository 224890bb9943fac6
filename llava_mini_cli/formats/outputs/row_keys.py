"""The key of a row: a digest of the item, the prompt, the model and the settings that shape the answer.

A changed file, prompt, model or setting gives another key, so that rows of different work never pass for
one another. What does not change the answer (device, batch size, decoder, deadlines) has no part in it.

A key has two parts. The first 20 hexadecimal digits (80 bits) name the work: the item by its absolute path or URL, the
id if the input gave one of its own, the prompt with its choices and the model. The other 12 name the state it was done
in: the file's size and time of change, and the settings. Rows that differ in the second part alone are older and newer
rows of the same work, and the newer one stands. A file that was moved has another key; its row's digest tells it:
`known_contents`.
Rows about the spans of a medium share all of it, and have a number behind the key: `job.SpanKeys`.
"""

import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b

from llava_mini_cli.config import Choices
from llava_mini_cli.formats.job import ItemIdentity, Job, Question, TimeSpan
from llava_mini_cli.formats.outputs.done import STATE_DIGITS, WORK_DIGITS
from llava_mini_cli.formats.row import printable

Settings = Mapping[str, str | int | float | None]


def file_identity(path: str, folder: str = "") -> ItemIdentity:
    """Absolute path, size in bytes and mtime in nanoseconds; the last two are None for a file that is not there.

    A name that no file can have, such as one with a NUL byte, is of a file that is not there.

    `folder` is the working directory, which whoever asks a million times looks up once.
    """
    full = path if path.startswith("/") else f"{folder or os.getcwd()}/{path}"  # noqa: PTH109
    if "//" in full or "/." in full or full.endswith("/"):
        full = os.path.normpath(full)  # links are not followed
    try:
        status = os.stat(path)  # noqa: PTH116 - a million times
    except (OSError, ValueError):
        return full, None, None
    return full, status.st_size, status.st_mtime_ns


class RowKeys:
    """The keys of a run's rows, in two parts each. What they have in common is digested once."""

    def __init__(self, model: str, revision: str | None, settings: Settings) -> None:
        self._model = blake2b(ascii((model, revision)).encode(), digest_size=WORK_DIGITS // 2)
        self._settings = blake2b(json.dumps(dict(settings), sort_keys=True).encode(), digest_size=STATE_DIGITS // 2)
        self._folder = os.getcwd()  # noqa: PTH109
        self._nothing_there = self._state(("", None, None))

    def item(self, job: Job) -> ItemIdentity:
        """The identity of the medium and its state, by which it is known again. Looks at the disk once."""
        return job.item or file_identity(job.path, self._folder)

    def work(self, item: ItemIdentity, path: str, question: Question) -> bytes:
        """The first part of a key: the question, the medium and the model."""
        prompt, row_id = question.prompt, question.id
        digest = self._model.copy()
        # ascii() puts quotes around each part and escapes those within, so no two works give the same text.
        asked = item[0], None if row_id == path else row_id, prompt.name, prompt.text
        digest.update(ascii(asked if question.span is None else (*asked, question.span[1:3])).encode())
        if prompt.choices is not None:
            digest.update(_choices_digest(prompt.choices))
        return digest.digest()

    def spans(self, item: ItemIdentity, path: str, question: Question, occurrence: int) -> bytes:
        """The first part of the keys that the rows about a medium's spans share.

        Args:
            occurrence: how often the same was asked before in this run: the numbers behind these keys are taken.
        """
        digest = blake2b(self.work(item, path, question), digest_size=WORK_DIGITS // 2)
        digest.update(b"spans %d" % occurrence)
        return digest.digest()

    def asked(self, job: Job, question: Question) -> str:
        """The question about a medium, wherever that lies, as its row's digest has it: all but the content.

        In place of the path there is the one below the folder, list or table that was given.
        """
        prompt, path = question.prompt, job.path if job.path.isascii() else printable(job.path)
        own_id = question.id.removeprefix(path)  # none, one of the user's, or the place in a table or a video
        digest = self._model.copy()
        digest.update(self._settings.digest())
        asked = job.file_name, own_id, prompt.name, prompt.text
        digest.update(ascii(asked if question.span is None else (*asked, question.span[1:3])).encode())
        if prompt.choices is not None:
            digest.update(_choices_digest(prompt.choices))
        return digest.hexdigest()

    def state(self, item: ItemIdentity) -> int:
        """The second part of a key: the state of the file, and the settings."""
        if item[1] is None and item[2] is None:
            return self._nothing_there
        return self._state(item)

    def span_state(self, item: ItemIdentity, spans: Sequence[TimeSpan]) -> int:
        """The second part of the keys of rows about spans, which also says where these begin and end, if that is known.

        The last span's key has another last bit.
        """
        if not spans:
            return self.state(item)
        digest = self._settings.copy()
        digest.update(ascii((item[1:], [(span.start, span.end) for span in spans])).encode())
        return int.from_bytes(digest.digest(), "big")

    def _state(self, item: ItemIdentity) -> int:
        digest = self._settings.copy()
        digest.update(b"%a %a" % item[1:])
        return int.from_bytes(digest.digest(), "big")


@lru_cache(maxsize=64)
def _choices_digest(choices: Choices) -> bytes:
    return blake2b(ascii(choices).encode(), digest_size=16).digest()
