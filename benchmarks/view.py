"""How quick the page of `view` is: from disk in headless Chromium, and served.

`python benchmarks/view.py` makes rows in a temporary folder: 100,000 with pictures for the page from disk (`--rows`),
and a million as JSON lines for the server (`--served`). Prints the figures of docs/view.md.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from llava_mini_cli.view.filters import Filter, Finder
from llava_mini_cli.view.media import MediaPlaces
from llava_mini_cli.view.sources import open_rows
from llava_mini_cli.view.table import RowTable
from llava_mini_cli.view.write_page import write_page

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import Browser
from view_rows import SCHEMA, jpeg, row

WORDS = (
    "a",
    "red",
    "car",
    "stands",
    "before",
    "the",
    "house",
    "while",
    "people",
    "walk",
    "umbrellas",
    "in",
    "light",
    "rain",
)
FILTERS = {
    "status": Filter(status="error"),
    "text": Filter(text="umbrellas in light"),
    "text and probability": Filter(text="light", low=0.3, high=0.9),
    "file": Filter(file="set 77/"),
    "label, lowest first": Filter(label="day", sort="unlikely"),
    "highest first": Filter(sort="likely"),
    "by file": Filter(sort="file"),
    "by medium": Filter(group="medium"),
}
SCROLL = """(async () => {
    const scroller = document.getElementById("scroller");
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    const begun = performance.now();
    for (let step = 1; step <= 100; step++) {
        scroller.scrollTop = ((scroller.scrollHeight - scroller.clientHeight) * step) / 100;
        await frame();
    }
    const cards = () => [...document.querySelectorAll(".card")];
    const last = llavaMini.state.found.items - 1;
    while (!(cards().every((card) => card.dataset.n) && cards().some((card) => Number(card.dataset.place) === last)
        && [...document.images].every((image) => image.complete))) await frame();
    return performance.now() - begun;
})()"""


def made_rows(count: int) -> Iterator[dict[str, Any]]:
    """Two questions about each picture; every twentieth row failed."""
    rng = np.random.default_rng(0)
    for number in range(count):
        name = f"set {number // 1000}/picture {number // 2}.jpg"
        shared = {
            "id": f"/photos/{name}",
            "file_name": name,
            "prompt_name": ("shown", "light")[number % 2],
            "prompt": "?",
        }
        if number % 20 == 7:
            yield row(**shared, status="error", error="cannot identify image file", error_type="corrupt")
            continue
        day = float(rng.random())
        probabilities = [{"choice": "day", "probability": day}, {"choice": "night", "probability": 1 - day}]
        labelled = {"choice": "day" if day > 0.5 else "night", "choice_probs": probabilities} if number % 2 else {}
        yield row(**shared, media="image", text=" ".join(rng.choice(WORDS, 18)), **labelled)


def write_parquet(count: int, path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [jpeg(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8), (256, 192)) for _ in range(100)]
    with pq.ParquetWriter(path, SCHEMA) as writer:
        rows = list[dict[str, Any]]()
        for number, one in enumerate(made_rows(count), 1):
            kept = None if one["error"] else pictures[number % 100] + number.to_bytes(4, "big")  # none is like another
            rows.append(one | {"thumbnail": kept})
            if len(rows) == 1000 or number == count:
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                rows.clear()


def from_disk(count: int, folder: Path) -> None:
    write_parquet(count, folder / "rows.parquet")
    with RowTable(open_rows(folder / "rows.parquet")) as table:
        table.refresh()
        begun = time.monotonic()
        write_page(table, MediaPlaces(folder), folder / "page", "rows")
        print(f"page of {count:,} rows written: {time.monotonic() - begun:.1f} s")
    with Browser(folder / "browser") as browser:
        browser.size(1280, 800)
        begun = time.monotonic()
        browser.call("Page.navigate", {"url": (folder / "page" / "index.html").as_uri()})
        browser.until("[...document.images].some((image) => image.complete && image.naturalWidth > 0)")
        print(f"first picture: {time.monotonic() - begun:.2f} s")
        browser.settle()
        print(f"scrolled to the end: {browser.run(SCROLL) / 1000:.1f} s")
        pages = [
            one for one in psutil.Process().children(recursive=True) if "--type=renderer" in " ".join(one.cmdline())
        ]
        print(f"memory of the page: {max(one.memory_full_info().pss for one in pages) / 1e6:.0f} MB")
        begun = time.monotonic()
        browser.press("/")
        browser.type("umbrellas in light")
        browser.until("llavaMini.state.filter.text && !document.body.hasAttribute('aria-busy')", 60)
        print(f"search in all texts: {time.monotonic() - begun:.2f} s; said: {browser.said}")


def served(count: int, folder: Path) -> None:
    path = folder / "rows.jsonl"
    with path.open("w") as file:
        for one in made_rows(count):
            probabilities = {p["choice"]: p["probability"] for p in one["choice_probs"] or ()}
            lines = {name: value for name, value in one.items() if name != "thumbnail"}
            file.write(json.dumps(lines | {"choice_probs": probabilities or None}) + "\n")
    with RowTable(open_rows(path)) as table:
        begun = time.monotonic()
        table.refresh()
        print(
            f"{count:,} rows, {path.stat().st_size / 1e6:.0f} MB of JSON lines read: {time.monotonic() - begun:.1f} s"
        )
        Finder(table).about()
        for name, wanted in FILTERS.items():
            taken = list[float]()
            for _ in range(3):
                finder = Finder(table)  # which has kept no answer
                finder.about()
                begun = time.monotonic()
                found = finder.find(wanted)
                table.rows(int(n) for n in found.numbers[:60])
                taken.append(time.monotonic() - begun)
            print(f"{name}: {sorted(taken)[1] * 1000:.0f} ms, {found.rows:,} rows")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--served", type=int, default=1_000_000)
    given = options.parse_args()
    with TemporaryDirectory() as folder:
        if given.rows:
            from_disk(given.rows, Path(folder))
        if given.served:
            served(given.served, Path(folder))


if __name__ == "__main__":
    main()
