"""The libraries that a confined decoder may read: Python's, and those of the packages that decoders import.

Folders in which the user's own files may lie are not among them, even where Python imports from there: the current
directory, a home that Python was installed in, the repository of a package that is installed for editing.
"""

import os
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_IMPORTED = ("numpy", "PIL", "decord", "pillow_heif", "pillow_jxl", "ffmpeg", "imageio_ffmpeg")  # by decoders' modules
_OF_PACKAGES_ALONE = frozenset({"site-packages", "dist-packages"})


@cache
def library_rules() -> tuple[str, ...]:
    """The rules of `launch.py` for what every decoder may read beside its medium and the system's libraries."""
    prefixes = dict.fromkeys((sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix))
    paths = [f"{prefix}/{name}" for prefix in prefixes for name in ("bin", "lib", "lib64", "pyvenv.cfg")]
    paths += map(str, filter(None, map(_home, _IMPORTED)))
    for variable in ("LD_LIBRARY_PATH", "LD_PRELOAD"):
        paths += filter(os.path.isabs, os.environ.get(variable, "").replace(" ", ":").split(":"))
    # Python lists the folder that it imports from; where that is a repository, its files are the user's own.
    around = "l" if _PACKAGE.parent.name in _OF_PACKAGES_ALONE else "d"
    return (*(f"l{path}" for path in dict.fromkeys([*paths, str(_PACKAGE)])), f"{around}{_PACKAGE.parent}")


def program_rules(program: str) -> tuple[str, ...]:
    """The rules for running a program by its absolute path: itself, and `lib` beside the `bin` that it lies in."""
    rules = [f"l{program}"]
    for folder in dict.fromkeys((Path(program).parent, Path(program).resolve().parent)):
        if folder.name == "bin":
            rules += [f"l{folder.parent / name}" for name in ("lib", "lib64")]
    return tuple(rules)


def _home(package: str) -> Path | None:
    """The folder in which a package lies with the shared libraries that its wheel brought; None if not installed."""
    try:
        spec = find_spec(package)
    except ValueError:  # something that no file holds is in its place
        return None
    return Path(spec.origin).parents[1] if spec is not None and spec.origin else None
