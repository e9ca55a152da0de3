"""What hosts have earned with apps, read and written for many at a time."""

import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from distributio.lifecycle.trust import Standing
from distributio.store.database import Transaction

Place = tuple[int, int]  # host and app

_COLUMNS = Standing.__struct_fields__
_UPSERT = "ON CONFLICT (host_id, app_id) DO UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS)
_SEED = "spot_check_seed"


def app_for(transaction: Transaction, runner: str, repository: str) -> int:
    """The number of an app, made if it is the first time."""
    transaction.run(
        "INSERT INTO apps (runner, repository) VALUES (:runner, :repository) "
        "ON CONFLICT (runner, repository) DO NOTHING",
        runner=runner,
        repository=repository,
    )
    row = transaction.one(
        "SELECT id FROM apps WHERE runner = :runner AND repository = :repository", runner=runner, repository=repository
    )
    assert row is not None
    return int(row[0])


def standings(
    transaction: Transaction, host_ids: Iterable[int], app_ids: Iterable[int], *, lock: bool = False
) -> dict[Place, Standing]:
    """What these hosts have earned with these apps; those nobody knows yet are left out."""
    rows = transaction.rows(
        f"SELECT host_id, app_id, {', '.join(_COLUMNS)} FROM host_apps "
        f"WHERE host_id IN (:hosts...) AND app_id IN (:apps...) ORDER BY host_id, app_id "
        f"{transaction.lock() if lock else ''}",
        hosts=sorted(set(host_ids)),
        apps=sorted(set(app_ids)),
    )
    return {(row[0], row[1]): Standing(**dict(zip(_COLUMNS, row[2:], strict=True))) for row in rows}


def keep_places(transaction: Transaction, places: Iterable[Place]) -> None:
    """Make rows for hosts that are new to an app, so that they can be locked."""
    new = Standing()
    fields = tuple(getattr(new, name) for name in _COLUMNS)
    transaction.insert_many(
        "host_apps",
        ("host_id", "app_id", *_COLUMNS),
        [(*place, *fields) for place in sorted(places)],
        "ON CONFLICT (host_id, app_id) DO NOTHING",
    )


def save(transaction: Transaction, changed: Mapping[Place, Standing]) -> None:
    """Remember standings, in one order so that writers never cross."""
    transaction.insert_many(
        "host_apps",
        ("host_id", "app_id", *_COLUMNS),
        [(*place, *(getattr(changed[place], name) for name in _COLUMNS)) for place in sorted(changed)],
        _UPSERT,
    )


def evidence(transaction: Transaction, batch_id: int, host_id: int) -> tuple[int, int, bool]:
    """How a batch fares: jobs done and failed, and whether another host has one of its tasks now."""
    row = transaction.one(
        "SELECT done, failed, EXISTS (SELECT 1 FROM tasks JOIN jobs ON jobs.id = tasks.job_id "
        "WHERE tasks.state = 'in_progress' AND tasks.host_id <> :host AND jobs.batch_id = batches.id) "
        "FROM batches WHERE id = :batch",
        host=host_id,
        batch=batch_id,
    )
    return (int(row[0]), int(row[1]), bool(row[2])) if row else (0, 0, False)


def unchecked_work_of(transaction: Transaction, host_ids: Iterable[int]) -> list[int]:
    """Jobs of which these hosts have a copy, or have brought one that a validator is still to look at."""
    hosts = sorted(set(host_ids))
    rows = transaction.rows(
        "SELECT job_id FROM tasks WHERE state = 'in_progress' AND host_id IN (:hosts...) "
        "UNION SELECT jobs.id FROM jobs JOIN tasks ON tasks.job_id = jobs.id "
        "WHERE jobs.state = 'checking' AND tasks.host_id IN (:again...)",
        hosts=hosts,
        again=hosts,
    )
    return sorted(row[0] for row in rows)


def undecided_with(transaction: Transaction, host_id: int) -> list[int]:
    """Undecided jobs of which a host has, or had, a copy. Looks through the batches that have not ended."""
    rows = transaction.rows(
        "SELECT DISTINCT jobs.id FROM batches JOIN jobs ON jobs.batch_id = batches.id "
        "JOIN tasks ON tasks.job_id = jobs.id WHERE batches.ended_at IS NULL "
        "AND jobs.state IN ('waiting', 'running', 'checking') AND tasks.host_id = :host",
        host=host_id,
    )
    return sorted(row[0] for row in rows)


