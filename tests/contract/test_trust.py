"""Trust, doubt and credit change in the transaction that decides, the same on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from builders import a_policy
from distributio.lifecycle import trust
from distributio.lifecycle.advance import discredited, hurried
from distributio.lifecycle.model import Job, JobState, Outcome, Policy, Report, TaskState
from distributio.lifecycle.trust import Standing
from distributio.server.submissions import Change
from distributio.server.turns import Returned
from distributio.store import accounts
from distributio.store import credit as credit_store
from distributio.store import trust as trust_store
from distributio.store.database import Database
from distributio.wire.native import JobChoice
from grid import Grid, an_offer, done, ended

ADAPTIVE = a_policy(adaptive=True)
A_DAY = 86_400.0


@pytest.fixture
def grid(database: Database) -> Iterator[Grid]:
    made = Grid(database, hosts_per_user=(1, 1, 1, 2))
    with database.begin() as transaction:
        accounts.set_site_value(transaction, "spot_check_seed", "a seed")
    yield made
    made.audit()
    made.close()


def standing(grid: Grid, host: int) -> Standing:
    with grid.database.read() as transaction:
        found = trust_store.standings(transaction, [grid.hosts[host][0]], [1])
    return found.get((grid.hosts[host][0], 1), trust.NEW)


def prove(grid: Grid, *hosts: int, **fields: Any) -> None:
    """Let these hosts be trusted."""
    earned = Standing(consecutive_valid=1_000, error_rate=0.0, allowance=512, valid=1_000, **fields)
    with grid.database.begin() as transaction:
        app = trust_store.app_for(transaction, "fake", "")
        trust_store.save(transaction, {(grid.hosts[host][0], app): earned for host in hosts})


def not_drawn(grid: Grid, batch: int) -> Job:
    """The first job of a batch that is not drawn for a spot check."""
    return next(job for job in grid.jobs_of(batch) if trust.draw("a seed", job.id) >= trust.LEAST_SPOT_CHECKS)


def worked(task: int, seconds: float = 100.0, digest: str = "sha256:a") -> Returned:
    report = Report(outcome=Outcome.SUCCESS, exit_code=0, output_digest=digest, wall_seconds=seconds)
    return Returned(task=task, report=report)


def credit_of(grid: Grid, host: int) -> int:
    with grid.database.read() as transaction:
        row = transaction.one("SELECT credit FROM hosts WHERE id = :id", id=grid.hosts[host][0])
    assert row is not None
    return int(row[0])


# --- adaptive replication -----------------------------------------------------------------------------------------


def test_a_job_given_to_a_stranger_needs_a_second_copy(grid: Grid) -> None:
    batch = grid.submit(1, ADAPTIVE)
    (sent,) = grid.turn(0, 1).sent
    (job,) = grid.jobs_of(batch)
    assert (job.quorum, len(job.tasks)) == (2, 2)
    grid.turn(0, 0, done(sent.task_id))
    assert grid.jobs_of(batch)[0].state is not JobState.DONE
    grid.work(1)
    assert grid.jobs_of(batch)[0].state is JobState.DONE
    assert standing(grid, 0).consecutive_valid == standing(grid, 1).consecutive_valid == 1


def test_a_job_given_to_a_trusted_host_needs_none_unless_it_is_drawn(grid: Grid) -> None:
    prove(grid, 0)
    batch = grid.submit(100, ADAPTIVE)
    assert len(grid.turn(0, 100).sent) == 100
    for job in grid.jobs_of(batch):
        drawn = trust.draw("a seed", job.id) < trust.LEAST_SPOT_CHECKS
        assert job.quorum == (2 if drawn else 1)


def test_copies_that_may_come_to_be_compared_go_to_different_owners(grid: Grid) -> None:
    grid.submit(1, ADAPTIVE)
    grid.turn(3, 1)
    assert grid.turn(4, 1).rejections == {"same-owner": 1}
    assert grid.turn(0, 1).sent


def test_distrust_spreads_to_what_a_host_found_wrong_still_has(grid: Grid) -> None:
    prove(grid, 0)
    checked = grid.submit(1, a_policy(quorum=2), priority=10)
    (wrong,) = grid.turn(0, 1).sent
    adaptive = grid.submit(40, ADAPTIVE)
    lone = not_drawn(grid, adaptive)
    grid.turn(0, 40, held=[wrong.task_id])
    assert next(job for job in grid.jobs_of(adaptive) if job.id == lone.id).quorum == 1
    grid.turn(0, 0, done(wrong.task_id, "sha256:b"), held=None)
    tasks = [grid.turn(host, 1).sent[0].task_id for host in (1,)]
    grid.turn(1, 0, *map(done, tasks), held=None)
    third = grid.turn(2, 1).sent[0].task_id
    grid.turn(2, 0, done(third), held=None)
    assert grid.jobs_of(checked)[0].state is JobState.DONE
    assert standing(grid, 0).wrong == 1
    assert all(job.quorum == 2 for job in grid.jobs_of(adaptive) if not job.is_decided)


def test_what_comes_with_a_lie_is_not_believed_alone(grid: Grid) -> None:
    """A report that convicts a host, and others of its that would decide alone, in one turn of the ledger."""
    prove(grid, 0)
    known = grid.submit(1, choices=[JobChoice(expect="sha256:a")], priority=10)
    adaptive = grid.submit(40, ADAPTIVE)
    lone = not_drawn(grid, adaptive)
    sent = {each.job_id: each.task_id for each in grid.turn(0, 41).sent}
    (ringer,) = grid.jobs_of(known)
    grid.turn(0, 0, done(sent[ringer.id], "sha256:b"), held=None)
    right = grid.turn(1, 1).sent[0]
    assert right.job_id == ringer.id
    grid.together(
        grid.turn_of(1, 0, [done(right.task_id)], held=None),
        grid.turn_of(0, 0, [done(sent[lone.id])], held=None),
    )
    after = next(job for job in grid.jobs_of(adaptive) if job.id == lone.id)
    assert standing(grid, 0).wrong == 1
    assert (after.quorum, after.is_decided) == (2, False)


# --- bad hosts ----------------------------------------------------------------------------------------------------


def test_a_host_that_fails_everything_is_set_aside_and_comes_back_by_a_probe(grid: Grid) -> None:
    grid.submit(50, a_policy(max_errors=20, max_tasks=40))
    for _ in range(40):
        grid.now += 1
        tasks = [sent.task_id for sent in grid.turn(0, 1, held=None).sent]
        grid.turn(0, 0, *[ended(task, Outcome.ERROR, "engine-error") for task in tasks], held=None)
    aside = standing(grid, 0)
    assert aside.is_set_aside
    assert aside.errors <= 4
    assert grid.turn(0, 8, held=None).rejections.keys() == {"host-set-aside"}
    grid.now = aside.rest_until
    probes = grid.turn(0, 8, held=None)
    assert len(probes.sent) == 1
    assert grid.turn(0, 8, held=None).sent == [], "one at a time"
    grid.turn(0, 0, done(probes.sent[0].task_id), held=None)
    assert not standing(grid, 0).is_set_aside
    assert len(grid.turn(0, 8, held=None).sent) > 1


def test_a_black_hole_does_not_eat_a_batch(grid: Grid) -> None:
    """A host on which every command fails at once, beside one that works on."""
    batch = grid.submit(60)
    grid.turn(1, 1, held=None)
    for _ in range(60):
        grid.now += 0.1
        tasks = [sent.task_id for sent in grid.turn(0, 1, held=None).sent]
        grid.turn(0, 0, *[ended(task, Outcome.FAILED) for task in tasks], held=None)
    failed = sum(job.state is JobState.FAILED for job in grid.jobs_of(batch))
    assert failed == trust.FAILURES_BEFORE_REST
    other = grid.submit(1)
    assert {sent.batch_id for sent in grid.turn(0, 8, held=None).sent} == {other}


def test_a_lone_hosts_failures_are_the_commands(grid: Grid) -> None:
    batch = grid.submit(10)
    for _ in range(10):
        grid.turn(0, 0, *[ended(sent.task_id, Outcome.FAILED) for sent in grid.turn(0, 1).sent])
    assert all(job.state is JobState.FAILED for job in grid.jobs_of(batch))


def test_the_allowance_of_a_day_is_used_up_and_new_tomorrow(grid: Grid) -> None:
    prove(grid, 0)
    with grid.database.begin() as transaction:
        trust_store.save(transaction, {(grid.hosts[0][0], 1): Standing(allowance=2)})
    grid.submit(40)
    offer = an_offer(40, cpus=4)
    assert len(grid.ledger.call(msgspec.structs.replace(grid.turn_of(0, 40, held=None), offer=offer)).sent) == 8
    later = grid.ledger.call(msgspec.structs.replace(grid.turn_of(0, 40, held=None), offer=offer))
    assert later.rejections.keys() == {"daily-allowance"}
    grid.now += A_DAY
    assert grid.ledger.call(msgspec.structs.replace(grid.turn_of(0, 40, held=None), offer=offer)).sent


# --- known answers, classes, the tail -----------------------------------------------------------------------------


def test_a_wrong_answer_to_a_known_question_costs_trust_once_somebody_knew_it(grid: Grid) -> None:
    batch = grid.submit(1, choices=[JobChoice(expect="sha256:a")])
    grid.turn(0, 0, *[done(sent.task_id, "sha256:b") for sent in grid.turn(0, 1).sent], held=None)
    assert standing(grid, 0).wrong == 0
    grid.work(1)
    assert grid.jobs_of(batch)[0].state is JobState.DONE
    assert standing(grid, 0).wrong == 1
    assert standing(grid, 1).consecutive_valid == 1
    assert (credit_of(grid, 0), grid.jobs_of(batch)[0].tasks[0].outcome) == (0, Outcome.INVALID_OUTPUT)


def test_copies_of_a_job_go_to_one_class_of_hosts(grid: Grid) -> None:
    batch = grid.submit(1, Policy(quorum=2, target_tasks=2, alike="cpu"))

    def ask(host: int, model: str) -> Any:
        event = msgspec.structs.replace(grid.turn_of(host, 1), offer=an_offer(1, cpu_model=model))
        return grid.ledger.call(event)

    assert ask(0, "Intel(R) Xeon(R)").sent
    assert ask(1, "AMD EPYC").rejections == {"host-unlike": 1}
    assert ask(2, "Intel Core i7").sent
    assert grid.jobs_of(batch)[0].alike == "linux/amd64/intel"


def test_both_copies_chosen_in_one_turn_are_alike(grid: Grid) -> None:
    grid.submit(1, Policy(quorum=2, target_tasks=2, alike="cpu"))
    events = [
        msgspec.structs.replace(grid.turn_of(host, 1), offer=an_offer(1, cpu_model=model))
        for host, model in enumerate(("Intel", "AMD", "Intel"))
    ]
    first, second, third = grid.together(*events)
    assert first.sent
    assert third.sent
    assert second.rejections == {"host-unlike": 1}


def test_the_last_late_copy_gets_a_rival_on_a_quick_host(grid: Grid) -> None:
    prove(grid, 1, turnaround_seconds=10.0)
    batch = grid.submit(1)
    (late,) = grid.turn(0, 1, held=None).sent
    grid.now += 30
    grid.ledger.call(Change(job_ids=[late.job_id], event=hurried))
    assert grid.turn(2, 1, held=None).rejections == {"host-not-proven": 1}
    assert grid.turn(0, 1, held=None).rejections == {"same-owner": 1}
    (rival,) = grid.turn(1, 1, held=None).sent
    grid.turn(1, 0, done(rival.task_id), held=None)
    (job,) = grid.jobs_of(batch)
    assert (job.state, job.quorum) == (JobState.DONE, 1)
    assert job.tasks[0].outcome is Outcome.NOT_NEEDED
    assert grid.turn(0, 0, held=[late.task_id]).cancel == [late.task_id]


def test_a_banned_hosts_unchecked_work_does_not_count(grid: Grid) -> None:
    batch = grid.submit(1, a_policy(quorum=2))
    grid.work(0)
    (second,) = grid.turn(1, 1).sent
    host = grid.hosts[0][0]
    grid.ledger.call(Change(job_ids=[second.job_id], event=lambda job: discredited(job, host)))
    grid.turn(1, 0, done(second.task_id))
    (job,) = grid.jobs_of(batch)
    assert not job.is_decided
    assert sum(task.state is TaskState.READY for task in job.tasks) == 1


# --- credit -------------------------------------------------------------------------------------------------------


def test_two_that_agree_earn_what_the_lower_of_them_claims(grid: Grid) -> None:
    grid.submit(1, a_policy(quorum=2))
    tasks = [grid.turn(host, 1).sent[0].task_id for host in (0, 1)]
    grid.now += 1_000
    grid.turn(0, 0, worked(tasks[0], 100.0))
    assert credit_of(grid, 0) == 0
    grid.turn(1, 0, worked(tasks[1], 900.0))
    expected = round(100.0 * 200 * 1_000_000 / A_DAY)
    assert credit_of(grid, 0) == credit_of(grid, 1) == expected
    for _ in range(2):
        grid.turn(1, 0, worked(tasks[1], 900.0))
    assert credit_of(grid, 1) == expected


def test_a_lone_result_earns_by_the_apps_average_when_its_batch_was_made(grid: Grid) -> None:
    grid.submit(1)
    (before,) = grid.turn(0, 1).sent
    with grid.database.begin() as transaction:
        transaction.run("UPDATE apps SET confirmed_gflop = 9000, confirmed_seconds = 3000")
        transaction.run("UPDATE hosts SET gflops = 20")
    grid.submit(1)
    (after,) = grid.turn(1, 1).sent
    grid.now += 1_000
    grid.turn(0, 0, worked(before.task_id, 100.0))
    grid.turn(1, 0, worked(after.task_id, 100.0))
    one = 100.0 * 200 * 1_000_000 / A_DAY
    assert (credit_of(grid, 0), credit_of(grid, 1)) == (round(one), round(3 * one))


def test_whoever_agrees_to_it_is_named(grid: Grid) -> None:
    grid.submit(1)
    (sent,) = grid.turn(0, 1).sent
    grid.now += 1_000
    grid.turn(0, 0, worked(sent.task_id))
    with grid.database.begin() as transaction:
        ((_, earned, _, shows),) = credit_store.leaders(transaction, 10)
        assert (earned > 0, shows) == (True, False)
        credit_store.show_name(transaction, grid.hosts[0][1], True)
        assert credit_store.leaders(transaction, 10)[0][3]
        assert credit_store.of_user(transaction, grid.hosts[0][1])[0] == earned
