"""A cluster of very many GPUs on paper: leases, workers that die, one driver that writes; a discrete simulation.

    python benchmarks/simulate_cluster.py --gpus 1000 --decode-cores 28 --questions 1

Media have lengths of their own. A worker takes the time that its GPU or its decoders need, has the next lease beside
the one at work, and dies now and then. The driver takes one message after the other. Every figure that goes in is an
option, and all of them are printed. What is not measured is an assumption: the rate of a GPU, the lengths, the deaths.
"""

import argparse
import heapq
import json
import math
import random
from dataclasses import asdict, dataclass

DAY = 86_400.0


@dataclass(frozen=True)
class Cluster:
    """What goes in."""

    gpus: int = 1000
    media: int = 10_000_000
    questions: int = 1  # about each medium
    gpu_frames_s: float = 340.0  # frames that one GPU encodes a second
    fps: float = 1.0  # frames sampled of a second of video
    decode_cores: float = 28.0  # of each GPU
    decode_cpu_s: float = 5.0 / 60  # of a core, for a second of 720p
    median_s: float = 60.0  # length of a video
    spread: float = 0.8  # standard deviation of its logarithm
    most_lease: int = 64  # media in one worker's hands
    least_lease: int = 16
    message_s: float = 0.001  # of the driver, for a lease that comes back and the next one
    row_s: float = 1 / 20_000  # of the driver, for a row that it writes
    row_bytes: int = 700  # of a row in a Parquet file, before it is compressed
    days_to_death: float = 30.0  # mean time until a worker dies
    load_s: float = 90.0  # until another one stands in its place
    seed: int = 0


class Books:
    """The media that nobody has, and the sizes of leases: fewer media towards the end."""

    def __init__(self, cluster: Cluster, draw: random.Random) -> None:
        self._cluster = cluster
        self.left = [cluster.median_s * math.exp(draw.gauss(0.0, cluster.spread)) for _ in range(cluster.media)]

    def lease(self) -> list[float]:
        """The lengths of the next media, in seconds; nothing if there are none."""
        per_worker = len(self.left) // (4 * self._cluster.gpus)
        size = max(self._cluster.least_lease, min(self._cluster.most_lease, per_worker))
        taken = self.left[-size:]
        del self.left[-size:]
        return taken


def work_s(cluster: Cluster, lease: list[float]) -> float:
    """The seconds that a worker takes for the media of a lease: those of its GPU, or of its decoders."""
    on_gpu = cluster.fps / cluster.gpu_frames_s
    on_cores = cluster.decode_cpu_s / cluster.decode_cores
    return sum(lease) * max(on_gpu, on_cores)


def simulate(cluster: Cluster) -> dict[str, float]:
    """Runs until every medium is done.

    An event is the end of a worker's lease, done or dead. The next lease, asked for when one begins, is there when the
    driver has come to the message; a worker that waits for it is idle.
    """
    draw = random.Random(cluster.seed)
    books = Books(cluster, draw)
    driver_free = busy = idle = redone = longest_wait = first_end = 0.0
    rows = deaths = leases = 0
    ends: list[tuple[float, int, list[float], bool]] = []

    def begin(now: float, worker: int, there: float) -> None:
        nonlocal idle, deaths, redone, leases, first_end
        lease = books.lease()
        if not lease:
            first_end = first_end or now
            return
        leases += 1
        start = max(now, there)
        idle += start - now
        takes = work_s(cluster, lease)
        lives = draw.expovariate(1 / (cluster.days_to_death * DAY))
        dies = lives < takes
        heapq.heappush(ends, (start + min(takes, lives), worker, lease, dies))

    for worker in range(cluster.gpus):
        begin(0.0, worker, cluster.load_s)
    now = 0.0
    while ends:
        now, worker, lease, dies = heapq.heappop(ends)
        if dies:
            deaths += 1
            redone += sum(lease)
            books.left += lease
            begin(now, worker, now + cluster.load_s)
            continue
        cost = cluster.message_s + len(lease) * cluster.questions * cluster.row_s
        driver_free = max(now, driver_free) + cost
        busy += cost
        rows += len(lease) * cluster.questions
        wait = driver_free - now
        longest_wait = max(longest_wait, wait)
        # The lease beside the one that ended is begun at once, unless the driver is behind by more than it takes.
        begin(now, worker, max(now, driver_free - work_s(cluster, lease)))
    took = max(now, driver_free)
    ideal = rows / cluster.questions * cluster.median_s * math.exp(cluster.spread**2 / 2)
    ideal *= max(cluster.fps / cluster.gpu_frames_s, cluster.decode_cpu_s / cluster.decode_cores) / cluster.gpus
    return {
        "hours": took / 3600,
        "media_s": cluster.media / took,
        "rows_s": rows / took,
        "bytes_s": rows * cluster.row_bytes / took,
        "of_ideal": ideal / took,
        "driver_busy": busy / took,
        "driver_longest_wait_s": longest_wait,
        "idle_of_workers": idle / (took * cluster.gpus),
        "tail_s": took - first_end,
        "leases": leases,
        "leases_s": leases / took,
        "deaths": deaths,
        "video_hours_again": redone / 3600,
    }


def main() -> None:
    """Prints what goes in and what comes out, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in asdict(Cluster()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    cluster = Cluster(**vars(parser.parse_args()))
    print(json.dumps({"in": asdict(cluster), "out": simulate(cluster)}, indent=2))


if __name__ == "__main__":
    main()
