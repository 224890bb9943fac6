"""The options of every command: names, defaults, help texts, what is refused, and how groups become options."""

import re
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from llava_mini_cli.commands.caption import caption
from llava_mini_cli.commands.config_files import Kind, Setting
from llava_mini_cli.commands.configured import Origin, options_of
from llava_mini_cli.commands.flags import QuestionFlags, with_flags
from llava_mini_cli.commands.flags.answer_flags import AnswerFlags
from llava_mini_cli.commands.flags.archive_flags import ArchiveFlags
from llava_mini_cli.commands.flags.frame_flags import FrameFlags
from llava_mini_cli.commands.flags.index_flags import IndexFlags
from llava_mini_cli.commands.flags.input_flags import InputFlags
from llava_mini_cli.commands.flags.model_flags import DEFAULT_MODEL, ModelFlags
from llava_mini_cli.commands.flags.output_flags import OutputFlags
from llava_mini_cli.commands.flags.prompt_flags import PromptFlags
from llava_mini_cli.commands.flags.run_flags import LimitFlags, RunFlags
from llava_mini_cli.commands.flags.search_flags import FoundFlags, SearchFlags
from llava_mini_cli.commands.flags.talk_flags import TalkFlags
from llava_mini_cli.commands.flags.train_flags import TrainFlags
from llava_mini_cli.commands.flags.worker_flags import WorkerFlags
from llava_mini_cli.commands.main import app
from llava_mini_cli.commands.sizes import parse_size
from llava_mini_cli.commands.summary import SummaryFile
from llava_mini_cli.config import GenerationOptions, ModelOptions, RunLimits, SamplingOptions
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.inputs.prompts import CAPTION_PROMPT
from llava_mini_cli.formats.job import Prompt
from llava_mini_cli.formats.source import FetchOptions
from llava_mini_cli.train.train_options import PAPER_RATES, TrainOptions
from llava_mini_cli.workers.options import WorkerOptions

COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]

TALK = {"quiet": False, "verbose": False}
INPUT = {
    "files-from": None, "null": False, "recursive": True, "include": None, "exclude": None, "column": None,
    "id-column": None, "prompt-column": None, "start-column": None, "end-column": None, "keep-columns": None,
    "fetch-timeout": 600.0, "cache-dir": None,
    "cache-size": 10737418240, "max-file-size": None, "media-root": None, "hosts": None, "netrc": False,
}  # fmt: skip
FRAMES = {
    "fps": 1.0, "max-frames": None, "start": None, "end": None, "decoder": "auto", "decode-timeout": 60.0,
    "allow-truncated": False,
}  # fmt: skip
ANSWER = {"max-new-tokens": 512, "temperature": 0.0, "top-p": 1.0, "seed": 0, "repetition-penalty": 1.0}
MODEL = {
    "model": "ICTNLP/llava-mini-llama-3.1-8b", "revision": None, "device": "auto", "dtype": "auto",
    "prompt-layout": "trained", "batch-size": None, "quantize": None, "compile": False,
    "llm": "own", "tensor-parallel": 1, "gpu-memory": None, "prepared-size": 21474836480,
}  # fmt: skip
LIMITS = {"limit": None, "max-failures": None, "fail-on": "any"}
WORKERS = {
    "workers": None, "ray": None, "worker-gpus": None, "worker-cpus": None, "worker-timeout": 600.0,
    "ship-media": False,
}  # fmt: skip
QUESTIONS = {
    **TALK, **INPUT, **FRAMES, **ANSWER, **MODEL, **LIMITS, **WORKERS,
    "prompt": None, "prompt-file": None, "prefix": "", "suffix": "", "yes-no": False, "output": None, "format": None,
    "overwrite": False, "retry-errors": False, "shard": None, "existing": "skip", "csv-safe": False,
    "summary-json": None, "dry-run": False, "fit": False, "every": None, "window": None,
    "stride": None, "scenes-from": None, "scenes": False, "scene-threshold": 10.0, "min-scene-len": 2.0, "whole": False,
    "choices": None, "choice-score": "sum", "choice-prior": False, "schema": None, "schema-by": None,
    "evidence": None, "evidence-spans": "16", "thumbnails": None,
}  # fmt: skip
DEFAULTS: dict[str, dict[str, object]] = {
    "ask": {**QUESTIONS, "index": None, "path": None, "top": None, "find": None},
    "caption": {**QUESTIONS, "style": None},
    "when": {
        **TALK, **INPUT, **FRAMES, **MODEL, **LIMITS, **WORKERS,
        "on": 0.6, "off": 0.4, "min-length": 0.0, "merge": 0.0, "window": "frame", "stride": None,
        "prompt": None, "prompt-file": None, "output": None, "format": None, "overwrite": False, "retry-errors": False,
        "shard": None, "existing": "skip", "csv-safe": False, "thumbnails": None, "edl-rate": 25.0,
        "track": None, "plot": None,
        "summary-json": None, "dry-run": False, "index": None, "path": None,
    },
    "index": {
        **TALK, **INPUT, **FRAMES, **ANSWER, **MODEL, **LIMITS, **WORKERS,
        "output": None, "features": False, "features-dtype": None, "dedupe": None, "caption-every": None,
        "caption-prompt": "Please describe what is shown in detail.", "retry-errors": False, "prune": False,
        "ann": False, "compact": False,
    },
    "search": {
        **TALK, "model": None, "image": None, "most": 10, "min-score": None, "path": None, "after": None,
        "before": None, "approximate": False, "check": None, "min-yes": None, "check-margin": None, "output": None,
        "format": None, "csv-safe": False, "paths-only": False, "null": False, "thumbnails": None, "html": None,
        "media-root": None,
    },
    "view": {**TALK, "output": None, "overwrite": False, "media": None, "track": None, "port": None},
    "inspect": {**TALK, **FRAMES, **ANSWER, **MODEL, "output": None, "frames": 8, "layers": False, "prompt-file": None},
    "train": {
        **TALK, "output": None, "preset": None, "model": None, "data": None, "media-root": None, "skip-bad": False,
        "workers": 0, "stage": 2, "learning-rate": None, "batch": 256, "device-batch": 4, "epochs": 1.0,
        "average": "token", "lora-rank": 0, "gradient-checkpointing": False, "bf16": False, "save-every": 200,
        "seed": 0,
    },
    "bench": {**TALK, "preset": None, "model": None, "device": "auto", "dtype": "auto", "output": None},
    "doctor": {"model": "ICTNLP/llava-mini-llama-3.1-8b", "verbose": False},
    "config": {},
}  # fmt: skip


