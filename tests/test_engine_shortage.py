"""Memory that runs out once, at any call, changes no answer; what always runs out for one row fails that row alone."""

import gc
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_doubles import ArrayFrames
from engine_faults import Site, watched
from engine_oracle import QUESTIONS, Oracle, limits, make_oracle

from llava_mini_cli.config import EvidenceOptions, GenerationOptions, Grammar
from llava_mini_cli.engine import frame_encoder, memory
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.llm import generate, kv_cache, own_model, token_decoder
from llava_mini_cli.engine.llm.generation import Generation
from llava_mini_cli.engine.llm.kv_cache import RowCache
from llava_mini_cli.engine.llm.token_decoder import TokenDecoder
from llava_mini_cli.engine.pack import TextPack
from llava_mini_cli.engine.request import Answer, Failure, Outcome, Request, Window
from llava_mini_cli.engine.track import Track
from llava_mini_cli.errors import DeviceLost
from llava_mini_cli.pipelines.evidence import EvenPieces

MEDIA = 6
SHORTAGES = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:125] . DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
)
Rows = dict[tuple[str, int, int], Any]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks for cycles among young objects only: there are a million others in a test run."""
    monkeypatch.setattr(memory, "gc", SimpleNamespace(collect=lambda: gc.collect(0)))


def requests(oracle: Oracle) -> list[Request]:
    """24 questions: pictures, videos and windows; greedy, drawn, chosen and held answers, some of which end early."""
    asked: list[Request] = []
    for number in range(MEDIA):
        sampled = number % 3 == 2
        new = 2 + number % 3
        prior = {"choice_prior": number == 4}
        options = GenerationOptions(new, temperature=float(sampled), seed=number, repetition_penalty=1.1, **prior)
        pixels = oracle.video(1 + number // 2 * 2, number)
        windows = (Window(0, 2), Window()) if number == 3 else (Window(),)
        prompts = QUESTIONS[:2] if number == 3 else QUESTIONS[:4]
        source = ArrayFrames(pixels, size=2)
        kind = "image" if len(pixels) == 1 else "video"
        choices = (("red", "red car", "blue"), None, ("a", "b"), None) if number == 4 else ()
        held = (None, Grammar("regex", "[a-d]{2,3}"), Grammar("regex", "x*"), None) if number == 5 else ()
        explained = {0: {"size": (64, 48)}, 4: {"cut": EvenPieces(0.0, 5.0, 1.0, EvidenceOptions(1, every=2.0))}}.get(
            number, {}
        )
        more = {"choices": choices, "grammars": held, **explained}
        asked.append(Request(str(number), kind, source, prompts, options, windows, **more))
    return asked


@dataclass(frozen=True)
class Near:
    """Scores that are the same but for what lies beside them in a batch."""

    scores: tuple[float, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Near) and self.scores == pytest.approx(other.scores, abs=1e-4)


def said(answer: Answer) -> tuple[tuple[int, ...], Near | None]:
    found = answer.evidence
    return answer.token_ids, found and Near((found.seen, found.blind, *(part.score for part in found.parts)))


def rows(outcomes: Sequence[Outcome]) -> Rows:
    found = {
        (one.key, one.window_index, one.prompt_index): said(one) if isinstance(one, Answer) else one.error_type
        for one in outcomes
    }
    assert len(found) == len(outcomes) == 24
    return found


def begun(oracle: Oracle) -> Engine:
    """An engine, which is made before any memory runs out."""
    return oracle.engine(limits(4, generations=12))


def run(oracle: Oracle, engine: Engine | None = None) -> Rows:
    return rows(list((engine or begun(oracle)).run(requests(oracle))))


@pytest.fixture(scope="module")
def wanted(oracle: Oracle) -> Rows:
    return run(oracle)


@pytest.fixture(scope="module")
def sites(oracle: Oracle, wanted: Rows) -> Counter[Site]:
    """Every place that calls something, and how often."""
    seen = Counter[Site]()
    engine = begun(oracle)
    with watched(lambda site: seen.update([site])):
        assert run(oracle, engine) == wanted
    return seen


def run_short(oracle: Oracle, short: Site, number: int, error: Exception) -> Rows:
    """A run in which the `number`th call at one place runs out of memory."""
    met = iter(range(number))

    def meet(site: Site) -> None:
        if site == short and next(met, None) is None and number not in raised:
            raised.append(number)
            raise error

    raised, engine = list[int](), begun(oracle)
    with watched(meet):
        found = run(oracle, engine)
    assert raised, short
    return found


def test_memory_that_runs_out_once_changes_no_answer(oracle: Oracle, wanted: Rows, sites: Counter[Site]) -> None:
    generator = random.Random(20)
    for site in generator.sample(sorted(sites), 6):
        error = generator.choice(SHORTAGES)
        found = run_short(oracle, site, generator.randrange(sites[site]), error)
        assert found == wanted, (site, error)


NAMED = [
    "Track.take", "Track.complete", "Track.add", "pack_prompts", "admit", "prefill", "RowCache.reserve", "decode",
    "TokenDecoder._logits", "TokenDecoder._next_tokens", "TokenDecoder._shrink", "TokenDecoder.answer", "is_looping",
    "TokenDecoder._join", "join", "choose", "FrameEncoder.frames_ready", "RowCache.let_go", "Engine._prefilling",
    "LabelIds.of", "LabelScorer._begin", "LabelScorer._steps", "LabelScorer._score", "LabelScorer._reply", "_extend",
    "PieceSums.more", "Explainer.step", "Explainer._score", "Explainer._items", "Explainer._likelihoods",
    "Explainer._end", "next_token",
    "log_likelihoods", "LabelScorer._ask_blindly", "_View.attend", "Branches.of", "_softmax",
    "OwnLanguageModel._following",
    "Grammars.check", "Grammars.state", "Grammars.fill", "Matcher.is_whole", "Matcher.text", "TokenMasks._masked",
]  # fmt: skip


def test_every_call_that_was_seen_to_end_a_run_may_run_out(oracle: Oracle, wanted: Rows, sites: Counter[Site]) -> None:
    """Each is met in the middle of a run, so that there is something to be lost or done twice."""
    for name in NAMED:
        site = max((site for site in sites if site.called == name), key=lambda site: sites[site], default=None)
        assert site is not None, name
        assert run_short(oracle, site, sites[site] // 2, SHORTAGES[0]) == wanted, site


@pytest.mark.parametrize("method", ["take", "add", "due"])
def test_a_medium_that_never_fits_fails_alone(
    oracle: Oracle, wanted: Rows, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    real = getattr(Track, method)

    def short(track: Track, *rest: Any) -> Any:
        if track.request.key == "4":
            raise torch.OutOfMemoryError("too much")
        return real(track, *rest)

    monkeypatch.setattr(Track, method, short)
    assert run(oracle) == {row: "out_of_memory" if row[0] == "4" else found for row, found in wanted.items()}


@pytest.mark.parametrize("method", ["_next_tokens", "_logits", "answer"])
def test_a_row_that_never_fits_fails_alone(
    oracle: Oracle, wanted: Rows, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    real = getattr(TokenDecoder, method)

    def of(generations: Any) -> list[Generation]:
        flat = [generations] if isinstance(generations, Generation) else list(generations)
        return [one for part in flat for one in (part if isinstance(part, list) else [part])]

    def short(decoder: TokenDecoder, generations: Any, *rest: Any) -> Any:
        if any((one.question.track.request.key, one.question.prompt_index) == ("3", 1) for one in of(generations)):
            raise torch.OutOfMemoryError("too much")
        return real(decoder, generations, *rest)

    monkeypatch.setattr(TokenDecoder, method, short)
    assert run(oracle) == {
        row: "out_of_memory" if (row[0], row[2]) == ("3", 1) else found for row, found in wanted.items()
    }


def test_a_prompt_that_never_fits_beside_a_frame_fails_alone(
    oracle: Oracle, wanted: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single frame with all prompts does not fit: they are asked in more passes, but for one that never fits."""
    real, long = frame_encoder.FrameEncoder._encoded, len(oracle.processor.prompts().question_ids(QUESTIONS[1]))

    def small(encoder: Any, chunk: Any, packs: Sequence[TextPack]) -> Any:
        asked = {ids for pack in packs for ids in pack.prompt_lengths.values()}
        if any(len(pack.prompt_lengths) > 1 for pack in packs) or (packs and max(asked, default=0) == long - 1):
            raise torch.OutOfMemoryError("too much")
        return real(encoder, chunk, packs)

    monkeypatch.setattr(frame_encoder.FrameEncoder, "_encoded", small)
    assert run(oracle) == {row: "out_of_memory" if row[2] == 1 else found for row, found in wanted.items()}


