"""The import table: which part of the package may import which, read from the sources."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llava_mini_cli"
COMMON = {
    "errors",
    "config",
    "at_exit",
    "geometry",
    "bicubic",
    "pieces",
    "handover",
    "needs",
    "hub",
    "memory_there",
    "paths",
    "plain_files",
    "safe_files",
    "trial_process",
    "",
}  # "" is the package itself, for its version

MAY_IMPORT = {
    "commands": {"pipelines", "formats", "media.open", "media.clip", "train", "bench", "view", "workers"},
    "view": {"formats"},
    "workers": {"pipelines", "formats", "media.open", "media.clip"},
    "batch": {"pipelines", "formats", "media.picture_file"},
    "bench": {"engine", "model", "media"},
    "evaluate": {"pipelines", "formats", "media", "engine"},
    "pipelines": {"formats", "media", "engine"},
    "engine": {"model", "media.clip"},
    "formats": set[str](),
    "media": set[str](),
    "model": set[str](),
    "train": {"model", "media", "demo"},
    "demo": set[str](),
}
ROOMS = {  # of formats; beside itself and the modules that lie in no room, each room may import
    "fetch": set[str](),
    "schema": set[str](),
    "inputs": {"fetch", "schema"},
    "outputs": set[str](),
    "archive": set[str](),
}
ONLY_IN = {  # third-party packages and the parts that may know them
    "typer": {"commands"},
    "rich": {"commands"},
    "tqdm": {"commands", "evaluate"},
    "lmms_eval": {"evaluate"},
    "pyarrow": {"formats"},
    "faiss": {"formats"},
    "duckdb": {"view"},
    "starlette": {"view"},
    "uvicorn": {"view"},
    "decord": {"media"},
    "ffmpeg": {"media"},
    "imageio_ffmpeg": {"media", "pipelines", "demo", "bench"},  # pipelines: `doctor` runs it; others write videos
    "PIL": {"media", "model", "demo", "train", "evaluate", "pieces.py"},
    "ray": {"workers"},
    "torch": {"engine", "model", "pipelines", "train", "bench"},  # pipelines: `doctor` alone, inside functions
    "transformers": {"engine", "model", "train", "bench"},
    "vllm": {"engine"},
}


def modules_of(part: str) -> list[Path]:
    return sorted((PACKAGE / part).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Dotted names of everything a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inner_name(name: str) -> str | None:
    """The part within the package, or None for another package's module."""
    if name == "llava_mini_cli":
        return ""
    return name.removeprefix("llava_mini_cli.") if name.startswith("llava_mini_cli.") else None


def allowed(inner: str, part: str) -> bool:
    names = MAY_IMPORT[part] | COMMON | {part, "__version__"}
    return any(inner == name or inner.startswith(f"{name}.") for name in names if name) or inner == ""


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_parts_import_one_way(part: str) -> None:
    assert modules_of(part)
    for path in modules_of(part):
        # `from a.b import c` yields both a.b and a.b.c; a.b may be a bare package that holds an allowed module.
        for name in imported(path):
            inner = inner_name(name)
            packages = {"media", "engine", "model"}
            assert inner is None or inner in packages or allowed(inner, part), f"{path.name} imports {name}"


def test_the_rooms_of_formats_import_one_way() -> None:
    rooms = {path.name for path in (PACKAGE / "formats").iterdir() if (path / "__init__.py").exists()}
    assert rooms == set(ROOMS)
    for path in modules_of("formats"):
        room = path.relative_to(PACKAGE / "formats").parts[0]
        for name in imported(path):
            inner = inner_name(name) or ""
            other = inner.split(".")[1] if inner.startswith("formats.") else ""
            assert other not in rooms - ROOMS.get(room, set()) - {room}, f"{path.name} imports {name}"


@pytest.mark.parametrize("package", ONLY_IN)
def test_third_party_packages_stay_in_their_part(package: str) -> None:
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0]
        if any(name.split(".")[0] == package for name in imported(path)):
            assert part in ONLY_IN[package], f"{path.relative_to(PACKAGE)} imports {package}"


def test_lmms_eval_is_known_where_it_loads_us_alone() -> None:
    """Nobody else has it."""
    knowing = {path.name for path in modules_of("evaluate") if any("lmms_eval" in name for name in imported(path))}
    assert knowing == {"manifest.py", "plugin.py"}
    for path in PACKAGE.rglob("*.py"):
        names = {f"llava_mini_cli.evaluate.{module}" for module in ("manifest", "plugin")}
        assert not names & set(imported(path)), path


def test_vllm_is_known_where_its_own_process_begins_alone() -> None:
    """Nobody else imports it, nor what does."""
    knowing = {
        path.name for path in modules_of("engine") if any(name.split(".")[0] == "vllm" for name in imported(path))
    }
    assert knowing == {"architecture.py", "held_scores.py", "plugin.py", "server.py", "vllm_engine.py"}
    names = {f"llava_mini_cli.engine.vllm.{name.removesuffix('.py')}" for name in knowing}
    for path in PACKAGE.rglob("*.py"):
        if path.name not in knowing or path.parent.name != "vllm":
            assert not names & set(imported(path)), path


def test_pipelines_and_what_is_below_print_nothing() -> None:
    for part in ("pipelines", "formats", "view", "engine", "model", "bench", "workers"):
        for path in modules_of(part):
            calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], path


@pytest.mark.parametrize("arguments", [["--help"], ["ask", "--help"], ["train", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from llava_mini_cli.__main__ import main\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'numpy', 'PIL', 'huggingface_hub', 'decord', 'tqdm', 'fsspec'}\n"
        "loaded = sorted(heavy & set(sys.modules))\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout


def test_help_loads_little_beside_typer() -> None:
    """Modules are counted, since seconds would measure the machine."""
    ours = "from llava_mini_cli.__main__ import main\ntry: main()\nexcept SystemExit: pass\n"
    theirs = "import typer, typer.rich_utils, rich.markdown, rich.panel, rich.table\n"
    counts: list[int] = []
    for code in (ours, theirs):
        code = f"import sys\n{code}sys.stderr.write(str(len(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
        counts.append(int(done.stderr))
    assert counts[0] < counts[1] + 100
