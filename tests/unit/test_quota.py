"""May a project have more, and whose turn is it."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributio.lifecycle.quota import (
    HALF_LIFE_SECONDS,
    RESOURCES,
    Exceeded,
    Share,
    check,
    decayed,
    share_order,
    used_more,
)

amounts = st.dictionaries(st.sampled_from([*RESOURCES, "gpus_in_use"]), st.integers(0, 100))


@given(limits=amounts, usage=amounts, request=amounts)
def test_a_limit_is_named_exactly_when_it_would_be_passed(
    limits: dict[str, int], usage: dict[str, int], request: dict[str, int]
) -> None:
    named = {each.resource: each for each in check(limits, usage, request)}
    for resource, asked in request.items():
        used = usage.get(resource, 0)
        passes = asked > 0 and resource in limits and used + asked > limits[resource]
        assert (resource in named) == passes
    assert all(each.used == usage.get(each.resource, 0) for each in named.values())


def test_what_is_granted_never_passes_a_limit() -> None:
    limits, usage = {"jobs_in_flight": 10}, {"jobs_in_flight": 0}
    draw = random.Random(3)
    for _ in range(50):
        asked = draw.randrange(5)
        if not check(limits, usage, {"jobs_in_flight": asked}):
            usage["jobs_in_flight"] += asked
        assert usage["jobs_in_flight"] <= 10


def test_a_project_over_its_limit_may_ask_for_other_things() -> None:
    assert check({"jobs_in_flight": 5, "storage_bytes": 10}, {"jobs_in_flight": 9}, {"storage_bytes": 10}) == []


def test_what_is_exceeded_is_said_in_words() -> None:
    (exceeded,) = check({"jobs_in_flight": 100}, {"jobs_in_flight": 98}, {"jobs_in_flight": 3})
    assert exceeded == Exceeded("jobs_in_flight", 100, 98, 3)
    assert str(exceeded) == "3 more jobs in flight are asked for and 2 are left: 98 of 100 are used"


def test_a_past_use_halves_in_its_half_life() -> None:
    assert decayed(8.0, 0.0, HALF_LIFE_SECONDS) == pytest.approx(4.0)
    assert decayed(8.0, 100.0, 50.0) == 8.0


shares = st.builds(
    Share,
    project_id=st.integers(1, 9),
    used=st.floats(0, 1e6),
    used_at=st.floats(0, 1e5),
    weight=st.sampled_from([0.0, 0.5, 1.0, 4.0]),
)


@given(st.lists(shares, unique_by=lambda share: share.project_id), st.floats(0, 1e6))
def test_who_had_least_for_its_weight_comes_first(found: list[Share], now: float) -> None:
    order = share_order(found, now, random.Random(1).random)
    assert sorted(share.project_id for share in order) == sorted(share.project_id for share in found)
    weighted = [decayed(share.used, share.used_at, now) / share.weight for share in order if share.weight]
    assert weighted == sorted(weighted)
    assert [share.weight == 0 for share in order] == sorted(share.weight == 0 for share in order)


def test_equals_take_turns_by_chance() -> None:
    draw = random.Random(5)
    equals = [Share(project_id=n) for n in range(3)]
    firsts = {share_order(equals, 0.0, draw.random)[0].project_id for _ in range(40)}
    assert firsts == {0, 1, 2}


@given(weights=st.lists(st.sampled_from([1.0, 2.0, 3.0]), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_over_time_each_gets_what_it_is_due(weights: list[float], seed: int) -> None:
    draw = random.Random(seed)
    waiting = {n: Share(project_id=n, weight=weight) for n, weight in enumerate(weights)}
    served = [0] * len(weights)
    for tick in range(1200):
        first = share_order(waiting.values(), float(tick), draw.random)[0]
        served[first.project_id] += 1
        waiting[first.project_id] = used_more(first, 1.0, float(tick))
    for count, weight in zip(served, weights, strict=True):
        assert count == pytest.approx(1200 * weight / sum(weights), rel=0.05, abs=8)


def test_a_newcomer_goes_first_and_does_not_starve_the_others() -> None:
    old, new = Share(project_id=1, used=500.0, used_at=0.0), Share(project_id=2)
    turns = []
    for tick in range(2 * int(HALF_LIFE_SECONDS)):
        first = share_order([old, new], float(tick), lambda: 0.0)[0]
        turns.append(first.project_id)
        if first.project_id == 1:
            old = used_more(old, 1.0, float(tick))
        else:
            new = used_more(new, 1.0, float(tick))
    assert turns[0] == 2
    assert turns[-100:].count(1) == pytest.approx(50, abs=2)
