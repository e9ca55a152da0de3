"""What submitters ask of the ledger: make a batch, cancel jobs; and the changes daemons hand in.

A batch, its jobs and their first tasks are made in one transaction, ready to be sent when it commits. The same idempotency
key with the same request answers with the batch that exists.
"""

from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct

from distributio.lifecycle import quota
from distributio.lifecycle.advance import advance, cancelled
from distributio.lifecycle.dispatch import Shape
from distributio.lifecycle.model import FilesState, Job, JobState, Policy, TaskState, new_job
from distributio.server.ledger import Work
from distributio.store import accounts, catalog, credit, jobs, queues, trust
from distributio.wire.native import JobChoice

JOBS_IN_FLIGHT = "jobs_in_flight"
_JOB_COLUMNS = (
    *("id", "batch_id", "position", "state", "quorum", "target_tasks", "reasons", "hand_over", "files"),
    *("choice", "expect"),
)
CANCEL_AT_ONCE = 2_000  # jobs cancelled in one turn of the ledger


class QuotaExceeded(ValueError):
    """The project may not have that many jobs in flight."""


class ImageGone(ValueError):
    """The image was removed a moment ago: import it again."""


class ProjectDisabled(ValueError):
    """The operator has switched this project off: ask for it to be switched on."""


class IdempotencyConflict(ValueError):
    """This idempotency key was used before for something else: use a new key for a new request."""


class Submit(Struct, kw_only=True):
    """A batch that has passed the preflight."""

    project_id: int
    user_id: int
    name: str
    labels: str  # JSON
    spec: str  # JSON
    policy: Policy
    shape: Shape
    image_id: int | None
    priority: int
    count: int
    choices: list[JobChoice] | None
    input_digests: list[str]
    idempotency_key: str | None
    request_digest: str
    repository: str = ""  # of the image: with the runner, the app that trust is earned with


class Cancel(Struct, kw_only=True):
    """Cancel the undecided jobs of a batch behind a job number; the answer is the number to go on behind, or None when that
    was all. With `job_id`: that job alone."""

    batch_id: int
    after: int = 0
    job_id: int | None = None


class Change(Struct, kw_only=True):
    """Something happened to these jobs; the answer lists those it changed. `drop_outputs` also forgets the small results
    tars that are kept in the database for them."""

    job_ids: list[int]
    event: Callable[[Job], Job] | None = None  # None: only time has passed
    drop_outputs: bool = False


def apply_submissions(work: Work, events: Sequence[Submit]) -> list[int | Exception]:
    """The ledger's handler for Submit: answers with batch numbers."""
    return [_submit(work, event) for event in events]


def _submit(work: Work, event: Submit) -> int | Exception:
    transaction = work.transaction
    if event.idempotency_key is not None:
        row = transaction.one(
            "SELECT id, request_digest FROM batches WHERE project_id = :project AND idempotency_key = :key",
            project=event.project_id,
            key=event.idempotency_key,
        )
        if row is not None:
            if row[1] != event.request_digest:
                return IdempotencyConflict(IdempotencyConflict.__doc__)
            return int(row[0])
    if event.image_id is not None and not catalog.hold_image(transaction, event.image_id):
        return ImageGone(ImageGone.__doc__)
    refused = _refused(work, event)
    if refused is not None:
        return refused
    queue_id = queues.queue_for(transaction, event.project_id, event.shape)
    app_id = trust.app_for(transaction, event.shape.runner, event.repository)
    batch_id = transaction.insert(
        "batches",
        project_id=event.project_id,
        user_id=event.user_id,
        queue_id=queue_id,
        image_id=event.image_id,
        name=event.name,
        labels=event.labels,
        spec=event.spec,
        policy=msgspec.json.encode(event.policy).decode(),
        priority=event.priority,
        created_at=work.now,
        job_count=event.count,
        waiting=event.count,
        app_id=app_id,
        lone_gflops=credit.lone_gflops_of(transaction, app_id),
        idempotency_key=event.idempotency_key,
        request_digest=event.request_digest,
    )
    _insert_jobs(work, event, batch_id, queue_id)
    transaction.insert_many(
        "batch_files",
        ("batch_id", "digest"),
        [(batch_id, digest) for digest in dict.fromkeys(event.input_digests)],
    )
    work.notices.batches.add(batch_id)
    return batch_id


