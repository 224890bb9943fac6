"""The packages and programs that an option needs, looked for before any work is done.

Looking imports nothing of the size of torch: a package that is not installed is told in a moment. One that is installed
and broken is told by importing it, which is left to whoever needs it. What an option needs of a device is tried in
`engine.trials`.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from traceback import walk_tb
from typing import Any

from llava_mini_cli.config import ModelOptions
from llava_mini_cli.errors import LlavaMiniError, UsageError, first_line

MODEL_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "jinja2",
)  # without which no model is loaded
_PROJECTS = {  # names by which packages are installed, where they are imported by others
    "PIL": "pillow",
    "ffmpeg": "ffmpeg-python",
    "google": "protobuf",
    "imageio_ffmpeg": "imageio-ffmpeg",
    "llava_mini_cli": "llava-mini-cli",
}


class PackageMissing(LlavaMiniError):
    """A package without which the program does not work is not installed, or is broken."""


@dataclass(frozen=True)
class Extra:
    """A set of packages that only some options need, by its name in pyproject.toml."""

    name: str
    packages: tuple[str, ...]  # by the names that they are imported by
    options: tuple[str, ...]  # of the command line; none: a kind of file or URL needs it, and an error of that says so

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install 'llava-mini-cli[{self.name}]'"

    def check(self, user: str) -> None:
        """Raises `UsageError` where a package is not installed; `user` is the option or command that needs it."""
        missing = [name for name in self.packages if not is_installed(name)]
        if missing:
            raise UsageError(f"{user} needs {', '.join(missing)}: {self.install}")

    def load(self, user: str, package: str) -> Any:
        """One of the packages, imported. Raises `UsageError` where it is not installed, or is and cannot be used."""
        self.check(user)
        try:
            return import_module(package)
        except Exception as error:
            line = first_line(error)
            raise UsageError(f"{user} needs {package}, which is installed and cannot be imported: {line}") from error


QUANTIZE = Extra("quantize", ("torchao",), ("--quantize",))
ANN = Extra("ann", ("faiss",), ("--ann", "--approximate"))
TRAIN = Extra("train", ("accelerate", "matplotlib", "peft"), ("train",))
REMOTE = Extra("remote", ("aiohttp", "s3fs", "gcsfs"), ())
PHOTOS = Extra("photos", ("pillow_heif", "pillow_jxl"), ())
SCHEMA = Extra("schema", ("llguidance",), ("--schema",))
PLOT = Extra("plot", ("matplotlib",), ("--plot", "--layers", "bench"))
RAY = Extra("ray", ("ray",), ("--workers", "--ray"))
COMPRESSED = Extra("compressed", ("compressed_tensors", "regex"), ())
VLLM = Extra("vllm", ("vllm",), ("--llm",))
VIEW = Extra("view", ("duckdb", "starlette", "uvicorn"), ("view",))
EXTRAS = (QUANTIZE, ANN, TRAIN, REMOTE, PHOTOS, SCHEMA, PLOT, RAY, COMPRESSED, VLLM, VIEW)


def is_installed(package: str) -> bool:
    """True if a package can be found; it is not imported."""
    try:
        return find_spec(package) is not None
    except ValueError:  # something that no file holds is in its place
        return True


def check_packages(packages: Iterable[str]) -> None:
    """Raises `PackageMissing` where one that every installation has is not there."""
    for package in packages:
        if not is_installed(package):
            raise PackageMissing(_not_installed(package))


def check_model_packages(options: ModelOptions) -> None:
    """Makes sure that the packages are installed which a model with these options certainly needs.

    Raises:
        PackageMissing, UsageError: one is not; the text says how to install it.
    """
    check_packages(MODEL_PACKAGES)
    if options.llm == "vllm":
        VLLM.check("--llm vllm")
    elif options.quantize is not None and options.device.startswith("cuda"):  # what `auto` is takes torch to tell
        QUANTIZE.check("--quantize")


def words_for(error: BaseException) -> str | None:
    """One line about a package of others that is missing or broken; None where the error is about something else."""
    named = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    if named not in ("", __package__) and not is_installed(named):
        return _not_installed(named)
    package = _imported_when_raised(error) or named
    if package in ("", __package__):
        return None
    return f"{_PROJECTS.get(package, package)} is installed and cannot be imported: {first_line(error)}"


def _imported_when_raised(error: BaseException) -> str | None:
    """The package of others whose modules were being run for the first time when an error was raised in them."""
    modules = [frame for frame, _ in walk_tb(error.__traceback__) if frame.f_code.co_name == "<module>"]
    names = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame in modules]
    others = [name for name in names if name not in sys.stdlib_module_names and name != __package__]
    return others[-1] if others else None


def _not_installed(package: str) -> str:
    project = _PROJECTS.get(package, package)
    return f"{project} is not installed: python -m pip install {project}"
