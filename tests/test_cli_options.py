"""The options of every command: names, defaults, help texts, what is refused, and how groups become options."""

import json
import re
import sys
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner, Result

from llava_mini_cli.commands.ask import split_question
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
from llava_mini_cli.commands.main import app
from llava_mini_cli.commands.sizes import parse_size
from llava_mini_cli.commands.summary import SummaryFile
from llava_mini_cli.commands.times import parse_time
from llava_mini_cli.config import GenerationOptions, ModelOptions, RunLimits, SamplingOptions
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.inputs.prompts import CAPTION_PROMPT, STYLES
from llava_mini_cli.formats.job import Prompt
from llava_mini_cli.formats.source import FetchOptions
from llava_mini_cli.train.train_options import PAPER_RATES, TrainOptions

COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]

TALK = {"quiet": False, "verbose": False}
INPUT = {
    "files-from": None, "null": False, "recursive": True, "include": None, "exclude": None, "column": None,
    "id-column": None, "prompt-column": None, "keep-columns": None, "fetch-timeout": 600.0, "cache-dir": None,
    "cache-size": 10737418240,
}  # fmt: skip
FRAMES = {
    "fps": 1.0, "max-frames": None, "start": None, "end": None, "decoder": "auto", "decode-timeout": 60.0,
    "allow-truncated": False,
}  # fmt: skip
ANSWER = {"max-new-tokens": 512, "temperature": 0.0, "top-p": 1.0, "seed": 0, "repetition-penalty": 1.0}
MODEL = {
    "model": "ICTNLP/llava-mini-llama-3.1-8b", "revision": None, "device": "auto", "dtype": "auto",
    "prompt-layout": "trained", "batch-size": None, "quantize": None, "compile": False,
}  # fmt: skip
LIMITS = {"limit": None, "max-failures": None, "fail-on": "any"}
QUESTIONS = {
    **TALK, **INPUT, **FRAMES, **ANSWER, **MODEL, **LIMITS,
    "prompt": None, "prompt-file": None, "prefix": "", "suffix": "", "yes-no": False, "output": None, "format": None,
    "overwrite": False, "retry-errors": False, "shard": None, "existing": "skip", "summary-json": None,
    "dry-run": False,
}  # fmt: skip
DEFAULTS: dict[str, dict[str, object]] = {
    "ask": {**QUESTIONS, "index": None, "path": None, "top": None, "find": None},
    "caption": {**QUESTIONS, "style": None},
    "index": {
        **TALK, **INPUT, **FRAMES, **ANSWER, **MODEL, **LIMITS,
        "output": None, "features": False, "features-dtype": None, "dedupe": None, "caption-every": None,
        "caption-prompt": "Please describe what is shown in detail.", "retry-errors": False, "prune": False,
        "ann": False, "compact": False,
    },
    "search": {
        **TALK, "model": None, "image": None, "most": 10, "min-score": None, "path": None, "after": None,
        "before": None, "approximate": False, "check": None, "min-yes": None, "check-margin": None, "output": None,
        "format": None, "paths-only": False, "null": False, "thumbnails": None, "html": None,
    },
    "train": {
        **TALK, "output": None, "preset": None, "model": None, "data": None, "media-root": None, "skip-bad": False,
        "workers": 0, "stage": 2, "learning-rate": None, "batch": 256, "device-batch": 4, "epochs": 1.0,
        "average": "token", "lora-rank": 0, "gradient-checkpointing": False, "bf16": False, "save-every": 200,
        "seed": 0,
    },
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
    assert required == {("index", "output"), ("train", "output")}


# Help


def llava_mini(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


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


PANELS = {
    "ask": ["Options", "Input", "Frames", "Answer", "Model", "Output", "Run", "Archive"],
    "caption": ["Options", "Input", "Frames", "Answer", "Model", "Output", "Run"],
    "index": ["Options", "Archive", "Input", "Frames", "Answer", "Model", "Run"],
    "search": ["Options", "Archive", "Search", "Output", "Run"],
    "train": ["Options", "Training", "Data", "Memory and speed", "Run"],
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
    RunLimits, SamplingOptions, TrainOptions, Setting, Kind, Origin, SummaryFile,
)  # fmt: skip


@pytest.mark.parametrize("group", GROUPS)
def test_options_do_not_change(group: Any) -> None:
    assert group.__dataclass_params__.frozen


def test_inputs_are_split_and_cleaned() -> None:
    assert InputFlags().options() == InputOptions()
    assert InputFlags().fetch_options() == FetchOptions()
    given = InputFlags("list", True, False, ["a"], ["b"], "c", "d", ["e"], " f, g ", 5.0, Path("h"), 6)
    assert given.options() == InputOptions(False, ("a",), ("b",), "list", True, "c", "d", ("e",), ("f", "g"))
    assert given.fetch_options() == FetchOptions(timeout=5.0, cache_dir=Path("h"), cache_bytes=6)
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


# What is refused


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (SamplingOptions, {"fps": 0.0}, "--fps must be above 0 and finite, not 0"),
        (SamplingOptions, {"fps": float("inf")}, "--fps must be above 0 and finite, not inf"),
        (SamplingOptions, {"max_frames": 0}, "--max-frames must be at least 1, not 0"),
        (SamplingOptions, {"start": -0.5}, "--start must not be negative, not -0.5"),
        (SamplingOptions, {"end": 0.0}, "--end (0 s) must come after --start (0 s)"),
        (SamplingOptions, {"start": 2.0, "end": 2.0}, "--end (2 s) must come after --start (2 s)"),
        (SamplingOptions, {"decode_timeout": 0.0}, "--decode-timeout must be above 0 seconds, not 0"),
        (GenerationOptions, {"max_new_tokens": 0}, "--max-new-tokens must be at least 1, not 0"),
        (GenerationOptions, {"temperature": -0.1}, "--temperature must be 0 or above and finite, not -0.1"),
        (GenerationOptions, {"temperature": float("inf")}, "--temperature must be 0 or above and finite, not inf"),
        (GenerationOptions, {"top_p": 0.0}, "--top-p must be in (0, 1], not 0"),
        (GenerationOptions, {"top_p": 1.1}, "--top-p must be in (0, 1], not 1.1"),
        (GenerationOptions, {"repetition_penalty": 0.0}, "--repetition-penalty must be above 0 and finite, not 0"),
        (GenerationOptions, {"repetition_penalty": float("inf")},
         "--repetition-penalty must be above 0 and finite, not inf"),
        (GenerationOptions, {"seed": -1}, "--seed must be at least 0 and below 2**63, not -1"),
        (GenerationOptions, {"seed": 2**63}, "--seed must be at least 0 and below 2**63, not 9223372036854775808"),
        (ModelOptions, {"model": "m", "batch_size": 0}, "--batch-size must be at least 1, not 0"),
        (RunLimits, {"media": 0}, "--limit must be at least 1, not 0"),
        (RunLimits, {"failures": 0}, "--max-failures must be at least 1, not 0"),
        (ArchiveFlags, {"path": "*"}, "--path goes with --index ARCHIVE"),
        (ArchiveFlags, {"top": 1}, "--top goes with --index ARCHIVE"),
        (ArchiveFlags, {"find": "x"}, "--find goes with --index ARCHIVE"),
        (ArchiveFlags, {"index": "a", "top": 0}, "--top must be at least 1, not 0"),
        (ArchiveFlags, {"index": "a", "find": "x"}, "--find goes with --top K"),
        (SearchFlags, {"check_margin": 1.0},
         "--check-margin says how much the model sees for --check; add --check QUESTION"),
        (SearchFlags, {"min_yes": 0.5}, "--min-yes says how likely the yes to --check has to be; add --check QUESTION"),
        (SearchFlags, {"check": "?", "min_yes": 1.5}, "--min-yes is a probability, from 0 to 1, not 1.5"),
        (SearchFlags, {"check": "?", "min_yes": -0.5}, "--min-yes is a probability, from 0 to 1, not -0.5"),
        (SearchFlags, {"check": " "}, "--check: the question is empty"),
        (TalkFlags, {"quiet": True, "verbose": True}, "-q and -v exclude each other"),
        (TrainFlags, {"output": "o"}, "give either --data or --preset demo"),
        (TrainFlags, {"output": "o", "preset": "demo", "data": "d"}, "give either --data or --preset demo"),
        (TrainFlags, {"output": "o", "data": "d"}, "--model is missing: the checkpoint to start from"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_by_name(make: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        make(**given)


def test_features_that_are_not_stored_have_no_number_format() -> None:
    with pytest.raises(UsageError, match=r"^--features-dtype int8 says how features are stored; add --features$"):
        IndexFlags("a", features_dtype="int8").stored_features()


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (SamplingOptions, {"fps": 0.01, "max_frames": 1, "start": 0.0, "end": 0.5, "decode_timeout": 0.1}),
        (SamplingOptions, {"decode_timeout": float("inf")}),
        (GenerationOptions, {"max_new_tokens": 1, "temperature": 0.0, "top_p": 1.0, "seed": 2**63 - 1}),
        (GenerationOptions, {"temperature": 9.0, "top_p": 0.01, "repetition_penalty": 0.5, "seed": 0}),
        (ModelOptions, {"model": "m", "batch_size": 1}),
        (RunLimits, {"media": 1, "failures": 1}),
        (ArchiveFlags, {"index": "a", "path": "*", "top": 1, "find": "x"}),
        (SearchFlags, {"check": "?", "min_yes": 0.0, "check_margin": 0.0}),
        (SearchFlags, {"check": "?", "min_yes": 1.0}),
        (TrainFlags, {"output": "o", "preset": "demo"}),
        (TrainFlags, {"output": "o", "preset": "demo", "model": "m"}),
    ],
)
def test_what_is_just_allowed_is_taken(make: Any, given: dict[str, Any]) -> None:
    made = make(**given)
    assert {name: getattr(made, name) for name in given} == given


def test_what_shapes_an_answer() -> None:
    greedy = GenerationOptions(max_new_tokens=9, top_p=0.5, seed=4)
    assert greedy.shaping() == {
        "max_new_tokens": 9, "temperature": 0.0, "top_p": None, "seed": None, "repetition_penalty": None,
    }  # fmt: skip
    drawn = GenerationOptions(temperature=0.5, top_p=0.5, seed=4, repetition_penalty=1.1)
    assert drawn.shaping() == {
        "max_new_tokens": 512, "temperature": 0.5, "top_p": 0.5, "seed": 4, "repetition_penalty": 1.1,
    }  # fmt: skip


# Times and sizes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (7.5, 7.5), ("0", 0), ("0.5", 0.5), ("59:59", 3599), ("1:90", 150), ("90:00", 5400), ("1:00:00", 3600),
        ("45s", 45), ("3m", 180), ("2h1s", 7201), ("1h2m3.5s", 3723.5), ("1:02:03.", 3723),
    ],
)  # fmt: skip
def test_times_are_read_as_seconds(text: str | float, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "1h2", "1:2:3:4", "1,5", "1m 30s", "inf"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=f"^'{text}' is not a time such as 90, 1:30 or 1m30s$"):
        parse_time(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (7, 7), ("0", 0), ("4096", 4096), ("4096B", 4096), ("2k", 2048), ("2 KiB", 2048), ("1.5K", 1536),
        ("500MB", 524288000), (" 1g ", 1073741824), ("1T", 1099511627776),
    ],
)  # fmt: skip
def test_sizes_are_read_as_bytes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "1P", "GB", "1 2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=f"^'{text}' is not a size such as 500MB or 10GB$"):
        parse_size(text)


