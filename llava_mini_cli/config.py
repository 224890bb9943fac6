"""Options of a run as frozen dataclasses, checked on construction; each message names the flag at fault.

Knows neither torch nor Typer: commands fill these in, everything below reads them.
"""

import re
from dataclasses import dataclass, replace
from math import inf
from typing import Literal, Self, get_args

from llava_mini_cli.errors import UsageError

PUBLISHED = "ICTNLP/llava-mini-llama-3.1-8b"  # the checkpoint of the paper

DecoderName = Literal["auto", "decord", "ffmpeg"]
PromptLayout = Literal["trained", "reference"]
DTypeName = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["int8", "int4", "fp8"]
LanguageModelName = Literal["own", "vllm", "auto"]  # what reads the frames' tokens and answers
WeightFormat = Literal["float32", "bfloat16", "float16", "int8", "int4", "fp8"]  # how a loaded model's weights are held
_DEVICE = re.compile(r"auto|(cpu|cuda|mps|xpu)(:[0-9]{1,3})?")  # those that torch's own packages compute on
SubtitleFormat = Literal["srt", "vtt", "tsv"]
SUBTITLES: tuple[SubtitleFormat, ...] = ("srt", "vtt", "tsv")
Format = Literal["jsonl", "parquet", "csv", "txt", "hf", "srt", "vtt", "tsv"]  # of rows
AnyFormat = Literal[Format, "edl"]  # and of events
EventFormat = Literal["jsonl", "parquet", "csv", "srt", "vtt", "tsv", "edl"]
BESIDE: tuple[AnyFormat, ...] = ("txt", *SUBTITLES, "edl")  # of which there is a file for each medium
Existing = Literal["skip", "overwrite", "append", "prepend"]  # what becomes of captions that are there
MomentFormat = Literal["jsonl", "csv", "parquet"]
ChoiceScore = Literal["sum", "mean"]  # how the log-likelihoods of an answer's tokens become its score
FeatureKind = Literal["float32", "float16", "int8"]  # how an archive stores patch features
Choices = tuple[str, ...]  # the answers that a question may have, each once
GrammarKind = Literal["json_schema", "regex"]
SchemaWay = Literal["fields", "json"]  # how a schema is asked for: each field by itself, or all as one JSON text


@dataclass(frozen=True)
class Grammar:
    """The form that an answer is held to while it is written."""

    kind: GrammarKind
    text: str  # a JSON Schema, or a regular expression


@dataclass(frozen=True)
class SamplingOptions:
    """The frames of a video that are looked at, and how they are decoded."""

    fps: float = 1.0  # frames sampled a second of video
    max_frames: int | None = None  # upper bound on frames, spread over the span; None: no bound
    start: float | None = None  # seconds from the beginning of the video
    end: float | None = None  # seconds from the beginning of the video
    decoder: DecoderName = "auto"
    decode_timeout: float = 60.0  # seconds without a new frame before a decoder is killed
    fit: bool = False  # no more frames than fit the model's context, spread over the span
    allow_truncated: bool = False  # take what there is of a still picture that is cut short
    needed: tuple[float, float] | None = None  # seconds between which frames are decoded, of those that are sampled
    scene_threshold: float | None = None  # score of a frame at which a scene begins; None: they are not looked for

    def __post_init__(self) -> None:
        if not 0 < self.fps < inf:
            raise UsageError(f"--fps must be above 0 and finite, not {self.fps:g}")
        if self.max_frames is not None and self.max_frames < 1:
            raise UsageError(f"--max-frames must be at least 1, not {self.max_frames}")
        if self.start is not None and self.start < 0:
            raise UsageError(f"--start must not be negative, not {self.start:g}")
        if self.end is not None and self.end <= (self.start or 0.0):
            raise UsageError(f"--end ({self.end:g} s) must come after --start ({self.start or 0.0:g} s)")
        if not self.decode_timeout > 0:
            raise UsageError(f"--decode-timeout must be above 0 seconds, not {self.decode_timeout:g}")


MOST_OVERLAPS = 100  # spans that hold the same frame: each of them keeps its tokens
LEAST_SPAN_S = 0.001
SCENE_THRESHOLD = 10.0  # as ffmpeg's scdet; mean change of colours in hundredths
MIN_SCENE_LEN_S = 2.0


