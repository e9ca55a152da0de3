"""Batches that go on, as their forecast and their last copies need them."""

from distributio.lifecycle.tail import Progress
from distributio.store.database import Transaction

SAMPLE = 501  # results that stand for all


def going_on(transaction: Transaction, most: int) -> dict[int, Progress]:
    """The batches that have begun to bring results and have not ended, by number."""
    rows = transaction.rows(
        "SELECT id, job_count, waiting, done + failed + cancelled, created_at FROM batches "
        "WHERE ended_at IS NULL AND done > 0 ORDER BY id LIMIT :most",
        most=most,
    )
    return {
        row[0]: Progress(job_count=int(row[1]), waiting=int(row[2]), decided=int(row[3]), created_at=row[4])
        for row in rows
    }


def turnarounds(transaction: Transaction, batch_id: int) -> list[float]:
    """How long some of a batch's valid copies took."""
    rows = transaction.rows(
        "SELECT received_at - sent_at FROM jobs JOIN tasks ON tasks.job_id = jobs.id "
        "WHERE batch_id = :batch AND validity = 'valid' LIMIT :most",
        batch=batch_id,
        most=SAMPLE,
    )
    return [float(row[0]) for row in rows]


def last_sent_at(transaction: Transaction, batch_id: int) -> float | None:
    """When the newest of a batch's running copies was sent."""
    row = transaction.one(
        "SELECT max(sent_at) FROM tasks JOIN jobs ON jobs.id = tasks.job_id "
        "WHERE tasks.state = 'in_progress' AND batch_id = :batch",
        batch=batch_id,
    )
    return float(row[0]) if row and row[0] is not None else None


def jobs_sent_before(transaction: Transaction, batch_id: int, instant: float, most: int) -> list[int]:
    """Jobs of a batch with a running copy that was sent before an instant."""
    rows = transaction.rows(
        "SELECT DISTINCT job_id FROM tasks JOIN jobs ON jobs.id = tasks.job_id "
        "WHERE tasks.state = 'in_progress' AND batch_id = :batch AND sent_at < :instant LIMIT :most",
        batch=batch_id,
        instant=instant,
        most=most,
    )
    return sorted(row[0] for row in rows)


def remember(transaction: Transaction, etas: dict[int, float | None]) -> None:
    """When batches may end."""
    transaction.update_many("batches", "id", ("eta_at",), [(eta, batch) for batch, eta in sorted(etas.items())])
