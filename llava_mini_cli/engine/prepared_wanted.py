"""Which prepared weights a load wants: what decides their bytes, and by that the name of their file."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava_mini_cli.config import Quantization
from llava_mini_cli.engine.int8_kernels import Int8Kernel, order_of
from llava_mini_cli.engine.prepared_index import VERSION

notes = logging.getLogger("llava_mini_cli.notes")  # lines for whoever started the run

WORTH_S = 20.0  # seconds of preparing above which the weights are kept
PATIENCE_S = 60.0  # without a byte from another run after which it is not waited for


@dataclass(frozen=True)
class Wanted:
    """The layers that a load is going to ask for, and how they are kept."""

    about: Mapping[str, Any]  # what decides their bytes, as plain JSON (`about_weights`)
    model: str  # as the user calls it
    total: int  # numbers in all their weights together, roughly
    bound: int  # bytes of all prepared weights on the disk; 0: none are kept
    say: Callable[[str], None] = notes.warning  # takes a line for the user
    worth: float = WORTH_S
    patience: float = PATIENCE_S

    @property
    def key(self) -> str:
        """The name of the file, without its ending."""
        return hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:32]


def about_weights(files: Collection[Path], digest: str, kind: Quantization, kernel: Int8Kernel) -> dict[str, Any]:
    """What decides the bytes of prepared weights, the state of the checkpoint's files and of this machine included.

    The times of the weight files stand beside the model's digest, which looks at the ends of large files alone: after a
    change in the middle of a file, weights are prepared anew.

    Args:
        files: those that hold the model's weights.
        digest: of the model (`hub.model_digest`).
        kernel: that weights in 8 bits are packed for; another one can take them if it reads them in the same order.
    """
    states = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return {
        "version": VERSION,
        "digest": digest,
        "files": [list(state) for state in states],
        "format": kind,
        "order": order_of(kernel),
        "torch": torch.__version__,
        "processor": [torch.backends.cpu.get_cpu_capability(), os.environ.get("ONEDNN_MAX_CPU_ISA", "")],
    }