@dataclass(frozen=True)
class SpanOptions:
    """The stretches of a video that are asked about one by one. By default there are none but the video itself."""

    every: float | None = None  # seconds of each stretch, one behind the other
    window: float | None = None  # seconds of each stretch, where the next one begins `stride` later
    stride: float | None = None
    scenes_from: str | None = None  # a list of stretches, or a folder of such lists
    scenes: bool = False  # the stretches are those between cuts, which are found as the video is decoded
    scene_threshold: float = SCENE_THRESHOLD  # score of a frame at which a scene begins
    min_scene_len: float = MIN_SCENE_LEN_S  # seconds of the shortest scene
    whole: bool = False  # the video as a whole is asked about, too
    timed: bool = False  # the answers become subtitles, so that a picture has no place among them

    def __post_init__(self) -> None:
        given = {"--every": self.every, "--window": self.window, "--stride": self.stride}
        for flag, value in given.items():
            if value is not None and not LEAST_SPAN_S <= value < inf:
                raise UsageError(f"{flag} must be at least {LEAST_SPAN_S:g} s, not {value:g}")
        if self.every is not None and (self.window is not None or self.stride is not None):
            raise UsageError("--every has no --window and --stride: it is both")
        if (self.window is None) != (self.stride is None):
            raise UsageError("--window and --stride go together; --every TIME is both")
        if self.scenes_from is not None and (self.every is not None or self.window is not None):
            raise UsageError("--scenes-from has stretches of its own; leave --every, --window and --stride out")
        if self.scenes_from == "":
            raise UsageError("--scenes-from is empty")
        self._check_scenes()
        if self.length > MOST_OVERLAPS * self.step:
            raise UsageError(
                f"--stride {self.step:g} s is too short for --window {self.length:g} s: at most {MOST_OVERLAPS} "
                "stretches may hold the same frame"
            )
        if self.whole and not self.wanted:
            raise UsageError(
                "--whole goes with --every, --window, --scenes or --scenes-from; without them videos are asked about "
                "as wholes"
            )

    def _check_scenes(self) -> None:
        others = {"--every": self.every, "--window": self.window, "--scenes-from": self.scenes_from}
        other = next((flag for flag, value in others.items() if value is not None), None)
        if self.scenes and other is not None:
            raise UsageError(f"--scenes and {other} exclude each other: both say which stretches there are")
        if not 0 < self.scene_threshold <= 100:
            raise UsageError(f"--scene-threshold must be above 0 and at most 100, not {self.scene_threshold:g}")
        if not 0 <= self.min_scene_len < inf:
            raise UsageError(f"--min-scene-len must be at least 0 s and finite, not {self.min_scene_len:g}")

    def finding(self, *, is_wanted: bool) -> dict[str, float]:
        """The options that shape scenes which are found, by name; none where none are. Raises `UsageError`."""
        if is_wanted:
            return {"scene_threshold": self.scene_threshold, "min_scene_len": self.min_scene_len}
        changed = {
            "--scene-threshold": self.scene_threshold != SCENE_THRESHOLD,
            "--min-scene-len": self.min_scene_len != MIN_SCENE_LEN_S,
        }
        flag = next((flag for flag, is_changed in changed.items() if is_changed), None)
        if flag is not None:
            raise UsageError(f"{flag} goes with --scenes or --evidence-spans scenes")
        return {}

    @property
    def wanted(self) -> bool:
        """True if there are stretches to ask about."""
        return self.flag is not None

    @property
    def flag(self) -> str | None:
        """The option that says which stretches there are; None: none does."""
        if self.scenes_from is not None:
            return "--scenes-from"
        if self.scenes:
            return "--scenes"
        return "--every" if self.every is not None else "--window" if self.window is not None else None

    @property
    def length(self) -> float:
        """Seconds of each stretch."""
        return self.every or self.window or inf

    @property
    def step(self) -> float:
        """Seconds from the beginning of a stretch to that of the next."""
        return self.every or self.stride or inf

    def shaping(self) -> dict[str, str | float | None]:
        """The options that shape the rows of stretches, by name; none where there are no stretches."""
        if not self.wanted:
            return {}
        every, window, stride = self.every, self.window, self.stride
        if window == stride and window is not None:
            every, window, stride = window, None, None
        scenes = None if self.scenes_from is None else "given"  # each row's key has its own medium's
        return {"every": every, "window": window, "stride": stride, "scenes_from": scenes}


