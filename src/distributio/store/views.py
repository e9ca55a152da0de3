"""Batches, jobs, tasks and hosts as people ask for them: reads for the API and the pages, never for a decision."""

import json
import re
from typing import Any

import msgspec

from distributio.lifecycle.credit import believed_gflops, in_cobblestones, recent_average
from distributio.lifecycle.model import DECIDED_STATES, JobState
from distributio.lifecycle.reasons import because
from distributio.lifecycle.trust import Standing, is_trusted
from distributio.store import trust
from distributio.store.database import Transaction
from distributio.wire.native import (
    BatchView,
    Because,
    HostAppView,
    HostFacts,
    HostView,
    JobChoice,
    JobView,
    Spec,
    TaskView,
)

_STATES = tuple(state.value for state in JobState)
_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
_BATCH = (
    "SELECT batches.id, projects.name, batches.name, users.name, batches.created_at, ended_at, job_count, "
    "waiting, running, checking, done, failed, cancelled, priority, labels, spec, policy, images.digest, "
    "batches.project_id, eta_at FROM batches JOIN projects ON projects.id = batches.project_id "
    "JOIN users ON users.id = batches.user_id LEFT JOIN images ON images.id = batches.image_id "
)
_JOB = (
    "SELECT jobs.id, jobs.batch_id, position, jobs.state, reasons, canonical_attempt, hand_over, decided_at, choice, "
    "batches.name, batches.created_at, spec, projects.name, batches.project_id "
    "FROM jobs JOIN batches ON batches.id = jobs.batch_id JOIN projects ON projects.id = batches.project_id "
)
_TASK = (
    "SELECT job_id, tasks.id, attempt, tasks.state, outcome, validity, hosts.public_id, sent_at, deadline_at, "
    "received_at, exit_code, cause, output_digest, output_bytes, wall_seconds, cpu_seconds, memory_bytes, "
    "progress.fraction, progress.phase, credit_grants.credit FROM tasks LEFT JOIN hosts ON hosts.id = tasks.host_id "
    "LEFT JOIN progress ON progress.task_id = tasks.id LEFT JOIN credit_grants ON credit_grants.task_id = tasks.id "
)


def fill(spec: Spec, choice: JobChoice | None) -> Spec:
    """A job's own spec: `{name}` in command and environment filled from its variables, which are set in its environment,
    too. A brace that names no variable stays as it is."""
    if choice is None or (not choice.variables and choice.command is None):
        return spec
    command = spec.command if choice.command is None else choice.command
    environment = {name: _filled(value, choice.variables) for name, value in spec.environment.items()}
    return msgspec.structs.replace(
        spec,
        command=[_filled(part, choice.variables) for part in command],
        environment={**environment, **choice.variables},
    )


def _filled(text: str, variables: dict[str, str]) -> str:
    # In one pass: what a value brings along is not filled again.
    return _PLACEHOLDER.sub(lambda found: variables.get(found[1], found[0]), text) if "{" in text else text


def _batch(row: tuple[Any, ...]) -> BatchView:
    counts = dict(zip(_STATES, map(int, row[7:13]), strict=True))
    spec = msgspec.json.decode(row[15], type=Spec)
    ended = row[5] is not None
    all_done = counts["done"] == row[6]
    return BatchView(
        id=row[0],
        project=row[1],
        name=row[2],
        user=row[3],
        state="active" if not ended else "done" if all_done else "ended",
        created_at=row[4],
        ended_at=row[5],
        job_count=row[6],
        counts=counts,
        priority=row[13],
        labels=json.loads(row[14]),
        image=spec.image,
        image_digest=row[17] or "",
        spec=spec,
        policy=json.loads(row[16]),
        eta_at=row[19] if not ended else None,
    )


def batch(transaction: Transaction, batch_id: int) -> tuple[BatchView, int] | None:
    """A batch and its project's number."""
    row = transaction.one(_BATCH + "WHERE batches.id = :id", id=batch_id)
    return (_batch(row), row[18]) if row else None


