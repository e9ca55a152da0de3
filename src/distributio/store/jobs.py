"""Jobs and their tasks: load them whole, write what changed, claim what is ready.

A function here is a statement or two over many rows, because the ledger works by the batch. `save` is the only writer of
states: it compares the values before and after and writes the difference, with the counts that follow from it.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import msgspec
from msgspec import Struct

from distributio.lifecycle.model import (
    UNDECIDED_STATES,
    FilesState,
    HandOver,
    Job,
    JobState,
    Outcome,
    Policy,
    Reason,
    Task,
    TaskState,
    Validity,
)
from distributio.store import trust
from distributio.store.database import Transaction

NewIds = Callable[[str, int], int]  # table and count to the first of that many numbers

_TASK_STATE = {word.value: word for word in TaskState}
_OUTCOME = {word.value: word for word in Outcome}
_VALIDITY = {word.value: word for word in Validity}
_JOB_STATE = {word.value: word for word in JobState}
_HAND_OVER = {word.value: word for word in HandOver}
_FILES = {word.value: word for word in FilesState}

_TASK_COLUMNS = (
    "state",
    "outcome",
    "validity",
    "host_id",
    "user_id",
    "sent_at",
    "deadline_at",
    "received_at",
    "exit_code",
    "cause",
    "output_digest",
    "output_bytes",
    "wall_seconds",
    "cpu_seconds",
    "memory_bytes",
)
_NEW_TASK_COLUMNS = ("id", "job_id", "attempt", "state", "outcome", "validity", "queue_id", "rank")
_JOB_COLUMNS = (
    "state",
    "quorum",
    "target_tasks",
    "reasons",
    "canonical_attempt",
    "hand_over",
    "files",
    "decided_at",
    "alike",
)
COUNTED_STATES = tuple(JobState)


class Lane(Struct, frozen=True, kw_only=True):
    """What all jobs of one batch share, as the ledger needs it. Never changes once the batch exists."""

    batch_id: int
    project_id: int
    queue_id: int
    priority: int
    policy: Policy
    app_id: int = 0
    cpus: float = 1.0
    most_seconds: float = math.inf  # that a task may run
    lone_gflops: float = 1.0


class _Limits(Struct, frozen=True):
    """As much of wire.native.Limits as credit needs."""

    cpus: float = 1.0
    wall_seconds: float = 86_400.0


class _Spec(Struct, frozen=True):
    limits: _Limits = _Limits()


class Loaded(Struct, frozen=True, kw_only=True):
    """A job as it was read, with its place."""

    job: Job
    lane: Lane


class Lanes:
    """Remembers lanes, which never change, so that a turn reads only those it meets first."""

    def __init__(self, most: int = 20_000) -> None:
        self._lanes: dict[int, Lane] = {}
        self._most = most
        self._seed = ""

    def seed(self, transaction: Transaction) -> str:
        """The site's secret for spot checks, which never changes either."""
        if not self._seed:
            self._seed = trust.seed(transaction)
        return self._seed

    def get(self, transaction: Transaction, batch_ids: Iterable[int]) -> dict[int, Lane]:
        """The lanes of these batches."""
        known = self._lanes
        missing = [batch_id for batch_id in set(batch_ids) if batch_id not in known]
        if missing:
            if len(known) + len(missing) > self._most:
                known.clear()
                missing = list(set(batch_ids))
            for batch_id, project_id, queue_id, priority, policy, app_id, spec, lone_gflops in transaction.rows(
                "SELECT id, project_id, queue_id, priority, policy, app_id, spec, lone_gflops FROM batches "
                "WHERE id IN (:ids...)",
                ids=missing,
            ):
                limits = msgspec.json.decode(spec, type=_Spec).limits
                known[batch_id] = Lane(
                    batch_id=batch_id,
                    project_id=project_id,
                    queue_id=queue_id,
                    priority=priority,
                    policy=msgspec.json.decode(policy, type=Policy),
                    app_id=app_id or 0,
                    cpus=limits.cpus,
                    most_seconds=limits.wall_seconds,
                    lone_gflops=lone_gflops,
                )
        return known


def load(
    transaction: Transaction, lanes: Lanes, job_ids: Iterable[int], *, only_read: bool = False
) -> dict[int, Loaded]:
    """The jobs with all of their tasks, locked until the transaction ends unless they are only read. Unknown numbers are
    left out."""
    ids = sorted(set(job_ids))
    lock = "" if only_read else transaction.lock()
    if not ids:
        return {}
    jobs, copies = transaction.several(
        (
            "SELECT id, batch_id, state, quorum, target_tasks, reasons, canonical_attempt, hand_over, files, decided_at "
            f", alike, expect FROM jobs WHERE id IN (:ids...) ORDER BY id {lock}",
            {"ids": ids},
        ),
        (
            "SELECT job_id, id, attempt, state, outcome, validity, host_id, user_id, sent_at, deadline_at, received_at, "
            "exit_code, cause, output_digest, output_bytes, wall_seconds, cpu_seconds, memory_bytes "
            f"FROM tasks WHERE job_id IN (:ids...) ORDER BY job_id, attempt {lock}",
            {"ids": ids},
        ),
    )
    known = lanes.get(transaction, (row[1] for row in jobs))
    tasks: dict[int, list[Task]] = defaultdict(list)
    for row in copies:
        tasks[row[0]].append(_task(row))
    return {
        row[0]: Loaded(
            job=Job(
                id=row[0],
                policy=known[row[1]].policy,
                quorum=row[3],
                target_tasks=row[4],
                state=_JOB_STATE[row[2]],
                reasons=frozenset(map(Reason, row[5].split())) if row[5] else frozenset(),
                canonical_attempt=row[6],
                hand_over=_HAND_OVER[row[7]],
                files=_FILES[row[8]],
                decided_at=row[9],
                alike=row[10] or "",
                expect=row[11] or "",
                tasks=tuple(tasks[row[0]]),
            ),
            lane=known[row[1]],
        )
        for row in jobs
    }


