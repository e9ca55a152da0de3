"""What only the pages ask of the store."""

from typing import Any

from msgspec import Struct

from distributio.store.database import Transaction

_NEWEST_TASKS = 50_000  # how far back a host's past is looked for: there is no index over finished tasks


class HostTask(Struct, frozen=True, kw_only=True):
    """A task as the host's page shows it. `project_id` tells whether its reader may see the job."""

    id: int
    job: str
    project_id: int
    state: str
    outcome: str
    cause: str
    exit_code: int | None
    sent_at: float | None
    received_at: float | None
    wall_seconds: float
    memory_bytes: int
    phase: str = ""


class Activity(Struct, frozen=True, kw_only=True):
    """A batch as the public may know it: how much and how it went, not whose and what."""

    created_at: float
    ended_at: float | None
    job_count: int
    done: int
    failed: int


def tasks_of_host(transaction: Transaction, host_id: int, most: int) -> list[HostTask]:
    """The newest tasks of a host, among the newest of the site."""
    newest = transaction.one("SELECT max(id) FROM tasks")
    floor = (newest[0] or 0) - _NEWEST_TASKS if newest else 0
    rows = transaction.rows(
        "SELECT tasks.id, jobs.batch_id, position, batches.project_id, tasks.state, outcome, cause, exit_code, sent_at, "
        "received_at, wall_seconds, memory_bytes FROM tasks JOIN jobs ON jobs.id = job_id "
        "JOIN batches ON batches.id = jobs.batch_id WHERE tasks.id > :floor AND host_id = :host "
        "ORDER BY tasks.id DESC LIMIT :most",
        floor=floor,
        host=host_id,
        most=most,
    )
    return [_host_task(row) for row in rows]


def _host_task(row: tuple[Any, ...]) -> HostTask:
    return HostTask(
        id=row[0],
        job=f"{row[1]}.{row[2]}",
        project_id=row[3],
        state=row[4],
        outcome=row[5],
        cause=row[6] or "",
        exit_code=row[7],
        sent_at=row[8],
        received_at=row[9],
        wall_seconds=row[10] or 0.0,
        memory_bytes=row[11] or 0,
    )


def host_names(transaction: Transaction, public_ids: list[str], user_id: int | None) -> dict[str, str]:
    """Names of those of these hosts that are a person's (None: of anybody's)."""
    where = "" if user_id is None else " AND user_id = :user"
    values: dict[str, Any] = {} if user_id is None else {"user": user_id}
    rows = transaction.rows(
        f"SELECT public_id, name FROM hosts WHERE public_id IN (:ids...){where}", ids=public_ids, **values
    )
    return {row[0]: row[1] for row in rows}


def activity(transaction: Transaction, most: int) -> list[Activity]:
    """The newest batches of all projects, without names."""
    rows = transaction.rows(
        "SELECT created_at, ended_at, job_count, done, failed FROM batches ORDER BY id DESC LIMIT :most", most=most
    )
    return [
        Activity(created_at=row[0], ended_at=row[1], job_count=int(row[2]), done=int(row[3]), failed=int(row[4]))
        for row in rows
    ]


def end_stale_sessions(transaction: Transaction, user_id: int, name: str, now: float) -> int:
    """Forget a person's tokens whose names begin so and that have expired; return how many there were."""
    return transaction.run(
        "DELETE FROM tokens WHERE user_id = :user AND name LIKE :name AND expires_at < :now",
        user=user_id,
        name=f"{name}%",
        now=now,
    )