def batches(
    transaction: Transaction, project_ids: list[int] | None, state: str | None, before: int, most: int
) -> list[BatchView]:
    """Batches of these projects (None: of all), newest first, below a number."""
    where = "batches.id < :before"
    where += "" if project_ids is None else " AND batches.project_id IN (:projects...)"
    where += {"active": " AND ended_at IS NULL", "ended": " AND ended_at IS NOT NULL"}.get(state or "", "")
    values: dict[str, Any] = {} if project_ids is None else {"projects": project_ids}
    return [
        _batch(row)
        for row in transaction.rows(
            f"{_BATCH} WHERE {where} ORDER BY batches.id DESC LIMIT :most", before=before, most=most, **values
        )
    ]


def _task(row: tuple[Any, ...]) -> TaskView:
    return TaskView(
        id=row[1],
        attempt=row[2],
        state=row[3],
        outcome=row[4],
        validity=row[5],
        host=row[6],
        sent_at=row[7],
        deadline_at=row[8],
        received_at=row[9],
        exit_code=row[10],
        cause=row[11] or "",
        output_digest=row[12] or "",
        output_bytes=row[13] or 0,
        wall_seconds=row[14] or 0.0,
        cpu_seconds=row[15] or 0.0,
        memory_bytes=row[16] or 0,
        progress=row[17] if row[3] == "in_progress" else None,
        phase=(row[18] or "") if row[3] == "in_progress" else "",
        credit=in_cobblestones(row[19] or 0),
    )


def tasks_of(transaction: Transaction, job_ids: list[int]) -> dict[int, list[TaskView]]:
    """The tasks of these jobs, by job."""
    found: dict[int, list[TaskView]] = {job_id: [] for job_id in job_ids}
    for row in transaction.rows(_TASK + "WHERE job_id IN (:ids...) ORDER BY job_id, attempt", ids=job_ids):
        found[row[0]].append(_task(row))
    return found


def _jobs(transaction: Transaction, rows: list[tuple[Any, ...]]) -> list[JobView]:
    tasks = tasks_of(transaction, [row[0] for row in rows])
    specs: dict[int, Spec] = {}
    views = []
    for row in rows:
        if row[1] not in specs:
            specs[row[1]] = msgspec.json.decode(row[11], type=Spec)
        choice = msgspec.json.decode(row[8], type=JobChoice) if row[8] else None
        mine = tasks[row[0]]
        telling = mine[row[5]] if row[5] is not None else _most_telling(mine)
        canonical = mine[row[5]] if row[5] is not None else None
        views.append(
            JobView(
                id=f"{row[1]}.{row[2]}",
                batch=row[1],
                position=row[2],
                name=(choice.name if choice else "") or row[9],
                project=row[12],
                state=row[3],
                reasons=row[4].split(),
                command=fill(specs[row[1]], choice).command,
                variables=choice.variables if choice else {},
                exit_code=telling.exit_code if telling else None,
                cause=telling.cause if telling else "",
                created_at=row[10],
                decided_at=row[7],
                has_results=canonical is not None and canonical.output_bytes > 0,
                handed_over=row[6] == "done",
                tasks=mine,
            )
        )
    return views


def _most_telling(tasks: list[TaskView]) -> TaskView | None:
    """The task whose ending says most of why a job is not done: a failure before an error before silence, the last of
    each."""
    for outcomes in (("failed", "invalid_output"), ("error",), ("no_reply", "abandoned")):
        for task in reversed(tasks):
            if task.outcome in outcomes:
                return task
    return None


def job(transaction: Transaction, batch_id: int, position: int) -> tuple[JobView, int, int] | None:
    """A job, its own number and its project's."""
    row = transaction.one(
        _JOB + "WHERE jobs.batch_id = :batch AND position = :position", batch=batch_id, position=position
    )
    return (_jobs(transaction, [row])[0], row[0], row[13]) if row else None


