"""What is missing is said in one line before any file of a model is opened and before the hub is asked."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.registry import _registry as REMEMBERED  # noqa: N812 - by fsspec: the classes that it has imported
from opened_files import opened_below
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner, Result

from llava_mini_cli import needs
from llava_mini_cli.commands.configured import options_of
from llava_mini_cli.commands.main import app
from llava_mini_cli.config import ModelOptions
from llava_mini_cli.engine import devices, trials
from llava_mini_cli.engine import load as load_module
from llava_mini_cli.engine.load import load_engine
from llava_mini_cli.engine.trials import try_options
from llava_mini_cli.errors import UsageError

Change = Callable[[pytest.MonkeyPatch, Path], None]
LAST = "is installed and cannot be imported: libwrong.so: cannot open shared object file"


@dataclass(frozen=True)
class Case:
    """A command line, what the machine lacks, and the one line that is said."""

    command: str
    line: str  # a regular expression
    change: Change = lambda monkeypatch, folder: None
    code: int = 2


def without(*packages: str) -> Change:
    """Packages are not installed."""

    def change(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        for package in packages:
            monkeypatch.setitem(sys.modules, package, None)
        for scheme in ("http", "https"):  # which another test's download may have had fsspec remember
            monkeypatch.delitem(REMEMBERED, scheme, raising=False)

    return change


def broken(package: str, raised: str = "OSError") -> Change:
    """A package is installed, and a library of it cannot be loaded."""

    def change(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        (folder / "broken" / package).mkdir(parents=True)
        text = f"raise {raised}('libwrong.so: cannot open shared object file')"
        (folder / "broken" / package / "__init__.py").write_text(text)
        monkeypatch.syspath_prepend(folder / "broken")
        monkeypatch.setenv("PYTHONPATH", str(folder / "broken"))  # for a process that imports it
        for name in list(sys.modules):
            if name.partition(".")[0] == package:
                monkeypatch.delitem(sys.modules, name)

    return change


def failing(place: Any, name: str, error: Exception) -> Change:
    """A function of this package or of torch raises an error."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return lambda monkeypatch, folder: monkeypatch.setattr(place, name, fail)


def as_file(name: str) -> Change:
    return lambda monkeypatch, folder: (folder / name).touch()


ASK = "ask red.png What? -m MODEL "
INDEX = "index red.png -o new.index -m MODEL "
SEARCH = "search some.index circle "
BENCH = "bench -m MODEL "
TRAIN = "train -o run --data d.json -m MODEL "
GONE_DEVICE = (
    r"--device cuda:99: (Torch not compiled with CUDA enabled|there is no such device; CUDA devices here: \d+)"
)
WORDS = r"--device banana: no device has this name; give cpu, cuda, cuda:N or auto"

