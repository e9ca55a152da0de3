"""Credit: one row for each task that earned some, and the totals of hosts, users and projects that follow from the rows."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from distributio.lifecycle.credit import Grant, believed_gflops, gflop_of, kept_forward, lone_gflops
from distributio.store.database import Transaction


def gflops_of(transaction: Transaction, host_ids: Iterable[int]) -> dict[int, float]:
    """The speed of one processor of these hosts, as believed."""
    rows = transaction.rows("SELECT id, gflops FROM hosts WHERE id IN (:ids...)", ids=sorted(set(host_ids)))
    return {row[0]: believed_gflops(row[1]) for row in rows}


def record(transaction: Transaction, grants: Sequence[tuple[Grant, int, int]], now: float) -> None:
    """Write grants, each with its project and app, and add them to every total, in the transaction that decides. A task that
    was granted credit before makes the whole fail: nothing is counted twice."""
    if not grants:
        return
    hosts: dict[int, int] = defaultdict(int)
    users: dict[int, int] = defaultdict(int)
    projects: dict[int, int] = defaultdict(int)
    apps: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for grant, project_id, app_id in grants:
        hosts[grant.host_id] += grant.credit
        projects[project_id] += grant.credit
        if grant.user_id is not None:
            users[grant.user_id] += grant.credit
        if grant.confirmed:
            apps[app_id][0] += gflop_of(grant.credit)
            apps[app_id][1] += grant.cpu_seconds
    transaction.insert_many(
        "credit_grants",
        ("task_id", "host_id", "user_id", "project_id", "credit", "at"),
        [
            (grant.task_id, grant.host_id, grant.user_id, project_id, grant.credit, now)
            for grant, project_id, _ in grants
        ],
    )
    for table, earned in (("hosts", hosts), ("users", users), ("projects", projects)):
        rows = [(credit, kept_forward(credit, now), number) for number, credit in earned.items() if credit]
        transaction.add_many(table, "id", ("credit", "credit_kept"), rows)
    transaction.add_many(
        "apps",
        "id",
        ("confirmed_gflop", "confirmed_seconds"),
        [(work, seconds, app_id) for app_id, (work, seconds) in apps.items() if app_id],
    )


def lone_gflops_of(transaction: Transaction, app_id: int) -> float:
    """The most that a result of this app is credited by which no other bears out, for each second of a processor."""
    row = transaction.one("SELECT confirmed_gflop, confirmed_seconds FROM apps WHERE id = :app", app=app_id)
    return lone_gflops(*row) if row else lone_gflops(0.0, 0.0)


def leaders(transaction: Transaction, most: int) -> list[tuple[str, int, float, bool]]:
    """Who has given most of late: name, credit, its fading sum, and whether the name may be shown."""
    rows = transaction.rows(
        "SELECT name, credit, credit_kept, shows_name FROM users WHERE credit > 0 "
        "ORDER BY credit_kept DESC, id LIMIT :most",
        most=most,
    )
    return [(row[0], int(row[1]), float(row[2]), bool(row[3])) for row in rows]


def of_user(transaction: Transaction, user_id: int) -> tuple[int, float, bool]:
    """A person's credit, its fading sum, and whether the leaderboard shows the name."""
    row = transaction.one("SELECT credit, credit_kept, shows_name FROM users WHERE id = :id", id=user_id)
    return (int(row[0]), float(row[1]), bool(row[2])) if row else (0, 0.0, False)


def show_name(transaction: Transaction, user_id: int, shows: bool) -> None:
    """Let the leaderboard show a person's name, or not."""
    transaction.run("UPDATE users SET shows_name = :shows WHERE id = :id", shows=shows, id=user_id)
