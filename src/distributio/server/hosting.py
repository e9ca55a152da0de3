"""A host that leaves: its key is worthless at once, and what it had goes to others."""

from starlette.responses import Response

from distributio.lifecycle.advance import reported
from distributio.lifecycle.model import Job, Outcome, Report, TaskState
from distributio.server.routes import Call
from distributio.server.site import Site
from distributio.server.submissions import Change
from distributio.store import accounts
from distributio.store.accounts import KnownHost
from distributio.store.database import Transaction


async def detach(site: Site, host: KnownHost) -> None:
    """Forget the host's key and give its tasks back."""
    await site.write(accounts.detach_host, host.id)
    site.forget(public_id=host.public_id)
    # A turn that was under way may still have been given work.
    while held := await site.read(_jobs_on, host.id):
        await site.ledger.ask(Change(job_ids=held, event=lambda job: _without(job, host.id)))


def _jobs_on(transaction: Transaction, host_id: int) -> list[int]:
    rows = transaction.rows(
        "SELECT DISTINCT job_id FROM tasks WHERE host_id = :host AND state = 'in_progress'", host=host_id
    )
    return [row[0] for row in rows]


def _without(job: Job, host_id: int) -> Job:
    for task in job.tasks:
        if task.host_id == host_id and task.state is TaskState.IN_PROGRESS:
            job = reported(
                job, task.attempt, Report(outcome=Outcome.ABANDONED, cause="host-detached"), task.sent_at or 0
            )
    return job


async def leave(call: Call) -> Response:
    """POST /api/v1/host/detach: the host itself says goodbye."""
    await detach(call.site, call.host)
    return Response(status_code=204)
