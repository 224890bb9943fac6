"""The books of leases: every medium is done once or given up, whoever dies and whenever."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_mini_cli.formats.job import Job
from llava_mini_cli.workers.books import GIVEN_UP, MOST_BYTES, MOST_HELD, Books


def job(number: int) -> Job:
    return Job(f"m{number}.mp4", f"m{number}.mp4", (), number=number)


def books(media: int, workers: int = 1, cost: float = 1.0, size: int = 0) -> Books:
    made = Books(workers)
    for number in range(media):
        made.add(job(number), cost, size)
    for worker in range(workers):
        made.enter(worker)
    return made


def numbers(lease: list[object]) -> list[int]:
    return [medium.number for medium in lease]  # type: ignore[attr-defined]


def finish(made: Books, worker: int) -> list[int]:
    """A worker ends all that it holds and takes as much as it gets, to the end."""
    done = []
    while lease := made.grant(worker):
        for medium in lease:
            assert made.over(worker, medium.number) is medium
            done.append(medium.number)
    return done


def test_leases_are_large_at_first_and_small_at_the_end() -> None:
    made = books(1000, workers=2)
    sizes = []
    while not made.is_empty:
        for worker in range(2):
            lease = made.grant(worker)
            sizes += [len(lease)] if lease else []
            for medium in lease:
                made.over(worker, medium.number)
    assert (sizes[0], sizes[-1], sum(sizes)) == (MOST_HELD, 1, 1000)
    assert sizes == sorted(sizes, reverse=True)


def test_a_lease_is_a_share_of_the_cost_and_not_of_the_number() -> None:
    made = Books(2)
    for number, cost in enumerate([100.0, *[1.0] * 100]):
        made.add(job(number), cost)
    made.enter(0)
    made.enter(1)
    assert numbers(made.grant(0)) == [0]
    assert made.grant(0) == []  # it has enough
    assert len(made.grant(1)) == 25  # a quarter of what is left


def test_a_worker_gets_more_before_it_has_nothing() -> None:
    made = books(1000)
    held = numbers(made.grant(0))
    assert len(held) == MOST_HELD
    for number in held[:31]:
        made.over(0, number)
    assert made.grant(0) == []
    made.over(0, held[31])
    assert len(made.grant(0)) == 32


def test_bytes_that_are_sent_bound_a_lease() -> None:
    made = books(10, size=MOST_BYTES // 2)
    assert len(made.grant(0)) == 2
    assert made.grant(0) == []
    assert len(books(10, size=2 * MOST_BYTES).grant(0)) == 1  # one alone may have more


def test_nothing_is_counted_twice() -> None:
    made = books(2)
    first = made.grant(0)[0]
    assert made.held(0, first.number) is first
    assert made.over(0, first.number) is first
    assert (made.over(0, first.number), made.over(7, first.number)) == (None, None)
    assert made.held(7, 0) is made.held(0, first.number) is None


def test_a_lease_that_kills_twice_is_taken_apart_and_the_medium_that_does_it_again_is_given_up() -> None:
    made, deaths, killed, done, given_up = books(40), 0, 0, [], []
    while not made.is_empty:
        lease = made.grant(0)
        for medium in lease:
            if medium.number == 17:
                deaths += 1
                given_up += numbers(made.lost(0, blamed=True)[1])
                made.enter(0)
                killed = max(killed, len(lease))
                break
            made.over(0, medium.number)
            done.append(medium.number)
    assert (deaths, given_up) == (GIVEN_UP, [17])
    assert sorted(done) == [number for number in range(40) if number != 17]


def test_what_is_tried_again_is_tried_with_nothing_beside_it() -> None:
    made = books(500, workers=2)
    first = numbers(made.grant(0))
    other = numbers(made.grant(1))
    assert made.lost(0, blamed=True)[1] == []
    made.enter(0)
    assert made.grant(1) == []  # it has something else in hand
    assert numbers(made.grant(0)) == first
    for number in first[1:]:
        made.over(0, number)
    assert made.grant(0) == []  # the first one is still a suspect
    made.over(0, first[0])
    assert made.grant(0)
    assert not set(other) & set(first)


def test_a_machine_that_went_down_is_nobodys_fault() -> None:
    made = books(1)
    for _ in range(10):
        assert numbers(made.grant(0)) == [0]
        assert made.lost(0, blamed=False)[1] == []
        made.enter(0)
    assert finish(made, 0) == [0]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 120),
    st.integers(1, 4),
    st.sets(st.integers(0, 120), max_size=4),
    st.lists(st.tuples(st.sampled_from(["step", "node", "kill", "fresh"]), st.integers(0, 3)), max_size=60),
    st.randoms(use_true_random=False),
)
def test_every_medium_is_done_once_or_given_up(
    media: int, workers: int, deadly: set[int], happenings: list[tuple[str, int]], random: object
) -> None:
    """Workers die from deadly media, with their machines, and without a reason, at any moment."""
    made, seen, given_up, kills = books(media, workers), Counter[int](), Counter[int](), 0
    extra = media

    def lose(worker: int, *, blamed: bool) -> None:
        given_up.update(numbers(made.lost(worker, blamed=blamed)[1]))
        made.enter(worker)

    def step(worker: int) -> None:
        made.grant(worker)
        held = [number for number in range(extra) if made.held(worker, number) is not None]
        assert len(held) <= MOST_HELD
        if held:
            number = random.choice(held)  # type: ignore[attr-defined]
            if number in deadly:
                lose(worker, blamed=True)
            else:
                assert made.over(worker, number) is not None
                seen[number] += 1

    for what, who in happenings:
        worker = who % workers
        if what == "step":
            step(worker)
        elif what == "fresh":
            made.add(job(extra), 3.0)
            extra += 1
        elif what == "node" or kills < 2:
            kills += what == "kill"
            lose(worker, blamed=what == "kill")
    for _ in range(100_000):
        if made.is_empty:
            break
        for worker in range(workers):
            step(worker)
    assert made.is_empty
    assert set(seen) | set(given_up) == set(range(extra))
    assert not set(seen) & set(given_up)
    assert set((seen + given_up).values()) <= {1}
    assert set(given_up) <= deadly


def test_a_share_that_is_not_known_to_be_there_is_not_waited_for() -> None:
    made = Books(4)
    made.enter(0)
    assert made.grant(0) == []
    made.add(job(0), 5.0)
    assert numbers(made.grant(0)) == [0]
    with pytest.raises(KeyError):
        made.grant(9)
