"""decord in a process of its own: reads a plan from stdin, writes raw frames to stdout, complains on stderr.

Run as `python -m llava_mini_cli.media.decord_child`. Checks that decord counts and times frames as the plan does, and
refuses where it does not. Imports neither torch nor Pillow; the only module of the package that imports decord.
"""

import json
import os
import re
import sys
from typing import Any

import decord  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.geometry import nearest_index


def _checked_reader(plan: dict[str, Any]) -> Any:
    reader: Any = decord.VideoReader(plan["path"], num_threads=plan["threads"])  # pyright: ignore
    if len(reader) != plan["total"]:
        sys.exit(f"decord counts {len(reader)} frames where the container has {plan['total']}")
    spans: NDArray[np.float64] = np.asarray(reader.get_frame_timestamp(plan["indices"]), np.float64)
    ours = np.asarray(plan["pts"], np.float64) * plan["tick"]
    # Differences count: the two may call another moment zero. decord keeps single precision, a millisecond in 3 hours.
    theirs = spans[:, 0] - reader.get_frame_timestamp(0)[0] + plan["origin"] * plan["tick"]
    slack = max(0.002, plan["tick"]) + 2e-7 * abs(ours).max()
    if np.abs(ours - theirs).max() > slack:
        sys.exit("decord's timestamps are not those of the container")
    return reader


def _write(data: memoryview) -> None:
    while data:
        data = data[os.write(1, data) :]


def _last_reason(text: str) -> str:
    """The reason that decord's C++ gives, without the time, source line and path that it puts before it."""
    first = next(iter(text.strip().splitlines()), "no reason given")
    return re.sub(r"^\[.*?\] (?=[A-Z])", "", re.split(r"\.cc:\d+: ", first)[-1])


def main() -> None:
    """Writes the frames of the plan on stdin, `[frame_size, frame_size, 3]` uint8 each, in order."""
    plan: dict[str, Any] = json.load(sys.stdin)
    reader = _checked_reader(plan)
    rows, columns = (nearest_index(plan[edge], plan["frame_size"]) for edge in ("height", "width"))
    for index in plan["indices"]:
        # One by one: get_batch is known to spin forever on files where single frames can be had.
        frame: NDArray[np.uint8] = reader[index].asnumpy()
        if frame.shape != (plan["height"], plan["width"], 3):
            sys.exit(f"decord gives {frame.shape[1]}x{frame.shape[0]} where the container has another size")
        _write(np.ascontiguousarray(frame[rows][:, columns]).data.cast("B"))


if __name__ == "__main__":
    try:
        main()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        print(_last_reason(str(error)), file=sys.stderr)
        sys.exit(1)
