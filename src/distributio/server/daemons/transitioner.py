"""The timer: jobs whose tasks are past their deadline move on. Everything else moves in the transaction of its event."""

from collections.abc import Callable

from distributio.server.site import Site
from distributio.server.submissions import Change
from distributio.store import jobs

MOST = 500


def step(site: Site, clock: Callable[[], float]) -> bool:
    """Advance jobs with an overdue task; return whether there were any."""
    with site.database.read() as transaction:
        due = jobs.overdue(transaction, clock(), MOST)
    if due:
        site.ledger.call(Change(job_ids=due))
    site.flush_seen()
    return len(due) == MOST