EXTRAS: dict[tuple[str, str], Case] = {  # by the name of the extra and the option that needs it
    ("quantize", "--quantize"): Case(
        ASK + "--device cuda --quantize fp8",
        r"--quantize needs torchao: pip install 'llava-mini-cli\[quantize\]'",
        without("torchao"),
    ),
    ("ann", "--ann"): Case(
        INDEX + "--ann", r"--ann needs faiss: pip install 'llava-mini-cli\[ann\]'", without("faiss")
    ),
    ("ann", "--approximate"): Case(
        SEARCH + "--approximate", r"--approximate needs faiss: pip install 'llava-mini-cli\[ann\]'", without("faiss")
    ),
    ("train", "train"): Case(
        TRAIN, r"train needs accelerate, peft: pip install 'llava-mini-cli\[train\]'", without("accelerate", "peft")
    ),
    ("plot", "--plot"): Case(
        "when red.png What? -m MODEL --plot out",
        r"--plot needs matplotlib: pip install 'llava-mini-cli\[plot\]'",
        without("matplotlib"),
    ),
    ("schema", "--schema"): Case(
        "ask red.png -m MODEL --schema note",
        r"--schema needs llguidance: pip install 'llava-mini-cli\[schema\]'",
        without("llguidance"),
    ),
    ("vllm", "--llm"): Case(
        ASK + "--llm vllm", r"--llm vllm needs vllm: pip install 'llava-mini-cli\[vllm\]'", without("vllm")
    ),
    ("ray", "--workers"): Case(
        ASK + "--workers 2", r"--workers needs ray: pip install 'llava-mini-cli\[ray\]'", without("ray")
    ),
    ("ray", "--ray"): Case(
        INDEX + "--ray 127.0.0.1:9", r"--ray needs ray: pip install 'llava-mini-cli\[ray\]'", without("ray")
    ),
    ("plot", "bench"): Case(
        BENCH + "-o r.html",
        r"--output 'r.html' needs matplotlib: pip install 'llava-mini-cli\[plot\]'",
        without("matplotlib"),
    ),
    ("plot", "--layers"): Case(
        "inspect a.png What? -m MODEL -o out --layers",
        r"--layers needs matplotlib: pip install 'llava-mini-cli\[plot\]'",
        without("matplotlib"),
    ),
    ("view", "view"): Case(
        "view rows.jsonl -o page",
        r"view needs duckdb, uvicorn: pip install 'llava-mini-cli\[view\]'",
        without("duckdb", "uvicorn"),
    ),
    ("remote", ""): Case(
        "ask http://localhost:9/a.png What? -m MODEL",
        r"reading http:// needs a package that is not installed: pip install 'llava-mini-cli\[remote\]'",
        without("aiohttp", "fsspec.implementations.http"),
    ),
}
DEVICES = {
    "no such name": Case(ASK + "--device banana", WORDS),
    "no number of that size": Case(ASK + "--device cuda:9999", WORDS.replace("banana", "cuda:9999")),
    "a device of torch's tests": Case(ASK + "--device meta", WORDS.replace("banana", "meta")),
    "index": Case(INDEX + "--device cuda:99", GONE_DEVICE),
    "bench": Case(BENCH + "--device cuda:99", GONE_DEVICE),
    "no such card": Case(ASK + "--device cuda:99", GONE_DEVICE),
    "one card of two": Case(
        ASK + "--device cuda:1", "--device cuda:1: there is no such device; CUDA devices here: 1",
        lambda monkeypatch, folder: (
            monkeypatch.setattr(torch.cuda, "is_available", lambda: True),
            monkeypatch.setattr(torch.cuda, "device_count", lambda: 1),
        )[0],
    ),
    "a page of words": Case(
        ASK + "--device mps", "--device mps: no backend", failing(torch, "ones", RuntimeError("no backend. It\nis"))
    ),
    "number format": Case(
        ASK + "--dtype float16", r"--dtype float16: not to be had on cpu \(no kernel\)",
        failing(trials, "_run", RuntimeError("no kernel. None.")),
    ),
    "results that are none": Case(
        ASK + "--dtype bfloat16", r"--dtype bfloat16: not to be had on cpu \(its results are no numbers\)",
        lambda monkeypatch, folder: monkeypatch.setattr(
            trials, "finish", lambda layer, hidden, attended: hidden + float("nan")
        ),
    ),
    "kernel": Case(
        ASK + "--quantize int4", "--quantize int4: not to be had",
        failing(trials, "quantize", UsageError("--quantize int4: not to be had")),
    ),
    "kernel that fails when it is used": Case(
        ASK + "--quantize int8", r"--quantize int8: not to be had for torch.float32 on cpu \(wrong answer\)",
        lambda monkeypatch, folder: monkeypatch.setattr(trials, "quantize", break_products),
    ),
    "cards behind one another": Case(
        ASK + "--llm vllm --device cuda --tensor-parallel 2",
        "--tensor-parallel 2: CUDA devices here: 1, and cuda is to be the first",
        lambda monkeypatch, folder: (
            monkeypatch.setattr(needs, "is_installed", lambda package: True),
            monkeypatch.setattr(devices, "try_device", torch.device),
            monkeypatch.setattr(torch.cuda, "device_count", lambda: 1),
        )[0],
    ),
    "cards of a CPU": Case(
        ASK + "--llm vllm --device cpu --gpu-memory 0.5",
        "--gpu-memory is about cards, and the model is on cpu",
        lambda monkeypatch, folder: monkeypatch.setattr(needs, "is_installed", lambda package: True),
    ),
    "compiler": Case(
        ASK + "--compile", r"--compile: torch.compile failed \(No working C\+\+ compiler found\)",
        failing(torch, "compile", RuntimeError("No working C++ compiler found\nmore")),
    ),
    "compiler and kernel": Case(
        ASK + "--compile --quantize int8", "--compile: not together with --quantize on a CPU, .*",
        lambda monkeypatch, folder: None,
    ),
}  # fmt: skip
PACKAGES = {
    **{f"no torch for {command.split()[0]}": Case(
        command, "torch is not installed: python -m pip install torch", without("torch"), 1
    ) for command in (ASK, INDEX, SEARCH, TRAIN, BENCH, "caption red.png -m MODEL")},
    "no transformers": Case(
        ASK, "transformers is not installed: python -m pip install transformers", without("transformers"), 1
    ),
    "no pyarrow": Case(
        ASK + "-o x.parquet", "pyarrow is not installed: python -m pip install pyarrow", without("pyarrow"), 1
    ),
    "no decord": Case(
        ASK + "--decoder decord", "--decoder decord: decord is not installed: python -m pip install decord",
        without("decord"),
    ),
    "no ffmpeg for a video": Case(
        "ask v.mp4 What? -m MODEL", "there is no ffmpeg to decode videos with: python -m pip install imageio-ffmpeg",
        lambda monkeypatch, folder: no_ffmpeg(monkeypatch), 1,
    ),
    "no ffmpeg for a decoder": Case(
        INDEX + "--decoder ffmpeg", "there is no ffmpeg to decode videos with: python -m pip install imageio-ffmpeg",
        lambda monkeypatch, folder: no_ffmpeg(monkeypatch), 1,
    ),
    "no decord for index": Case(
        INDEX + "--decoder decord", "--decoder decord: decord is not installed: python -m pip install decord",
        without("decord"),
    ),
    "broken decord": Case(
        ASK + "--decoder decord",
        f"--decoder decord: decord {LAST.replace(': lib', ': OSError: lib')}",
        broken("decord"),
    ),
    "broken faiss for index": Case(
        INDEX + "--ann", f"--ann needs faiss, which {LAST}", broken("faiss", "ImportError")
    ),
    "broken faiss": Case(SEARCH + "--approximate", f"--approximate needs faiss, which {LAST}", broken("faiss")),
    "broken accelerate": Case(TRAIN, f"accelerate {LAST}", broken("accelerate"), 1),
    "broken peft": Case(TRAIN + "--lora-rank 4", f"peft {LAST}", broken("peft"), 1),
}  # fmt: skip
OUTPUTS = {
    "no folder for rows": Case(ASK + "-o gone/x.csv", "cannot write 'gone/x.csv': there is no folder 'gone'", code=1),
    "a file where thumbnails go": Case(
        SEARCH + "--thumbnails file/made", "cannot write 'file/made': '(.*/)?file' is not a folder", as_file("file"), 1
    ),
    "no folder for the media of moments": Case(
        SEARCH + "--thumbnails made --media-root gone", "--media-root: there is no folder 'gone'"
    ),
    "a file where thumbnails of rows go": Case(
        ASK + "-f jsonl --thumbnails file/made", "cannot write 'file/made': '(.*/)?file' is not a folder",
        as_file("file"), 1,
    ),
    "a file where a model goes": Case(
        TRAIN.replace("run", "file"), "cannot write 'file': '(.*/)?file' is not a folder", as_file("file"), 1
    ),
    "a file where downloads go": Case(
        ASK + "--cache-dir file", "cannot write 'file': '(.*/)?file' is not a folder", as_file("file"), 1
    ),
    "a file where downloads of an archive go": Case(
        INDEX + "--cache-dir file/below", "cannot write 'file/below': '(.*/)?file' is not a folder", as_file("file"), 1
    ),
    "number format of training": Case(
        TRAIN + "--bf16", r"--bf16: not to be had on (cpu|cuda) \(none\)",
        failing(torch, "autocast", RuntimeError("none")),
    ),
}  # fmt: skip
CASES = {**{" ".join(key): case for key, case in EXTRAS.items()}, **DEVICES, **PACKAGES, **OUTPUTS}


