"""Jobs are read whole, written by their differences, and claimed once; on SQLite and on PostgreSQL."""

import threading
from collections.abc import Iterator

import msgspec
import pytest
from msgspec.structs import replace

from auditor import audit
from builders import NOW, a_policy, a_report
from distributio.lifecycle import advance as rules
from distributio.lifecycle import quota
from distributio.lifecycle.dispatch import Shape
from distributio.lifecycle.model import Job, JobState, Outcome, Policy, TaskState, Validity, new_job
from distributio.server.ledger import Ids, Work
from distributio.server.submissions import Submit, apply_submissions
from distributio.store import accounts, catalog, jobs, logs, queues, views
from distributio.store.database import Database, Transaction
from distributio.wire.native import HostFacts, JobChoice, Spec


class Store:
    """A database with a project, a user and two hosts, and what tests do with it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.ids = Ids()
        self.lanes = jobs.Lanes()
        with database.begin() as transaction:
            self.user = accounts.create_user(transaction, "ada", NOW)
            self.project = accounts.create_project(transaction, "pulsar", NOW)
            accounts.set_role(transaction, self.user, self.project, "member")
            for _ in range(2):
                accounts.attach_host(transaction, self.user, HostFacts(), NOW)

    def submit(
        self,
        count: int = 1,
        policy: Policy | None = None,
        priority: int = 0,
        shape: Shape | None = None,
        choices: list[JobChoice] | None = None,
    ) -> int:
        event = Submit(
            project_id=self.project,
            user_id=self.user,
            name="n: 100 %",
            labels='{"a": "%s"}',
            spec=msgspec.json.encode(Spec(runner="fake", command=["echo", "{x}"])).decode(),
            policy=policy or a_policy(),
            shape=shape or Shape(runner="fake"),
            image_id=None,
            priority=priority,
            count=count,
            choices=choices,
            input_digests=[],
            idempotency_key=None,
            request_digest="",
        )
        with self.database.begin() as transaction:
            answer = apply_submissions(Work(transaction, self.lanes, self.ids, NOW), [event])[0]
        assert isinstance(answer, int)
        return answer

    def load(self, transaction: Transaction, batch: int) -> list[jobs.Loaded]:
        rows = transaction.rows("SELECT id FROM jobs WHERE batch_id = :batch", batch=batch)
        return list(jobs.load(transaction, self.lanes, [row[0] for row in rows]).values())

    def save(self, transaction: Transaction, pairs: list[tuple[jobs.Loaded, Job]], now: float = NOW) -> jobs.Saved:
        return jobs.save(transaction, lambda table, count: self.ids.take(transaction, table, count), pairs, now)

    def queue(self, transaction: Transaction, batch: int) -> int:
        row = transaction.one("SELECT queue_id FROM batches WHERE id = :batch", batch=batch)
        assert row is not None
        return int(row[0])


@pytest.fixture
def store(database: Database) -> Iterator[Store]:
    made = Store(database)
    yield made
    with database.read() as transaction:
        audit(transaction, credit=False)  # what is saved here was never reckoned


ANYWHERE = (-(1 << 31), 0)


def test_a_fresh_job_comes_back_as_the_rules_made_it(store: Store) -> None:
    policy = a_policy(quorum=2, target_tasks=3, max_errors=7, validator="exact", deadline_seconds=77)
    batch = store.submit(3, policy)
    with store.database.begin() as transaction:
        loaded = store.load(transaction, batch)
    expected = rules.advance(new_job(0, policy), NOW)
    for each in loaded:
        tasks = tuple(replace(task, id=0) for task in each.job.tasks)
        assert replace(each.job, id=0, tasks=tasks) == expected
        assert each.lane.policy == policy
        assert (each.lane.batch_id, each.lane.project_id) == (batch, store.project)
    numbers = [task.id for each in loaded for task in each.job.tasks]
    assert len(set(numbers)) == 9


def test_every_field_of_a_task_survives(store: Store) -> None:
    batch = store.submit(1, a_policy(quorum=2))
    with store.database.begin() as transaction:
        each = store.load(transaction, batch)[0]
        job = rules.sent(each.job, 0, 1, store.user, NOW)
        report = a_report(
            exit_code=0, cause="a 100 % ':cause'", output_digest="sha256:x", output_bytes=2**40, wall_seconds=1.5,
            cpu_seconds=0.25, memory_bytes=2**41,
        )  # fmt: skip
        after = rules.advance(rules.reported(job, 0, report, NOW + 1), NOW + 1)
        store.save(transaction, [(each, after)])
    with store.database.begin() as transaction:
        assert store.load(transaction, batch)[0].job == after


def test_a_save_writes_the_difference_alone(store: Store) -> None:
    batch = store.submit(50)
    with store.database.begin() as transaction:
        loaded = store.load(transaction, batch)
        saved = store.save(transaction, [(each, each.job) for each in loaded])
        assert saved == jobs.Saved(ready_queues={}, batches=set())
        one = loaded[7]
        store.save(transaction, [(each, each.job if each is not one else _sent(one.job)) for each in loaded])
    with store.database.read() as transaction:
        assert transaction.rows("SELECT job_id FROM tasks WHERE host_id IS NOT NULL") == [(one.job.id,)]
        assert transaction.rows("SELECT id FROM jobs WHERE state <> 'waiting'") == [(one.job.id,)]
        assert transaction.one("SELECT waiting, running FROM batches") == (49, 1)


def _sent(job: Job, attempt: int = 0, host: int = 1) -> Job:
    return rules.advance(rules.sent(job, attempt, host, None, NOW), NOW)


def _done(job: Job, attempt: int = 0) -> Job:
    return rules.advance(rules.reported(job, attempt, a_report(), NOW + 1), NOW + 1)


def test_a_whole_life_keeps_the_counts(store: Store) -> None:
    batch = store.submit(4)
    steps = (
        [_sent] * 4,
        [_done, lambda job: rules.advance(rules.cancelled(job), NOW), _failed, lambda job: job],
        [lambda job: rules.advance(rules.handed_over(job), NOW)] * 3 + [_expired],
    )
    for step in steps:
        with store.database.begin() as transaction:
            pairs = [(each, do(each.job)) for each, do in zip(store.load(transaction, batch), step, strict=True)]
            store.save(transaction, pairs, NOW + 5)
        with store.database.read() as transaction:
            audit(transaction, credit=False)  # what is saved here was never reckoned
    with store.database.begin() as transaction:
        each = store.load(transaction, batch)[3]
        assert [task.outcome for task in each.job.tasks] == [Outcome.NO_REPLY, Outcome.NONE]
        assert transaction.one("SELECT ended_at FROM batches") == (None,)
        saved = store.save(transaction, [(each, rules.advance(rules.cancelled(each.job), NOW + 9))], NOW + 9)
        assert saved.hand_over
        assert transaction.one("SELECT ended_at FROM batches") == (NOW + 9,)


def _failed(job: Job) -> Job:
    return rules.advance(rules.reported(job, 0, a_report(Outcome.FAILED, exit_code=3), NOW), NOW)


def _expired(job: Job) -> Job:
    return rules.advance(job, NOW + 10**6)


def test_new_copies_are_told_to_their_queue(store: Store) -> None:
    batch = store.submit(1)
    with store.database.begin() as transaction:
        each = store.load(transaction, batch)[0]
        store.save(transaction, [(each, _sent(each.job))])
    with store.database.begin() as transaction:
        each = store.load(transaction, batch)[0]
        queue = store.queue(transaction, batch)
        assert store.save(transaction, [(each, _expired(each.job))]).ready_queues == {queue: 1}
        found = jobs.claim(transaction, queue, ANYWHERE, 5)
        assert [(one.attempt, one.job_id) for one in found] == [(1, each.job.id)]


def test_unknown_numbers_are_left_out(store: Store) -> None:
    with store.database.begin() as transaction:
        assert jobs.load(transaction, store.lanes, [1, 2**40]) == {}
        assert jobs.load(transaction, store.lanes, []) == {}


def test_claims_come_by_priority_then_age_and_go_on_where_they_were(store: Store) -> None:
    low, high, middle = store.submit(2, priority=-5), store.submit(2, priority=5), store.submit(2)
    with store.database.begin() as transaction:
        queue = store.queue(transaction, low)
        first = jobs.claim(transaction, queue, ANYWHERE, 3)
        rest = jobs.claim(transaction, queue, (first[-1].rank, first[-1].task_id), 10)
    places = [(one.batch_id, one.position) for one in [*first, *rest]]
    assert places == [(high, 1), (high, 2), (middle, 1), (middle, 2), (low, 1), (low, 2)]


def test_a_claim_says_what_its_job_is(store: Store) -> None:
    batch = store.submit(2, a_policy(quorum=2), choices=[JobChoice(variables={"x": "%s"}), JobChoice(name="b")])
    with store.database.begin() as transaction:
        found = jobs.claim(transaction, store.queue(transaction, batch), ANYWHERE, 10)
    assert [(one.position, one.attempt, one.quorum) for one in found] == [(1, 0, 2), (1, 1, 2), (2, 0, 2), (2, 1, 2)]
    assert msgspec.json.decode(found[0].choice or "", type=JobChoice).variables == {"x": "%s"}


def test_what_one_claims_another_does_not_wait_for(postgresql_url: str) -> None:
    store = Store(Database(postgresql_url))
    other = Database(postgresql_url)
    batch = store.submit(10)
    with store.database.begin() as mine:
        queue = store.queue(mine, batch)
        first = jobs.claim(mine, queue, ANYWHERE, 4)
        with other.begin() as theirs:
            second = jobs.claim(theirs, queue, ANYWHERE, 10)
    assert len(first) == 4
    assert len(second) == 6
    assert not {one.task_id for one in first} & {one.task_id for one in second}
    store.database.close()
    other.close()


def test_words_are_kept_as_words(store: Store) -> None:
    batch = store.submit(1)
    with store.database.begin() as transaction:
        each = store.load(transaction, batch)[0]
        store.save(transaction, [(each, _done(_sent(each.job)))])
        assert transaction.one("SELECT state, outcome, validity FROM tasks") == ("over", "success", "valid")
        assert transaction.one("SELECT state, hand_over, files FROM jobs") == ("done", "ready", "kept")
        assert transaction.rows("SELECT id FROM tasks WHERE state = :state", state=TaskState.OVER) != []
        assert transaction.rows("SELECT id FROM jobs WHERE state IN (:states...)", states=list(JobState)) != []
        assert transaction.rows("SELECT id FROM tasks WHERE validity IN (:v...)", v=[Validity.VALID]) != []


def test_lanes_forget_and_remember(store: Store) -> None:
    batches = [store.submit(1) for _ in range(5)]
    lanes = jobs.Lanes(most=2)
    with store.database.read() as transaction:
        for _ in range(2):
            for batch in batches:
                assert lanes.get(transaction, [batch])[batch].batch_id == batch
        assert set(batches) <= set(lanes.get(transaction, batches))


def test_lists_of_what_is_due(store: Store) -> None:
    batch = store.submit(3)
    with store.database.begin() as transaction:
        loaded = store.load(transaction, batch)
        numbers = [each.job.id for each in loaded]
        store.save(transaction, [(each, _sent(each.job)) for each in loaded])
        deadline = NOW + loaded[0].lane.policy.deadline_seconds
        assert jobs.overdue(transaction, deadline - 1, 9) == []
        assert jobs.overdue(transaction, deadline, 9) == numbers
        assert len(jobs.overdue(transaction, deadline, 2)) == 2
        assert jobs.undecided_of(transaction, batch, 0, 9) == numbers
        assert jobs.undecided_of(transaction, batch, numbers[0], 1) == [numbers[1]]
        store.save(transaction, [(each, _done(each.job)) for each in store.load(transaction, batch)])
        assert jobs.to_hand_over(transaction, 2) == numbers[:2]
        assert jobs.undecided_of(transaction, batch, 0, 9) == []
        handed = [(each, rules.advance(rules.handed_over(each.job), NOW)) for each in store.load(transaction, batch)]
        store.save(transaction, handed)
        assert jobs.to_hand_over(transaction, 9) == []
        assert jobs.to_delete(transaction, 9) == numbers


def test_concurrent_saves_of_one_job_wait_for_each_other(database_url: str) -> None:
    store = Store(Database(database_url))
    batch = store.submit(1, a_policy(quorum=4, max_tasks=20))
    others = [Database(database_url) for _ in range(4)]

    def report(attempt: int, database: Database) -> None:
        with database.begin() as transaction:
            each = next(iter(jobs.load(transaction, jobs.Lanes(), [job_id]).values()))
            sent = rules.sent(each.job, attempt, attempt + 1, None, NOW)
            ids = Ids()
            after = rules.advance(rules.reported(sent, attempt, a_report(), NOW), NOW)
            jobs.save(transaction, lambda table, count: ids.take(transaction, table, count), [(each, after)], NOW)

    with store.database.read() as transaction:
        job_id = transaction.rows("SELECT id FROM jobs")[0][0]
    # SQLite's writers are kept apart by one Database, as in a server process.
    pairs = enumerate(others if store.database.is_postgresql else [store.database] * 4)
    threads = [threading.Thread(target=report, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.database.read() as transaction:
        audit(transaction, credit=False)  # what is saved here was never reckoned
        job = jobs.load(transaction, jobs.Lanes(), [job_id], only_read=True)[job_id].job
        assert job.state is JobState.DONE
        assert transaction.one("SELECT batch_id FROM jobs") == (batch,)
    for database in [store.database, *others]:
        database.close()


# --- what people see --------------------------------------------------------------------------------------------


def test_pages_of_jobs_are_whole_and_stable(store: Store) -> None:
    first, second = store.submit(5), store.submit(4)
    with store.database.read() as transaction:
        seen: list[str] = []
        place = (10**17, 0)
        while page := views.recent_jobs(transaction, [store.project], None, place, 2):
            seen += [view.id for view in page]
            place = (page[-1].batch, page[-1].position)
        assert seen == [f"{second}.{n}" for n in (4, 3, 2, 1)] + [f"{first}.{n}" for n in (5, 4, 3, 2, 1)]
        assert views.recent_jobs(transaction, [], None, (10**17, 0), 9) == []
        assert [view.position for view in views.jobs_of_batch(transaction, first, ["waiting"], 3, 9)] == [4, 5]
        assert [view.id for view in views.batches(transaction, [store.project], "active", 10**17, 9)] == [second, first]
        assert views.batches(transaction, [store.project], "ended", 10**17, 9) == []


@pytest.mark.parametrize(
    ("text", "variables", "filled"),
    [
        ("{a}-{b}", {"a": "1", "b": "2"}, "1-2"),
        ("{a}", {"a": "{b}", "b": "2"}, "{b}"),
        ("{b} {a}", {"a": "{b}", "b": "{a}"}, "{a} {b}"),
        ("{a}{a}{{a}}", {"a": "{a}x"}, "{a}x{a}x{{a}x}"),
        ("{nothing} {} { a}", {"a": "1"}, "{nothing} {} { a}"),
        ("{a b}", {"a b": "1"}, "1"),
    ],
)
def test_placeholders_are_filled_once(text: str, variables: dict[str, str], filled: str) -> None:
    spec = Spec(command=[text], environment={"E": text})
    made = views.fill(spec, JobChoice(variables=variables))
    assert made.command == [filled]
    assert made.environment == {"E": filled, **variables}


def test_logs_are_read_to_the_first_gap(store: Store) -> None:
    with store.database.begin() as transaction:
        pieces = [(1, 0, b"abc"), (1, 3, b"def"), (1, 5, b"fgh"), (1, 20, b"later")]
        transaction.insert_many("logs", ("task_id", "start", "bytes"), pieces)
        assert logs.read(transaction, 1) == b"abcdefgh"
        assert logs.read(transaction, 1, 4) == b"efgh"
        assert logs.read(transaction, 1, 8) == b""
        assert logs.read(transaction, 2) == b""
        assert logs.size(transaction, 1) == 25
        assert logs.size(transaction, 2) == 0


# --- accounts, files and images ---------------------------------------------------------------------------------


def test_the_first_start_happens_once(store: Store) -> None:
    with store.database.begin() as transaction:
        secret = accounts.first_start(transaction, NOW)
        assert secret is not None
        assert accounts.first_start(transaction, NOW) is None
        caller = accounts.caller_by_token(transaction, secret)
        assert caller is not None
        assert caller.is_operator
        assert caller.roles == {caller.project_id: "manager"}


def test_tokens_and_keys_are_kept_as_hashes_and_end(store: Store) -> None:
    with store.database.begin() as transaction:
        number, secret = accounts.create_token(transaction, store.user, store.project, "laptop", NOW)
        assert accounts.caller_by_token(transaction, secret + "x") is None
        caller = accounts.caller_by_token(transaction, secret)
        assert caller is not None
        assert (caller.user, caller.roles) == ("ada", {store.project: "member"})
        assert not accounts.revoke_token(transaction, store.user + 1, number)
        assert accounts.revoke_token(transaction, store.user, number)
        assert accounts.caller_by_token(transaction, secret) is None
        public_id, key = accounts.attach_host(transaction, store.user, HostFacts(name="lab"), NOW)
        host = accounts.host_by_public_id(transaction, public_id)
        assert host is not None
        assert accounts.is_hash_of(key, host.key_hash)
        everything = str(transaction.rows("SELECT * FROM tokens")) + str(transaction.rows("SELECT * FROM hosts"))
        assert secret not in everything
        assert key not in everything
        accounts.detach_host(transaction, host.id)
        assert accounts.host_by_public_id(transaction, public_id) is None
        with pytest.raises(accounts.NameTaken):
            accounts.create_user(transaction, "ada", NOW)
        with pytest.raises(accounts.NameTaken):
            accounts.create_project(transaction, "pulsar", NOW)


def test_limits_and_members_come_and_go(store: Store) -> None:
    with store.database.begin() as transaction:
        accounts.set_limit(transaction, store.project, "jobs_in_flight", 5)
        accounts.set_limit(transaction, store.project, "jobs_in_flight", 7)
        assert accounts.limits_of(transaction, store.project) == {"jobs_in_flight": 7}
        accounts.set_limit(transaction, store.project, "jobs_in_flight", None)
        assert accounts.limits_of(transaction, store.project) == {}
        catalog.add_file(transaction, store.project, "sha256:a", 12, NOW)
        assert accounts.usage_of(transaction, store.project)["storage_bytes"] == 12
        assert accounts.remove_member(transaction, store.user, store.project)
        assert not accounts.remove_member(transaction, store.user, store.project)


def test_files_are_claims_that_fade(store: Store) -> None:
    with store.database.begin() as transaction:
        for digest, at in (("sha256:old", NOW), ("sha256:new", NOW + 100)):
            catalog.add_file(transaction, store.project, digest, 5, at)
        assert catalog.missing_files(transaction, store.project, ["sha256:old", "sha256:x"]) == ["sha256:x"]
        assert catalog.missing_files(transaction, store.project + 1, ["sha256:old"]) == ["sha256:old"]
        assert catalog.file_size(transaction, store.project, "sha256:old") == 5
        assert catalog.forget_unused_files(transaction, NOW + 50, 10) == 1
        assert not catalog.is_content_needed(transaction, "sha256:old")
        assert catalog.is_content_needed(transaction, "sha256:new")


def test_images_are_pinned_and_forgotten(store: Store) -> None:
    with store.database.begin() as transaction:
        blobs = [("sha256:l", 10), ("sha256:c", 1)]
        add = (transaction, store.project, "docker.io/library/python:alpine")
        first = catalog.add_image(*add, "sha256:m1", {"linux/amd64": "sha256:m1"}, blobs, NOW)
        second = catalog.add_image(*add, "sha256:m2", {"linux/amd64": "sha256:m2"}, blobs, NOW + 1)
        again = catalog.add_image(*add, "sha256:m1", {"linux/amd64": "sha256:m1"}, blobs, NOW + 2)
        assert again.id == first.id != second.id
        assert catalog.image_by_reference(*add) == again
        assert catalog.image_by_reference(transaction, store.project, "sha256:m2") == second
        assert [each.id for each in catalog.images_of(transaction, store.project, 10**17, 9)] == [second.id, first.id]
        assert catalog.has_blob(transaction, "sha256:l", project_ids=[store.project], host_id=None)
        assert not catalog.has_blob(transaction, "sha256:l", project_ids=[store.project + 1], host_id=None)
        assert not catalog.has_blob(transaction, "sha256:l", project_ids=None, host_id=1)
        catalog.remove_image(transaction, first.id)
        assert catalog.is_content_needed(transaction, "sha256:l")
        catalog.remove_image(transaction, second.id)
        assert not catalog.is_content_needed(transaction, "sha256:l")
        assert catalog.image_by_reference(*add) is None


def test_shares_fade_and_only_count_beside_others(store: Store) -> None:
    store.submit(5)
    with store.database.begin() as transaction:
        found = queues.waiting(transaction, NOW)
        assert [(queue.project_id, queue.ready) for queue in found] == [(store.project, 5)]
        shares = queues.Shares(found)
        shares.charge(found[0], 3, (0, 9))
        shares.save(transaction, NOW)
        assert transaction.one("SELECT share_used FROM projects") == (0.0,)
        assert quota.decayed(8.0, NOW, NOW + quota.HALF_LIFE_SECONDS) == 4.0
        assert quota.decayed(8.0, NOW, NOW - 5) == 8.0
        transaction.run("UPDATE projects SET enabled = :no", no=False)
        assert queues.waiting(transaction, NOW) == []
