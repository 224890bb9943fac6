"""300 media and five seeds: one in twenty decoders, downloads, writes and steps of the engine fails.

    python benchmarks/faults.py [--media 300] [--seeds 5] [--never FAULT ...]

See `tests/fault_runs.py`. Ends with a message where a row is wrong, lost or doubled.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from engine_oracle import make_oracle  # noqa: E402
from fault_runs import FaultRuns, Faults, check, make_media, served  # noqa: E402


def main() -> None:
    """Runs all seeds, and prints what went wrong in each and in how many runs it was made good."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--media", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--never", nargs="*", default=[], help="faults to leave out, such as 'killed child'")
    options = parser.parse_args()
    now: list[Faults] = []
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        oracle = make_oracle(root / "model")
        paths = make_media(root / "in", options.media)
        with served(root / "in", lambda: now[-1] if now else None) as url:
            media = [str(path) if number % 6 else f"{url}/{path.name}" for number, path in enumerate(paths)]
            clean = FaultRuns(oracle, media, f"{root}/clean.jsonl")
            code, said = clean.run()
            if code:
                raise SystemExit(said)
            wanted, _ = clean.rows()
            for seed in range(options.seeds):
                began = time.monotonic()
                now[:] = [Faults(seed, 20, tuple(options.never))]
                name = f"{seed}.{('jsonl', 'parquet')[seed % 2]}"
                runs = check(FaultRuns(oracle, media, f"{root}/{name}"), wanted, now[-1], most_runs=200)
                print(f"{name}: {runs} runs, {time.monotonic() - began:.0f} s, {now[-1].count}", flush=True)


if __name__ == "__main__":
    main()
