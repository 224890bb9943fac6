"""Batches of columns in, batches of columns out, for programs that go through a data set batch by batch.

`Captioner` answers one batch after the other, `AsyncCaptioner` several at once and row by row.
"""

from llava_mini_cli.batch.captioner import Captioner
from llava_mini_cli.batch.streaming import AsyncCaptioner

__all__ = ["AsyncCaptioner", "Captioner"]
