"""What hosts have earned with apps, read and written for many at a time."""

import secrets
from collections.abc import Iterable, Mapping

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