def no_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither imageio-ffmpeg nor a program of that name is there."""
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setattr(sys, "prefix", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")


def break_products(model: Any, kind: str) -> None:
    """In place of quantisation: products that fail when they are asked for."""

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("wrong answer. Twice.")

    model.model.layers[0].self_attn.q_proj.forward = fail


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a picture, and a model of which no file may be opened."""
    Image.new("RGB", (8, 8)).save(tmp_path / "red.png")
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / "model" / name).write_text("{}")
    (tmp_path / "d.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    trials._try_model.cache_clear()
    return tmp_path


def run(command: str, model: str) -> Result:
    return CliRunner().invoke(app, command.replace("MODEL", model).split())


@pytest.mark.parametrize("model", ["model", "./gone", "someone/gone"])
@pytest.mark.parametrize("name", CASES)
def test_what_is_missing_is_said_before_the_model_is_looked_at(
    name: str, model: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    case.change(monkeypatch, place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with opened_below(place / "model") as opened:
        result = run(case.command, model)
    assert re.fullmatch(f"llava-mini: error: {case.line}\n", result.stderr), result.stderr
    assert (result.exit_code, result.stdout) == (case.code, "")
    assert (opened.files, opened.servers) == ([], [])


@pytest.mark.parametrize("option", ["--device cuda:99", "--quantize int4", "--dtype float16"])
def test_a_run_that_goes_on_is_stopped_before_the_model_is_looked_at_too(
    option: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where rows are there the options are not tried until there is something to do."""
    error = UsageError(f"{option}: not to be had")
    for module, name in ((devices, "try_device"), (trials, "quantize"), (trials, "_run")):
        failing(module, name, error)(monkeypatch, place)
    (place / "rows.jsonl").touch()
    with opened_below(place / "model") as opened:
        result = run(f"{ASK} -o rows.jsonl {option}", "model")
    assert (result.exit_code, opened.files) == (2, [])
    assert result.stderr.splitlines()[-1] == f"llava-mini: error: {error}"


def test_the_installed_command_opens_no_file_of_the_model(place: Path) -> None:
    """In a process of its own, where nothing is imported yet."""
    script = str(Path(__file__).with_name("opened_files.py"))
    command = [
        sys.executable,
        script,
        str(place / "model"),
        *(ASK + "--device cuda:99").replace("MODEL", "model").split(),
    ]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, env={**os.environ})
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"llava-mini: error: {GONE_DEVICE}\nopened: 0 0\n", done.stderr), done.stderr


ORDER = [  # what is wrong with a command line, and what makes it right
    ("--fps 0", "", "--fps must be above 0"),
    ("-o gone/x.jsonl", "-o x.jsonl", "cannot write 'gone/x.jsonl'"),
    ("--device cuda:99 --quantize int8", "--device cuda:99", "--quantize needs torchao"),
    ("--decoder decord", "", "--decoder decord: decord is not installed"),
    ("--device cuda:99", "--device cpu", "--device cuda:99: "),
    ("-m ./gone", "-m model", "model ./gone: no such directory"),
    ("http://localhost:9/table.csv", "gone.csv", "cannot read the table 'http://localhost:9/table.csv'"),
    ("gone.csv", "red.png", "cannot read the table 'gone.csv'"),
    ("-m model", "", "model: a None model"),
]


def test_faults_are_said_in_the_order_of_docs_commands(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without("torchao", "decord")(monkeypatch, place)
    command = "ask -p What? --fps 0 -o gone/x.jsonl --device cuda:99 --quantize int8 --decoder decord -m ./gone "
    command += "http://localhost:9/table.csv"
    for wrong, right, words in ORDER:
        result = run(command, "")
        assert result.stderr.splitlines()[-1].startswith(f"llava-mini: error: {words}"), (command, result.stderr)
        command = command.replace(wrong, right, 1)


def test_the_count_of_opened_files_counts(place: Path) -> None:
    """And a model without fault in what is asked for is opened."""
    with opened_below(place / "model") as opened:
        result = run(ASK + "--device cpu", "model")
    assert result.exit_code == 1
    assert str(place / "model" / "config.json") in opened.files


NAMES = {"ffmpeg": "ffmpeg-python"}


@pytest.mark.parametrize("package", ["typer", "rich", "numpy", "ffmpeg", "pyarrow"])
def test_a_package_that_every_installation_has_is_missing(package: str, place: Path) -> None:
    """In a process of its own, as most of them are imported here. Help needs rich, and the rest of it Typer alone."""
    code = f"import sys; sys.modules[{package!r}] = None; from llava_mini_cli.__main__ import main; main()"
    command = [sys.executable, "-c", code]
    arguments = "--help" if package in ("rich", "typer") else "ask v.mp4 Why? -m model"
    done = subprocess.run([*command, *arguments.split()], cwd=place, capture_output=True, text=True, check=False)
    project = NAMES.get(package, package)
    assert done.stderr == f"llava-mini: error: {project} is not installed: python -m pip install {project}\n"
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize("raised", ["OSError", "AttributeError"])
def test_a_package_that_every_installation_has_is_broken(
    raised: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken("pyarrow", raised)(monkeypatch, place)
    environment = os.environ | {"PYTHONPATH": str(place / "broken")}
    command = [sys.executable, "-m", "llava_mini_cli", *(ASK + "-o x.parquet").replace("MODEL", "model").split()]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"llava-mini: error: pyarrow {LAST}\n")


def test_doctor_names_a_package_that_is_broken(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken("pyarrow")(monkeypatch, place)
    result = CliRunner().invoke(app, ["doctor", "-m", "demo"])
    assert re.search(r"^pyarrow +\d[\w.]*, broken$", result.stdout, re.MULTILINE)
    assert (result.exit_code, result.stderr) == (1, f"llava-mini: error: pyarrow {LAST}\n")


def test_an_error_of_our_own_is_not_put_down_to_a_package() -> None:
    for error in (ImportError("no name", name="llava_mini_cli.nowhere"), ImportError("nothing"), ValueError("x")):
        assert needs.words_for(error) is None
    old = ImportError("cannot import name 'Newer' from 'torch'", name="torch")
    assert needs.words_for(old) == "torch is installed and cannot be imported: cannot import name 'Newer' from 'torch'"


# The Python API


@pytest.mark.parametrize("options", [{"device": "cuda:99"}, {"quantize": "int4"}, {"dtype": "float16"}])
def test_an_engine_is_refused_before_its_model_is_opened(
    options: dict[str, Any], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((name, value),) = options.items()
    error = UsageError(f"--{name} {value}: not to be had")
    for function in ("try_device", "quantize", "_run"):
        failing(trials, function, error)(monkeypatch, place)
    with opened_below(place / "model") as opened, pytest.raises(UsageError, match=f"^--{name} {value}: "):
        load_engine(ModelOptions(str(place / "model"), **options))
    assert opened.files == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "gpu"}, "--device gpu: no device has this name; give cpu, cuda, cuda:N or auto"),
        ({"dtype": "half"}, "--dtype half: must be one of auto, float32, bfloat16, float16"),
        ({"quantize": "int3"}, "--quantize int3: must be one of int8, int4, fp8"),
    ],
)
def test_options_that_nothing_has(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        ModelOptions("demo", **options)
    assert str(caught.value) == words


def test_a_plain_model_is_refused_before_it_is_opened(place: Path) -> None:
    from llava_mini_cli.model import LlavaMiniForConditionalGeneration as Model

    with opened_below(place / "model") as opened:
        with pytest.raises(UsageError, match=r"^--dtype banana: torch has no such number format$"):
            Model.from_pretrained(place / "model", dtype="banana")
        with pytest.raises(UsageError, match=r"^--device banana: [^\n]*$"):
            Model.from_pretrained(place / "model", device="banana")
    assert opened.files == []


def test_a_broken_extra_is_told_from_one_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken("torchao")(monkeypatch, tmp_path)
    with pytest.raises(UsageError, match=f"^--quantize needs torchao.quantization, which {LAST}$"):
        needs.QUANTIZE.load("--quantize", "torchao.quantization")
    without("torchao")(monkeypatch, tmp_path)
    with pytest.raises(UsageError, match=r"^--quantize needs torchao: pip install 'llava-mini-cli\[quantize\]'$"):
        needs.QUANTIZE.load("--quantize", "torchao.quantization")


def test_a_layout_without_yes_or_no_is_refused_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_checkpoints import write_tiny_checkpoint

    write_tiny_checkpoint(tmp_path / "tiny")
    failing(load_module.LlavaMiniForConditionalGeneration, "from_pretrained", LookupError("read"))(
        monkeypatch, tmp_path
    )
    options = ModelOptions(str(tmp_path / "tiny"), device="cpu", prompt_layout="reference")
    with pytest.raises(UsageError, match=r"^--yes-no: with --prompt-layout reference the answer begins with a header"):
        load_engine(options, yes_no=True)
    with pytest.raises(LookupError, match=r"^read$"):
        load_engine(options)


def test_a_tower_whose_embeddings_frames_cannot_be_compared_by_is_refused_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_checkpoints import write_tiny_checkpoint

    write_tiny_checkpoint(tmp_path / "tiny")  # whose tower is the vision half alone
    failing(load_module.LlavaMiniForConditionalGeneration, "from_pretrained", LookupError("read"))(
        monkeypatch, tmp_path
    )
    line = r"^--dedupe compares CLIP embeddings, and this model's CLIP has no image projection$"
    options = ModelOptions(str(tmp_path / "tiny"), device="cpu")
    with pytest.raises(UsageError, match=line):
        load_engine(options, collects=True, compares=True)
    with pytest.raises(LookupError, match=r"^read$"):
        load_engine(options, collects=True)


# Trials


def test_what_works_is_let_through() -> None:
    trials._try_model.cache_clear()
    for dtype in ("float32", "bfloat16", "float16"):
        assert try_options(ModelOptions("none", device="cpu", dtype=dtype)).type == "cpu"
    assert trials._try_model.cache_info().currsize == 3
    try_options(ModelOptions("other", device="cpu", dtype="float16"))
    assert trials._try_model.cache_info().hits == 1


def test_a_trial_draws_no_random_numbers_of_the_run() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    trials._tiny_model(torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_of_a_device_is_tried_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(trials, "_tiny_model", AssertionError("tried"))(monkeypatch, Path())
    assert try_options(ModelOptions("none")).type in ("cpu", "cuda")


# All options


def test_every_extra_of_the_package_is_known() -> None:
    """The development extras aside, those of pyproject.toml are those of `needs`, package by package."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    imported = {"faiss-cpu": "faiss", "pillow-heif": "pillow_heif", "pillow-jxl-plugin": "pillow_jxl"}
    imported["compressed-tensors"] = "compressed_tensors"
    projects = {name: [re.split(r"[>=<\[]", line)[0] for line in lines] for name, lines in extras.items()}
    assert {extra.name: set(extra.packages) for extra in needs.EXTRAS} == {
        name: {imported.get(project, project) for project in names}
        for name, names in projects.items()
        if name not in ("test", "dev")
    }


def test_every_option_that_needs_an_extra_has_a_case() -> None:
    wanted = {(extra.name, option) for extra in needs.EXTRAS for option in extra.options}
    assert {key for key in EXTRAS if key[1]} == wanted
    assert {extra.name for extra in needs.EXTRAS if not extra.options} == {
        "remote",
        "photos",  # tests/test_media_photos.py
        "compressed",  # tests/test_model_compressed.py
    }


# The options that need more than a value, of any command. The others say nothing about this machine.
NEEDY = {
    "ann", "approximate", "bf16", "cache-dir", "check", "compile", "data", "decoder", "dedupe", "device", "dtype",
    "files-from", "format", "gpu-memory", "html", "image", "index", "layers", "llm", "lora-rank", "media",
    "media-root", "model", "output", "plot", "preset", "prompt-file", "quantize", "ray", "revision", "schema",
    "summary-json", "tensor-parallel", "thumbnails", "workers", "yes-no",
}  # fmt: skip
PLAIN = {
    "after", "allow-truncated", "average", "batch", "batch-size", "before", "cache-size", "caption-every",
    "caption-prompt", "check-margin", "choice-prior", "choice-score", "choices", "column", "compact", "csv-safe",
    "decode-timeout", "device-batch", "dry-run", "edl-rate", "end", "end-column", "epochs", "every", "evidence",
    "evidence-spans", "exclude", "existing", "fail-on", "features", "features-dtype", "fetch-timeout", "find", "fit",
    "fps", "frames", "gradient-checkpointing", "hosts", "id-column", "include", "keep-columns", "learning-rate",
    "limit", "max-failures", "max-file-size", "max-frames", "max-new-tokens", "merge", "min-length", "min-scene-len",
    "min-score", "min-yes", "most", "netrc", "null", "off", "on", "overwrite", "path", "paths-only", "port", "prefix",
    "prepared-size", "prompt", "prompt-column", "prompt-layout", "prune", "quiet", "recursive", "repetition-penalty",
    "retry-errors", "save-every", "scene-threshold", "scenes", "scenes-from", "schema-by", "seed", "shard",
    "ship-media", "skip-bad", "stage", "start", "start-column", "stride", "style", "suffix", "temperature", "top",
    "top-p", "track", "verbose", "whole", "window", "worker-cpus", "worker-gpus", "worker-timeout",
}  # fmt: skip


def test_every_option_was_thought_of() -> None:
    """An option that is new goes into `NEEDY`, with a case above or a test of its own, or into `PLAIN`."""
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    options = {key for command in commands.values() for key in options_of(command)}
    assert (options - NEEDY - PLAIN, (NEEDY | PLAIN) - options, NEEDY & PLAIN) == (set(), set(), set())