def _task(row: Sequence[object]) -> Task:
    (
        _,
        number,
        attempt,
        state,
        outcome,
        validity,
        host,
        user,
        sent,
        deadline,
        received,
        code,
        cause,
        digest,
        size,
        *rest,
    ) = row
    wall, cpu, memory = rest
    return Task(
        id=number,  # type: ignore[arg-type]  # a driver's row
        attempt=attempt,  # type: ignore[arg-type]
        state=_TASK_STATE[state],  # type: ignore[index]
        outcome=_OUTCOME[outcome],  # type: ignore[index]
        validity=_VALIDITY[validity],  # type: ignore[index]
        host_id=host,  # type: ignore[arg-type]
        user_id=user,  # type: ignore[arg-type]
        sent_at=sent,  # type: ignore[arg-type]
        deadline_at=deadline,  # type: ignore[arg-type]
        received_at=received,  # type: ignore[arg-type]
        exit_code=code,  # type: ignore[arg-type]
        cause=cause or "",  # type: ignore[arg-type]
        output_digest=digest or "",  # type: ignore[arg-type]
        output_bytes=size or 0,  # type: ignore[arg-type]
        wall_seconds=wall or 0.0,  # type: ignore[arg-type]
        cpu_seconds=cpu or 0.0,  # type: ignore[arg-type]
        memory_bytes=memory or 0,  # type: ignore[arg-type]
    )


class Saved(Struct, kw_only=True):
    """What a save did, for those who wait for it."""

    ready_queues: dict[int, int]  # queue to how many tasks became ready
    batches: set[int]
    hand_over: bool = False
    released: bool = False
    checking: bool = False


def save(transaction: Transaction, new_ids: NewIds, pairs: Sequence[tuple[Loaded, Job]], now: float) -> Saved:
    """Write what differs between each job as it was read and as it should be, and the counts that follow."""
    changed: list[tuple[object, ...]] = []
    created: list[tuple[object, ...]] = []
    job_rows: list[tuple[object, ...]] = []
    by_batch: dict[int, dict[JobState, int]] = defaultdict(lambda: defaultdict(int))
    ready: dict[int, int] = defaultdict(int)
    in_flight: dict[int, int] = defaultdict(int)
    saved = Saved(ready_queues={}, batches=set())
    fresh = sum(len(after.tasks) - len(before.job.tasks) for before, after in pairs)
    next_id = new_ids("tasks", fresh) if fresh else 0
    for loaded, after in pairs:
        before, lane = loaded.job, loaded.lane
        if after is before:
            continue
        saved.batches.add(lane.batch_id)
        known = len(before.tasks)
        for index, task in enumerate(after.tasks):
            if index >= known:
                created.append(
                    (
                        next_id,
                        after.id,
                        task.attempt,
                        task.state,
                        task.outcome,
                        task.validity,
                        lane.queue_id,
                        -lane.priority - 1,  # what is begun comes before what is not
                    )
                )
                next_id += 1
                ready[lane.queue_id] += task.state is TaskState.READY
            elif task is not before.tasks[index]:
                changed.append(_task_row(task))
                ready[lane.queue_id] += (task.state is TaskState.READY) - (before.tasks[index].state is TaskState.READY)
        if _job_row(after) != _job_row(before):
            job_rows.append((*_job_row(after), after.id))
        if after.state is not before.state:
            by_batch[lane.batch_id][before.state] -= 1
            by_batch[lane.batch_id][after.state] += 1
            if before.state in UNDECIDED_STATES and after.state not in UNDECIDED_STATES:
                in_flight[lane.project_id] -= 1
        saved.hand_over |= after.hand_over is HandOver.READY
        saved.released |= after.files is FilesState.RELEASED
        saved.checking |= after.state is JobState.CHECKING
    transaction.update_many("tasks", "id", _TASK_COLUMNS, changed)
    transaction.insert_many("tasks", _NEW_TASK_COLUMNS, created)
    transaction.update_many("jobs", "id", _JOB_COLUMNS, job_rows)
    add_counts(transaction, by_batch, ready, in_flight)
    if any(counts.keys() - UNDECIDED_STATES for counts in by_batch.values()):
        end_batches(transaction, list(by_batch), now)
    saved.ready_queues = {queue: more for queue, more in ready.items() if more > 0}
    return saved


