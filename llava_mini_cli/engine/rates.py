"""How long matrix products of a model's shape take on this processor, by number format: measured once and kept.

A file in the cache directory holds what was measured, one for each processor, version of torch and shape.
Knows neither models nor how products are made (`products.py`), and imports no torch.
"""

import hashlib
import json
import os
import platform
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from math import inf, isfinite
from pathlib import Path
from typing import Any, Literal, cast

from llava_mini_cli.config import WeightFormat
from llava_mini_cli.plain_files import read_object

ROWS = (1, 16, 256)  # of the measured products
ORDINARY = (64, 1, 1)  # products of each of these, in proportion, for an image, a question and an answer of 64 tokens
WORTH = 0.95  # of the time that the more accurate format, or torch's usual way takes: less of a gain may be chance
LEAST_ELEMENTS = 1 << 22  # of the commonest weight; below, a step is more overhead than product
WAYS: dict[WeightFormat, tuple[str, ...]] = {  # of computing products of a format; the usual one first
    "float32": ("float32 mkl", "float32 onednn"),
    "bfloat16": ("bfloat16 onednn",),
    "int8": ("int8 onednn", "int8 onednn_by_4", "int8 unpacked"),
    "int4": ("int4",),
}  # the order is that of accuracy, too
# Weights of this way lie in another order than those of the others, and are prepared and kept beside them: so it has to
# be so much quicker that other work beside a measurement does not change the choice.
UNPACKED, UNPACKED_WORTH = "int8 unpacked", 0.75
GEMV = "bfloat16 gemv"  # for one row alone
_ENVIRONMENT = (  # variables that decide which instructions, and how many cores, products use
    "ATEN_CPU_CAPABILITY",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
)
_MOST_BYTES = 1 << 16  # of a file

Int8Kernel = Literal["onednn", "onednn_by_4", "unpacked"]  # as `int8_kernels.py` has them
Shape = tuple[int, int]  # of a weight, [out, in]
Seconds = Mapping[str, tuple[float, ...]]  # of one product by way of computing it, for the first of ROWS


@dataclass(frozen=True)
class Rates:
    """The seconds that products of one shape took."""

    shape: Shape
    ways: Seconds

    def seconds(self, kind: WeightFormat, rows: float, elements: int | None = None) -> float | None:
        """Seconds of one product in the way that is taken for a format; None where it was not measured.

        Args:
            rows: of the input; between the measured numbers the time is a straight line, beyond it is in proportion.
            elements: of the weight; None: as many as the measured shape has.
        """
        times = self._times(kind)
        if times is None:
            return None
        scale = 1.0 if elements is None else elements / (self.shape[0] * self.shape[1])
        if rows >= ROWS[-1]:
            return scale * times[-1] * rows / ROWS[-1]
        place = max(0, sum(rows >= measured for measured in ROWS) - 1)
        (low, high), (before, behind) = ROWS[place : place + 2], times[place : place + 2]
        return scale * (before + (behind - before) * (max(rows, low) - low) / (high - low))

    def quickest(self, formats: Collection[WeightFormat]) -> WeightFormat:
        """The format of some with which an image, a question and an answer of ordinary length take least.

        Raises:
            ValueError: none of them was measured.
        """
        costs: dict[WeightFormat, float] = {
            kind: cost for kind in WAYS if kind in formats and (cost := self._cost(kind)) is not None
        }
        if not costs:
            raise ValueError(f"not measured: {', '.join(formats)}")
        best, *others = costs
        for kind in others:
            if costs[kind] < WORTH * costs[best]:
                best = kind
        return best

    @property
    def int8_kernel(self) -> Int8Kernel | None:
        """The kernel that int8 products go through; None where none was measured."""
        found = self._way("int8").removeprefix("int8 ")
        return cast("Int8Kernel", found) if found else None

    @property
    def float32_one_dnn(self) -> bool:
        """True where oneDNN is worth taking for float32 products, in place of MKL."""
        return self._way("float32") == "float32 onednn"

    @property
    def bfloat16_gemv(self) -> bool:
        """True where torch's own product of a matrix and one row is quicker than oneDNN's."""
        usual, own = self.ways.get("bfloat16 onednn"), self.ways.get(GEMV)
        return usual is not None and own is not None and own[0] < WORTH * usual[0]

    def _cost(self, kind: WeightFormat) -> float | None:
        times = self._times(kind)
        return None if times is None else _ordinary(times)

    def _times(self, kind: WeightFormat) -> tuple[float, ...] | None:
        """Seconds for each of ROWS in the way that is taken."""
        times = self.ways.get(self._way(kind))
        return (*self.ways[GEMV][:1], *times[1:]) if times and kind == "bfloat16" and self.bfloat16_gemv else times

    def _way(self, kind: WeightFormat) -> str:
        cost = {way: _ordinary(self.ways[way]) for way in WAYS.get(kind, ()) if way in self.ways}
        usual, *others = [way for way in cost if way != UNPACKED] or [*cost] or [""]
        best = min((way for way in others if cost[way] < WORTH * cost[usual]), key=cost.__getitem__, default=usual)
        return UNPACKED if cost.get(UNPACKED, inf) < UNPACKED_WORTH * cost.get(best, 0.0) else best


