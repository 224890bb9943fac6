"""The command and a model that does not fit: one line, exit code 2, and nothing of its weights is read.

The checkpoint has files of the published model's size without content. What a process may have is bound by
`ulimit -d`, so that it is the same on every machine.
"""

import ctypes
import json
import mmap
import resource
import subprocess
import sys
from math import prod
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoints import write_tiny_checkpoint

from llava_mini_cli.model.checkpoint import load_config
from llava_mini_cli.model.tensor_shapes import TOWER_MODULE, model_shapes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of data size are Linux's")
WIDTHS = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "prefusion_layer_num": 4,
}  # fmt: skip
GIB = 1 << 30


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that claims eight billion parameters, in one file without a single block of them."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("huge") / "huge")
    config = json.loads((folder / "config.json").read_text()) | WIDTHS
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in model_shapes(load_config(folder)).items():
        if not name.startswith(TOWER_MODULE):
            size = 2 * prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
            end += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    assert end > 7 * 2e9
    return folder


def ask(command: Path, model: Path, *options: str, allowed: int) -> subprocess.CompletedProcess[str]:
    """Asks about a picture in a process that may have so many bytes."""
    picture = model.parent / "a.png"
    Image.new("RGB", (40, 30), "red").save(picture)
    return subprocess.run(
        [command / "llava-mini", "ask", str(picture), "What?", "-m", str(model), "--device", "cpu", *options],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed)),
    )


def bytes_read(path: Path) -> int:
    """How much of a file lies in the system's cache, since somebody has read it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        numbers = np.frombuffer(mapped, np.uint8)
        pages = np.zeros(-(-len(numbers) // mmap.PAGESIZE), np.uint8)
        address, length = ctypes.c_void_p(numbers.ctypes.data), ctypes.c_size_t(len(numbers))
        assert ctypes.CDLL(None).mincore(address, length, ctypes.c_void_p(pages.ctypes.data)) == 0
        del numbers
    return int((pages & 1).sum()) * mmap.PAGESIZE


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--dtype", "float32"), "--dtype float32: the model needs 2"),
        (("--dtype", "bfloat16", "--batch-size", "4"), "--dtype bfloat16 --batch-size 4: the model needs 1"),
        ((), "--dtype auto (int8): the model needs "),
        (("--quantize", "int8"), "--quantize int8: the model needs "),
    ],
)
def test_a_model_that_does_not_fit(warm_command: Path, huge: Path, options: tuple[str, ...], words: str) -> None:
    done = ask(warm_command, huge, *options, allowed=29 * GIB // 10)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert line.startswith(f"llava-mini: error: {words}")
    assert " GiB of memory, and ulimit -d leaves 2." in line
    assert "; no format fits, int4 needs least with " in line
    assert bytes_read(huge / "model.safetensors") < 16 << 20  # its header, and what the system reads ahead
    assert (huge / "model.safetensors").stat().st_blocks < 1 << 11  # a MiB: it still has no content


def test_what_would_fit_is_said(warm_command: Path, huge: Path) -> None:
    done = ask(warm_command, huge, "--dtype", "float32", allowed=30 * GIB)
    assert done.returncode == 2
    assert "; what would fit: --dtype bfloat16 (1" in done.stderr or "this machine leaves" in done.stderr


def test_a_model_that_fits_says_in_what_it_is_held(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    installed = Path(sys.executable).parent
    said = ("-v", "--summary-json", str(tmp_path / "s.json"))
    done = ask(installed, folder, *said, "--max-new-tokens", "1", allowed=3 * GIB)
    assert done.returncode == 0
    assert "llava-mini: the model's weights are held in float32\n" in done.stderr
    assert json.loads((tmp_path / "s.json").read_text())["weight_format"] == "float32"