def add_counts(
    transaction: Transaction,
    by_batch: dict[int, dict[JobState, int]],
    ready: dict[int, int],
    in_flight: dict[int, int],
) -> None:
    """Add differences to the batches' counts, the queues' lengths and the projects' jobs in flight."""
    columns = tuple(state.value for state in COUNTED_STATES)
    batch_rows = [
        (*(counts.get(state, 0) for state in COUNTED_STATES), batch_id) for batch_id, counts in by_batch.items()
    ]
    transaction.add_many("batches", "id", columns, batch_rows)
    transaction.add_many("queues", "id", ("ready",), [(more, queue) for queue, more in ready.items() if more])
    rows = [(project, "jobs_in_flight", more) for project, more in sorted(in_flight.items()) if more]
    transaction.insert_many(
        "usages",
        ("project_id", "resource", "used"),
        rows,
        "ON CONFLICT (project_id, resource) DO UPDATE SET used = usages.used + excluded.used",
    )


def end_batches(transaction: Transaction, batch_ids: list[int], now: float) -> None:
    """A batch ends with its last decided job."""
    transaction.tell(
        "UPDATE batches SET ended_at = :now WHERE id IN (:ids...) AND ended_at IS NULL "
        "AND done + failed + cancelled >= job_count",
        now=now,
        ids=batch_ids,
    )


def _task_row(task: Task) -> tuple[object, ...]:
    return (
        task.state,
        task.outcome,
        task.validity,
        task.host_id,
        task.user_id,
        task.sent_at,
        task.deadline_at,
        task.received_at,
        task.exit_code,
        task.cause or None,
        task.output_digest or None,
        task.output_bytes or None,
        task.wall_seconds or None,
        task.cpu_seconds or None,
        task.memory_bytes or None,
        task.id,
    )


def _job_row(job: Job) -> tuple[object, ...]:
    return (
        job.state,
        job.quorum,
        job.target_tasks,
        " ".join(sorted(job.reasons)) if job.reasons else "",
        job.canonical_attempt,
        job.hand_over,
        job.files,
        job.decided_at,
        job.alike or None,
    )


class Candidate(Struct, frozen=True, kw_only=True):
    """A ready task that may be sent. `rank` and `task_id` say where the queue goes on after it."""

    task_id: int
    job_id: int
    attempt: int
    rank: int
    quorum: int
    batch_id: int
    position: int
    choice: str | None  # wire.native.JobChoice
    alike: str = ""  # the class of hosts it goes to


def claim(transaction: Transaction, queue_id: int, after: tuple[int, int], most: int) -> list[Candidate]:
    """The next ready tasks of a queue behind a place in it, kept from other ledgers until the transaction ends."""
    lock = "FOR UPDATE OF tasks SKIP LOCKED" if transaction.is_postgresql else ""
    return [
        Candidate(
            task_id=row[0],
            job_id=row[1],
            attempt=row[2],
            rank=row[3],
            quorum=row[4],
            batch_id=row[5],
            position=row[6],
            choice=row[7],
            alike=row[8] or "",
        )
        for row in transaction.rows(
            "SELECT tasks.id, job_id, attempt, rank, jobs.quorum, batch_id, position, choice, alike "
            "FROM tasks JOIN jobs ON jobs.id = tasks.job_id "
            "WHERE tasks.state = 'ready' AND queue_id = :queue AND (rank, tasks.id) > (:rank, :task) "
            f"ORDER BY rank, tasks.id LIMIT :most {lock}",
            queue=queue_id,
            rank=after[0],
            task=after[1],
            most=most,
        )
    ]


def overdue(transaction: Transaction, now: float, most: int) -> list[int]:
    """Jobs with a task whose deadline has passed."""
    rows = transaction.rows(
        "SELECT job_id FROM tasks WHERE state = 'in_progress' AND deadline_at <= :now ORDER BY deadline_at LIMIT :most",
        now=now,
        most=most,
    )
    return sorted({row[0] for row in rows})


def to_hand_over(transaction: Transaction, most: int) -> list[int]:
    """Decided jobs that their owners do not have yet, oldest first."""
    rows = transaction.rows("SELECT id FROM jobs WHERE hand_over = 'ready' ORDER BY id LIMIT :most", most=most)
    return [row[0] for row in rows]


def to_delete(transaction: Transaction, most: int) -> list[int]:
    """Handed-over jobs whose working files may go."""
    rows = transaction.rows("SELECT id FROM jobs WHERE files = 'released' ORDER BY id LIMIT :most", most=most)
    return [row[0] for row in rows]


def undecided_of(transaction: Transaction, batch_id: int, after: int, most: int) -> list[int]:
    """Undecided jobs of a batch, from a position on."""
    rows = transaction.rows(
        "SELECT id FROM jobs WHERE batch_id = :batch AND id > :after AND state IN ('waiting', 'running', 'checking') "
        "ORDER BY id LIMIT :most",
        batch=batch_id,
        after=after,
        most=most,
    )
    return [row[0] for row in rows]
