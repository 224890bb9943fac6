"""Work that would take more memory than there is beside the model: in halves, or an error row, and the same answers."""

from dataclasses import replace

import pytest
from engine_oracle import QUESTIONS, Oracle, by_prompt, limits, make_oracle, request

from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.llm.generate import PREFILL_POSITIONS
from llava_mini_cli.engine.request import Answer, Failure
from llava_mini_cli.engine.work_bytes import Work
from llava_mini_cli.engine.work_room import WorkRoom

WORK = Work(position=1000, tower_frame=10, frame_positions=20, cached=10, packed_rows=0)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("room"))


def room(most: int | None, cached: int = 0) -> WorkRoom:
    return WorkRoom(WORK, most, lambda: cached)


def test_what_does_not_fit_is_refused_as_if_memory_had_run_out() -> None:
    assert room(0).is_bounded
    room(3 * 24 * 1000 + 5 * 4 * 24).encode(3, 4)
    with pytest.raises(MemoryError, match="0 MiB are more than there is beside the model"):
        room(3 * 24 * 1000 + 5 * 4 * 24 - 1).encode(3, 4)
    with pytest.raises(MemoryError):
        room(3 * 24 * 1000 + 5 * 4 * 24, cached=1).encode(3, 4)
    free = room(None, cached=1 << 60)
    free.encode(1 << 30, 1 << 30)
    assert not free.is_bounded


def test_prefill_counts_what_goes_through_at_once_and_what_is_kept() -> None:
    long, kept = PREFILL_POSITIONS + 5, 2 * (PREFILL_POSITIONS + 5 + 7 + 3 * 64) * 10
    room(2 * PREFILL_POSITIONS * 1000 + kept).prefill(2, long, 7, 3)
    with pytest.raises(MemoryError):
        room(2 * PREFILL_POSITIONS * 1000 + kept - 1).prefill(2, long, 7, 3)
    room(14 * 1000 + (5 + 9 + 64) * 10).prefill(1, 5, 9, 1)
    with pytest.raises(MemoryError):
        room(14 * 1000 + (5 + 9 + 64) * 10 - 1).prefill(1, 5, 9, 1)


def test_growth_of_keys_and_values_is_counted() -> None:
    room(640 + 5, cached=5).grow(64)
    with pytest.raises(MemoryError):
        room(640 + 4, cached=5).grow(64)


def engine(oracle: Oracle, work_bytes: int) -> Engine:
    return oracle.engine(replace(limits(), work_bytes=work_bytes))


def one_frame(oracle: Oracle, text: int) -> int:
    """Bytes that encoding one frame with so many positions of text takes."""
    return oracle.engine(limits())._room._work.encoding(1, text)  # pyright: ignore[reportPrivateUsage]


def test_little_room_changes_no_answer(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    tight = engine(oracle, int(2.2 * one_frame(oracle, 700)))
    sizes: list[int] = []
    check = WorkRoom.encode

    def noted(self: WorkRoom, frames: int, text: int) -> None:
        check(self, frames, text)
        sizes.append(frames)

    monkeypatch.setattr(WorkRoom, "encode", noted)
    frames = (1, 5, 9)
    outcomes = by_prompt(list(tight.run(request(str(n), oracle.video(n, n), QUESTIONS) for n in frames)))
    assert max(sizes) < 8
    for (key, _, prompt), outcome in outcomes.items():
        assert isinstance(outcome, Answer), outcome
        assert list(outcome.token_ids) == oracle.ids(int(key), int(key), QUESTIONS[prompt])


def test_a_prompt_that_has_no_room_by_itself_is_an_error_row(oracle: Oracle) -> None:
    tight = engine(oracle, one_frame(oracle, 300))
    outcomes = list(tight.run([request("a", oracle.video(1, 1), [QUESTIONS[0], "x" * 2000])]))
    rows = {one.prompt_index: one for one in outcomes}
    assert isinstance(rows[0], Answer)
    assert list(rows[0].token_ids) == oracle.ids(1, 1, QUESTIONS[0])
    assert isinstance(rows[1], Failure)
    assert rows[1].error_type == "out_of_memory"


def test_answers_whose_keys_have_no_room_to_grow_are_error_rows(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: WorkRoom, positions: int) -> None:
        if positions:
            raise MemoryError

    monkeypatch.setattr("llava_mini_cli.engine.llm.generate.GROWTH", 1)
    monkeypatch.setattr("llava_mini_cli.engine.llm.kv_cache.GROWTH", 1)
    monkeypatch.setattr(WorkRoom, "grow", full)
    outcomes = list(engine(oracle, 1 << 40).run([request("a", oracle.video(1, 1), QUESTIONS[:2])]))
    assert [one.error_type for one in outcomes if isinstance(one, Failure)] == ["out_of_memory"]  # the longer prompt's
    for one in outcomes:
        assert isinstance(one, Failure) or list(one.token_ids) == oracle.ids(1, 1, QUESTIONS[one.prompt_index])
    outcomes = list(oracle.engine(limits()).run([request("a", oracle.video(1, 1), QUESTIONS[:2])]))
    assert all(isinstance(one, Answer) for one in outcomes)  # without a bound nobody asks


def test_choices_that_have_no_room_at_once_are_scored_in_parts(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    room(5 * 1000 + 5 * (7 + 5) + 12 * 60).score(5, 7, 60)
    with pytest.raises(MemoryError):
        room(5 * 1000 + 5 * (7 + 5) + 12 * 60 - 1).score(5, 7, 60)
    labels = tuple(f"label {number} of {number % 3}" for number in range(20))
    asked = replace(request("a", oracle.video(1, 1), QUESTIONS[:2]), choices=(labels, labels))
    (expected, other) = sorted(oracle.engine(limits()).run([asked]), key=lambda one: one.prompt_index)
    sizes: list[int] = []

    def few(self: WorkRoom, positions: int, seen: int, scores: int) -> None:
        if positions > 30:
            raise MemoryError
        sizes.append(positions)

    monkeypatch.setattr(WorkRoom, "score", few)
    again = replace(request("a", oracle.video(1, 1), QUESTIONS[:2]), choices=(labels, labels))
    found = sorted(engine(oracle, 1 << 40).run([again]), key=lambda one: one.prompt_index)
    assert len(sizes) > 2
    for before, after in zip((expected, other), found, strict=True):
        assert isinstance(before, Answer)
        assert isinstance(after, Answer)
        assert after.choice_probs == pytest.approx(before.choice_probs, abs=1e-5)
