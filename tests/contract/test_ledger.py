"""The ledger on SQLite and on PostgreSQL: what was answered is kept, and everything adds up in whatever order it comes."""

import random
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from builders import a_policy
from databases import Cluster
from distributio.lifecycle.model import JobState, Outcome, TaskState
from distributio.server.ledger import MOST_NOTICE_BYTES, Notices, announce
from distributio.server.submissions import Cancel, Change, IdempotencyConflict, QuotaExceeded
from distributio.server.turns import HostAnswer
from distributio.store import accounts, jobs, logs
from distributio.store.database import Database
from grid import LARGE, SHAPE, Grid, an_offer, done, ended


@pytest.fixture
def grid(database: Database) -> Iterator[Grid]:
    made = Grid(database)
    yield made
    made.close()
    made.audit()


def states(grid: Grid, batch: int) -> list[str]:
    return [job.state.value for job in grid.jobs_of(batch)]


# --- one thing after another ------------------------------------------------------------------------------------


def test_a_job_goes_its_way(grid: Grid) -> None:
    batch = grid.submit(2)
    sent = grid.turn(0, 1).sent
    assert [(each.batch_id, each.position) for each in sent] == [(batch, 1)]
    assert states(grid, batch) == ["running", "waiting"]
    answer = grid.turn(0, 0, done(sent[0].task_id))
    assert answer.acknowledged == [sent[0].task_id]
    assert states(grid, batch) == ["done", "waiting"]
    grid.work(1)
    grid.hand_over()
    grid.delete()
    assert [job.files.value for job in grid.jobs_of(batch)] == ["deleted", "deleted"]


def test_reports_that_do_not_count_are_acknowledged_and_change_nothing(grid: Grid) -> None:
    batch = grid.submit(1)
    task = grid.turn(0, 1).sent[0].task_id
    foreign = grid.turn(1, 0, done(task), done(10**12))
    assert foreign.acknowledged == [task, 10**12]
    assert states(grid, batch) == ["running"]
    twice = grid.turn(0, 0, done(task), done(task, "sha256:b"), held=[task])
    assert twice.acknowledged == [task, task]
    assert twice.cancel == [task]
    assert [each.output_digest for each in grid.jobs_of(batch)[0].tasks] == ["sha256:a"]
    again = grid.turn(0, 0, ended(task, Outcome.ERROR))
    assert again.acknowledged == [task]
    assert states(grid, batch) == ["done"]


def test_a_late_report_helps_while_the_job_is_open(grid: Grid) -> None:
    batch = grid.submit(1)
    task = grid.turn(0, 1).sent[0].task_id
    grid.now += a_policy().deadline_seconds
    grid.expire()
    second = grid.turn(1, 1).sent[0].task_id
    assert second != task
    assert grid.turn(0, 0, done(task)).acknowledged == [task]
    assert states(grid, batch) == ["done"]
    assert grid.turn(1, 0, held=[second]).cancel == [second]


def test_what_was_sent_and_never_arrived_is_sent_again(grid: Grid) -> None:
    grid.submit(3)
    first = grid.turn(0, 2).sent
    again = grid.turn(0, 3, held=[first[0].task_id])
    assert again.sent == [first[1]]
    assert grid.turn(0, 3, held=[each.task_id for each in first]).sent != first


def test_a_host_that_says_nothing_of_what_it_holds_is_sent_nothing_again(grid: Grid) -> None:
    grid.submit(1)
    assert len(grid.turn(0, 1, held=None).sent) == 1
    assert grid.turn(0, 1, held=None).sent == []


def test_what_a_host_lost_in_a_restart_goes_to_another(grid: Grid) -> None:
    batch = grid.submit(2)
    first, second = (each.task_id for each in grid.turn(0, 2).sent)
    answer = grid.turn(0, 0, done(second), held=[], is_start=True)
    assert answer.acknowledged == [second]
    assert states(grid, batch) == ["waiting", "done"]
    lost = grid.jobs_of(batch)[0].tasks[0]
    assert (lost.id, lost.outcome, lost.cause) == (first, Outcome.ABANDONED, "host-restarted")
    assert grid.turn(1, 1).sent[0].attempt == 1
    kept = grid.submit(1)
    held = grid.turn(2, 1).sent[0].task_id
    grid.turn(2, 0, held=[held], is_start=True)
    assert states(grid, kept) == ["running"]