@dataclass(frozen=True)
class EventOptions:
    """The stretches in which a yes/no question holds. By default it is asked of every frame that is looked at."""

    on: float = 0.6  # probability of yes at which an event begins
    off: float = 0.4  # probability below which it ends
    min_length: float = 0.0  # seconds; shorter events are left out
    merge: float = 0.0  # seconds; events that are no further apart become one
    window: float | None = None  # seconds of video that the question is asked of at once; None: every frame alone
    stride: float | None = None  # seconds from one window to the next; None: 1 s
    timed: bool = False  # the rows become subtitles or an EDL, so that a picture has no place among them

    def __post_init__(self) -> None:
        if not 0 < self.on <= 1:
            raise UsageError(f"--on must be above 0 and at most 1, not {self.on:g}")
        if not 0 < self.off <= self.on:
            raise UsageError(f"--off must be above 0 and at most --on ({self.on:g}), not {self.off:g}")
        for flag, value in (("--min-length", self.min_length), ("--merge", self.merge)):
            if not 0 <= value < inf:
                raise UsageError(f"{flag} must be 0 s or more, and finite, not {value:g}")
        if self.stride is not None and self.window is None:
            raise UsageError("--stride goes with --window; without it every frame is asked about alone")
        _ = self.grid

    @property
    def grid(self) -> SpanOptions | None:
        """The windows, as stretches; None: every frame. Raises `UsageError`."""
        if self.window is None:
            return None
        return SpanOptions(window=self.window, stride=1.0 if self.stride is None else self.stride)

    def shaping(self) -> dict[str, float | None]:
        """The options that shape the rows of events, by name."""
        grid = self.grid
        return {
            "on": self.on,
            "off": self.off,
            "min_length": self.min_length,
            "merge": self.merge,
            "window": grid and grid.window,
            "stride": grid and grid.stride,
        }


ThumbnailPlace = Literal["column", "folder"]  # of the small pictures of what is asked about

PIECES = 16  # of a window, each of which is left out in turn
MOST_PIECES = 256


@dataclass(frozen=True)
class EvidenceOptions:
    """The parts of each medium that carried an answer. By default they are not looked for."""

    most: int | None = None  # parts that a row lists, the weightiest first; None: no evidence is looked for
    count: int = PIECES  # parts that a video is cut into
    every: float | None = None  # seconds of each part of a video; None: `count` says how long they are
    scenes: bool = False  # the parts of a video are its scenes

    def __post_init__(self) -> None:
        if self.most is not None and not 1 <= self.most <= MOST_PIECES:
            raise UsageError(f"--evidence must be from 1 to {MOST_PIECES}, not {self.most}")
        if not 1 <= self.count <= MOST_PIECES:
            raise UsageError(f"--evidence-spans must be from 1 to {MOST_PIECES} spans, not {self.count}")
        if self.every is not None and not LEAST_SPAN_S <= self.every < inf:
            raise UsageError(f"--evidence-spans must be at least {LEAST_SPAN_S:g} s long, not {self.every:g} s")
        if self.spans != str(PIECES) and self.most is None:
            raise UsageError("--evidence-spans goes with --evidence K")

    @property
    def spans(self) -> str:
        """How a video is cut, as --evidence-spans says it."""
        if self.scenes:
            return "scenes"
        return str(self.count) if self.every is None else f"{self.every:.15g}s"

    def shaping(self) -> dict[str, int | str]:
        """The options that shape the rows, by name; none where no evidence is looked for."""
        if self.most is None:
            return {}
        return {"evidence": self.most, **({} if self.spans == str(PIECES) else {"evidence_spans": self.spans})}


@dataclass(frozen=True)
class GenerationOptions:
    """The generation of answers. The default is greedy decoding."""

    max_new_tokens: int = 512
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # nucleus mass, read only when temperature > 0
    seed: int = 0  # of each row's own generator, read only when temperature > 0
    repetition_penalty: float = 1.0  # above 1: what the answer holds already becomes less likely; 1: nothing changes
    yes_no: bool = False  # say as well how likely the model finds yes, against no
    choice_score: ChoiceScore = "sum"  # of a given answer: of its tokens together, or the mean of them
    choice_prior: bool = False  # subtract the score that a given answer has without a medium

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"--max-new-tokens must be at least 1, not {self.max_new_tokens}")
        if not 0 <= self.temperature < inf:
            raise UsageError(f"--temperature must be 0 or above and finite, not {self.temperature:g}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p must be in (0, 1], not {self.top_p:g}")
        if not 0 < self.repetition_penalty < inf:
            raise UsageError(f"--repetition-penalty must be above 0 and finite, not {self.repetition_penalty:g}")
        if self.choice_score not in get_args(ChoiceScore):
            raise UsageError(f"--choice-score must be sum or mean, not {self.choice_score}")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed must be at least 0 and below 2**63, not {self.seed}")

    def choosing(self) -> dict[str, str | int]:
        """The options that the scores of choices depend on, by name, where they are not the defaults."""
        prior: dict[str, str | int] = {"choice_prior": 1} if self.choice_prior else {}
        return prior if self.choice_score == "sum" else {"choice_score": self.choice_score, **prior}

    def shaping(self) -> dict[str, int | float | None]:
        """The options that the words of an answer depend on, by name; None for one that has no effect."""
        sampled = self.temperature > 0
        return {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p if sampled else None,
            "seed": self.seed if sampled else None,
            "repetition_penalty": None if self.repetition_penalty == 1 else self.repetition_penalty,
        }


