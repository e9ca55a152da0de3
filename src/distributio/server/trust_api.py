"""Whom the site believes, as its operator has it, and what lenders have earned: bans, re-checks, the leaderboard."""

import json
import time
from typing import Any

import msgspec
from msgspec import Struct

from distributio.lifecycle.advance import discredited
from distributio.lifecycle.credit import in_cobblestones, recent_average
from distributio.lifecycle.model import Policy
from distributio.server import native_api
from distributio.server.problems import Refused, not_found
from distributio.server.routes import Answer, Call, json_response
from distributio.server.site import Site
from distributio.server.submissions import (
    Change,
    IdempotencyConflict,
    ImageGone,
    ProjectDisabled,
    QuotaExceeded,
    Submit,
)
from distributio.store import accounts, credit, queues, trust, views
from distributio.store.accounts import KnownHost
from distributio.store.database import Transaction
from distributio.wire.native import HostChange, HostChanged, JobChoice, Leader, Page, PersonChange, Recheck, WhoAmI

AT_ONCE = 500  # jobs changed in one turn of the ledger
LEADERS = 100
_PREVENTED: dict[type[Exception], str] = {
    QuotaExceeded: "quota-exceeded",
    ProjectDisabled: "project-disabled",
    ImageGone: "unknown-image",
    IdempotencyConflict: "idempotency-conflict",
}


async def change_host(call: Call) -> Answer:
    """Ban a host, or let it work again. What a banned host holds goes to others, what it brought and nobody has compared
    does not count, and what it did alone lately is done again."""
    body: HostChange = call.body
    site = call.site
    if body.state not in ("banned", "active"):
        raise Refused(422, "bad-request", f"state {body.state!r}: a host can be made banned or active")
    known = await site.read(accounts.host_by_public_id, call.path("host"))
    if known is None:
        raise not_found(f"host {call.path('host')[:40]!r}")
    reason = body.reason if body.state == "banned" else ""
    await site.write(accounts.set_host_state, known.id, body.state, reason)
    site.forget(public_id=known.public_id)
    done, prevented = await _ban(site, known, body) if body.state == "banned" else ([], {})
    found = await site.read(views.host_views, time.time(), site.settings.away_seconds, public_id=known.public_id)
    return json_response(HostChanged(host=found[0], rechecks=done, not_rechecked=prevented))


async def _ban(site: Site, host: KnownHost, body: HostChange) -> tuple[list[int], dict[str, int]]:
    undecided = await site.read(trust.undecided_with, host.id)
    for start in range(0, len(undecided), AT_ONCE):
        some = undecided[start : start + AT_ONCE]
        await site.ledger.ask(Change(job_ids=some, event=lambda job: discredited(job, host.id)))
    alone = await site.read(trust.done_alone_by, host.id, time.time() - body.recheck_days * 86_400)
    done: list[int] = []
    prevented: dict[str, int] = {}
    for batch_id, jobs in alone.items():
        template = await site.read(_template, batch_id)
        try:
            again = await site.ledger.ask(_recheck(template, batch_id, jobs, host))
        except tuple(_PREVENTED) as error:
            code = _PREVENTED[type(error)]
            prevented[code] = prevented.get(code, 0) + len(jobs)
            continue
        await site.write(trust.link_rechecks, [job for job, _ in jobs], again)
        done.append(again)
    return done, prevented


class _Template(Struct, kw_only=True):
    """What the batch of a re-check takes over from the batch that is checked."""

    project_id: int
    user_id: int
    name: str
    labels: str
    spec: str
    policy: str
    shape: str
    image_id: int | None
    priority: int
    runner: str
    repository: str
    input_digests: list[str]


def _template(transaction: Transaction, batch_id: int) -> _Template:
    row = transaction.one(
        "SELECT batches.project_id, user_id, name, labels, spec, policy, shape, image_id, priority, runner, repository "
        "FROM batches JOIN queues ON queues.id = queue_id LEFT JOIN apps ON apps.id = app_id WHERE batches.id = :batch",
        batch=batch_id,
    )
    assert row is not None
    digests = transaction.rows("SELECT digest FROM batch_files WHERE batch_id = :batch", batch=batch_id)
    fields = dict(zip(_Template.__struct_fields__, (*row, [digest for (digest,) in digests]), strict=True))
    fields |= {name: fields[name] or "" for name in ("runner", "repository")}
    return msgspec.convert(fields, _Template)


def _recheck(batch: _Template, batch_id: int, jobs: list[tuple[int, str | None]], host: KnownHost) -> Submit:
    labels: dict[str, str] = json.loads(batch.labels)
    choices = [msgspec.json.decode(choice, type=JobChoice) if choice else JobChoice() for _, choice in jobs]
    return Submit(
        project_id=batch.project_id,
        user_id=batch.user_id,
        name=f"{batch.name[:100]} (re-check)",
        labels=json.dumps({**labels, "recheck-of": str(batch_id)}),
        spec=batch.spec,
        policy=msgspec.json.decode(batch.policy, type=Policy),
        shape=queues.shape_of(batch.shape),
        image_id=batch.image_id,
        priority=batch.priority,
        count=len(jobs),
        choices=choices,
        input_digests=batch.input_digests,
        # A ban that was cut short and is said again makes no second batch.
        idempotency_key=f"recheck of {batch_id} for {host.public_id} from {jobs[0][0]} to {jobs[-1][0]}",
        request_digest="recheck",
        repository=batch.repository,
    )


async def batch_rechecks(call: Call) -> Page:
    """The jobs of a batch that are done again because their host was banned, with whether the outputs are the same."""
    batch, _ = await native_api.find_batch(call)
    most = call.limit()
    rows = await call.site.read(trust.rechecks_of_batch, batch.id, call.count("cursor", 0, 1 << 31), most)
    return Page(items=[_compared(row) for row in rows], cursor=str(rows[-1][1]) if len(rows) == most else None)


def _compared(row: tuple[Any, ...]) -> Recheck:
    batch, position, again_batch, again_position, host, state, digest, digest_again = row
    return Recheck(
        job=f"{batch}.{position}",
        again=f"{again_batch}.{again_position}",
        host=host,
        state=state,
        agrees=digest == digest_again if state == "done" else None,
        digest=digest,
        digest_again=digest_again,
    )


async def leaderboard(call: Call) -> Page:
    """Who gives most of late. Those who have not agreed to be named are counted without a name; machines never appear."""
    now = time.time()
    rows = await call.site.read(credit.leaders, LEADERS)
    return Page(
        items=[
            Leader(
                rank=rank,
                name=name if shows else "",
                credit=in_cobblestones(earned),
                recent_average=recent_average(kept, now),
            )
            for rank, (name, earned, kept, shows) in enumerate(rows, 1)
        ]
    )


async def change_me(call: Call) -> WhoAmI:
    """Say whether the leaderboard may name you."""
    body: PersonChange = call.body
    await call.site.write(credit.show_name, call.caller.user_id, body.shows_name)
    return await native_api.whoami(call)