@pytest.mark.parametrize("command", DEFAULTS)
def test_every_option_and_its_default(command: str) -> None:
    assert {key: option.default for key, option in options_of(COMMANDS[command]).items()} == DEFAULTS[command]


def test_short_names_and_what_is_required() -> None:
    short = {opt: key for name in COMMANDS for key, option in options_of(COMMANDS[name]).items() for opt in option.opts}
    assert {opt: key for opt, key in short.items() if not opt.startswith("--")} == {
        "-p": "prompt", "-0": "null", "-o": "output", "-f": "format", "-m": "model", "-k": "most", "-q": "quiet",
        "-v": "verbose",
    }  # fmt: skip
    required = {
        (name, key) for name in COMMANDS for key, option in options_of(COMMANDS[name]).items() if option.required
    }
    assert required == {("index", "output"), ("inspect", "output"), ("train", "output")}


# Help


def shown(command: str, monkeypatch: pytest.MonkeyPatch, columns: int = 80) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("command", DEFAULTS)
def test_every_help_text_can_be_understood_alone(command: str) -> None:
    for key, option in options_of(COMMANDS[command]).items():
        assert re.match(r"[A-Z]\S* \S+ .*\.$", option.help), (key, option.help)
        assert not re.search(
            r"^(Of|With|Only|Whether|What|Like|At most|Above|Instead)\b|\bso (many|long)\b", option.help
        )


ASKING = ["Options", "Input", "Frames", "Spans", "Answer", "Evidence", "Model", "Output", "Run", "Workers"]
PANELS = {
    "ask": [
        "Options",
        "Input",
        "Frames",
        "Spans",
        "Answer",
        "Evidence",
        "Model",
        "Output",
        "Run",
        "Workers",
        "Archive",
    ],
    "caption": ["Options", "Input", "Frames", "Spans", "Answer", "Evidence", "Model", "Output", "Run", "Workers"],
    "when": ["Options", "Input", "Frames", "Events", "Model", "Output", "Run", "Workers", "Archive"],
    "index": ["Options", "Archive", "Input", "Frames", "Answer", "Model", "Run", "Workers"],
    "search": ["Options", "Archive", "Search", "Output", "Run"],
    "view": ["Options", "Page", "Run"],
    "inspect": ["Options", "Output", "Frames", "Answer", "Model", "Run"],
    "train": ["Options", "Training", "Data", "Memory and speed", "Run"],
    "bench": ["Options", "Benchmark", "Run"],
    "doctor": ["Options", "Model", "Run"],
    "config": ["Options"],
}


@pytest.mark.parametrize("command", PANELS)
def test_panels_come_in_the_order_of_a_run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    panels = re.findall(r"^.─ (.*?) ─", shown(command, monkeypatch), re.MULTILINE)
    assert [panel for panel in panels if panel != "Arguments"] == PANELS[command]


