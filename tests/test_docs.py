"""The README and the docs: shell blocks run, paths exist, exit codes and columns are the real ones."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import imageio_ffmpeg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken_media import make_picture, make_video
from PIL import Image

from llava_mini_cli.demo.render import random_look, render
from llava_mini_cli.demo.scenes import COLOURS, SHAPES, Thing, generator, random_scene
from llava_mini_cli.formats.row import COLUMNS

ROOT = Path(__file__).parents[1]


def shell_blocks(path: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def recipes(path: Path) -> list[str]:
    """The blocks that are marked as recipes."""
    return re.findall(r"^<!-- recipe -->\n```sh\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def run_block(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{block}\n{done.stderr}"


def test_the_commands_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_command: Path) -> None:
    """With a tiny model in place of the published one, and media of these names."""
    from tiny_checkpoints import write_tiny_checkpoint

    write_tiny_checkpoint(tmp_path / "tiny")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photos" / "red.png")
    source = "testsrc2=duration=2:size=160x120:rate=10"
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-f", "lavfi", "-i", source]
    subprocess.run([*ffmpeg, "-pix_fmt", "yuv420p", str(tmp_path / "clip.mp4")], check=True)
    path = f"{warm_command}:{Path(sys.executable).parent}:/usr/bin:/bin"
    for block in shell_blocks(ROOT / "README.md"):
        run_block(block, tmp_path, monkeypatch, PATH=path, LLAVA_MINI_MODEL=str(tmp_path / "tiny"))
    assert {"answers.parquet", "first.jsonl"} <= {entry.name for entry in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("page", "made"),
    [
        ("commands.md", "rows.parquet"),
        ("inputs.md", "captions.parquet"),
        ("outputs.md", "photos/metadata.jsonl"),
        ("spans.md", "spans.parquet"),
        ("labels.md", "labels.parquet"),
        ("when.md", "events.parquet"),
        ("fields.md", "cars.parquet"),
        ("evidence.md", "minutes.csv"),
        ("view.md", "events/index.html"),
    ],
)
def test_the_commands_of_the_docs_run(
    page: str, made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_doubles: Path
) -> None:
    """With doubles of the engine and of clips."""
    (tmp_path / "photos").mkdir()
    for name in ("a.mp4", "b.mp4", "photos/c.jpg"):
        (tmp_path / name).write_text("3")
    (tmp_path / "truth.csv").write_text("file_name,prompt_name,truth\nc.jpg,red_circle,true\n")
    if page == "spans.md":
        write_robot(tmp_path)
    for block in shell_blocks(ROOT / "docs" / page):
        run_block(block, tmp_path, monkeypatch, PATH=f"{warm_doubles}:/usr/bin:/bin")
    assert (tmp_path / made).exists()
    if page == "spans.md":
        rows = pq.read_table(tmp_path / "robot-rows.parquet").to_pylist()
        assert sorted((row["episode_index"], row["start"], row["end"], row["prompt"]) for row in rows) == [
            (0, 0.0, 1.5, "Does the robot fold the cloth?"), (0, 0.0, 1.5, "What does the hand hold?"),
            (1, 1.5, 3.0, "Does the robot lift the cup?"), (1, 1.5, 3.0, "What does the hand hold?"),
        ]  # fmt: skip
        assert (tmp_path / "look-at.csv").exists()
    if page == "when.md":
        report = [f"{name}: {file}.mp4, 1 to 3 s (at most 0.90)" for name in ("dark", "door") for file in "ab"]
        assert (tmp_path / "first.txt").read_text().splitlines() == report
        assert (tmp_path / "second.txt").read_text() == ""


def write_robot(folder: Path) -> None:
    """Two episodes in one file, as LeRobot has them."""
    camera = "videos/observation.images.top"
    episodes = [
        {"episode_index": number, "tasks": [task], f"{camera}/chunk_index": 0, f"{camera}/file_index": 0,
         f"{camera}/from_timestamp": start, f"{camera}/to_timestamp": start + 1.5}
        for number, (task, start) in enumerate((("fold the cloth", 0.0), ("lift the cup", 1.5)))
    ]  # fmt: skip
    for place in ("meta/episodes/chunk-000", f"{camera}/chunk-000"):
        (folder / place).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(episodes), folder / "meta/episodes/chunk-000/file-000.parquet")
    (folder / camera / "chunk-000/file-000.mp4").write_text("3")


def test_the_recipe_filters_a_folder_of_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_command: Path
) -> None:
    """With the demo model, which knows what is in them."""
    (tmp_path / "photos").mkdir()
    there: dict[str, set[str]] = {}
    for number in range(12):
        rng = generator("heldout", number)
        scene = random_scene(rng, "heldout")
        extra = Thing("circle", "red", "large", *((scene.things[0].x, scene.things[0].y)))
        scene = replace(scene, things=(extra, *scene.things[1:]) if number % 3 == 0 else scene.things)
        pixels = render(scene, random_look(rng, scene.background), 192, rng)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
        there[f"{number}.png"] = {f"{thing.colour}_{thing.shape}" for thing in scene.things}
    names = [f"{colour}_{shape}" for colour in COLOURS[:5] for shape in SHAPES]
    truth = [f"{file},{name},{name in things}" for file, things in there.items() for name in names]
    (tmp_path / "truth.csv").write_text("\n".join(["file_name,prompt_name,truth", *truth]))
    path = f"{warm_command}:{Path(sys.executable).parent}:/usr/bin:/bin"
    for block in recipes(ROOT / "docs" / "labels.md"):
        run_block(block, tmp_path, monkeypatch, PATH=path, LLAVA_MINI_MODEL="demo")
    found = [file for file, things in there.items() if "red_circle" in things and "green_square" not in things]
    assert len(found) >= 4
    assert (tmp_path / "found.txt").read_text().split() == sorted(f"photos/{file}" for file in found)
    lines = (tmp_path / "thresholds.csv").read_text().splitlines()
    half = dict(zip(lines[0].split(","), map(float, lines[10].split(",")), strict=True))
    assert half["threshold"] == 0.5
    assert min(half["precision"], half["recall"]) > 0.9


def test_the_recipe_makes_subtitles_of_scenes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_command: Path
) -> None:
    """With the demo model, of a film that is cut once."""
    from archive_films import film

    film(tmp_path / "a.mp4", ["red circle"] * 2 + ["blue square"] * 3)
    path = f"{warm_command}:{Path(sys.executable).parent}:/usr/bin:/bin"
    (block,) = recipes(ROOT / "docs" / "spans.md")
    run_block(block, tmp_path, monkeypatch, PATH=path, LLAVA_MINI_MODEL="demo")
    lines = (tmp_path / "a.srt").read_text().splitlines()
    assert [line for line in lines if "-->" in line] == [
        "00:00:00,000 --> 00:00:02,000",
        "00:00:02,000 --> 00:00:05,000",
    ]
    first, second = (" ".join(part) for part in (lines[2 : lines.index("2")], lines[lines.index("2") + 2 :]))
    assert ("red" in first, "blue" in second) == (True, True)
    table = [line.split(",")[:2] for line in (tmp_path / "scenes.csv").read_text().splitlines()]
    assert table == [["segment", "seconds"], ["1", "2.0"], ["2", "3.0"]]


@pytest.mark.skipif(shutil.which("jq") is None, reason="the recipes use jq")
def test_the_recipes_of_batch_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_doubles: Path) -> None:
    """Over real media, with a double of the engine alone."""
    for folder in ("photos", "cam"):
        (tmp_path / folder).mkdir()
    for number in (1, 2):
        make_picture(tmp_path / "photos" / f"{number}.jpg", number)
        make_video(tmp_path / "cam" / f"{number}.mp4")
    environment = {"PATH": f"{warm_doubles}:/usr/local/bin:/usr/bin:/bin", "CLIPS": "real"}
    environment["HF_HOME"] = str(tmp_path / "hf")
    for block in shell_blocks(ROOT / "docs" / "batch.md"):
        run_block(block, tmp_path, monkeypatch, **environment)
    for task in ("1", "2"):
        array = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "2"}
        run_block("bash captions.sbatch", tmp_path, monkeypatch, **array)
    made = [row["file_name"] for row in pq.read_table(tmp_path / "sharded").to_pylist()]
    assert sorted(made) == ["1.jpg", "1.mp4", "2.jpg", "2.mp4"]
    assert json.loads((tmp_path / "summary.json").read_text())["rows_answered"] == 2


def test_the_tree_of_the_readme_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    tree = text[text.index("llava_mini_cli/\n") :]
    for part in ("commands", "pipelines", "formats"):
        section = re.search(rf"^  {part}/.*?\n((?:    .*\n)+)", tree, re.MULTILINE)
        assert section is not None
        listed = {line.split()[0].rstrip("/") for line in section[1].splitlines() if line[4] != " "}
        assert listed <= {path.name for path in (ROOT / "llava_mini_cli" / part).iterdir()}
        assert (ROOT / part).resolve() == (ROOT / "llava_mini_cli" / part).resolve()


def test_every_step_of_the_paths_through_the_code_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## Two paths through the code") : text.index("## Where things are")]
    steps = re.findall(r"^\d\. `(llava_mini_cli[\w.]*):([\w.]+)`", section, re.MULTILINE)
    assert len(steps) == 11
    for module, name in steps:
        assert callable(attrgetter(name)(import_module(module)))


def test_links_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_column_is_documented() -> None:
    documented = re.findall(
        r"`(\w+)`", "".join(re.findall(r"^\| `.*?\|", (ROOT / "docs" / "commands.md").read_text(), re.M))
    )
    assert documented == [column.name for column in COLUMNS]