@dataclass(frozen=True)
class ModelOptions:
    """The model that answers, and the device that it runs on."""

    model: str  # directory or hub id
    revision: str | None = None  # of a hub id
    device: str = "auto"  # auto, cpu, cuda, cuda:N
    dtype: DTypeName = "auto"  # bfloat16 on CUDA that has it; on the CPU the quickest that fits the memory
    prompt_layout: PromptLayout = "trained"
    batch_size: int | None = None  # frames encoded at once; None: chosen by the engine
    quantize: Quantization | None = None  # of the linear layers' weights; on a GPU those of the Llama layers alone
    compile: bool = False  # the layers' dense parts through torch.compile
    llm: LanguageModelName = "own"  # auto: vLLM on CUDA where it is installed, else our own
    tensor_parallel: int = 1  # cards that vLLM spreads the language model over, `device` the first of them
    gpu_memory: float | None = None  # share of each card that vLLM takes; None: what the rest leaves
    prepared_bytes: int = 20 << 30  # that packed weights of all models may take in the cache folder; 0: none are kept

    def __post_init__(self) -> None:
        if _DEVICE.fullmatch(self.device) is None:
            raise UsageError(f"--device {self.device}: no device has this name; give cpu, cuda, cuda:N or auto")
        if self.dtype not in get_args(DTypeName):
            raise UsageError(f"--dtype {self.dtype}: must be one of {', '.join(get_args(DTypeName))}")
        if self.quantize is not None and self.quantize not in get_args(Quantization):
            raise UsageError(f"--quantize {self.quantize}: must be one of {', '.join(get_args(Quantization))}")
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"--batch-size must be at least 1, not {self.batch_size}")
        if self.llm not in get_args(LanguageModelName):
            raise UsageError(f"--llm {self.llm}: must be one of {', '.join(get_args(LanguageModelName))}")
        if self.tensor_parallel < 1:
            raise UsageError(f"--tensor-parallel must be at least 1, not {self.tensor_parallel}")
        share = self.gpu_memory
        if share is not None and not 0 < share <= 1:
            raise UsageError(f"--gpu-memory must be above 0 and at most 1, not {share:g}")
        if self.llm == "vllm":
            self._check_vllm()
        elif self.tensor_parallel > 1 or share is not None:
            option = "--tensor-parallel" if self.tensor_parallel > 1 else "--gpu-memory"
            raise UsageError(f"{option} goes with --llm vllm")
        if self.prepared_bytes < 0:
            raise UsageError("--prepared-size must not be negative")

    def with_own(self, user: str) -> Self:
        """The same with our own language model, which `user` needs. Raises `UsageError` where another was asked for."""
        if self.llm == "vllm":
            raise UsageError(f"{user}: our own language model has it alone; leave --llm vllm out")
        return replace(self, llm="own")

    def told_llm(self, generation: GenerationOptions) -> LanguageModelName | None:
        """The language model, where answers may be others than our own gives; None where they are the same."""
        is_exact = self.dtype == "float32" and generation.temperature == 0
        return None if self.llm == "own" or is_exact else self.llm

    def _check_vllm(self) -> None:
        if not self.device.startswith(("auto", "cpu", "cuda")):
            raise UsageError(f"--llm vllm: on cpu and cuda, not on {self.device}")
        if self.quantize not in (None, "fp8"):
            raise UsageError(f"--quantize {self.quantize}: our own language model has it alone; --llm vllm has fp8")
        if self.quantize is not None and self.dtype == "float32":
            raise UsageError("--dtype float32: vLLM computes with quantised weights in bfloat16 or float16")
        if self.compile:
            raise UsageError("--compile: our own language model has it alone; leave --llm vllm out")


@dataclass(frozen=True)
class RunLimits:
    """The limits at which a run stops with work left undone."""

    media: int | None = None  # worked on; None: all
    failures: int | None = None  # media that fail before the run is given up; None: however many

    def __post_init__(self) -> None:
        if self.media is not None and self.media < 1:
            raise UsageError(f"--limit must be at least 1, not {self.media}")
        if self.failures is not None and self.failures < 1:
            raise UsageError(f"--max-failures must be at least 1, not {self.failures}")
