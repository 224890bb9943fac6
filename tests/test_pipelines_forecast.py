"""What a run would take, what a model needs, and what a bug report says, from made headers and files."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from llava_mini_cli import __version__
from llava_mini_cli.config import EvidenceOptions, GenerationOptions, ModelOptions, SamplingOptions
from llava_mini_cli.engine.fit import PROCESS_BYTES
from llava_mini_cli.engine.work_bytes import MEDIA_BYTES
from llava_mini_cli.errors import MediaError, ModelNotFound
from llava_mini_cli.formats.job import Fault, Job, Prompt, Question
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.memory_there import MemoryThere
from llava_mini_cli.pipelines import footprint as footprints
from llava_mini_cli.pipelines import forecast as forecasts
from llava_mini_cli.pipelines import health, load_engine
from llava_mini_cli.pipelines.footprint import Footprint, footprint_of, number_formats
from llava_mini_cli.pipelines.forecast import Forecast, Longest, expected_frames, forecast
from llava_mini_cli.pipelines.health import Fact
from llava_mini_cli.pipelines.settings import RunOptions

OPTIONS = RunOptions(ModelOptions("m"), SamplingOptions(), GenerationOptions(max_new_tokens=10))
PRINT = Footprint(tokens_per_frame=4, context=50, position_bytes=100, token_bytes=7, weights_bytes=999)
PICTURE = ClipInfo("p", "image", 4, 3, None, None, None)


def video(duration: float | None) -> ClipInfo:
    return ClipInfo("v", "video", 4, 3, duration, None, None)


HEADERS = {"p.png": PICTURE, "short.mp4": video(9.0), "long.mp4": video(11.0), "odd.mp4": video(None)}


def probe(path: str, seconds: float) -> ClipInfo:
    assert seconds == 10.0
    if path not in HEADERS:
        raise MediaError("not_found", "no such file")
    return HEADERS[path]


def job(path: str, questions: int = 2, **more: object) -> Job:
    return Job(path, path, tuple(Question(Prompt(str(n)), path) for n in range(questions)), **more)  # pyright: ignore


def test_a_forecast_counts_all_there_is() -> None:
    remote = job("http://x/c.mp4", source=SimpleNamespace(name="c"))
    broken = job("row 7", 1, fault=Fault("input", "bad_row", "t.csv:7"))
    jobs = [job("p.png"), job("short.mp4", 3), job("gone.mp4"), job("long.mp4"), job("odd.mp4"), remote, broken]
    assert forecast(iter(jobs), OPTIONS, probe, PRINT) == Forecast(
        media=7, images=1, videos=3, not_looked_at=1, unknown_length=1, unreadable={"not_found": 1, "bad_row": 1},
        too_long=1, frames_fit=21, video_s=20.0, frames=22, vision_tokens=88, weights_bytes=999, rows=14, rows_done=0,
        longest=Longest("long.mp4", 11, 44, 11 * 4 * 107 + 2 * 10 * 100),
    )  # fmt: skip


def test_a_forecast_says_that_evidence_is_not_in_its_time() -> None:
    asked = replace(OPTIONS, evidence=EvidenceOptions(3))
    assert [forecast(iter([]), options, probe, PRINT).evidence for options in (OPTIONS, asked)] == [False, True]


def test_a_forecast_without_the_model() -> None:
    found = forecast(iter([job("short.mp4"), job("p.png")]), OPTIONS, probe, None)
    assert (found.vision_tokens, found.weights_bytes, found.too_long) == (None, None, 0)
    assert found.longest == Longest("short.mp4", 9, None, None)


def test_as_much_as_just_fits_is_not_too_long() -> None:
    assert forecast(iter([job("short.mp4")]), OPTIONS, probe, replace(PRINT, context=46)).too_long == 0
    assert forecast(iter([job("short.mp4")]), OPTIONS, probe, replace(PRINT, context=45)).too_long == 1


def test_of_equally_long_media_the_first_is_named() -> None:
    jobs = [job("short.mp4"), job("short.mp4", 9)]
    assert forecast(iter(jobs), OPTIONS, probe, PRINT).longest == Longest("short.mp4", 9, 36, 36 * 107 + 2 * 10 * 100)


def test_headers_are_read_ahead_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasts, "AHEAD", 3)
    taken: list[str] = []

    def jobs() -> object:
        for number in range(10):
            taken.append(str(number))
            yield job("p.png", 1)._replace(path=str(number), local="p.png")

    paths: list[tuple[str, int]] = []
    for found, info in forecasts._probed(jobs(), probe):
        assert info == PICTURE
        paths.append((found.path, len(taken)))
    assert paths == [(str(number), min(number + 3, 10)) for number in range(10)]


@pytest.mark.parametrize(
    ("info", "sampling", "frames"),
    [
        (PICTURE, SamplingOptions(fps=9), 1),
        (video(None), SamplingOptions(), 1),
        (video(0.2), SamplingOptions(), 1),
        (video(10.0), SamplingOptions(), 10),
        (video(9.9999999), SamplingOptions(), 10),  # rounded by a container
        (video(10.0), SamplingOptions(fps=2.5), 25),
        (video(10.0), SamplingOptions(start=3.0), 7),
        (video(10.0), SamplingOptions(start=3.0, end=5.0), 2),
        (video(10.0), SamplingOptions(end=90.0), 10),
        (video(10.0), SamplingOptions(max_frames=4), 4),
        (video(3.0), SamplingOptions(max_frames=4), 3),
    ],
)
def test_how_many_frames_are_expected(info: ClipInfo, sampling: SamplingOptions, frames: int) -> None:
    assert expected_frames(info, sampling) == frames


# What a model needs

CONFIG = {
    "max_position_embeddings": 512, "num_hidden_layers": 3, "num_attention_heads": 8, "hidden_size": 64,
    "intermediate_size": 128, "vocab_size": 100,
    "vision_config": {"hidden_size": 32, "image_size": 28, "patch_size": 14},
}  # fmt: skip


def write_tensors(path: Path, **shapes: tuple[int, ...]) -> None:
    """Tensors of zeros in float32, under names with dots in place of double underscores."""
    save_file({name.replace("__", "."): np.zeros(shape, np.float32) for name, shape in shapes.items()}, path)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder, tower = tmp_path / "model", tmp_path / "tower"
    folder.mkdir()
    tower.mkdir()
    write_tensors(folder / "a.safetensors", model__layers__0__mlp__up_proj__weight=(128, 64), lm_head__weight=(5, 64))
    write_tensors(folder / "b.safetensors", model__norm__weight=(64,), model__vision_tower__x=(1000,))
    index = {"weight_map": {"any": "a.safetensors", "other": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    left_out = {"text_model__x": (999,), "vision_model__position_ids": (7,)}
    write_tensors(tower / "model.safetensors", vision_model__x=(30,), **left_out)
    (tower / "config.json").write_text(json.dumps({"vision_config": CONFIG["vision_config"]}))

    def find_model(name: str, revision: str | None, *, local_files_only: bool) -> Path:
        assert local_files_only
        if name == "none":
            raise ModelNotFound("not here")
        return folder

    def find_tower(name: str | None, near: Path, *, local_files_only: bool) -> Path:
        assert local_files_only
        assert near == folder
        if name is None:
            raise ModelNotFound("not here")
        return tower

    monkeypatch.setattr(footprints, "find_model", find_model)
    monkeypatch.setattr(footprints, "find_tower", find_tower)
    monkeypatch.setattr(footprints, "_CUDA_DEVICE", tmp_path / "none")
    return folder


def write_config(model: Path, **more: object) -> None:
    (model / "config.json").write_text(json.dumps(CONFIG | more))


OF_MODEL = 128 * 64 + 5 * 64 + 64  # numbers


def test_the_sizes_of_a_model(model: Path) -> None:
    write_config(model, mm_vision_tower="clip", vision_config=None)
    assert footprint_of(ModelOptions("m", dtype="float16")) == Footprint(
        tokens_per_frame=1,
        context=512,
        position_bytes=2 * 3 * 8 * 8 * 2,
        token_bytes=128,
        weights_bytes=2 * (OF_MODEL + 30),
        weight_format="float16",
    )
    write_config(model, compressor_size=3, num_key_value_heads=2, head_dim=16)
    assert footprint_of(ModelOptions("m", dtype="float32")) == Footprint(
        9, 512, 2 * 3 * 2 * 16 * 4, 256, 4 * OF_MODEL, "float32"
    )
    write_config(model, mm_vision_tower="clip", unfreeze_mm_vision_tower=True)
    found = footprint_of(ModelOptions("m", quantize="int8"))
    assert found is not None
    assert (found.weight_format, found.weights_bytes) == ("int8", (128 + 5) * (64 + 8) + 2 * (64 + 1000))


def test_the_sizes_of_a_model_in_pickles(model: Path) -> None:
    for file in model.glob("*.safetensors*"):
        file.unlink()
    write_config(model, torch_dtype="bfloat16", prefusion_layer_num=1)
    (model / "pytorch_model.bin").write_bytes(bytes(2 * 400_000))
    found = [footprint_of(ModelOptions("m", dtype="float32")), footprint_of(ModelOptions("m", quantize="int8"))]
    rows = (3 + 1) * (2 * 64 + 2 * 64 + 3 * 128)
    sizes = [one.weights_bytes for one in found if one is not None]
    assert sizes == [4 * 400_000, rows * (64 + 8) + 2 * (400_000 - rows * 64)]
    (model / "pytorch_model.bin").unlink()
    assert footprint_of(ModelOptions("m")) == Footprint(1, 512, 2 * 3 * 64 * 4, 256, 0, "float32")


def test_auto_takes_what_fits(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(model)

    def taken(there: int | None, **options: object) -> str | None:
        monkeypatch.setattr(footprints, "memory_there", lambda: there and MemoryThere(there, "x"))
        found = footprint_of(ModelOptions("m", **options))  # pyright: ignore[reportArgumentType]
        return found and found.weight_format

    assert taken(None) == taken(PROCESS_BYTES + MEDIA_BYTES[1] + (8 << 20)) == "float32"
    assert taken(1) == "int8"
    assert taken(1, dtype="bfloat16") == "bfloat16"


@pytest.mark.parametrize("config", ["{", "{}", "[]", '{"max_position_embeddings": "x"}'])
def test_a_model_that_cannot_be_read_has_no_sizes(model: Path, config: str) -> None:
    (model / "config.json").write_text(config)
    assert footprint_of(ModelOptions("m")) is None
    assert footprint_of(ModelOptions("none")) is None


def test_number_formats(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("float32", "bfloat16", "float16"):
        assert number_formats(ModelOptions("m", dtype=name)) == (name,)
    monkeypatch.setattr(footprints, "_CUDA_DEVICE", tmp_path / "none")
    both = "float32", "bfloat16"
    assert number_formats(ModelOptions("m")) == number_formats(ModelOptions("m", device="cpu")) == both
    assert number_formats(ModelOptions("m", device="cuda:1")) == ("bfloat16",)
    monkeypatch.setattr(footprints, "_CUDA_DEVICE", tmp_path)
    assert number_formats(ModelOptions("m")) == ("bfloat16",)
    assert number_formats(ModelOptions("m", device="cpu")) == both


def test_what_a_medium_holds_while_it_is_asked_about() -> None:
    assert PRINT.memory_bytes(3, 5, 11) == 3 * 4 * 107 + 5 * 11 * 100


# What a bug report says


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A machine with every package in version 1, a GPU, ffmpeg and a model, on which decoders are confined."""
    from llava_mini_cli import hub
    from llava_mini_cli.media import confinement, ffmpeg_program

    made = SimpleNamespace(missing=set(), ffmpeg="ffmpeg version 7.1 Copyright", tower=tmp_path / "tower", cuda=True)
    made.kept, made.refusals, made.killed = confinement.KINDS, {}, []

    def version(name: str) -> str:
        if name in made.missing:
            raise health.importlib.metadata.PackageNotFoundError
        return "1"

    def run(command: list[str], **options: object) -> SimpleNamespace:
        assert (command, options["timeout"], options["check"]) == (["/bin/ffmpeg", "-version"], 20, True)
        if made.killed:
            raise subprocess.CalledProcessError(-made.killed.pop(), command)
        if not made.ffmpeg:
            raise subprocess.CalledProcessError(1, command)
        return SimpleNamespace(stdout=made.ffmpeg)

    def find_tower(name: str | None, near: Path, *, local_files_only: bool) -> Path:
        if made.tower is None:
            raise ModelNotFound(f"no {name}")
        return made.tower

    def find_model(name: str, *, local_files_only: bool) -> Path:
        if name == "none":
            raise ModelNotFound("no such model")
        return tmp_path

    torch, ffmpeg = ModuleType("torch"), ModuleType("imageio_ffmpeg")
    torch.get_num_threads = lambda: 3
    torch.cuda = SimpleNamespace(
        is_available=lambda: made.cuda, device_count=lambda: 2, mem_get_info=lambda index: ((index + 1) << 30, 8 << 30),
        is_bf16_supported=lambda: True, get_device_name=lambda index: f"GPU {index}",
    )  # fmt: skip
    ffmpeg.get_ffmpeg_exe = lambda: "/bin/ffmpeg"
    monkeypatch.setattr(ffmpeg_program, "_found_ffmpeg", lambda *_: import_module("imageio_ffmpeg").get_ffmpeg_exe())
    (tmp_path / "config.json").write_text('{"mm_vision_tower": "clip"}')
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", ffmpeg)
    monkeypatch.setattr(health.importlib.metadata, "version", version)
    monkeypatch.setattr(health.subprocess, "run", run)
    monkeypatch.setattr(
        health.os, "sysconf", {"SC_PAGE_SIZE": 1 << 20, "SC_PHYS_PAGES": 4096, "SC_AVPHYS_PAGES": 512}.get
    )
    monkeypatch.setattr(hub, "find_tower", find_tower)
    monkeypatch.setattr(hub, "find_model", find_model)
    monkeypatch.setattr(confinement, "kept_from", lambda: made.kept)
    monkeypatch.setattr(confinement, "refusal_of", made.refusals.get)
    made.torch, made.folder = torch, tmp_path
    return made


