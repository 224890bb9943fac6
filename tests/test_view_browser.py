"""The page of `llava-mini view` in a real browser: a thousand rows, strangers' texts, and what is missing.

With VIEW_PICTURES=DIR the screenshots of docs/view.md are written there.
"""

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from browser import MISSING, PROGRAM, Browser, wait_for
from PIL import Image
from view_rows import picture_rows, row, video_rows, write_parquet

from llava_mini_cli.formats.archive.moments import Moment
from llava_mini_cli.view.media import MediaPlaces
from llava_mini_cli.view.moments_page import moments_page
from llava_mini_cli.view.sources import open_rows
from llava_mini_cli.view.table import RowTable
from llava_mini_cli.view.write_page import write_page

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=MISSING)

ROWS = 1000


def page_of(rows: Path, folder: Path, *, track: Path | None = None, media: Path | None = None) -> str:
    """A page from disk of some rows, and its address."""
    with RowTable(open_rows(rows), open_rows(track) if track else None) as table:
        table.refresh()
        write_page(table, MediaPlaces(rows.parent, media), folder, rows.name)
    return (folder / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    try:
        started = Browser(tmp_path_factory.mktemp("browser"))
    except OSError as error:
        pytest.skip(f"{PROGRAM} does not start: {error}")
    with started as opened:
        opened.size(1280, 800)
        yield opened


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand rows: 50 failures, and 200 spans of videos that are there."""
    folder = tmp_path_factory.mktemp("thousand")
    rows = picture_rows(folder) + video_rows(folder)
    assert len(rows) == ROWS
    assert sum(one["status"] == "error" for one in rows) == 50
    assert sum(one["segment"] is not None for one in rows) == 200
    return write_parquet(rows, folder / "answers.parquet")


@pytest.fixture(scope="module")
def address(thousand: Path) -> str:
    track = thousand.with_name("track.jsonl")
    with track.open("w") as file:
        for second in range(6):
            one = {"id": str(thousand.with_name("camera 0.mp4")), "prompt_name": "moves", "time": second + 0.5}
            file.write(json.dumps(one | {"p_yes": second / 5}) + "\n")
    return page_of(thousand, thousand.with_name("page"), track=track)


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Browser]:
    """The page of a thousand rows, opened anew; whatever it says on its console is a fault."""
    browser.size(1280, 800)
    browser.said.clear()
    browser.requests.clear()
    browser.open(address)
    yield browser
    assert browser.said == []
    assert [one for one in browser.requests if not one.startswith(("file:", "data:", "blob:", "about:"))] == []


def count(page: Browser) -> str:
    return page.texts("#count")[0]


def shown(page: Browser) -> list[dict[str, Any]]:
    """The first rows that are found, as the page has them."""
    return page.run("llavaMini.rows(0, 60)")


def choose(page: Browser, name: str, value: str) -> None:
    page.click(f'#choices button[data-name="{name}"][data-value="{value}"]')
    page.settle()


def found(page: Browser, words: str) -> None:
    page.until(f"document.getElementById('count').textContent === {json.dumps(words)}")
    page.settle()


def test_it_shows_what_is_there(page: Browser) -> None:
    assert count(page) == "1,000 rows, 410 media"
    assert page.run("document.title") == "answers.parquet"
    page.until("[...document.images].filter(i => i.complete && i.naturalWidth > 0).length >= 8")
    facets = page.texts("#choices button")
    assert {
        "ok950",
        "error50",
        "light400",
        "shown400",
        "moves200",
        "corrupt25",
        "not_found25",
        "image750",
        "video200",
    } <= set(facets)
    assert "broken data stream" in page.texts(".card")[0]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("status", "error", "50 of 1,000 rows, 50 media"),
        ("question", "moves", "200 of 1,000 rows, 10 media"),
        ("error", "not_found", "25 of 1,000 rows, 25 media"),
        ("kind", "video", "200 of 1,000 rows, 10 media"),
    ],
)
def test_each_filter_leaves_the_rows_that_it_names(page: Browser, name: str, value: str, words: str) -> None:
    choose(page, name, value)
    assert count(page) == words
    column = "error_type" if name == "error" else name
    assert {one[column] for one in shown(page)} == {value}
    choose(page, name, value)
    assert count(page) == "1,000 rows, 410 media"


def test_labels_and_the_slider(page: Browser) -> None:
    choose(page, "label", "night")
    nights = int(count(page).split()[0])
    assert {one["label"] for one in shown(page)} == {"night"}
    page.run(
        "(e => { e.value = 0.8; e.dispatchEvent(new Event('input', {bubbles: true})) })(document.getElementById('low'))"
    )
    page.until(f"document.getElementById('count').textContent.startsWith('{nights} ') === false")
    page.settle()
    rows = shown(page)
    assert rows
    assert all(one["p"] >= 0.8 and one["label"] == "night" for one in rows)
    assert page.texts("#low-shown") == ["0.80"]
    assert page.run("document.querySelectorAll('#histogram i.out').length") == 32
    heights = page.run("[...document.querySelectorAll('#histogram i')].map(i => parseFloat(i.style.height))")
    assert max(heights) == 100  # the histogram is of all nights, whatever the slider says
    page.click("#clear")
    found(page, "1,000 rows, 410 media")


def test_the_search_and_the_file(page: Browser) -> None:
    page.press("/")
    page.type("BROKEN data")
    found(page, "25 of 1,000 rows, 25 media")
    page.click("#file")
    page.type("set 0/")
    found(page, "25 of 1,000 rows, 25 media")
    page.click("#clear")
    found(page, "1,000 rows, 410 media")
    page.click("#file")
    page.type("camera 3")
    found(page, "20 of 1,000 rows, 1 media")
    page.press("Escape")
    page.press("/")
    page.type("nothing is like this")
    found(page, "0 of 1,000 rows, 0 media")
    assert page.texts("#nothing") == ["No row is like that."]


@pytest.mark.parametrize(
    ("order", "key", "reverse"),
    [("likely", "p", True), ("unlikely", "p", False), ("file", "file", False), ("failed", "status", False)],
)
def test_orders(page: Browser, order: str, key: str, reverse: bool) -> None:
    page.run(f"(e => {{ e.value = '{order}'; e.dispatchEvent(new Event('change')) }})(document.getElementById('sort'))")
    page.settle()
    values = [one[key] for one in shown(page)]
    assert values == sorted(values, reverse=reverse)
    assert len(values) == 60


def test_one_entry_for_each_medium(page: Browser) -> None:
    page.press("m")
    page.until("llavaMini.state.found.items === 410")
    page.settle()
    assert count(page) == "1,000 rows, 410 media"
    assert page.texts(".tag.many")[0] == "2 rows"
    choose(page, "kind", "video")
    assert set(page.texts(".tag.many")) == {"20 rows"}


def test_keys_go_through_the_rows(page: Browser) -> None:
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert page.run("llavaMini.state.chosen") == 1
    page.press("ArrowDown")
    assert page.run("llavaMini.state.chosen") == 1 + page.run(
        "new Set([...document.querySelectorAll('.card')].map(c => c.getBoundingClientRect().x)).size"
    )
    page.press("End")
    page.until("document.querySelector('.card.chosen')?.dataset.place === '999'")
    assert page.run("document.getElementById('scroller').getAttribute('aria-activedescendant')") == "row-999"
    assert page.run("[...document.querySelectorAll('[aria-selected=true]')].map(card => card.id)") == ["row-999"]
    page.press("Enter")
    page.until("document.getElementById('place').textContent === '1,000 of 1,000'")
    page.press("ArrowLeft")
    page.until("document.getElementById('place').textContent === '999 of 1,000'")
    page.press("Escape")
    assert page.run("document.getElementById('detail').hidden")
    page.press("l")
    page.settle()
    page.until("document.querySelectorAll('.lines .card').length > 3")
    page.press("?")
    assert page.run("document.getElementById('keys').open")


def test_a_click_on_a_span_plays_there(page: Browser) -> None:
    choose(page, "question", "moves")
    page.click(".card .strip button", number=1)
    page.until("document.querySelector('#one video')?.readyState >= 1")
    start = page.run("llavaMini.state.open.row.start")
    assert start == pytest.approx(0.3, abs=0.2)
    page.until(f"Math.abs(document.querySelector('#one video').currentTime - {start}) < 1.5")
    page.until("document.querySelectorAll('#one > .strip button').length === 20")
    assert page.run("document.querySelector('#one > .strip').className") == "strip tracked"
    page.click("#one > .strip button", number=14)
    wanted = page.run("Number(document.querySelectorAll('#one > .strip button')[14].dataset.start)")
    page.until(f"(t => t >= {wanted} - 0.01 && t < {wanted} + 1.5)(document.querySelector('#one video').currentTime)")
    page.until("document.querySelectorAll('#one .others button').length === 20")
    page.click("#one .others button", number=3)
    page.until("llavaMini.state.open.row.segment === 4")
    assert (
        page.run("document.querySelector('#one [aria-current=true] .at').textContent")
        == page.texts("#one .others .at")[3]
    )


def test_paths_are_exported_and_copied(page: Browser, tmp_path: Path) -> None:
    page.call("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    choose(page, "kind", "video")
    page.click("#export")
    wait_for(lambda: (tmp_path / "paths.txt").exists(), 10, "a list of paths")
    listed = (tmp_path / "paths.txt").read_text().splitlines()
    assert len(listed) == 10
    assert all(Path(one).is_file() for one in listed)
    page.run("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    page.press("ArrowRight")
    page.press("Enter")
    page.until("llavaMini.state.open !== null")
    page.press("c")
    page.until("window.copied !== undefined")
    assert page.run("copied") == listed[0]


def test_what_is_looked_at_is_in_the_address(page: Browser, address: str) -> None:
    choose(page, "status", "error")
    page.press("l")
    where = page.run("location.href")
    assert where == f"{address}#status=error&view=list"
    page.open(where)
    assert count(page) == "50 of 1,000 rows, 50 media"
    assert page.run("document.querySelector('#sheet').className") == "lines"


def test_strangers_texts_are_shown_and_run_nowhere(browser: Browser, tmp_path: Path) -> None:
    evil = [
        "<script>window.ran = 1</script>", "<img src=x onerror='window.ran=1'>",
        "</script><script>window.ran=1</script>", "\"'><svg onload=window.ran=1>", "javascript:window.ran=1",
        "a\u202egpj.exe", "\x1b[31mred\x07",
        "{{ran}} ${ran} `ran`", "\u2028]);window.ran=1;//", "data:text/html,<script>window.ran=1</script>", "__proto__",
        "-->",
    ]  # fmt: skip
    rows: list[dict[str, Any]] = []
    for text in evil:
        shared = {"id": text, "file_name": text, "prompt": text, "prompt_name": text}
        answered = row(
            **shared, media="image", text=text, warning=text, choice=text, json=json.dumps({text: text}),
            choice_probs=json.dumps({text: 0.75, "constructor": 0.25}),
        )  # fmt: skip
        rows.append(answered | {"evidence": json.dumps([{"start": text, "weight": text}])})
        rows.append(row(**shared, status="error", error=text, error_type=text, error_stage=text))
    path = tmp_path / "<b>rows<script>.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    browser.said.clear()
    browser.requests.clear()
    browser.open(page_of(path, tmp_path / "page"))
    assert count(browser).startswith("24 rows")
    assert browser.texts("#name") == ["<b>rows<script>.jsonl"]
    visible = "\n".join(browser.texts(".card"))
    for text in evil[:4]:
        assert text in visible
    assert "a\\u202egpj.exe" in visible
    assert "\\x1b[31mred\\x07" in visible
    for place in range(len(rows)):
        browser.press("ArrowRight")
        browser.press("Enter")
        browser.until(f"document.getElementById('place').textContent.startsWith('{place + 1} of')")
        links = browser.run("[...document.querySelectorAll('a')].map(a => a.protocol)")
        assert set(links) <= {"http:", "https:", "file:"}
    assert browser.run("typeof window.ran") == "undefined"
    assert browser.run("document.querySelectorAll('script:not([src]), svg, iframe, object').length") == 0
    assert browser.said == []
    assert [one for one in browser.requests if not one.startswith(("file:", "about:"))] == []


def test_media_that_moved_are_found_and_those_that_are_gone_are_told(browser: Browser, tmp_path: Path) -> None:
    moved = tmp_path / "now here"
    moved.mkdir()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(moved / "a.png")
    rows = [
        row(id="/once/there/a.png", file_name="a.png", media="image", prompt="?", text="one"),
        row(id="/once/there/b.png", file_name="b.png", media="image", prompt="?", text="two"),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({k: v for k, v in one.items() if k != "thumbnail"}) + "\n" for one in rows))
    browser.open(page_of(path, tmp_path / "page", media=moved))
    browser.until("document.images.length === 1 && document.images[0].naturalWidth === 60")
    assert browser.texts(".picture .none") == ["The file is not there"]
    (moved / "a.png").unlink()  # after the page was written
    browser.open((tmp_path / "page" / "index.html").as_uri())
    browser.until("document.querySelectorAll('.picture .none').length === 2")
    assert browser.texts(".picture .none") == ["The picture cannot be shown", "The file is not there"]


def test_what_search_found_is_one_file_with_the_same_page(browser: Browser, thousand: Path, tmp_path: Path) -> None:
    video = str(thousand.with_name("camera 0.mp4"))
    moments = [
        Moment(
            rank=rank, score=1 / rank, path=path, file_name=Path(path).name, media="video", time=2.0, start=1.5,
            end=2.5, frames=1, duration_s=6.0, caption=caption,
        )
        for rank, path, caption in ((1, video, "</script>"), (2, "s3://a/b.mp4", None))
    ]  # fmt: skip
    kept = picture_rows(tmp_path, 1, 0)[0]["thumbnail"]
    (tmp_path / "found.html").write_bytes(moments_page(moments, [kept, None], "a <b>car"))
    browser.said.clear()
    browser.requests.clear()
    browser.open((tmp_path / "found.html").as_uri())
    assert count(browser) == "2 rows, 2 media"
    assert browser.texts("#name") == ["a <b>car"]
    assert browser.texts("#measure") == ["Score"]
    browser.until("document.images.length === 1 && document.images[0].naturalWidth > 0")
    assert browser.texts(".card .text")[0] == "</script>"
    browser.click(".card .strip button")
    browser.until("document.querySelector('#one video')?.currentTime >= 1.49")
    assert browser.said == []
    assert {one.split(":")[0] for one in browser.requests} <= {"file", "data", "about"}


def test_an_empty_output_is_told(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.touch()
    browser.open(page_of(path, tmp_path / "page"))
    assert browser.texts("#nothing") == ["This output holds no rows."]
    assert count(browser) == "0 rows, 0 media"


def test_served_it_is_the_same_page(browser: Browser, thousand: Path) -> None:
    import asyncio
    import socket

    import uvicorn

    from llava_mini_cli.view.server import application

    with RowTable(open_rows(thousand)) as table, socket.create_server(("127.0.0.1", 0)) as listener:
        table.refresh()
        port = listener.getsockname()[1]
        app: Any = application(table, MediaPlaces(thousand.parent), "served", "token", port)
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", ws="none", loop="asyncio"))
        running = Thread(target=lambda: asyncio.run(server._serve([listener])))
        running.start()
        try:
            browser.said.clear()
            browser.requests.clear()
            browser.open(f"http://127.0.0.1:{port}/token/")
            assert count(browser) == "1,000 rows, 410 media"
            browser.until("[...document.images].filter(i => i.complete && i.naturalWidth > 0).length >= 8")
            choose(browser, "status", "error")
            assert count(browser) == "50 of 1,000 rows, 50 media"
            choose(browser, "status", "error")
            choose(browser, "question", "moves")
            browser.click(".card .strip button", number=2)
            browser.until("document.querySelector('#one video')?.currentTime > 0")
            browser.press("m")
            browser.until("llavaMini.state.found.items === 10")
            browser.settle()
            assert set(browser.texts(".tag.many")) == {"20 rows"}
            assert browser.said == []
            assert {one.split("/")[2] for one in browser.requests if one.startswith("http")} == {f"127.0.0.1:{port}"}
            browser.call("Page.navigate", {"url": "about:blank"})
        finally:
            server.should_exit = True
            running.join(timeout=10)
        assert not running.is_alive()


SHOTS = [(1280, 800, False), (1280, 800, True), (400, 800, False), (400, 800, True)]


@pytest.mark.parametrize(("width", "height", "dark"), SHOTS)
def test_it_fits_the_screen_in_light_and_dark(page: Browser, width: int, height: int, dark: bool) -> None:
    page.size(width, height, dark=dark)
    page.run("document.activeElement.blur()")
    choose_by_script = "document.querySelector('#choices button[data-value=\"moves\"]').click()"
    page.settle()
    page.until("[...document.images].every(i => i.complete)")
    pictures = {"rows": page.picture()}
    page.run(choose_by_script)
    page.settle()
    page.press("ArrowRight")
    page.press("Enter")
    page.until("document.querySelector('#one video')?.readyState >= 2")
    page.until("document.querySelectorAll('#one .others button').length === 20")
    pictures["open"] = page.picture()
    assert page.run("document.documentElement.scrollWidth") <= width
    elements = "[...document.querySelectorAll('header *, #detail *, .card')]"
    assert page.run(f"{elements}.filter(e => e.getBoundingClientRect().right > innerWidth + 1).length") == 0
    ground = np.asarray(Image.open(io.BytesIO(pictures["rows"])).convert("L"))[-3:, :3].mean()
    assert ground < 60 if dark else ground > 200
    folder = os.environ.get("VIEW_PICTURES")
    for name, picture in pictures.items() if folder else ():
        path = Path(folder or "") / f"view-{name}-{width}-{'dark' if dark else 'light'}.png"
        if path.name not in (Path(__file__).parents[1] / "docs" / "view.md").read_text():
            continue
        Image.open(io.BytesIO(picture)).convert("RGB").save(path, optimize=True)