def _refused(work: Work, event: Submit) -> Exception | None:
    row = work.transaction.one("SELECT enabled FROM projects WHERE id = :id", id=event.project_id)
    if row is None or not row[0]:
        return ProjectDisabled(ProjectDisabled.__doc__)
    limits = accounts.limits_of(work.transaction, event.project_id)
    if JOBS_IN_FLIGHT not in limits:
        return None
    usage = accounts.counted_usage_of(work.transaction, event.project_id)
    exceeded = quota.check(limits, usage, {JOBS_IN_FLIGHT: event.count})
    return QuotaExceeded("; ".join(map(str, exceeded))) if exceeded else None


def _insert_jobs(work: Work, event: Submit, batch_id: int, queue_id: int) -> None:
    # Every job of a batch starts alike, so the rules are asked once for all of them.
    first = advance(new_job(0, event.policy), work.now)
    count, copies = event.count, len(first.tasks)
    job_id = work.new_ids("jobs", count)
    task_id = work.new_ids("tasks", count * copies)
    choices = event.choices or []
    work.transaction.insert_many(
        "jobs",
        _JOB_COLUMNS,
        [
            (
                job_id + index,
                batch_id,
                index + 1,
                first.state.value,
                first.quorum,
                first.target_tasks,
                "",
                first.hand_over.value,
                first.files.value,
                msgspec.json.encode(choices[index]).decode() if choices else None,
                choices[index].expect or None if choices else None,
            )
            for index in range(count)
        ],
    )
    rank = -event.priority
    work.transaction.insert_many(
        "tasks",
        ("id", "job_id", "attempt", "state", "outcome", "validity", "queue_id", "rank"),
        [
            (
                task_id + index * copies + task.attempt,
                job_id + index,
                task.attempt,
                task.state.value,
                task.outcome.value,
                task.validity.value,
                queue_id,
                rank,
            )
            for index in range(count)
            for task in first.tasks
        ],
    )
    ready = count * sum(task.state is TaskState.READY for task in first.tasks)
    jobs.add_counts(work.transaction, {}, {queue_id: ready}, {event.project_id: count})
    assert first.state is JobState.WAITING
    work.notices.ready[queue_id] = work.notices.ready.get(queue_id, 0) + ready


def apply_cancels(work: Work, events: Sequence[Cancel]) -> list[int | None]:
    """The ledger's handler for Cancel."""
    answers: list[int | None] = []
    for event in events:
        if event.job_id is not None:
            wanted = [event.job_id]
        else:
            wanted = jobs.undecided_of(work.transaction, event.batch_id, event.after, CANCEL_AT_ONCE)
        loaded = jobs.load(work.transaction, work.lanes, wanted)
        work.save([(each, advance(cancelled(each.job), work.now)) for each in loaded.values()])
        more = event.job_id is None and len(wanted) == CANCEL_AT_ONCE
        answers.append(wanted[-1] if more else None)
    return answers


def apply_changes(work: Work, events: Sequence[Change]) -> list[list[int]]:
    """The ledger's handler for Change."""
    answers: list[list[int]] = []
    for event in events:
        loaded = jobs.load(work.transaction, work.lanes, event.job_ids)
        pairs = []
        for each in loaded.values():
            happened = each.job if event.event is None else event.event(each.job)
            after = advance(happened, work.now)
            if after is not each.job:
                pairs.append((each, after))
        work.save(pairs)
        # Outputs that a validator has yet to compare stay.
        done_with = [job for _, job in pairs if job.files is not FilesState.KEPT]
        if event.drop_outputs and done_with:
            tasks = [task.id for job in done_with for task in job.tasks]
            work.transaction.tell("DELETE FROM outputs WHERE task_id IN (:tasks...)", tasks=tasks)
            work.transaction.tell("DELETE FROM progress WHERE task_id IN (:tasks...)", tasks=tasks)
        answers.append([after.id for _, after in pairs])
    return answers