def facts(model: str = "m") -> dict[str, Fact]:
    return {fact.name: fact for fact in health.examine(model)}


def test_a_machine_on_which_all_is_well(machine: SimpleNamespace) -> None:
    found = facts()
    assert list(found) == [
        "llava-mini", "python", "system", "torch", "transformers", "huggingface_hub", "tokenizers", "safetensors",
        "numpy", "pillow", "pyarrow", "typer", "rich", "tqdm", "memory", "cuda:0", "cuda:1", "vllm", "decord",
        "ffmpeg-python", "imageio-ffmpeg", "ffmpeg", "confinement", "model", "vision tower",
    ]  # fmt: skip
    assert {fact.problem for fact in found.values()} == {None}
    assert found["llava-mini"].value == __version__
    assert sys.executable in found["python"].value
    assert found["memory"].value == "0.5 GiB free of 4.0 GiB"
    assert found["cuda:1"].value == "GPU 1, 2.0 GiB free of 8.0 GiB, bfloat16"
    assert found["ffmpeg"].value == "7.1 (/bin/ffmpeg)"
    assert found["model"].value == f"m ({machine.folder})"
    assert found["vision tower"].value == str(machine.tower)


def test_what_is_missing_is_a_problem_with_a_way_out(machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.missing |= {"tqdm", "decord"}
    machine.cuda = False
    machine.tower = None
    machine.ffmpeg = ""
    found = facts()
    assert found["tqdm"] == Fact("tqdm", "missing", "tqdm is not installed: python -m pip install tqdm")
    assert found["decord"] == Fact("decord", "not installed; ffmpeg decodes everything")
    assert found["device"] == Fact("device", "cpu, 3 threads (CUDA is not available)")
    assert found["vision tower"] == Fact("vision tower", "missing", "no clip")
    assert (found["ffmpeg"].value, found["ffmpeg"].problem is not None) == ("broken", True)
    machine.ffmpeg, machine.killed = "ffmpeg version 7.1", [9]
    assert facts()["ffmpeg"] == Fact("ffmpeg", "7.1 (/bin/ffmpeg)")
    machine.killed = [9, 9]
    assert "died with <Signals.SIGKILL: 9>" in (facts()["ffmpeg"].problem or "")
    assert facts("none")["model"] == Fact("model", "missing", "no such model")
    assert "vision tower" not in facts("none")
    for broken in ("{", "[]"):
        (machine.folder / "config.json").write_text(broken)
        assert "config.json of m cannot be read" in (facts()["vision tower"].problem or "")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert (facts()["device"].value, "torch cannot be imported" in (facts()["device"].problem or "")) == ("none", True)
    assert facts()["ffmpeg"].problem == "there is no ffmpeg: python -m pip install imageio-ffmpeg"
    monkeypatch.delattr(health.os, "sysconf")
    assert facts()["memory"].value == "unknown"
    machine.torch.cuda.is_bf16_supported = lambda: False
    machine.cuda = True
    monkeypatch.setitem(sys.modules, "torch", machine.torch)
    assert facts()["cuda:0"].value.endswith(", no bfloat16")


def test_what_decoders_are_kept_from(machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert facts()["confinement"] == Fact("confinement", "decoders are confined: files, network, memory")
    machine.kept = ("memory",)
    assert facts()["confinement"].value == (
        "decoders are confined: memory; missing here: files (needs Linux 5.13 with Landlock), "
        "network (needs Linux with seccomp, or 6.7 with Landlock)"
    )
    machine.kept = ()
    assert facts()["confinement"].value.startswith("decoders are not confined; missing here: files (needs")
    assert facts()["confinement"].value.endswith("memory (needs Linux 4.7)")
    machine.refusals["/bin/ffmpeg"] = "no libav.so"
    assert facts()["confinement"].problem == (
        "ffmpeg cannot be run confined: no libav.so; LD_LIBRARY_PATH may name folders of its libraries"
    )

    def refuse() -> None:
        raise OSError("no more processes")

    monkeypatch.setattr("llava_mini_cli.media.confinement.kept_from", refuse)
    assert facts()["confinement"] == Fact("confinement", "unknown: no more processes")


# Loading


def test_a_model_is_found_before_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def find_model(name: str, revision: str | None) -> None:
        asked.append((name, revision))
        if name == "none":
            raise ModelNotFound("no such model")

    module = ModuleType("llava_mini_cli.engine.load")
    module.load_engine = lambda options, **more: asked.append(more) or "engine"
    monkeypatch.setitem(sys.modules, "llava_mini_cli.engine.load", module)
    monkeypatch.setattr("llava_mini_cli.engine.load", module, raising=False)
    monkeypatch.setattr(load_engine, "find_model", find_model)
    assert load_engine.load_engine(ModelOptions("m", "v")) == "engine"
    assert load_engine.load_engine(ModelOptions("m"), collects=True, compares=True) == "engine"
    assert load_engine.load_engine(ModelOptions("m"), yes_no=True) == "engine"
    assert asked == [
        ("m", "v"), {"collects": False, "compares": False, "yes_no": False},
        ("m", None), {"collects": True, "compares": True, "yes_no": False},
        ("m", None), {"collects": False, "compares": False, "yes_no": True},
    ]  # fmt: skip
    with pytest.raises(ModelNotFound):
        load_engine.load_engine(ModelOptions("none"))
    assert asked[6:] == [("none", None)]