def _ordinary(times: tuple[float, ...]) -> float:
    return sum(count * seconds for count, seconds in zip(ORDINARY, times, strict=True))


def kept_rates(
    shape: Shape, threads: int, measure: Callable[[Shape], tuple[Seconds, bool]], *, anew: bool = False
) -> Rates:
    """The rates of a shape, from the cache directory or measured; a directory that cannot be written costs that again.

    What was measured beside so much other work that it did not settle is used, and measured again the next time. The
    lesser of a new number and a kept one counts: other work only adds to it.

    Args:
        threads: that torch computes with.
        measure: gives the seconds by way, and whether they have settled.
        anew: measured in any case.
    """
    key = {**this_machine(), "threads": threads, "shape": list(shape)}
    fields = read_kept("rates", key) or {}
    kept, had_settled = _seconds(fields), fields.get("settled") is True
    if kept is not None and had_settled and not anew:
        return Rates(shape, kept)
    seconds, settled = measure(shape)
    new = dict(seconds)
    for way, times in (kept or {}).items():
        new[way] = tuple(map(min, times, new[way])) if way in new else times
    told = {way: list(times) for way, times in new.items()}
    keep("rates", key, {"settled": settled or (kept is not None and had_settled), "seconds": told})
    return Rates(shape, new)


def _seconds(fields: Mapping[str, Any]) -> dict[str, tuple[float, ...]] | None:
    """What a file says was measured; None where that cannot be."""
    seconds = fields.get("seconds")
    names = {way for ways in WAYS.values() for way in ways} | {GEMV}
    if not isinstance(seconds, dict):
        return None
    found: dict[str, tuple[float, ...]] = {}
    for way, times in cast("dict[str, Any]", seconds).items():
        if way not in names or not isinstance(times, list):
            return None
        listed, count = cast("list[Any]", times), 1 if way == GEMV else len(ROWS)
        if len(listed) != count or not all(type(value) is float and value > 0 and isfinite(value) for value in listed):
            return None
        found[way] = tuple(listed)
    return found if {WAYS["float32"][0], WAYS["bfloat16"][0]} <= found.keys() else None


def common_shape(shapes: Collection[Shape], least: int = LEAST_ELEMENTS) -> Shape | None:
    """The shape that most elements of some weights are in; None where such a weight has fewer than `least`."""
    elements = Counter[Shape]()
    for shape in shapes:
        elements[shape] += shape[0] * shape[1]
    if not elements:
        return None
    ((shape, _),) = elements.most_common(1)
    return shape if shape[0] * shape[1] >= least else None


def this_machine() -> dict[str, Any]:
    """What the speed of a processor depends on, as far as it can be told without torch."""
    name, flags = platform.machine(), ""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = " ".join(sorted(value.split()))
                break
    return {
        "processor": name,
        "flags": hashlib.sha256(flags.encode()).hexdigest()[:16],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        "torch": version("torch"),
    }


def read_kept(kind: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """The fields that `keep` wrote for a key; None where there are none, or a file is damaged or of another user."""
    path = _path(kind, key)
    with suppress(OSError, ValueError):
        if not path.is_symlink() and path.stat().st_uid == os.geteuid():
            fields = read_object(path, _MOST_BYTES)
            return fields if fields.pop("key", None) == key else None
    return None


def keep(kind: str, key: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Writes fields for a key into the cache directory, whole or not at all, for this user alone."""
    path, part = _path(kind, key), None
    try:
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"key": key, **fields}, file)
        Path(part).replace(path)
    except OSError:  # a full disk, a home that is read only: it is measured again the next time
        if part is not None:
            Path(part).unlink(missing_ok=True)


def _path(kind: str, key: Mapping[str, Any]) -> Path:
    """`llava-mini/KIND/DIGEST.json` below $XDG_CACHE_HOME or ~/.cache."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "llava-mini" / kind / f"{digest}.json"
