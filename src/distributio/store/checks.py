"""What waits for a validator's code, what validators said of outputs that differ, and whom they owe an answer."""

from collections.abc import Iterable, Sequence

from distributio.store.database import Transaction

MOST_NOTES = 50  # of a job that are read


def due(transaction: Transaction, now: float, each: int, most: int) -> list[int]:
    """Jobs with outputs to compare: so many of each batch, the batches in turn. Those put off are left out until their time."""
    rows = transaction.rows(
        "SELECT id FROM (SELECT jobs.id AS id, row_number() OVER (PARTITION BY batch_id ORDER BY jobs.id) AS place "
        "FROM jobs LEFT JOIN check_delays ON check_delays.job_id = jobs.id "
        "WHERE state = 'checking' AND (until IS NULL OR until <= :now)) AS waiting "
        "WHERE place <= :each ORDER BY place, id LIMIT :most",
        now=now,
        each=each,
        most=most,
    )
    # A copy that came back while its job was being decided is compared after the hand-over.
    late = transaction.rows(
        "SELECT jobs.id FROM jobs LEFT JOIN check_delays ON check_delays.job_id = jobs.id "
        "WHERE hand_over = 'done' AND files = 'kept' AND (until IS NULL OR until <= :now) ORDER BY jobs.id LIMIT :most",
        now=now,
        most=most,
    )
    return [row[0] for row in (*rows, *late)]


def tries_of(transaction: Transaction, job_ids: Sequence[int]) -> dict[int, int]:
    """How often the validator has failed on these jobs."""
    rows = transaction.rows("SELECT job_id, tries FROM check_delays WHERE job_id IN (:ids...)", ids=list(job_ids))
    return {row[0]: row[1] for row in rows}


def put_off(transaction: Transaction, rows: Iterable[tuple[int, int, float, str]]) -> None:
    """Do not check these jobs before an instant: job, tries, instant, why."""
    transaction.insert_many(
        "check_delays",
        ("job_id", "tries", "until", "words"),
        list(rows),
        "ON CONFLICT (job_id) DO UPDATE SET tries = excluded.tries, until = excluded.until, words = excluded.words",
    )


def note(transaction: Transaction, rows: Iterable[tuple[int, int, int, str]]) -> None:
    """Keep a validator's words: job, attempt, the other attempt or -1, words."""
    transaction.insert_many(
        "check_notes",
        ("job_id", "attempt", "other", "words"),
        list(rows),
        "ON CONFLICT (job_id, attempt, other) DO UPDATE SET words = excluded.words",
    )


def settle(transaction: Transaction, job_ids: Sequence[int]) -> None:
    """The validator has answered for these jobs."""
    if job_ids:
        transaction.run("DELETE FROM check_delays WHERE job_id IN (:ids...)", ids=list(job_ids))


def notes_of(transaction: Transaction, job_ids: Sequence[int]) -> dict[int, list[tuple[int, int, str]]]:
    """The words kept for these jobs: attempt, the other attempt or -1, words."""
    found: dict[int, list[tuple[int, int, str]]] = {}
    for job, attempt, other, words in transaction.rows(
        "SELECT job_id, attempt, other, words FROM check_notes WHERE job_id IN (:ids...) ORDER BY job_id, attempt, other",
        ids=list(job_ids),
    ):
        found.setdefault(job, []).append((attempt, other, words))
    return found


def trouble_of(transaction: Transaction, job_id: int) -> str:
    """What the validator owes an answer for, in its words; empty if it owes none."""
    row = transaction.one("SELECT words FROM check_delays WHERE job_id = :job", job=job_id)
    return str(row[0]) if row else ""


def outputs_of(transaction: Transaction, task_ids: Sequence[int]) -> dict[int, bytes]:
    """The small results tars of these tasks that are kept in the database."""
    rows = transaction.rows("SELECT task_id, bytes FROM outputs WHERE task_id IN (:ids...)", ids=list(task_ids))
    return {row[0]: bytes(row[1]) for row in rows}
