"""What people's programs ask of the site: batches, jobs, hosts, tokens. Handlers of the routes in app.py."""

import asyncio
import codecs
import time
from collections.abc import AsyncIterator
from urllib.parse import quote

import msgspec
from starlette.responses import Response, StreamingResponse

import distributio
from distributio.lifecycle.credit import in_cobblestones, recent_average
from distributio.lifecycle.model import DECIDED_STATES, JobState
from distributio.server import explaining, hosting, preflight
from distributio.server.problems import Refused, not_found
from distributio.server.routes import FAR, Answer, Call, json_response, whole_number
from distributio.server.serving import file_response
from distributio.server.site import Site
from distributio.server.submissions import Cancel
from distributio.store import accounts, credit, logs, views
from distributio.store.files import result_key
from distributio.wire.native import (
    Attach,
    Attached,
    BatchView,
    JobView,
    Page,
    QuotaView,
    SiteKey,
    SiteStatus,
    TokenView,
    WhoAmI,
)

EVENT_PAUSE_SECONDS = 0.2  # news of a batch is told at most this often
EVENT_POLL_SECONDS = 2.0  # and looked for this often if nobody brings any
HEARTBEAT_SECONDS = 15.0
FINAL = frozenset(state.value for state in DECIDED_STATES)


# --- the site and the caller ------------------------------------------------------------------------------------


async def whoami(call: Call) -> WhoAmI:
    """Who the token speaks for."""
    caller = call.caller
    names = {number: name for name, number in caller.projects.items()}
    earned, kept, shows_name = await call.site.read(credit.of_user, caller.user_id)
    return WhoAmI(
        user=caller.user,
        is_operator=caller.is_operator,
        project=names.get(caller.project_id or 0, ""),
        projects={name: caller.roles[number] for name, number in caller.projects.items()},
        credit=in_cobblestones(earned),
        recent_average=recent_average(kept, time.time()),
        shows_name=shows_name,
    )


async def status(call: Call) -> SiteStatus:
    """The site in numbers."""
    site = call.site
    found = await site.read(views.totals, time.time() - site.settings.away_seconds)
    return SiteStatus(name=site.settings.name, version=distributio.__version__, url=site.url, **found)


async def site_key(call: Call) -> SiteKey:
    """The keys with which the site signs the records of results."""
    key, *earlier = await call.site.in_thread(call.site.signer.keys)
    return SiteKey(name=call.site.settings.name, url=call.site.url, key=key, earlier=earlier)


async def quota(call: Call) -> QuotaView:
    """A project's limits and use."""
    project_id = call.project_id()
    names = {number: name for name, number in call.caller.projects.items()}
    return QuotaView(
        project=names.get(project_id, ""),
        limits=await call.site.read(accounts.limits_of, project_id),
        usage=await call.site.read(accounts.usage_of, project_id),
    )


# --- tokens -----------------------------------------------------------------------------------------------------


async def create_token(call: Call) -> Answer:
    """Make a token for the caller; its secret is shown once."""
    name = call.query("name", "token")[:120]
    project_id = call.project_id() if call.query("project") or call.caller.project_id is not None else None
    number, secret = await call.site.write(
        accounts.create_token, call.caller.user_id, project_id, name, time.time(), call.caller.expires_at
    )
    view = TokenView(id=number, name=name, created_at=time.time(), expires_at=call.caller.expires_at, secret=secret)
    return json_response(view, 201)


async def list_tokens(call: Call) -> Page:
    """The caller's tokens, without their secrets."""
    rows = await call.site.read(accounts.tokens_of, call.caller.user_id)
    return Page(items=[TokenView(id=row[0], name=row[1], created_at=row[2], expires_at=row[3]) for row in rows])


async def delete_token(call: Call) -> Response:
    """Revoke a token of the caller."""
    if not await call.site.write(accounts.revoke_token, call.caller.user_id, call.number("token")):
        raise not_found(f"token {call.path('token')}")
    call.site.forget(everybody=True)
    return Response(status_code=204)


# --- batches ----------------------------------------------------------------------------------------------------


def _cursor(call: Call, fallback: int) -> int:
    return call.count("cursor", fallback, FAR)


async def list_batches(call: Call) -> Page:
    """Batches, newest first."""
    most = call.limit()
    state = call.query("state")
    if state not in ("", "active", "ended"):
        raise Refused(422, "bad-request", f"state={state!r}: a batch is active or ended")
    found = await call.site.read(views.batches, call.visible_projects(), state, _cursor(call, FAR), most)
    return Page(items=found, cursor=str(found[-1].id) if len(found) == most else None)


async def find_batch(call: Call, role: str = "reader") -> tuple[BatchView, int]:
    """The batch in the path, and its project's number, if the caller may have it."""
    number = call.number("batch")
    found = await call.site.read(views.batch, number)
    if found is None:
        raise not_found(f"batch {number}")
    call.require(found[1], role, f"batch {number}")
    return found