def jobs_by_number(
    transaction: Transaction, numbers: list[int]
) -> dict[int, tuple[JobView, JobChoice | None, int | None]]:
    """Jobs by the store's own numbers, with their choices and canonical attempts."""
    rows = transaction.rows(_JOB + "WHERE jobs.id IN (:ids...) ORDER BY jobs.id", ids=numbers)
    return {
        row[0]: (view, msgspec.json.decode(row[8], type=JobChoice) if row[8] else None, row[5])
        for row, view in zip(rows, _jobs(transaction, rows), strict=True)
    }


def jobs_of_batch(
    transaction: Transaction, batch_id: int, states: list[str] | None, after: int, most: int
) -> list[JobView]:
    """A batch's jobs in order, behind a position."""
    where = "" if states is None else " AND jobs.state IN (:states...)"
    values: dict[str, Any] = {} if states is None else {"states": states}
    rows = transaction.rows(
        f"{_JOB} WHERE jobs.batch_id = :batch AND position > :after{where} ORDER BY position LIMIT :most",
        batch=batch_id,
        after=after,
        most=most,
        **values,
    )
    return _jobs(transaction, rows)


def recent_jobs(
    transaction: Transaction,
    project_ids: list[int] | None,
    states: list[str] | None,
    before: tuple[int, int],
    most: int,
) -> list[JobView]:
    """Jobs of these projects (None: of all), newest batch first, below a place (batch, position)."""
    where = "(jobs.batch_id, position) < (:batch, :position)"
    values: dict[str, Any] = {"batch": before[0], "position": before[1], "most": most}
    if project_ids is not None:
        where += " AND batches.project_id IN (:projects...)"
        values["projects"] = project_ids
    if states is not None:
        where += " AND jobs.state IN (:states...)"
        values["states"] = states
        if not DECIDED_STATES & set(states):
            where += " AND ended_at IS NULL"
    rows = transaction.rows(f"{_JOB} WHERE {where} ORDER BY jobs.batch_id DESC, position DESC LIMIT :most", **values)
    return _jobs(transaction, rows)


def choices_of(
    transaction: Transaction, batch_id: int, states: list[str] | None, after: int, most: int
) -> list[tuple[int, JobChoice]]:
    """What distinguishes a batch's jobs, by position, in order, behind a position."""
    where = "" if states is None else " AND state IN (:states...)"
    values: dict[str, Any] = {} if states is None else {"states": states}
    rows = transaction.rows(
        f"SELECT position, choice FROM jobs WHERE batch_id = :batch AND position > :after{where} "
        "ORDER BY position LIMIT :most",
        batch=batch_id,
        after=after,
        most=most,
        **values,
    )
    return [(row[0], msgspec.json.decode(row[1], type=JobChoice) if row[1] else JobChoice()) for row in rows]


def job_number(transaction: Transaction, batch_id: int, position: int) -> int | None:
    """The store's own number of a job."""
    row = transaction.one(
        "SELECT id FROM jobs WHERE batch_id = :batch AND position = :position", batch=batch_id, position=position
    )
    return int(row[0]) if row else None


