"""Every law holds on the roads where hosts are doubted, banned, late, or held against a known answer."""

import functools

import pytest

import laws
from distributio.lifecycle import advance as rules
from distributio.lifecycle.model import Outcome, Policy
from distributio.lifecycle.roads import Roads, explore

ADAPTIVE = Policy(quorum=1, target_tasks=1, max_tasks=3, max_errors=1, adaptive=True, deadline_seconds=10)
ROADS: dict[str, tuple[Policy, int, str]] = {
    "one copy, or two where a host is not trusted": (ADAPTIVE, 1, ""),
    "the same with a validator": (
        Policy(
            quorum=1, target_tasks=1, max_tasks=2, max_errors=0, adaptive=True, validator="own", deadline_seconds=10
        ),
        1,
        "",
    ),
    "one copy whose answer is known": (Policy(max_tasks=3, max_errors=1, deadline_seconds=10), 1, "a"),
    "two must agree, and hosts are banned": (
        Policy(quorum=2, target_tasks=2, max_tasks=3, max_errors=0, deadline_seconds=10),
        1,
        "",
    ),
}


@functools.cache
def roads_of(name: str) -> Roads:
    policy, validators, expect = ROADS[name]
    return explore(policy, validators=validators, expect=expect, distrust=True)


@pytest.mark.parametrize("name", ROADS)
def test_every_law_holds_where_hosts_are_not_trusted(name: str) -> None:
    laws.examine_roads(roads_of(name), rules)


def test_a_known_answer_is_the_only_one_accepted() -> None:
    jobs = [stand.job for stand in roads_of("one copy whose answer is known").steps]
    accepted = {job.tasks[job.canonical_attempt].output_digest for job in jobs if job.canonical_attempt is not None}
    assert accepted == {"a"}
    assert any(task.outcome is Outcome.INVALID_OUTPUT for job in jobs for task in job.tasks)


def test_an_extra_copy_never_raises_the_quorum() -> None:
    for steps in roads_of("two must agree, and hosts are banned").steps.values():
        for step in steps:
            if step.event == "hurried":
                assert step.after.job.quorum == step.before.job.quorum
                assert step.after.job.target_tasks == step.before.job.target_tasks + 1
