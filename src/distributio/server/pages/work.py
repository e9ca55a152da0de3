"""The pages of those who send work: batches, a batch, a job. Who may see what is decided by the API's own functions."""

import time
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct
from starlette.responses import Response

from distributio.lifecycle import explain
from distributio.lifecycle.model import JobState, Reason
from distributio.server import explaining, native_api, submitting
from distributio.server.pages.rendering import redirect, show
from distributio.server.routes import ROLES, Call
from distributio.store import logs, page_views, views
from distributio.wire.native import BatchView, JobView, TaskView

_MOST_FAILED = 500  # failed jobs that are looked at to group them by cause
_LOG_SHOWN = 262_144  # bytes of a log on the page itself


class FailureGroup(Struct, kw_only=True):
    """Failed jobs of a batch with the same cause."""

    code: str
    exit_code: int | None
    count: int
    first: str


class Bar(Struct, frozen=True, kw_only=True):
    """Where a task lies on the time line of its job, in thousandths of it."""

    start: float
    width: float


def group_failures(jobs: Iterable[JobView]) -> list[FailureGroup]:
    """Failed jobs by what the telling task's ending says, the most frequent first."""
    groups: dict[tuple[str, int | None], FailureGroup] = {}
    for job in jobs:
        code = job.cause or (explain.code_of(Reason(job.reasons[0])) if job.reasons else "exit-code")
        key = (code, job.exit_code if code == "exit-code" else None)
        group = groups.setdefault(key, FailureGroup(code=code, exit_code=key[1], count=0, first=job.id))
        group.count += 1
    return sorted(groups.values(), key=lambda group: -group.count)


def time_line(job: JobView, now: float) -> list[Bar | None]:
    """The bars of a job's tasks, from its submission to its end or now; None for a task that was never sent."""
    ends = [task.received_at for task in job.tasks if task.received_at is not None]
    end = now if job.decided_at is None else max([job.decided_at, *ends])
    length = max(end - job.created_at, 0.001)
    bars: list[Bar | None] = []
    for task in job.tasks:
        if task.sent_at is None:
            bars.append(None)
            continue
        start = 1000 * max(0.0, task.sent_at - job.created_at) / length
        width = 1000 * (_end_of(task, end) - task.sent_at) / length
        width = min(1000.0, max(width, 12.0))
        bars.append(Bar(start=round(min(start, 1000 - width), 1), width=round(width, 1)))
    return bars


def _end_of(task: TaskView, now: float) -> float:
    if task.received_at is not None:
        return task.received_at
    if task.state == "over" and task.deadline_at is not None:
        return min(task.deadline_at, now)
    return now


def _may(call: Call, project_id: int, role: str) -> bool:
    held = call.caller.roles.get(project_id)
    return call.caller.is_operator or (held is not None and ROLES.index(held) >= ROLES.index(role))


def _listing(call: Call, cursor: str | None) -> dict[str, Any]:
    return {"cursor": cursor, "is_first": not call.query("cursor"), "state": call.query("state")}


async def batches(call: Call) -> Response:
    """GET /batches."""
    page = await native_api.list_batches(call)
    everybody = call.caller.is_operator and bool(call.query("all"))
    return show(call, "batches.html", batches=page.items, everybody=everybody, **_listing(call, page.cursor))


async def batch(call: Call) -> Response:
    """GET /batches/{batch}."""
    found, project_id = await native_api.find_batch(call)
    page = await native_api.list_batch_jobs(call)
    failed: list[JobView] = []
    if found.counts["failed"]:
        states = [JobState.FAILED.value]
        failed = await call.site.read(views.jobs_of_batch, found.id, states, 0, _MOST_FAILED)
    return show(
        call,
        "batch.html",
        batch=found,
        jobs=page.items,
        failures=group_failures(failed),
        failures_seen=len(failed),
        waiting=await _why_waiting(call, found, project_id),
        may_change=_may(call, project_id, "member"),
        **_listing(call, page.cursor),
    )


async def _why_waiting(call: Call, found: BatchView, project_id: int) -> Any:
    """Why nothing runs, told by the first job that waits; None if something does, or nothing waits."""
    if not found.counts["waiting"] or found.counts["running"]:
        return None
    first = await call.site.read(views.jobs_of_batch, found.id, [JobState.WAITING.value], 0, 1)
    if not first:
        return None
    number = await call.site.read(views.job_number, found.id, first[0].position)
    assert number is not None
    return await explaining.explain(call.site, first[0], number, project_id)


async def cancel_batch(call: Call) -> Response:
    """POST /batches/{batch}/cancel."""
    found = await native_api.cancel_batch(call)
    return redirect(call.site, f"/batches/{found.id}")


async def rerun_batch(call: Call) -> Response:
    """POST /batches/{batch}/rerun."""
    answer = await submitting.rerun_batch(call)
    assert isinstance(answer, Response)
    made = msgspec.json.decode(answer.body, type=BatchView)
    return redirect(call.site, f"/batches/{made.id}")


async def job(call: Call) -> Response:
    """GET /jobs/{job}."""
    found, _, project_id = await native_api.find_job(call)
    whole = await call.site.read(views.batch, found.batch)
    assert whole is not None
    attempt = call.query("attempt")
    task_id = native_api.telling_task(found, attempt)
    log = await call.site.read(logs.read, task_id) if task_id is not None else b""
    hosts = [task.host for task in found.tasks if task.host is not None]
    owner = None if call.caller.is_operator else call.caller.user_id
    return show(
        call,
        "job.html",
        job=found,
        batch=whole[0],
        explanation=await native_api.explain_job(call),
        bars=time_line(found, time.time()),
        hosts=await call.site.read(page_views.host_names, hosts, owner) if hosts else {},
        log=log[-_LOG_SHOWN:].decode("utf-8", "replace"),
        log_bytes=len(log),
        log_cut=max(0, len(log) - _LOG_SHOWN),
        log_task=task_id,
        attempt=attempt,
        is_over=found.state in native_api.FINAL,
        may_change=_may(call, project_id, "member"),
    )


async def cancel_job(call: Call) -> Response:
    """POST /jobs/{job}/cancel."""
    found = await native_api.cancel_job(call)
    return redirect(call.site, f"/jobs/{found.id}")