def host_views(
    transaction: Transaction,
    now: float,
    away_seconds: float,
    *,
    user_id: int | None = None,
    public_id: str | None = None,
) -> list[HostView]:
    """Hosts (of one user, or one host, or all that are not detached), with what they run now."""
    where, values = "hosts.state <> 'detached'", {}
    if user_id is not None:
        where, values = where + " AND user_id = :user", {"user": user_id}
    if public_id is not None:
        where, values = "public_id = :public_id", {"public_id": public_id}  # type: ignore[dict-item]
    rows = transaction.rows(
        "SELECT public_id, name, state, facts, created_at, last_seen_at, tasks_done, tasks_failed, "
        "(SELECT count(*) FROM tasks WHERE tasks.host_id = hosts.id AND tasks.state = 'in_progress'), "
        "id, credit, credit_kept, gflops, ban_reason "
        f"FROM hosts WHERE {where} ORDER BY hosts.id",
        **values,
    )
    earned = trust.apps_of(transaction, [row[9] for row in rows])
    views = []
    for row in rows:
        facts = msgspec.json.decode(row[3], type=HostFacts)
        state = "away" if row[2] == "active" and row[5] < now - away_seconds else row[2]
        views.append(
            HostView(
                id=row[0],
                name=row[1],
                state=state,
                platform=facts.platform,
                cpus=facts.cpus,
                memory_bytes=facts.memory_bytes,
                engine=facts.engine,
                agent_version=facts.agent_version,
                created_at=row[4],
                last_seen_at=row[5],
                running=int(row[8]),
                done=int(row[6]),
                failed=int(row[7]),
                credit=in_cobblestones(row[10]),
                recent_average=recent_average(row[11], now),
                gflops=believed_gflops(row[12]),
                ban_reason=row[13],
                why_idle=_why_idle(row[2], [standing for _, _, standing in earned.get(row[9], ())]),
                apps=[_app(*app, now) for app in earned.get(row[9], ())],
            )
        )
    return views


def _why_idle(state: str, standings: list[Standing]) -> list[Because]:
    counts = {f"host-{state}": 1} if state in ("banned", "suspended") else {}
    if aside := sum(standing.is_set_aside for standing in standings):
        counts["host-set-aside"] = aside
    reasons = [because(code, count) for code, count in counts.items()]
    return [Because(code=b.code, sentence=b.sentence, advice=b.advice, count=b.count) for b in reasons]


def _app(runner: str, repository: str, standing: Standing, now: float) -> HostAppView:
    resting = standing.is_set_aside and standing.rest_until > now
    return HostAppView(
        runner=runner,
        repository=repository,
        trusted=is_trusted(standing),
        consecutive_valid=standing.consecutive_valid,
        error_rate=standing.error_rate,
        allowance=standing.allowance,
        set_aside=standing.is_set_aside,
        rest_until=standing.rest_until if resting else None,
        valid=standing.valid,
        wrong=standing.wrong,
        errors=standing.errors,
    )


def present_hosts(transaction: Transaction, since: float) -> list[HostFacts]:
    """What the hosts that spoke since an instant are and lend."""
    rows = transaction.rows("SELECT facts FROM hosts WHERE state = 'active' AND last_seen_at >= :since", since=since)
    return [msgspec.json.decode(row[0], type=HostFacts) for row in rows]


def totals(transaction: Transaction, since: float) -> dict[str, Any]:
    """The site in numbers. No scan grows with what has finished: finished jobs are counted by their batches."""
    sums = transaction.one(
        "SELECT coalesce(sum(waiting), 0), coalesce(sum(running), 0), coalesce(sum(checking), 0), "
        "coalesce(sum(done), 0), coalesce(sum(failed), 0), coalesce(sum(cancelled), 0) FROM batches"
    )
    ready = transaction.one("SELECT coalesce(sum(ready), 0) FROM queues")
    going = transaction.one("SELECT count(*) FROM tasks WHERE state = 'in_progress'")
    hosts = transaction.one(
        "SELECT count(*), coalesce(sum(CASE WHEN last_seen_at >= :since THEN 1 ELSE 0 END), 0) FROM hosts "
        "WHERE state <> 'detached'",
        since=since,
    )
    assert sums is not None
    assert ready is not None
    assert going is not None
    assert hosts is not None
    return {
        "jobs": dict(zip(_STATES, map(int, sums), strict=True)),
        "tasks_ready": int(ready[0]),
        "tasks_in_progress": int(going[0]),
        "hosts_total": int(hosts[0]),
        "hosts_active": int(hosts[1]),
    }