async def get_batch(call: Call) -> BatchView:
    """One batch."""
    return (await find_batch(call))[0]


async def cancel_batch(call: Call) -> BatchView:
    """Cancel every job of a batch that is not decided."""
    batch, _ = await find_batch(call, "member")
    after: int | None = 0
    while after is not None:
        after = await call.site.ledger.ask(Cancel(batch_id=batch.id, after=after))
    return await get_batch(call)


def _states(call: Call) -> list[str] | None:
    text = call.query("state")
    if not text:
        return None
    states = text.split(",")
    unknown = [state for state in states if state not in set(JobState)]
    if unknown:
        raise Refused(422, "bad-request", f"state={unknown[0]!r}: a job is {', '.join(JobState)}")
    return states


async def list_batch_jobs(call: Call) -> Page:
    """A batch's jobs in order."""
    batch, _ = await find_batch(call)
    most = call.limit()
    found = await call.site.read(views.jobs_of_batch, batch.id, _states(call), _cursor(call, 0), most)
    return Page(items=found, cursor=str(found[-1].position) if len(found) == most else None)


async def batch_events(call: Call) -> Response:
    """News of a batch as server-sent events, until it has ended."""
    batch, _ = await find_batch(call)

    async def events() -> AsyncIterator[bytes]:
        last = b""
        silent_since = time.monotonic()
        with call.site.hub.follow(("batch", batch.id)) as news:
            while True:
                news.clear()
                found = await call.site.read(views.batch, batch.id)
                if found is None:
                    return
                data = msgspec.json.encode(found[0])
                if data != last:
                    last, silent_since = data, time.monotonic()
                    yield _event("batch", data)
                if found[0].ended_at is not None or call.site.hub.closing:
                    return
                if time.monotonic() - silent_since > HEARTBEAT_SECONDS:
                    silent_since = time.monotonic()
                    yield b": still here\n\n"
                await asyncio.sleep(EVENT_PAUSE_SECONDS)
                await _news(news)

    return _event_stream(events())


