"""How many workers fit on the machines of a cluster, and what each of them takes.

Arithmetic over what Ray says of its nodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llava_mini_cli.errors import WorkersError
from llava_mini_cli.workers.options import WorkerOptions

Resources = Mapping[str, float]  # of one machine, by Ray's names: CPU, GPU


@dataclass(frozen=True)
class Share:
    """What each worker takes, and how many there are to be."""

    count: int
    gpus: float
    cpus: int
    beside: int  # workers on the machine that has most of them


def share_of(options: WorkerOptions, nodes: Sequence[Resources], device: str) -> Share:
    """What workers take of some machines.

    Without a GPU for each, `auto` is one worker a machine, which has all of its cores.

    Raises:
        WorkersError: there is no room for a single one; the text says what is missing.
    """
    has_gpus = any(node.get("GPU", 0) for node in nodes)
    gpus = options.gpus
    if gpus is None:  # a cluster that was named is asked for GPUs, a machine of its own may have none
        gpus = 0.0 if device == "cpu" or (options.address is None and not has_gpus) else 1.0
    if gpus and not any(node.get("GPU", 0) >= gpus for node in nodes):
        there = "none" if not has_gpus else f"{max(node.get('GPU', 0) for node in nodes):g} on one machine at most"
        raise WorkersError(
            f"a worker takes {gpus:g} GPU, and {options.place} has {there}; --worker-gpus 0 works without"
        )
    cpus = options.cpus or _cores(options, nodes, gpus)
    room = [_room(node, gpus, cpus) for node in nodes]
    if not sum(room):
        most = max((node.get("CPU", 0) for node in nodes), default=0)
        raise WorkersError(f"a worker takes {cpus} CPUs, and {options.place} has {most:g} on one machine at most")
    count = sum(room) if options.count == "auto" else options.count
    return Share(count, gpus, cpus, min(max(room), count))


def _cores(options: WorkerOptions, nodes: Sequence[Resources], gpus: float) -> int:
    """The cores of a worker: as many as every machine has for each of its own."""
    if gpus:
        with_gpus = [node for node in nodes if node.get("GPU", 0) >= gpus]
        return max(1, min(int(node.get("CPU", 1) / (node["GPU"] // gpus)) for node in with_gpus))
    each = 1 if options.count == "auto" else -(-options.count // max(1, len(nodes)))  # rounded up
    return max(1, min((int(node.get("CPU", 1)) // each for node in nodes if node.get("CPU", 0) >= 1), default=1))


def _room(node: Resources, gpus: float, cpus: int) -> int:
    by_cores = int(node.get("CPU", 0) // cpus)
    return by_cores if not gpus else min(by_cores, int(node.get("GPU", 0) / gpus))


def places(nodes: Sequence[Resources], share: Share) -> int:
    """The number of workers that some machines have room for."""
    return sum(_room(node, share.gpus, share.cpus) for node in nodes)
