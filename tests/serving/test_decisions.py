"""What a step asks for, who has room, and which number is drawn."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from sfl.serving.room import Busy, Never, Room, Rules, Tenant, make_room
from sfl.serving.sampling import Sampling
from sfl.serving.steps import Asked, Compute, Lacking, Repeat, Standing, Unsound, judge

# -- steps ----------------------------------------------------------------------------------------

OPEN = Standing(reserved=100)
TEN = OPEN.answered(Asked(1, 0, 10, 1))


@pytest.mark.parametrize(
    ("asked", "verdict"),
    [
        (Asked(2, 10, 1, 1), Compute(10)),
        (Asked(2, 10, 90, 0), Compute(10)),
        (Asked(7, 4, 3, 3), Compute(4)),  # goes back: what is behind is taken away
        (Asked(2, 0, 5, 1), Compute(0)),
        (Asked(1, 0, 10, 1), Repeat()),  # its answer was lost
        (Asked(2, 11, 1, 1), Lacking(10)),
        (Asked(2, 99, 1, 1), Lacking(10)),
    ],
)
def test_a_step_is_computed_repeated_or_told_what_is_missing(asked: Asked, verdict: object) -> None:
    assert judge(TEN, asked) == verdict


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (Asked(2, 10, 0, 0), "no token"),
        (Asked(2, 10, -1, 0), "no token"),
        (Asked(2, -1, 3, 1), "at -1"),
        (Asked(2, 10, 2, 3), "wants 3"),
        (Asked(2, 10, 2, -1), "wants -1"),
        (Asked(2, 100, 1, 1), "position 100 is beyond the 100"),
        (Asked(2, 10, 91, 1), "position 100 is beyond the 100"),
        (Asked(0, 10, 1, 1), "step 0 came behind step 1"),
        (Asked(2, 10, 3, 4, 3), "wants 4"),
        (Asked(2, 10, 4, 4, 4), "4 guesses in a step of 4 tokens"),
        (Asked(2, 10, 40, 17, 16), "16 guesses in a step of 40 tokens"),
        (Asked(2, 10, 4, 4, -1), "-1 guesses"),
        (Asked(2, 10, 4, 1, 3), "3 guesses in a step that wants 1"),
    ],
)
def test_what_no_device_of_ours_sends_is_told_apart(asked: Asked, reason: str) -> None:
    verdict = judge(TEN, asked)
    assert isinstance(verdict, Unsound) and reason in verdict.reason


def test_of_a_draft_what_was_wrong_is_taken_away() -> None:
    asked = Asked(2, 10, 5, 5, 4)
    assert judge(TEN, asked) == Compute(10)
    assert TEN.answered(asked, 3) == Standing(100, 12, 2)
    assert judge(TEN.answered(asked, 3), Asked(3, 12, 1, 1)) == Compute(12)


def test_what_was_forgotten_is_asked_for_from_its_beginning() -> None:
    gone = TEN.forgotten()
    assert judge(gone, Asked(2, 10, 1, 1)) == Lacking(0)
    assert judge(gone, Asked(3, 0, 11, 1)) == Compute(0)
    assert gone.answered(Asked(3, 0, 11, 1)) == Standing(100, 11, 3)


def test_no_step_leaves_more_than_was_reserved() -> None:
    draw = random.Random(1)
    standing = Standing(reserved=20)
    computed = 0
    for _ in range(3000):
        number = standing.number + draw.randrange(-1, 3)
        drafted = draw.choice((0, 0, 1, 3))
        wanted = drafted + 1 if drafted else draw.randrange(-1, 8)
        position, count = draw.randrange(-1, 24), draw.randrange(-1, 8)
        asked = Asked(number, position, count, wanted, drafted)
        verdict = judge(standing, asked)
        if isinstance(verdict, Compute):
            assert verdict.keep == asked.position <= standing.length
            assert asked.number > standing.number
            standing = standing.answered(asked, draw.randint(0, drafted))
            assert standing.length >= verdict.keep + count - drafted
            computed += 1
        assert 0 <= standing.length <= standing.reserved
    assert computed > 100


# -- room -----------------------------------------------------------------------------------------

RULES = Rules(total=12, idle_seconds=2.0)


def tenant(device: str, name: str, pages: int, last_used: float, busy: bool = False) -> Tenant:
    return Tenant(device, name, pages, last_used, busy)


def test_free_pages_cost_nobody_anything() -> None:
    assert make_room(RULES, "a", 12, [], 0.0) == Room()
    assert make_room(RULES, "a", 4, [tenant("b", "1", 8, 0.0)], 0.0) == Room()


def test_what_can_never_fit_is_refused_at_once() -> None:
    verdict = make_room(RULES, "a", 13, [], 0.0)
    assert verdict == Never("it takes 13 pages, and there are 12 in all")


def test_who_was_not_used_for_longest_leaves() -> None:
    old, older, new = tenant("b", "1", 4, 5.0), tenant("c", "2", 4, 3.0), tenant("d", "3", 4, 9.0)
    assert make_room(RULES, "a", 3, [old, older, new], 20.0) == Room((older,))
    assert make_room(RULES, "a", 6, [old, older, new], 20.0) == Room((older, old))


def test_who_is_in_use_stays() -> None:
    busy, recent = tenant("b", "1", 8, 0.0, busy=True), tenant("c", "2", 4, 9.5)
    assert make_room(RULES, "a", 4, [busy, recent], 10.0) == Busy(1.5)
    assert make_room(RULES, "a", 4, [busy, recent], 11.5) == Room((recent,))
    assert make_room(RULES, "a", 5, [busy, recent], 11.5) == Busy(0.1)
    assert make_room(RULES, "a", 4, [replace(recent, pages=12, busy=True)], 99.0) == Busy(2.0)


def test_a_device_with_more_than_its_share_takes_from_itself_alone() -> None:
    others = [tenant("b", "1", 4, 0.0)]
    own = [tenant("a", str(n), 2, 1.0 + n) for n in range(4)]
    assert make_room(RULES, "a", 2, [*others, *own], 50.0) == Room((own[0],))
    # Somebody whose pages are less than the share gets them of who has more, not of the oldest.
    assert make_room(RULES, "c", 2, [*others, *own], 50.0) == Room((own[0],))


def test_a_device_that_opens_ten_thousand_leaves_the_others_theirs() -> None:
    quiet = [tenant(f"d{n}", "1", 2, 0.0) for n in range(3)]
    tenants = list(quiet)
    for n in range(1000):
        now = 10.0 * n
        verdict = make_room(RULES, "evil", 2, tenants, now)
        assert isinstance(verdict, Room)
        assert not set(verdict.leaving) & set(quiet)
        tenants = [one for one in tenants if one not in verdict.leaving]
        tenants.append(tenant("evil", str(n), 2, now))
    assert set(quiet) <= set(tenants)


@pytest.mark.parametrize("more", [1, 4])
def test_a_conversation_grows_at_the_cost_of_those_who_have_left(more: int) -> None:
    """It has more than its share, and is in use itself: else it would wait for ever."""
    own, others = tenant("a", "1", 4, 100.0, busy=True), [tenant(d, "1", 4, 0.0) for d in "bc"]
    assert make_room(RULES, "a", more, [own, *others], 100.0) == Room((others[0],))
    # Who is here keeps its share: it was used a moment ago.
    here = [replace(one, last_used=95.0) for one in others]
    assert isinstance(make_room(RULES, "a", more, [own, *here], 100.0), Busy)
    gone = [here[0], others[1]]
    assert make_room(RULES, "a", 4, [own, *gone], 100.0) == Room((others[1],))


# -- sampling -------------------------------------------------------------------------------------


def test_numbers_depend_on_seed_conversation_and_position_alone() -> None:
    sampling = Sampling(1.0, 1.0, seed=3, key="c")
    seeds = [sampling.seed_of(n) for n in range(2000)]
    assert seeds == [Sampling(0.5, 0.9, 3, "c").seed_of(n) for n in range(2000)]
    assert len(set(seeds)) == 2000
    for other in (replace(sampling, seed=4), replace(sampling, key="d")):
        assert other.seed_of(5) != sampling.seed_of(5)
    assert seeds[0] == 8586312649444939757  # on every machine


@pytest.mark.parametrize("temperature", [-0.1, 2.1, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_told(temperature: float) -> None:
    assert "temperature" in str(Sampling(temperature).problem())


@pytest.mark.parametrize("top_p", [0.0, -1.0, 1.1, float("nan")])
def test_a_share_that_is_none_is_told(top_p: float) -> None:
    assert "top_p" in str(Sampling(1.0, top_p).problem())
    assert Sampling(1.0, 0.9).problem() is None