async def _news(news: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(EVENT_POLL_SECONDS):
            await news.wait()
    except TimeoutError:
        return


def _event(name: str, data: bytes) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


def _event_stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


# --- jobs -------------------------------------------------------------------------------------------------------


def _place(call: Call) -> tuple[int, int]:
    batch, _, position = call.path("job").partition(".")
    numbers = whole_number(batch), whole_number(position, 9)
    if numbers[0] is None or numbers[1] is None:
        raise not_found(f"job {call.path('job')[:80]!r} (a job is named BATCH.POSITION, as in 12.1)")
    return numbers[0], numbers[1]


async def find_job(call: Call, role: str = "reader") -> tuple[JobView, int, int]:
    """The job in the path, its number and its project's, if the caller may have it."""
    batch, position = _place(call)
    found = await call.site.read(views.job, batch, position)
    if found is None:
        raise not_found(f"job {batch}.{position}")
    call.require(found[2], role, f"job {batch}.{position}")
    return found


async def list_jobs(call: Call) -> Page:
    """Jobs, newest first."""
    most = call.limit()
    batch, _, position = call.query("cursor", f"{FAR}.0").partition(".")
    before = whole_number(batch), whole_number(position, 9)
    if before[0] is None or before[1] is None:
        raise Refused(422, "bad-request", "this cursor was not given by the site")
    place = before[0], before[1]
    found = await call.site.read(views.recent_jobs, call.visible_projects(), _states(call), place, most)
    return Page(items=found, cursor=found[-1].id if len(found) == most else None)


async def get_job(call: Call) -> JobView:
    """One job with its tasks."""
    return (await find_job(call))[0]


async def cancel_job(call: Call) -> JobView:
    """Cancel a job if it is not decided."""
    job, number, _ = await find_job(call, "member")
    await call.site.ledger.ask(Cancel(batch_id=job.batch, job_id=number))
    return await get_job(call)


async def explain_job(call: Call) -> Answer:
    """Why a job is where it is."""
    job, number, project_id = await find_job(call)
    return await explaining.explain(call.site, job, number, project_id)


def telling_task(job: JobView, attempt: str) -> int | None:
    """The task whose log is meant: the one asked for, else the canonical, the running, or the last that a host had."""
    if attempt:
        number = whole_number(attempt, 9)
        if number is None or number >= len(job.tasks):
            raise not_found(f"attempt {attempt[:20]} of job {job.id}")
        return job.tasks[number].id
    for wanted in (
        [task for task in job.tasks if task.validity == "valid"],
        [task for task in job.tasks if task.state == "in_progress"],
        [task for task in job.tasks if task.host is not None],
    ):
        if wanted:
            return wanted[-1].id
    return None


async def job_log(call: Call) -> Response:
    """A job's log: what its command wrote. With `follow=1` as server-sent events until the job is decided."""
    job, number, _ = await find_job(call)
    attempt = call.query("attempt")
    task = telling_task(job, attempt)
    if not call.query("follow"):
        data = await call.site.read(logs.read, task) if task is not None else b""
        return Response(data, media_type="text/plain; charset=utf-8", headers={"X-Content-Type-Options": "nosniff"})
    offset, asked_task = call.count("offset", 0, FAR), call.count("task", 0, FAR)
    return _event_stream(_log_events(call.site, job, number, attempt, offset, asked_task))


async def _log_events(
    site: Site, job: JobView, number: int, attempt: str, offset: int, asked_task: int
) -> AsyncIterator[bytes]:
    task: int | None = None
    shown = ""
    silent_since = time.monotonic()
    while True:
        topics = [("job", number)] + [("log", each.id) for each in job.tasks]
        with site.hub.follow(*topics) as news:
            found = await site.read(views.job, job.batch, job.position)
            if found is None:
                return
            job = found[0]
            telling = telling_task(job, attempt)
            if telling != task:
                # An offset counts in the log of the task it was given for, and in no other's.
                offset = offset if task is None and asked_task in (0, telling) else 0
                task = telling
            decided = job.state in FINAL
            if task is not None and (data := await site.read(logs.read, task, offset)):
                text, used = _whole_characters(data, final=decided)
                if used:
                    offset += used
                    silent_since = time.monotonic()
                    yield _event("log", msgspec.json.encode({"text": text, "offset": offset, "task": task}))
            state = msgspec.json.encode(job)
            if decided:
                yield _event("end", state)
                return
            brief = f"{job.state} {[(each.state, each.phase, each.progress) for each in job.tasks]}"
            if brief != shown:
                shown, silent_since = brief, time.monotonic()
                yield _event("state", state)
            if time.monotonic() - silent_since > HEARTBEAT_SECONDS:
                silent_since = time.monotonic()
                yield b": still here\n\n"
            if site.hub.closing:
                return
            await _news(news)


def _whole_characters(data: bytes, *, final: bool) -> tuple[str, int]:
    """Text of a piece of log that may end within a character; that character waits for its rest, unless none will come."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data, final)
    return text, len(data) - len(decoder.getstate()[0])


async def job_results(call: Call) -> Response:
    """The results tar of a decided job."""
    return await _result_file(call, "results.tar", "application/x-tar")


async def job_record(call: Call) -> Response:
    """result.json: what ran where, how it ended and what was handed over."""
    return await _result_file(call, "result.json", "application/json")


async def _result_file(call: Call, name: str, media_type: str) -> Response:
    job, _, _ = await find_job(call)
    if job.state not in FINAL or not job.handed_over:
        raise Refused(409, "not-handed-over", f"job {job.id} is {job.state}")
    if name == "results.tar" and not job.has_results:
        raise Refused(404, "no-results", f"job {job.id} ({job.state}) left nothing in /root/shared/results")
    key = result_key(job.batch, job.position, name)
    return await file_response(
        call, key, media_type, {"Content-Disposition": f"attachment; filename={quote(f'{job.id}-{name}')}"}
    )


# --- hosts ------------------------------------------------------------------------------------------------------


async def list_hosts(call: Call) -> Page:
    """The caller's hosts; for the operator with `all=1` everybody's."""
    site = call.site
    everybody = call.caller.is_operator and bool(call.query("all"))
    found = await site.read(
        views.host_views,
        time.time(),
        site.settings.away_seconds,
        user_id=None if everybody else call.caller.user_id,
    )
    return Page(items=found)


async def get_host(call: Call) -> Answer:
    """One host of the caller."""
    site = call.site
    known = await site.read(accounts.host_by_public_id, call.path("host"))
    if known is None or (known.user_id != call.caller.user_id and not call.caller.is_operator):
        raise not_found(f"host {call.path('host')[:40]!r}")
    await site.in_thread(site.flush_seen)
    found = await site.read(views.host_views, time.time(), site.settings.away_seconds, public_id=known.public_id)
    return found[0]


async def attach_host(call: Call) -> Answer:
    """Join as a host of the caller's; the key is shown once."""
    body: Attach = call.body
    preflight.check_facts(body.facts)
    public_id, key = await call.site.write(accounts.attach_host, call.caller.user_id, body.facts, time.time())
    return json_response(Attached(host=public_id, key=key, site_name=call.site.settings.name), 201)


async def remove_host(call: Call) -> Response:
    """Detach a host of the caller from afar: its key is worthless from now on, its tasks go to others."""
    known = await call.site.read(accounts.host_by_public_id, call.path("host"))
    if known is None or (known.user_id != call.caller.user_id and not call.caller.is_operator):
        raise not_found(f"host {call.path('host')[:40]!r}")
    await hosting.detach(call.site, known)
    return Response(status_code=204)
