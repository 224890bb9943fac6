"""What workers take of the machines of a cluster, what a medium costs, and the options."""

import math
from pathlib import Path

import pytest

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import UsageError, WorkersError
from llava_mini_cli.formats.job import Job, Prompt, Question
from llava_mini_cli.workers.cost import cost_of, frames_of, size_of
from llava_mini_cli.workers.options import MOST_WORKERS, WorkerOptions
from llava_mini_cli.workers.places import Share, places, share_of

AUTO = WorkerOptions("auto", "10.0.0.1:6379")
NODE = {"CPU": 64.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("options", "nodes", "device", "share"),
    [
        (AUTO, [NODE, NODE], "auto", Share(16, 1.0, 8, 8)),
        (AUTO, [NODE, {"CPU": 8.0}], "auto", Share(8, 1.0, 8, 8)),
        (AUTO, [NODE, {"CPU": 12.0, "GPU": 4.0}], "auto", Share(12, 1.0, 3, 8)),
        (WorkerOptions(4, "a:1"), [NODE, NODE], "auto", Share(4, 1.0, 8, 4)),
        (WorkerOptions(40, "a:1"), [NODE, NODE], "auto", Share(40, 1.0, 8, 8)),
        (WorkerOptions("auto", "a:1", gpus=0.5), [NODE], "auto", Share(16, 0.5, 4, 16)),
        (WorkerOptions("auto", "a:1", gpus=2), [NODE], "auto", Share(4, 2, 16, 4)),
        (WorkerOptions("auto", "a:1", cpus=16), [NODE], "auto", Share(4, 1.0, 16, 4)),
        (WorkerOptions("auto", "a:1", gpus=0), [NODE, {"CPU": 4.0}], "auto", Share(17, 0, 4, 16)),
        (AUTO, [NODE, NODE], "cpu", Share(2, 0.0, 64, 1)),
        (WorkerOptions("auto"), [{"CPU": 2.0}], "auto", Share(1, 0.0, 2, 1)),
        (WorkerOptions(2), [{"CPU": 2.0}], "auto", Share(2, 0.0, 1, 2)),
        (WorkerOptions(3), [{"CPU": 2.0}], "auto", Share(3, 0.0, 1, 2)),
        (WorkerOptions(2), [{"CPU": 8.0, "GPU": 1.0}], "auto", Share(2, 1.0, 8, 1)),
    ],
)
def test_what_each_takes(options: WorkerOptions, nodes: list[dict[str, float]], device: str, share: Share) -> None:
    assert share_of(options, nodes, device) == share


@pytest.mark.parametrize(
    ("options", "nodes", "words"),
    [
        (AUTO, [{"CPU": 4.0}], "a worker takes 1 GPU, and the Ray cluster at 10.0.0.1:6379 has none; --worker-gpus 0"),
        (WorkerOptions(1, gpus=16), [NODE], "takes 16 GPU, and this machine has 8 on one machine at most"),
        (WorkerOptions(1, "a:1", gpus=0, cpus=65), [NODE], "takes 65 CPUs, and the Ray cluster at a:1 has 64 on one"),
        (WorkerOptions(1, "a:1", gpus=0), [], "takes 1 CPUs, and the Ray cluster at a:1 has 0 on one machine at most"),
    ],
)
def test_no_room_is_said(options: WorkerOptions, nodes: list[dict[str, float]], words: str) -> None:
    with pytest.raises(WorkersError, match=words):
        share_of(options, nodes, "auto")


@pytest.mark.parametrize(
    ("gpus", "cards", "device", "wanted"),
    [
        (None, 1, "auto", None), (None, 2, "auto", 2), (4, 2, "auto", 4), (0, 2, "auto", 0), (None, 2, "cpu", None),
        (0.5, 1, "auto", 0.5),
    ],
)  # fmt: skip
def test_a_worker_takes_the_cards_that_its_model_is_on(
    gpus: float | None, cards: int, device: str, wanted: float | None
) -> None:
    assert WorkerOptions(1, gpus=gpus).spread(cards, device).gpus == wanted


@pytest.mark.parametrize("gpus", [0.5, 1])
def test_a_worker_with_fewer_cards_than_its_model_is_on_is_refused(gpus: float) -> None:
    with pytest.raises(UsageError, match=r"^--tensor-parallel 2 takes 2 cards of each worker: --worker-gpus 2$"):
        WorkerOptions(1, gpus=gpus).spread(2, "auto")


def test_places_change_with_the_machines() -> None:
    share = Share(16, 1.0, 8, 8)
    assert [places(nodes, share) for nodes in ([], [NODE], [NODE, NODE], [{"CPU": 7.0, "GPU": 8.0}])] == [0, 8, 16, 0]


def test_costs_are_told_from_names_and_sizes(tmp_path: Path) -> None:
    question = Question(Prompt("What?"), "x")
    video, picture = tmp_path / "a.mp4", tmp_path / "a.PNG"
    video.write_bytes(bytes(2_500_000))
    picture.write_bytes(bytes(9_000_000))
    sampling = SamplingOptions(fps=2.0)
    jobs = [Job(str(path), "x", (question, question)) for path in (video, picture, tmp_path / "gone.mp4")]
    assert [frames_of(job, sampling) for job in jobs] == [20.0, 1.0, 120.0]
    assert [cost_of(job, sampling) for job in jobs] == [22.0, 3.0, 122.0]
    assert [size_of(job) for job in jobs] == [2_500_000, 9_000_000, None]
    assert frames_of(jobs[0], SamplingOptions(fps=2.0, max_frames=5)) == 5.0
    known = jobs[0]._replace(item=("x", 250_000_000, 1))
    assert frames_of(known, SamplingOptions()) == 1000.0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"count": 0}, f"--workers must be 1 to {MOST_WORKERS}, or auto, not 0"),
        ({"count": MOST_WORKERS + 1}, "--workers must be 1 to"),
        ({"gpus": -1.0}, "--worker-gpus must be a whole number, 0.5 or 0.25, not -1"),
        ({"gpus": 1.5}, "--worker-gpus must be a whole number"),
        ({"gpus": math.nan}, "--worker-gpus must be a whole number"),
        ({"gpus": math.inf}, "--worker-gpus must be a whole number"),
        ({"cpus": 0}, "--worker-cpus must be at least 1, not 0"),
        ({"timeout": 0.5}, "--worker-timeout must be at least 1 second and finite, not 0.5"),
        ({"timeout": math.inf}, "--worker-timeout must be at least 1 second"),
        ({"timeout": math.nan}, "--worker-timeout must be at least 1 second"),
        ({"address": "ray://a:1"}, "--ray 'ray://a:1': give HOST:PORT"),
        ({"address": "a"}, "--ray 'a' is no address: HOST:PORT, or auto"),
        ({"address": ":1"}, "--ray ':1' is no address"),
        ({"address": "a:0"}, "--ray 'a:0' is no address"),
        ({"address": "a:70000"}, "--ray 'a:70000' is no address"),
        ({"address": ""}, "--ray '' is no address"),
    ],
)
def test_every_bad_value_is_one_line(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as raised:
        WorkerOptions(**({"count": 1} | wrong))  # type: ignore[arg-type]
    assert str(raised.value).startswith(words)


def test_good_values_are_taken() -> None:
    for gpus in (None, 0, 0.25, 0.5, 1, 2, 8.0):
        WorkerOptions("auto", "auto", gpus)
    assert WorkerOptions(1, "[::1]:6379").place == "the Ray cluster at [::1]:6379"
    assert WorkerOptions(1).place == "this machine"
