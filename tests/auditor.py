"""What must be true of a site's database whatever happened to it, proved from the database alone.

Counts that the ledger keeps are counted again; where jobs and tasks stand is held against the laws of a job.
"""

from collections import Counter, defaultdict

from distributio.lifecycle import advance
from distributio.lifecycle.model import FilesState, HandOver, Job, JobState, Outcome, TaskState
from distributio.store import jobs
from distributio.store.database import Transaction
from laws import LAWS_OF_A_STAND

_EARLY = 0.0  # before every deadline, so that the laws do not ask what only time will change
_STATES = tuple(state.value for state in JobState)


def audit(transaction: Transaction, *, laws: bool = True, credit: bool = True) -> None:
    """Raise AssertionError, naming what is wrong, if the database does not add up."""
    loaded = _all_jobs(transaction)
    _batches_count_their_jobs(transaction, loaded)
    _queues_know_their_length(transaction)
    _projects_know_what_is_in_flight(transaction, loaded)
    _tasks_belong_to_their_jobs_queue(transaction)
    _leftovers_belong_to_open_jobs(transaction, loaded)
    if credit:
        _credit_is_what_valid_tasks_earned(transaction)
    for each in loaded.values():
        _a_job_adds_up(each.job)
        if laws:
            for law in LAWS_OF_A_STAND:
                law(each.job, advance, _EARLY)


def _all_jobs(transaction: Transaction) -> dict[int, jobs.Loaded]:
    numbers = [row[0] for row in transaction.rows("SELECT id FROM jobs")]
    return jobs.load(transaction, jobs.Lanes(), numbers, only_read=True)


def _batches_count_their_jobs(transaction: Transaction, loaded: dict[int, jobs.Loaded]) -> None:
    counted: dict[int, Counter[str]] = defaultdict(Counter)
    for each in loaded.values():
        counted[each.lane.batch_id][each.job.state.value] += 1
    rows = transaction.rows(f"SELECT id, job_count, ended_at, {', '.join(_STATES)} FROM batches")
    for batch, job_count, ended_at, *said in rows:
        counts = counted.pop(batch, Counter())
        assert dict(zip(_STATES, said, strict=True)) == {state: counts[state] for state in _STATES}, f"batch {batch}"
        assert job_count == counts.total(), f"batch {batch} has {counts.total()} jobs and says {job_count}"
        is_over = counts["done"] + counts["failed"] + counts["cancelled"] == job_count
        assert (ended_at is not None) == is_over, f"batch {batch}: ended_at {ended_at}, {dict(counts)}"
    assert not counted, f"jobs without a batch: {dict(counted)}"


def _queues_know_their_length(transaction: Transaction) -> None:
    said = dict(transaction.rows("SELECT id, ready FROM queues"))
    found = dict(transaction.rows("SELECT queue_id, count(*) FROM tasks WHERE state = 'ready' GROUP BY queue_id"))
    assert {queue: ready for queue, ready in said.items() if ready} == found, "lengths of queues"


def _projects_know_what_is_in_flight(transaction: Transaction, loaded: dict[int, jobs.Loaded]) -> None:
    said = transaction.rows("SELECT project_id, used FROM usages WHERE resource = 'jobs_in_flight' AND used <> 0")
    undecided = Counter(each.lane.project_id for each in loaded.values() if not each.job.is_decided)
    assert dict(said) == dict(undecided), "jobs in flight"


def _tasks_belong_to_their_jobs_queue(transaction: Transaction) -> None:
    strays = transaction.rows(
        "SELECT tasks.id FROM tasks LEFT JOIN jobs ON jobs.id = tasks.job_id LEFT JOIN batches ON batches.id = batch_id "
        "WHERE batches.id IS NULL OR tasks.queue_id <> batches.queue_id "
        "OR tasks.rank NOT IN (-batches.priority, -batches.priority - 1)"
    )
    assert not strays, f"tasks in a queue that is not their batch's: {strays[:5]}"
    twice = transaction.rows("SELECT job_id, attempt FROM tasks GROUP BY job_id, attempt HAVING count(*) > 1")
    assert not twice, f"attempts that are there twice: {twice[:5]}"


def _leftovers_belong_to_open_jobs(transaction: Transaction, loaded: dict[int, jobs.Loaded]) -> None:
    kept = transaction.rows("SELECT job_id FROM outputs JOIN tasks ON tasks.id = task_id")
    gone = [job for (job,) in kept if loaded[job].job.hand_over is HandOver.DONE]
    assert not gone, f"outputs kept in the database for jobs that were handed over: {gone[:5]}"
    orphans = transaction.rows("SELECT task_id FROM outputs WHERE task_id NOT IN (SELECT id FROM tasks)")
    assert not orphans, f"outputs of no task: {orphans[:5]}"


def _credit_is_what_valid_tasks_earned(transaction: Transaction) -> None:
    unpaid = transaction.rows(
        "SELECT tasks.id FROM tasks LEFT JOIN credit_grants ON credit_grants.task_id = tasks.id "
        "WHERE (validity = 'valid' AND tasks.host_id IS NOT NULL) <> (credit_grants.task_id IS NOT NULL)"
    )
    assert not unpaid, f"tasks that are valid and not paid, or paid and not valid: {unpaid[:5]}"
    astray = transaction.rows(
        "SELECT task_id FROM credit_grants LEFT JOIN tasks ON tasks.id = task_id LEFT JOIN jobs ON jobs.id = job_id "
        "LEFT JOIN batches ON batches.id = batch_id WHERE batches.id IS NULL OR credit < 0 "
        "OR credit_grants.host_id <> tasks.host_id OR credit_grants.project_id <> batches.project_id"
    )
    assert not astray, f"credit for what nobody did: {astray[:5]}"
    for table in ("host", "user", "project"):
        said = dict(transaction.rows(f"SELECT id, credit FROM {table}s WHERE credit <> 0"))
        counted = dict(
            transaction.rows(
                f"SELECT {table}_id, sum(credit) FROM credit_grants WHERE {table}_id IS NOT NULL "
                f"GROUP BY {table}_id HAVING sum(credit) <> 0"
            )
        )
        assert said == {number: int(credit) for number, credit in counted.items()}, f"credit of {table}s"


def _a_job_adds_up(job: Job) -> None:
    if job.is_decided:
        idle = [task for task in job.tasks if task.state is not TaskState.OVER]
        assert not idle, f"job {job.id} is {job.state} and has tasks {idle}"
    assert (job.hand_over is not HandOver.NOT_READY) == job.is_decided, f"job {job.id}: {job.hand_over}, {job.state}"
    assert job.files is FilesState.KEPT or job.hand_over is HandOver.DONE, f"job {job.id}: {job.files}"
    if job.quorum > 1:
        voices = [task.user_id for task in job.tasks if task.outcome is Outcome.SUCCESS and task.user_id is not None]
        assert len(voices) == len(set(voices)), f"job {job.id}: an owner could agree with himself: {voices}"
    if job.canonical_attempt is not None:
        assert job.canonical_attempt < len(job.tasks), f"job {job.id}: canonical attempt {job.canonical_attempt}"