# Questions that stand last


def test_the_question_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split_question(["a", "b", "Why?"], alone=False) == (["a", "b"], (Prompt("Why?"),))
    assert split_question(["Why?"], alone=True) == ([], (Prompt("Why?"),))
    Path("file").touch()
    for arguments, alone, words in (
        ([], True, "there is no question: llava-mini ask MEDIA... QUESTION, or -p"),
        (["Why?"], False, "there is no medium: llava-mini ask MEDIA... QUESTION (got only 'Why?')"),
        (["file"], True, "'file' is a file, not a question: the question comes last, or with -p"),
        (["a", "."], False, "'.' is a folder, not a question: the question comes last, or with -p"),
    ):
        with pytest.raises(UsageError, match=f"^{re.escape(words)}$"):
            split_question(arguments, alone=alone)


def test_what_ask_is_about(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[object] = []
    monkeypatch.setattr("llava_mini_cli.commands.ask.run_questions", lambda *given: asked.append(given[:2]) or 4)
    monkeypatch.setattr(
        "llava_mini_cli.commands.ask.ask_archive", lambda *given: asked.append((given[0], given[3])) or 5
    )
    monkeypatch.chdir(tmp_path)
    question = (Prompt("Why?"),)
    for arguments, code, what in (
        (["a", "Why?"], 4, (["a"], question)),
        (["a", "b", "-p", "Why?"], 4, (["a", "b"], question)),
        (["a", "--prompt-column", "q"], 4, (["a"], ())),
        (["--files-from", "list", "Why?"], 4, ([], question)),
        (["--files-from", "list", "-p", "Why?"], 4, ([], question)),
        (["--index", "archive", "Why?", "--fps", "2"], 5, (question, {"index", "fps"})),
    ):
        assert llava_mini("ask", *arguments).exit_code == code
        assert asked.pop() == what
    for arguments, words in (
        (["-p", "Why?"], "there is no medium: llava-mini ask MEDIA... QUESTION, or --files-from"),
        (["--index", "archive", "a", "Why?"], "'a': --index takes no MEDIA; --path says which of the archive's"),
    ):
        assert llava_mini("ask", *arguments).stderr == f"llava-mini: error: {words}\n"
    assert not asked


def test_what_caption_is_about(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[object] = []
    monkeypatch.setattr("llava_mini_cli.commands.caption.run_questions", lambda *given: asked.append(given[:2]) or 4)
    for arguments, what in (
        (["a"], (["a"], (CAPTION_PROMPT,))),
        (["--files-from", "list", "-p", "Why?"], ([], (Prompt("Why?"),))),
        (["a", "--style", "tags", "-p", "Why?"], (["a"], (STYLES["tags"], Prompt("Why?")))),
        (["a", "--prompt-column", "q"], (["a"], ())),
    ):
        assert llava_mini("caption", *arguments).exit_code == 4
        assert asked.pop() == what
    assert llava_mini("caption").stderr == (
        "llava-mini: error: there is no medium: llava-mini caption MEDIA..., or --files-from\n"
    )


# train, with a double of what trains


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[object]:
    """What was trained: options of a data file, or the folder of the demo model."""
    asked: list[object] = []

    def train(what: object, say: Any) -> Path:
        asked.append(what)
        say("3 records")
        return Path("run/model")

    for name, function in {"finetune": "finetune", "demo_preset.stages": "train_demo_model"}.items():
        double = ModuleType(f"llava_mini_cli.train.{name}")
        setattr(double, function, train)
        monkeypatch.setitem(sys.modules, double.__name__, double)
    monkeypatch.setattr("llava_mini_cli.commands.train.find_spec", lambda name: name)
    monkeypatch.chdir(tmp_path)
    return asked


def test_train_hands_every_option_on(trained: list[object]) -> None:
    arguments = (
        "-o run --data d.json -m base --stage 1 --media-root r --skip-bad --learning-rate 0.1 --batch 8 --epochs 2"
    )
    more = "--device-batch 2 --average answer --gradient-checkpointing --bf16 --workers 3 --save-every 5 --seed 6"
    result = llava_mini("train", *arguments.split(), *more.split())
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "3 records\nthe model is in run/model\n")
    assert trained == [
        TrainOptions(
            Path("d.json"),
            "base",
            Path("run"),
            1,
            Path("r"),
            True,
            0.1,
            8,
            2,
            2.0,
            0.03,
            "answer",
            0,
            True,
            True,
            3,
            5,
            6,
        )
    ]
    assert llava_mini("train", "-o", "run", "--data", "d", "-m", "m", "--lora-rank", "4", "-q").stderr == ""
    assert trained[1:] == [TrainOptions(Path("d"), "m", Path("run"), lora_rank=4)]


def test_train_takes_variables_and_config_files_as_the_others_do(
    trained: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("llava-mini.toml").write_text(
        "model = 'base'\nseed = 2\n[train]\nstage = 1\nbf16 = true\ndata = 'd.json'\nquiet = true"
    )
    monkeypatch.setenv("LLAVA_MINI_EPOCHS", "3")
    assert llava_mini("train", "-o", "run", "--seed", "4").stderr == ""
    assert llava_mini("train", "-o", "run", "--no-bf16").exit_code == 0
    options = TrainOptions(Path("d.json"), "base", Path("run"), 1, epochs=3.0, bf16=True, seed=4)
    assert trained == [options, TrainOptions(Path("d.json"), "base", Path("run"), 1, epochs=3.0, seed=2)]
    shown = [json.loads(line) for line in llava_mini("config").stdout.splitlines()]
    assert [(line["value"], line["place"]) for line in shown if line["option"] == "stage"] == [
        (1, "llava-mini.toml: [train] stage")
    ]
    monkeypatch.setenv("LLAVA_MINI_EPOCHS", "0")
    assert llava_mini("train", "-o", "run").stderr == (
        "llava-mini: error: LLAVA_MINI_EPOCHS: --epochs must be above 0, not 0\n"
    )
    Path("llava-mini.toml").write_text("[train]\nstage = 3")
    refused = llava_mini("train", "-o", "run")
    assert (refused.exit_code, refused.stderr) == (
        2, "llava-mini: error: llava-mini.toml: [train] stage: '3' is not one of '1', '2'.\n",
    )  # fmt: skip


def test_train_makes_the_demo_model(trained: list[object]) -> None:
    result = llava_mini("train", "-o", "work", "--preset", "demo")
    assert (result.exit_code, result.stderr) == (0, "3 records\nthe model is in run/model\n")
    assert trained == [Path("work")]


def test_train_says_what_it_needs(trained: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_mini_cli.commands.train.find_spec", lambda name: None if name == "peft" else name)
    result = llava_mini("train", "-o", "work", "--preset", "demo")
    assert (result.exit_code, result.stderr) == (
        2, "llava-mini: error: train needs peft: pip install 'llava-mini-cli[train]'\n",
    )  # fmt: skip
    assert not trained