def test_cancelled_tasks_are_called_off(grid: Grid) -> None:
    batch = grid.submit(3)
    held = [each.task_id for each in grid.turn(0, 2).sent]
    grid.cancel(batch)
    assert states(grid, batch) == ["cancelled"] * 3
    assert sorted(grid.turn(0, 1, held=held).cancel) == sorted(held)
    assert grid.turn(0, 0, done(held[0])).acknowledged == [held[0]]
    assert states(grid, batch) == ["cancelled"] * 3


def test_one_job_alone_is_cancelled(grid: Grid) -> None:
    batch = grid.submit(2)
    grid.ledger.call(Cancel(batch_id=batch, job_id=grid.jobs_of(batch)[0].id))
    assert states(grid, batch) == ["cancelled", "waiting"]


def test_a_log_is_whole_when_the_host_never_heard_that_its_first_piece_came(grid: Grid) -> None:
    grid.submit(1)
    task = grid.turn(0, 1).sent[0].task_id
    with grid.database.begin() as transaction:
        logs.keep(transaction, [(task, 0, b"start\n")])  # and the answer was lost: the host sends from the start again
    returned = done(task)
    returned.log, returned.log_offset = b"start\nend\n", 0
    grid.turn(0, 0, returned)
    with grid.database.begin() as transaction:
        logs.keep(transaction, [(task, 0, b"start\n")])  # late, and shorter than what is there
        assert logs.read(transaction, task) == b"start\nend\n"
        assert logs.read_many(transaction, [task, task + 1]) == {task: b"start\nend\n"}


def test_progress_and_outputs_are_kept_until_they_are_handed_over(grid: Grid) -> None:
    grid.submit(1)
    task = grid.turn(0, 1).sent[0].task_id
    grid.turn(0, 0, held=[task])
    returned = done(task)
    returned.output, returned.log = b"tar", b"100 % \xff\x00"
    grid.turn(0, 0, returned, returned)
    count = "SELECT (SELECT count(*) FROM progress), (SELECT count(*) FROM outputs), (SELECT count(*) FROM logs)"
    with grid.database.read() as transaction:
        assert transaction.one(count) == (1, 1, 1)
    grid.hand_over()
    with grid.database.read() as transaction:
        assert transaction.one(count) == (0, 0, 1)


def test_outputs_that_differ_wait_for_a_third(grid: Grid) -> None:
    batch = grid.submit(1, a_policy(quorum=2))
    first, second = (grid.turn(host, 1).sent[0].task_id for host in (0, 1))
    grid.turn(0, 0, done(first, "sha256:a"))
    grid.turn(1, 0, done(second, "sha256:b"))
    assert states(grid, batch) == ["waiting"]
    third = grid.turn(2, 1).sent[0].task_id
    grid.turn(2, 0, done(third, "sha256:b"))
    job = grid.jobs_of(batch)[0]
    assert (job.state, job.canonical_attempt) == (JobState.DONE, 1)


# --- who gets what ----------------------------------------------------------------------------------------------


def test_an_owner_has_one_copy_of_a_job(database: Database) -> None:
    grid = Grid(database, hosts_per_user=(3, 1))
    batch = grid.submit(4, a_policy(quorum=2))
    for host in (0, 1, 2):
        grid.turn(host, 10)
    tasks = [task for job in grid.jobs_of(batch) for task in job.tasks]
    assert Counter(task.state for task in tasks) == {TaskState.IN_PROGRESS: 4, TaskState.READY: 4}
    assert grid.turn(1, 10, held=None).rejections["same-owner"] >= 1
    assert len(grid.turn(3, 10).sent) == 4
    grid.close()
    grid.audit()


def test_an_owner_with_many_copies_out_still_gets_what_lies_behind(grid: Grid) -> None:
    grid.submit(100, a_policy(quorum=2))
    taken = [len(grid.turn(0, 25, held=None).sent) for _ in range(4)]
    assert taken == [25] * 4
    assert grid.turn(0, 25, held=None).sent == []
    assert [len(grid.turn(1, 50, held=None).sent) for _ in range(2)] == [50] * 2


