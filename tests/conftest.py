"""Settings that every test shares: no network, no colours, no model from the user's environment."""

import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from child_processes import know_those_there
from ray_clusters import ray_of_ones_own

from llava_mini_cli.media.picture_pool import POOL

# Tiny models are quickest on one thread, and tests then do not fight over the cores with their subprocesses.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The files that take longest begin first, so that at the end no process waits long for another one's last file.
LONGEST = (
    "test_workers_ray", "test_outputs_killed", "test_benchmark_gpu", "test_docs_scale", "test_docs",
    "test_engine_shortage", "test_cli_real", "test_demo_model", "test_bench", "test_engine_grammars",
    "test_archive_runs", "test_train_runs", "test_benchmark_full_size", "test_engine_labels", "test_cli_spans",
    "test_batch", "test_archive_killed", "test_engine",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of the longest files first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_sessionfinish() -> None:
    """Has the interpreter end with all objects before the collector, as any program (`no_garbage_of_others`)."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of caches that tests share, with nothing in it at first."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, cache_home: Path) -> None:
    """Keeps the environment of whoever runs the tests out of them."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("XDG_CONFIG_HOME", os.devnull)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))
    ours = [name for name in os.environ if name.startswith("LLAVA_MINI_")]
    for name in (*ours, "FORCE_COLOR", "NO_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="session")
def no_ray_of_others() -> Iterator[None]:
    """Has Ray find neither a cluster of whoever runs the tests nor that of tests beside these."""
    with ray_of_ones_own():
        yield


@pytest.fixture(autouse=True, scope="module")
def no_process_of_others() -> Iterator[None]:
    """Ends the processes that tests of another file had pictures decoded by, and sees that its runs end with it.

    A run that goes on, in a thread or in a generator that nobody closed, would keep the processes of those behind it.
    """
    POOL.close()
    know_those_there()
    yield
    end = time.monotonic() + 60
    while POOL.is_leased and time.monotonic() < end:
        gc.collect()  # generators within cycles, such as those of a traceback
        time.sleep(0.05)
    assert not POOL.is_leased, "a run of these tests goes on"


@pytest.fixture(autouse=True, scope="module")
def no_garbage_of_others(no_process_of_others: None) -> None:
    """Frees what tests of another file have left, and has collections look at nothing that is there by now.

    An engine that ran out of memory collects; each time it would look at a million objects, most of torch's modules.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the rendered videos `archive_films.FILMS`."""
    from archive_films import FILMS, film

    folder = tmp_path_factory.mktemp("films")
    for name, seconds in FILMS.items():
        film(folder / name, seconds)
    return folder


@pytest.fixture(scope="session")
def archive(films: Path) -> Path:
    """An archive of `films`, with features and captions. Tests that change it take a copy."""
    from archive_films import run

    folder = films.with_name("films.index")
    done = run("index", films, "-o", folder, "-m", "demo", "--features", "--caption-every", "3", "-q")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    return folder


@pytest.fixture
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A path of the name that the test is run for (`output_rows.each_format`)."""
    return f"{tmp_path}/{request.param}"


@pytest.fixture(scope="session")
def warm_command() -> Iterator[Path]:
    """A folder with `llava-mini`, whose starts import nothing."""
    from warm_command import REAL, warm_command

    with warm_command(REAL) as binaries:
        yield binaries


@pytest.fixture(scope="session")
def warm_doubles() -> Iterator[Path]:
    """The same with doubles of the engine and of clips (`cli_doubles`), and with the Python of the tests."""
    from warm_command import DOUBLES, warm_command

    with warm_command(DOUBLES) as binaries:
        yield binaries