def test_rows_whose_keys_cannot_grow_together_do_by_themselves(
    oracle: Oracle, wanted: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of a cache get caches of their own, half by half."""
    monkeypatch.setattr(kv_cache, "GROWTH", 1)
    monkeypatch.setattr(generate, "GROWTH", 1)
    real = RowCache.reserve

    def small(cache: RowCache, rows: torch.Tensor) -> None:
        if cache.own_lengths.numel() > 1:
            raise torch.OutOfMemoryError("too much")
        real(cache, rows)

    monkeypatch.setattr(RowCache, "reserve", small)
    assert run(oracle) == wanted


def test_a_source_that_ran_out_is_not_taken_for_one_that_ended(oracle: Oracle) -> None:
    source: Any = ArrayFrames(oracle.video(5, 0), size=2, error=MemoryError())  # pyright: ignore[reportArgumentType]
    asked = Request("v", "video", source, QUESTIONS[:2], GenerationOptions(max_new_tokens=2))
    outcomes = list(oracle.engine(limits(2)).run([asked]))
    assert [(one.stage, one.error_type) for one in outcomes if isinstance(one, Failure)] == [
        ("decode", "out_of_memory")
    ] * 2


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: device-side assert triggered\nCUDA kernel errors might be reported at some other call",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: unspecified launch failure",
        "CUDA error: uncorrectable ECC error encountered",
        "GPU 0000:01:00.0: GPU has fallen off the bus",
    ],
)
@pytest.mark.parametrize("where", ["prefill", "decode", "encode"])
def test_a_device_that_is_lost_ends_the_run_with_one_line(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch, said: str, where: str
) -> None:
    modules = {"prefill": own_model, "decode": token_decoder, "encode": frame_encoder}

    def lost(*_: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(modules[where], where, lost)
    with pytest.raises(DeviceLost) as caught:
        run(oracle)
    assert said.partition("\n")[0] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_other_mistakes_are_neither_shortages_nor_lost_devices(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(own_model, "prefill", mistaken)
    with pytest.raises(RuntimeError, match="shapes"):
        run(oracle)


def test_a_run_without_memory_even_for_its_failures_ends(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Track, "take", short)
    monkeypatch.setattr(Track, "pass_failures", short)
    with pytest.raises(DeviceLost, match="no memory is left"):
        run(oracle)