def test_a_copy_given_back_may_not_come_beside_another_of_the_owner(grid: Grid) -> None:
    batch = grid.submit(1, a_policy(quorum=2, target_tasks=2))
    first = grid.turn(0, 1).sent[0].task_id
    grid.turn(0, 0, ended(first, Outcome.ABANDONED, "owner-stopped"))
    second = grid.turn(0, 1).sent[0].task_id
    grid.turn(0, 0, done(second))
    assert grid.turn(0, 0, done(first)).acknowledged == [first]
    assert states(grid, batch) != ["done"]


def test_a_host_that_just_failed_a_job_rests(grid: Grid) -> None:
    grid.submit(1)
    task = grid.turn(0, 1).sent[0].task_id
    grid.turn(0, 0, ended(task, Outcome.ERROR, "engine-error"))
    assert set(grid.turn(0, 1).rejections) <= {"host-just-failed", "host-resting"}
    grid.now += 60
    assert len(grid.turn(0, 1).sent) == 1


def test_a_host_that_left_is_given_nothing(grid: Grid) -> None:
    grid.submit(1)
    with grid.database.begin() as transaction:
        accounts.detach_host(transaction, grid.hosts[0][0])
    assert grid.turn(0, 5).sent == []
    assert len(grid.turn(1, 5).sent) == 1


def test_priority_orders_a_queue(grid: Grid) -> None:
    low, high, middle = (grid.submit(2, priority=priority) for priority in (-1, 7, 0))
    assert [each.batch_id for each in grid.turn(0, 6).sent] == [high, high, middle, middle, low, low]


