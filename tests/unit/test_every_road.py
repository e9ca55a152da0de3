"""Every stand that events can bring a small job to is visited, and every law is checked there and on the way."""

import functools

import pytest

import laws
from distributio.lifecycle import advance as rules
from distributio.lifecycle.model import (
    FilesState,
    HandOver,
    JobState,
    Outcome,
    Policy,
    Reason,
    TaskState,
    Validity,
)
from distributio.lifecycle.roads import NOW, Roads, explore, happenings


def a_small_policy(quorum: int, copies: int, **fields: object) -> Policy:
    defaults: dict[str, object] = {"target_tasks": quorum, "max_errors": 1, "deadline_seconds": 10}
    return Policy(quorum=quorum, max_tasks=copies, **(defaults | fields))  # type: ignore[arg-type]


# The policy, and how many validators with code of their own may be thinking of the job at once.
ROADS: dict[str, tuple[Policy, int]] = {
    "one copy is enough": (a_small_policy(1, 3, max_failures=1), 1),
    "one copy, tried once": (a_small_policy(1, 1), 1),
    "one of two copies at once": (a_small_policy(1, 3, target_tasks=2, max_failures=1), 1),
    "more are asked for than allowed": (a_small_policy(1, 2, target_tasks=3), 1),
    "two must agree": (a_small_policy(2, 4), 1),
    "two must agree, few outputs": (a_small_policy(2, 3, max_successes=1, max_failures=1), 1),
    "two must agree, one is asked for": (a_small_policy(2, 3, target_tasks=1), 1),
    "three must agree": (a_small_policy(3, 4, max_errors=0), 1),
    "three must agree, two copies are allowed": (a_small_policy(3, 2), 1),
    "a validator checks one": (a_small_policy(1, 2, validator="own"), 2),
    "a validator compares two": (a_small_policy(2, 3, validator="own"), 1),
    "a validator compares two, few outputs": (a_small_policy(2, 3, validator="own", max_errors=0, max_successes=1), 1),
    "a validator compares three": (a_small_policy(3, 3, validator="own"), 1),
    "two validators at odds": (a_small_policy(2, 2, validator="own"), 2),
}


@functools.cache
def roads_of(name: str) -> Roads:
    policy, validators = ROADS[name]
    return explore(policy, validators=validators)


@pytest.mark.parametrize("name", ROADS)
def test_every_law_holds_on_every_road(name: str) -> None:
    laws.examine_roads(roads_of(name), rules)


def test_every_word_is_met_on_some_road() -> None:
    jobs = [stand.job for name in ROADS for stand in roads_of(name).steps]
    tasks = [task for job in jobs for task in job.tasks]
    assert {job.state for job in jobs} == set(JobState)
    assert {reason for job in jobs for reason in job.reasons} == set(Reason)
    assert {job.hand_over for job in jobs} == set(HandOver)
    assert {job.files for job in jobs} == set(FilesState)
    assert {task.state for task in tasks} == set(TaskState)
    assert {task.outcome for task in tasks} == set(Outcome)
    assert {task.validity for task in tasks} == set(Validity)


@pytest.mark.parametrize("name", ["one of two copies at once", "two must agree, few outputs", "a validator checks one"])
def test_two_events_at_once_are_no_worse(name: str) -> None:
    """The ledger applies several events to a job before it draws conclusions."""
    for job in {stand.job for stand in roads_of(name).steps}:
        for first, once in happenings(job, rules):
            for second, twice in happenings(once, rules):
                after = rules.advance(twice, NOW)
                laws.examine_stand(after, rules)
                laws.examine_step(job, (first, second), after)
