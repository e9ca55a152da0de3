"""May a project have more, and whose turn is it."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributio.lifecycle.quota import (
    HALF_LIFE_SECONDS,
    RESOURCES,
    Exceeded,
    check,
    decayed,
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