@pytest.mark.parametrize("at_once", [1, 6])
def test_priority_orders_the_queues_of_a_project(grid: Grid, at_once: int) -> None:
    batches = [
        grid.submit(1, priority=0, shape=SHAPE),
        grid.submit(1, priority=5, shape=LARGE),
        grid.submit(1, priority=9, shape=SHAPE),
        grid.submit(1, priority=0, shape=LARGE),
        grid.submit(1, priority=-3, shape=SHAPE),
        grid.submit(1, priority=7, shape=LARGE),
    ]
    sent = [each.batch_id for _ in range(6 // at_once) for each in grid.turn(0, at_once, held=None).sent]
    assert sent == [batches[index] for index in (2, 5, 1, 0, 3, 4)]


def test_projects_share_evenly(grid: Grid) -> None:
    first = grid.submit(400, project=0)
    grid.submit(400, project=1)
    got: Counter[bool] = Counter()
    draw = random.Random(5)
    for _ in range(60):
        sent = grid.turn(draw.randrange(3), draw.randint(1, 6), held=None).sent
        got.update(each.batch_id == first for each in sent)
        grid.now += 10
    assert got.total() > 100
    assert abs(got[True] - got[False]) <= 0.1 * got.total()


def test_projects_share_by_their_weight_and_by_processors(grid: Grid) -> None:
    with grid.database.begin() as transaction:
        transaction.run("UPDATE projects SET weight = 3 WHERE id = :id", id=grid.projects[0])
    first = grid.submit(400, project=0, shape=LARGE)
    grid.submit(400, project=1, shape=SHAPE)
    cores: Counter[bool] = Counter()
    for _ in range(40):
        for each in grid.turn(0, 5, held=None).sent:
            cores[each.batch_id == first] += 2 if each.batch_id == first else 1
    assert 0.9 * 3 <= cores[True] / cores[False] <= 1.1 * 3


def test_a_project_that_waits_alone_owes_nothing_later(grid: Grid) -> None:
    grid.submit(50, project=0)
    grid.turn(0, 50)
    first, second = grid.submit(20, project=0), grid.submit(20, project=1)
    got = Counter(each.batch_id for each in grid.turn(1, 20).sent)
    assert abs(got[first] - got[second]) <= 2


def test_a_host_is_filled_and_not_overfilled(grid: Grid) -> None:
    grid.submit(10, shape=LARGE)
    grid.submit(10, shape=SHAPE)
    offer = an_offer(100, free_cpus=5.0)
    turn = grid.turn_of(0, 1)
    turn.offer = offer
    answer: HostAnswer = grid.ledger.call(turn)
    shapes = Counter(grid.jobs_of(each.batch_id)[0].id for each in answer.sent)
    assert len(answer.sent) == 3
    assert max(shapes.values()) == 2
    assert answer.rejections["host-busy"] > 0


def test_quotas_hold(grid: Grid) -> None:
    with grid.database.begin() as transaction:
        accounts.set_limit(transaction, grid.projects[0], "jobs_in_flight", 5)
    first = grid.submit(3)
    with pytest.raises(QuotaExceeded, match="jobs in flight"):
        grid.submit(3)
    assert grid.submit(3, project=1) > first
    answers = grid.together(grid.submission(2), grid.submission(2), grid.submission(1))
    assert [isinstance(answer, QuotaExceeded) for answer in answers] == [False, True, True]
    grid.cancel(first)
    grid.submit(3)


def test_the_same_key_is_the_same_batch(grid: Grid) -> None:
    first = grid.submit(2, idempotency_key="k: %s", request_digest="a")
    assert grid.submit(2, idempotency_key="k: %s", request_digest="a") == first
    assert grid.submit(2, idempotency_key="k: %s", request_digest="a", project=1) != first
    with pytest.raises(IdempotencyConflict):
        grid.submit(3, idempotency_key="k: %s", request_digest="b")
    answers = grid.together(*[grid.submission(1, idempotency_key="n", request_digest="n") for _ in range(3)])
    assert len(set(answers)) == 1


def test_a_large_batch_goes_in_and_out(database: Database) -> None:
    grid = Grid(database)
    batch = grid.submit(20_000, a_policy(quorum=1))
    assert len(grid.turn(0, 500).sent) == 500
    grid.cancel(batch)
    grid.close()
    with database.read() as transaction:
        assert transaction.one("SELECT cancelled, ended_at IS NULL FROM batches") in ((20_000, False), (20_000, 0))
        assert transaction.one("SELECT ready FROM queues") == (0,)
        assert transaction.one("SELECT used FROM usages") == (0,)


# --- many at once -----------------------------------------------------------------------------------------------


def test_events_of_one_turn_see_each_other(grid: Grid) -> None:
    batch = grid.submit(2)
    held = [each.task_id for each in grid.turn(0, 2).sent]
    answers = grid.together(
        grid.turn_of(0, reports=[done(held[0])]),
        grid.turn_of(0, reports=[done(held[0], "sha256:b")]),
        grid.turn_of(1, 5),
        grid.turn_of(2, 5),
        Cancel(batch_id=batch),
        grid.submission(3),
    )
    assert [answer.acknowledged for answer in answers[:2]] == [[held[0]]] * 2
    assert states(grid, batch) == ["done", "cancelled"]
    assert grid.ledger.depth() == 0


def test_one_bad_event_fails_alone(grid: Grid) -> None:
    batch = grid.submit(3)

    def explode(job: Any) -> Any:
        raise RuntimeError("bang")

    numbers = [job.id for job in grid.jobs_of(batch)]
    answers = grid.together(
        grid.turn_of(0, 1),
        Change(job_ids=numbers, event=explode),
        grid.submission(1),
        grid.turn_of(1, 1),
        Cancel(batch_id=10**9),
    )
    assert isinstance(answers[1], RuntimeError)
    assert [len(answers[index].sent) for index in (0, 3)] == [1, 1]
    assert answers[0].sent != answers[3].sent
    assert isinstance(answers[2], int)


def test_a_value_the_database_cannot_hold_fails_alone(grid: Grid) -> None:
    answers = grid.together(grid.submission(1), grid.submission(1, priority=2**80), grid.submission(1))
    assert isinstance(answers[1], Exception)
    assert [type(answers[index]) for index in (0, 2)] == [int, int]


def test_news_that_cannot_be_told_does_not_undo_what_was_done(database: Database) -> None:
    grid = Grid(database)

    def deaf(notices: Notices) -> None:
        raise RuntimeError("nobody there")

    grid.ledger._tell = deaf
    batch = grid.submit(2)
    assert grid.submit(1) == batch + 1
    grid.close()
    grid.audit()
    with database.read() as transaction:
        assert transaction.one("SELECT count(*) FROM batches") == (2,)


def test_news_name_what_changed(grid: Grid) -> None:
    batch = grid.submit(2)
    news = grid.notices[-1]
    assert (news.batches, sum(news.ready.values())) == ({batch}, 2)
    task = grid.turn(0, 1).sent[0].task_id
    assert grid.notices[-1].jobs == {grid.jobs_of(batch)[0].id}
    returned = done(task)
    returned.log = b"line"
    grid.turn(0, 0, returned)
    assert grid.notices[-1].hand_over
    assert grid.notices[-1].logs == {task}
    grid.hand_over()
    assert grid.notices[-1].released


def test_news_of_any_length_can_be_sent(postgresql_url: str) -> None:
    database = Database(postgresql_url)
    for count in (1, 500, 5000):
        news = Notices(ready=dict.fromkeys(range(count), 3), jobs=set(range(count)), batches={1}, hand_over=True)
        with database.begin() as transaction:
            transaction.run("DELETE FROM site")
            announce(transaction, news)
        assert len(msgspec.json.encode(news)) > MOST_NOTICE_BYTES or count < 5000
    database.close()


class Crowd:
    """Hosts and people who say things to one of several ledgers, from a thread each."""

    def __init__(self, grids: list[Grid]) -> None:
        self.grids = grids
        self.handed_out: list[int] = []
        self.failures: list[BaseException] = []
        self._lock = threading.Lock()

    def run(self, threads: int) -> None:
        started = [threading.Thread(target=self._live, args=(number,)) for number in range(threads)]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()

    def _live(self, number: int) -> None:
        draw = random.Random(number)
        grid = self.grids[number % len(self.grids)]
        held: dict[int, list[int]] = {host: [] for host in range(8)}
        try:
            for _ in range(25):
                self._turn(grid, held, draw)
                if draw.random() < 0.1:
                    policy = a_policy(quorum=draw.randint(1, 2))
                    batch = grid.submit(draw.randint(1, 5), policy, project=draw.randrange(2))
                    if draw.random() < 0.5:
                        grid.cancel(batch)
                draw.choice([grid.hand_over, grid.delete, *[grid.expire] * 8])()
        except BaseException as error:
            self.failures.append(error)

    def _turn(self, grid: Grid, held: dict[int, list[int]], draw: random.Random) -> None:
        host = draw.randrange(8)
        reports = [done(task) for task in held[host] if draw.random() < 0.7]
        if draw.random() < 0.2 and reports:
            reports[0] = ended(reports[0].task, draw.choice([Outcome.ERROR, Outcome.ABANDONED, Outcome.FAILED]))
        answer = grid.turn(host, draw.randint(0, 4), *reports, held=None)
        held[host] = [task for task in held[host] if task not in answer.acknowledged]
        held[host] += [each.task_id for each in answer.sent]
        with self._lock:
            self.handed_out.extend(each.task_id for each in answer.sent)


def test_ledgers_of_several_processes_share_the_work(postgresql_url: str) -> None:
    grids = [Grid(Database(postgresql_url), hosts_per_user=(2, 2, 2, 2))]
    grids += [grids[0].beside(Database(postgresql_url)) for _ in range(2)]
    batches = [grids[0].submit(30, a_policy(quorum=quorum, max_tasks=30), project=quorum % 2) for quorum in (1, 2)]
    crowd = Crowd(grids)
    crowd.run(6)
    for grid in grids:
        grid.close()
    assert crowd.failures == []
    assert len(crowd.handed_out) == len(set(crowd.handed_out))
    grids[0].audit()
    assert len(grids[0].jobs_of(batches[0])) == 30
    for grid in grids:
        grid.database.close()


# --- any order --------------------------------------------------------------------------------------------------

OUTCOMES = st.sampled_from([Outcome.SUCCESS] * 4 + [Outcome.FAILED, Outcome.ERROR, Outcome.ABANDONED])
REPORT = st.tuples(st.integers(0, 50), OUTCOMES, st.sampled_from(["sha256:a", "sha256:a", "sha256:b"]))
SUBMIT = st.tuples(
    st.just("submit"),
    st.integers(1, 3),
    st.builds(
        a_policy,
        quorum=st.integers(1, 3),
        max_failures=st.integers(0, 2),
        max_errors=st.integers(0, 2),
        max_tasks=st.integers(4, 6),
        max_successes=st.integers(3, 4),
        deadline_seconds=st.sampled_from([50, 500]),
    ),
    st.integers(-1, 1),
    st.sampled_from([SHAPE, LARGE]),
    st.integers(0, 1),
)
TURN = st.tuples(
    st.just("turn"),
    st.integers(0, 3),
    st.integers(0, 4),
    st.lists(REPORT, max_size=3),
    st.sampled_from(["all", "none", "silent"]),
    st.booleans(),
)
EVENT = st.one_of(SUBMIT, TURN, TURN, TURN, TURN, st.tuples(st.just("cancel"), st.integers(0, 9)))
STEP = st.one_of(
    st.lists(EVENT, min_size=1, max_size=4),
    st.sampled_from(["hand over", "delete", "a minute", "an hour", "expire", "expire"]),
)
WALK = st.lists(STEP, min_size=4, max_size=25)


class Walker:
    """Takes a walk's steps, and remembers which tasks were ever sent to whom."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.batches: list[int] = []
        self.sent: list[int] = []
        self.held: dict[int, list[int]] = {host: [] for host in range(4)}

    def step(self, step: Any) -> None:
        grid = self.grid
        if step == "hand over":
            grid.hand_over()
        elif step == "delete":
            grid.delete()
        elif step == "a minute":
            grid.now += 60
        elif step == "an hour":
            grid.now += 3600
        elif step == "expire":
            grid.expire()
        else:
            events = [self.event(words) for words in step]
            events = [event for event in events if event is not None]
            if events:
                for words, answer in zip(step, self.grid.together(*events), strict=False):
                    self.take(words, answer)

    def event(self, words: Any) -> Any:
        if words[0] == "submit":
            _, count, policy, priority, shape, project = words
            return self.grid.submission(count, policy, priority=priority, shape=shape, project=project)
        if words[0] == "cancel":
            return Cancel(batch_id=self.batches[words[1] % len(self.batches)] if self.batches else 10**9)
        _, host, want, reports, held, is_start = words
        returned = []
        for index, outcome, digest in reports:
            task = self.sent[-1 - index % len(self.sent)] if self.sent else 10**9
            returned.append(done(task, digest) if outcome is Outcome.SUCCESS else ended(task, outcome))
        holds = {"all": self.held[host], "none": [], "silent": None}[held]
        return self.grid.turn_of(host, want, returned, holds, is_start=is_start and holds is not None)

    def take(self, words: Any, answer: Any) -> None:
        assert not isinstance(answer, Exception), answer
        if words[0] == "submit":
            self.batches.append(answer)
        if words[0] == "turn":
            host = words[1]
            assert len(answer.acknowledged) == len(words[3])
            fresh = [each.task_id for each in answer.sent]
            assert len(fresh) == len(set(fresh))
            gone = {*answer.acknowledged, *answer.cancel}
            self.held[host] = [task for task in self.held[host] if task not in gone and task not in fresh] + fresh
            self.sent += [task for task in fresh if task not in self.sent]


def walk(grid: Grid, steps: list[Any]) -> None:
    walker = Walker(grid)
    for step in steps:
        walker.step(step)
    grid.audit()
    # However it went, it can be brought to an end.
    for batch in walker.batches:
        grid.cancel(batch)
    grid.hand_over()
    grid.delete()
    grid.audit()
    with grid.database.read() as transaction:
        assert jobs.to_hand_over(transaction, 9) == []
        assert transaction.one("SELECT count(*) FROM batches WHERE ended_at IS NULL") == (0,)
        assert transaction.one("SELECT count(*) FROM outputs") == (0,)


WALKING = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


@settings(WALKING, max_examples=80)
@given(steps=WALK)
def test_any_order_adds_up_on_sqlite(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory, steps: Any
) -> None:
    path = tmp_path_factory.mktemp("walk") / "site.db"
    shutil.copy(sqlite_template, path)
    database = Database(f"sqlite:///{path}")
    grid = Grid(database, hosts_per_user=(2, 1, 1))
    try:
        walk(grid, steps)
    finally:
        grid.close()
        database.close()


@settings(WALKING, max_examples=12)
@given(steps=WALK)
def test_any_order_adds_up_on_postgresql(cluster: Cluster, steps: Any) -> None:
    url = cluster.create_ready()
    database = Database(url)
    grid = Grid(database, hosts_per_user=(2, 1, 1))
    try:
        walk(grid, steps)
    finally:
        grid.close()
        database.close()
        cluster.drop(url)
