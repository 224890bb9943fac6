"""What options may be: values that are refused by name, values that are just allowed, times and sizes."""

import re
from typing import Any

import pytest
import typer

from llava_mini_cli.commands.flags.archive_flags import ArchiveFlags
from llava_mini_cli.commands.flags.index_flags import IndexFlags
from llava_mini_cli.commands.flags.search_flags import SearchFlags
from llava_mini_cli.commands.flags.talk_flags import TalkFlags
from llava_mini_cli.commands.flags.train_flags import TrainFlags
from llava_mini_cli.commands.sizes import parse_size
from llava_mini_cli.commands.times import parse_time
from llava_mini_cli.config import GenerationOptions, ModelOptions, RunLimits, SamplingOptions, SpanOptions
from llava_mini_cli.errors import UsageError


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
        (SpanOptions, {"every": 0.0}, "--every must be at least 0.001 s, not 0"),
        (SpanOptions, {"every": float("inf")}, "--every must be at least 0.001 s, not inf"),
        (SpanOptions, {"every": 2.0, "stride": 1.0}, "--every has no --window and --stride: it is both"),
        (SpanOptions, {"window": 2.0}, "--window and --stride go together; --every TIME is both"),
        (SpanOptions, {"stride": 2.0}, "--window and --stride go together; --every TIME is both"),
        (SpanOptions, {"window": 101.0, "stride": 1.0},
         "--stride 1 s is too short for --window 101 s: at most 100 stretches may hold the same frame"),
        (SpanOptions, {"whole": True},
         "--whole goes with --every, --window, --scenes or --scenes-from; "
         "without them videos are asked about as wholes"),
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