def done_alone_by(transaction: Transaction, host_id: int, since: float) -> dict[int, list[tuple[int, str | None]]]:
    """Jobs that were accepted on this host's word alone since an instant, and are not done again yet: by batch, number and
    choice. Looks through all tasks."""
    found: dict[int, list[tuple[int, str | None]]] = {}
    for batch, job, choice in transaction.rows(
        "SELECT batch_id, jobs.id, choice FROM tasks JOIN jobs ON jobs.id = tasks.job_id "
        "WHERE tasks.host_id = :host AND tasks.validity = 'valid' AND canonical_attempt = tasks.attempt "
        "AND quorum = 1 AND expect IS NULL AND decided_at >= :since "
        "AND NOT EXISTS (SELECT 1 FROM rechecks WHERE rechecks.job_id = jobs.id) ORDER BY batch_id, position",
        host=host_id,
        since=since,
    ):
        found.setdefault(batch, []).append((job, choice))
    return found


def link_rechecks(transaction: Transaction, job_ids: list[int], batch_id: int) -> None:
    """Remember that these jobs are done again by the jobs of a batch, in its order."""
    again = transaction.rows("SELECT id FROM jobs WHERE batch_id = :batch ORDER BY position", batch=batch_id)
    pairs = [(job, row[0]) for job, row in zip(job_ids, again, strict=True)]
    transaction.insert_many("rechecks", ("job_id", "by_job_id"), pairs, "ON CONFLICT (job_id) DO NOTHING")


_RECHECK = (
    "SELECT first.batch_id, first.position, again.batch_id, again.position, hosts.public_id, again.state, "
    "coalesce(old.output_digest, ''), coalesce(new.output_digest, '') FROM rechecks "
    "JOIN jobs AS first ON first.id = rechecks.job_id JOIN jobs AS again ON again.id = rechecks.by_job_id "
    "JOIN tasks AS old ON old.job_id = first.id AND old.attempt = first.canonical_attempt "
    "LEFT JOIN hosts ON hosts.id = old.host_id "
    "LEFT JOIN tasks AS new ON new.job_id = again.id AND new.attempt = again.canonical_attempt "
)


def rechecks_of_batch(transaction: Transaction, batch_id: int, after: int, most: int) -> list[tuple[Any, ...]]:
    """The jobs of a batch that are done again, behind a position: places, host, state, both digests."""
    return transaction.rows(
        f"{_RECHECK} WHERE first.batch_id = :batch AND first.position > :after ORDER BY first.position LIMIT :most",
        batch=batch_id,
        after=after,
        most=most,
    )


def recheck_of_job(transaction: Transaction, job_id: int) -> tuple[str, bool] | None:
    """How the re-check of a job stands: its state, and whether the outputs are the same."""
    row = transaction.one(f"{_RECHECK} WHERE first.id = :job", job=job_id)
    return (str(row[5]), row[6] == row[7]) if row else None


def seed(transaction: Transaction) -> str:
    """The site's secret for drawing spot checks, made the first time it is asked for."""
    row = transaction.one("SELECT value FROM site WHERE key = :key", key=_SEED)
    if row is None:
        transaction.run(
            "INSERT INTO site (key, value) VALUES (:key, :value) ON CONFLICT (key) DO NOTHING",
            key=_SEED,
            value=secrets.token_hex(16),
        )
        row = transaction.one("SELECT value FROM site WHERE key = :key", key=_SEED)
        assert row is not None
    return str(row[0])


def apps_of(transaction: Transaction, host_ids: Iterable[int]) -> dict[int, list[tuple[str, str, Standing]]]:
    """What hosts have earned, for people: runner, repository and standing, by host."""
    found: dict[int, list[tuple[str, str, Standing]]] = {}
    for row in transaction.rows(
        f"SELECT host_id, runner, repository, {', '.join(_COLUMNS)} FROM host_apps JOIN apps ON apps.id = app_id "
        "WHERE host_id IN (:hosts...) ORDER BY host_id, repository",
        hosts=sorted(set(host_ids)),
    ):
        found.setdefault(row[0], []).append((row[1], row[2], Standing(**dict(zip(_COLUMNS, row[3:], strict=True)))))
    return found