@pytest.mark.parametrize("command", DEFAULTS)
def test_help_fits_a_terminal_and_cuts_no_name(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(command, monkeypatch)
    assert all(len(line) <= 80 for line in text.splitlines())
    for key, option in options_of(COMMANDS[command]).items():
        assert f" --{key} " in text
        assert (f" --no-{key} " in text) == (option.default is True)


def test_the_variable_of_the_model_alone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.findall(r"\[env var: .*?\]", shown("ask", monkeypatch, 200)) == ["[env var: LLAVA_MINI_MODEL]"]


def test_defaults_that_are_shown_as_words_are_the_real_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    text = {name: shown(name, monkeypatch, 200) for name in ("index", "search", "train")}
    assert ["[default: (10m)]" in text["index"], FetchOptions.timeout] == [True, 600]
    assert ["[default: (10GB)]" in text["index"], FetchOptions.cache_bytes] == [True, parse_size("10GB")]
    assert ["[default: (10m)]" in text["index"], WorkerFlags.worker_timeout] == [True, 600]
    assert ["[default: (60s)]" in text["index"], SamplingOptions.decode_timeout] == [True, 60]
    assert "[default: (5s)]" in text["search"]
    assert "[default: (0.001 in stage 1, 0.0001 in stage 2)]" in text["train"]
    assert PAPER_RATES == {1: 1e-3, 2: 1e-4}
    assert CAPTION_PROMPT.text in (caption.__doc__ or "")


# Groups


@dataclass(frozen=True)
class Inner:
    size: Annotated[int, typer.Option(help="Size.")] = 3


@dataclass(frozen=True)
class Outer:
    name: Annotated[str, typer.Option(help="Name.")]
    inner: Inner


def test_groups_become_single_options_in_their_place_and_come_back_as_groups() -> None:
    called: list[object] = []

    def command(context: typer.Context, word: str = "w", *, outer: Outer, last: bool = True) -> int:
        """Says nothing."""
        called.extend((context, word, outer, last))
        return 7

    flat = with_flags(command)
    assert (flat.__name__, flat.__doc__) == ("command", "Says nothing.")
    parameters = signature(flat).parameters
    assert list(parameters) == ["context", "word", "name", "size", "last"]
    assert (parameters["size"].default, parameters["name"].default) == (3, parameters["name"].empty)
    assert flat(context="c", word="x", name="n", size=4, last=False) == 7  # type: ignore[call-arg]
    assert called == ["c", "x", Outer("n", Inner(4)), False]


def test_options_of_groups_are_those_of_the_dataclasses() -> None:
    assert AnswerFlags(seed=3).options() == GenerationOptions(seed=3)
    assert FrameFlags(fps=2, end=4).options() == SamplingOptions(fps=2, end=4)
    assert ModelFlags(device="cpu").options() == ModelOptions(DEFAULT_MODEL, device="cpu")
    assert RunFlags(limit=2, max_failures=3).limits() == LimitFlags(2, 3).limits() == RunLimits(2, 3)


GROUPS = (
    AnswerFlags, ArchiveFlags, FrameFlags, IndexFlags, InputFlags, ModelFlags, PromptFlags, LimitFlags, RunFlags,
    SearchFlags, FoundFlags, OutputFlags, TalkFlags, TrainFlags, QuestionFlags, GenerationOptions, ModelOptions,
    RunLimits, SamplingOptions, TrainOptions, WorkerFlags, WorkerOptions, Setting, Kind, Origin, SummaryFile,
)  # fmt: skip


@pytest.mark.parametrize("group", GROUPS)
def test_options_do_not_change(group: Any) -> None:
    assert group.__dataclass_params__.frozen


def test_inputs_are_split_and_cleaned() -> None:
    assert InputFlags().options() == InputOptions()
    assert InputFlags().fetch_options() == FetchOptions()
    given = InputFlags("list", True, False, ["a"], ["b"], "c", "d", ["e"], keep_columns=" f, g ")
    given = replace(
        given,
        fetch_timeout=5.0,
        cache_dir=Path("h"),
        cache_size=6,
        max_file_size=4,
        media_root=".",
        hosts=["i, j", "s3://k"],
        netrc=True,
    )
    assert given.options() == InputOptions(
        False, ("a",), ("b",), "list", True, "c", "d", ("e",), ("f", "g"), media_root="."
    )
    assert given.fetch_options() == FetchOptions(
        timeout=5.0, cache_dir=Path("h"), cache_bytes=6, max_file_bytes=4, hosts=("i", "j", "s3://k"), netrc=True
    )
    assert InputFlags(keep_columns=" all ").options() == InputOptions(keep_all=True)
    assert InputFlags(keep_columns=" ").options() == InputOptions()


def test_prompts_of_the_command_line_come_before_those_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("who=Who?\n")
    assert PromptFlags(["Why?"], str(tmp_path / "prompts")).prompts() == (Prompt("Why?"), Prompt("Who?", "who"))
    assert PromptFlags().prompts() == ()


@pytest.mark.parametrize(
    ("features", "dtype", "stored"), [(False, None, None), (True, None, "float16"), (True, "int8", "int8")]
)
def test_how_features_are_stored(features: bool, dtype: Any, stored: str | None) -> None:
    assert IndexFlags("a", features, dtype).stored_features() == stored
