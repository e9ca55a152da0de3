"""Why a job is where it is: its own state, held against the hosts that are here now, with the matcher the ledger uses."""

import time

import msgspec

from distributio.lifecycle import dispatch, trust
from distributio.lifecycle import explain as reasons
from distributio.lifecycle.model import EXACT, Job, JobState, Outcome, TaskState, Validity
from distributio.server import preflight
from distributio.server.site import Site
from distributio.store import checks, jobs, queues
from distributio.store import trust as trust_store
from distributio.store.database import Transaction
from distributio.wire.native import Because, Explanation, HostFacts, JobView

_MOST_NOTES = 6  # told of one job
_DOUBTFUL = frozenset({Validity.INCONCLUSIVE, Validity.INVALID})
_COMPARED = _DOUBTFUL | {Validity.VALID}


async def explain(site: Site, view: JobView, number: int, project_id: int) -> Explanation:
    """The explanation of one job."""
    return await site.read(_explain, view, number, time.time(), site.settings.away_seconds)


def _explain(transaction: Transaction, view: JobView, number: int, now: float, away_seconds: float) -> Explanation:
    loaded = jobs.load(transaction, jobs.Lanes(), [number], only_read=True)[number]
    rejections: dict[str, int] = {}
    hosts_total, ahead = 0, None
    if loaded.job.state is JobState.WAITING:
        hosts_total, rejections = _rejections(transaction, loaded, now, away_seconds)
        ahead = _ahead(transaction, loaded)
    summary, because = reasons.explain_job(loaded.job, rejections, hosts_total, ahead, _notes(transaction, loaded))
    because = [*because, *_words_of_validators(transaction, loaded.job)]
    return Explanation(
        job=view.id,
        state=view.state,
        summary=summary,
        because=[Because(code=b.code, sentence=b.sentence, advice=b.advice, count=b.count) for b in because],
    )


def _words_of_validators(transaction: Transaction, job: Job) -> list[reasons.Because]:
    """What a validator, or the comparison byte for byte, found different or unreadable, and where."""
    notes = checks.notes_of(transaction, [job.id]).get(job.id, [])
    if job.policy.validator == EXACT and any(task.validity in _DOUBTFUL for task in job.tasks):
        notes = _differing(job)
    said = []
    for attempt, other, words in notes[:_MOST_NOTES]:
        code = "unreadable-output" if other < 0 else "outputs-differ"
        whose = f"Attempt {attempt}" if other < 0 else f"Attempts {attempt} and {other}"
        said.append(msgspec.structs.replace(reasons.because(code), sentence=f"{whose}: {words}"))
    trouble = checks.trouble_of(transaction, job.id)
    if trouble:
        known = reasons.because("validator-trouble")
        said.append(msgspec.structs.replace(known, sentence=f"{known.sentence} It says: {trouble}"))
    return said


def _differing(job: Job) -> list[tuple[int, int, str]]:
    """Which attempts brought other bytes than the first, or than the one that speaks for the job."""
    outputs = [task for task in job.tasks if task.outcome is Outcome.SUCCESS and task.validity in _COMPARED]
    if not outputs:
        return []
    first = job.canonical or outputs[0]
    return [
        (first.attempt, task.attempt, f"their bytes differ: {first.output_digest[:19]} and {task.output_digest[:19]}")
        for task in outputs
        if task.output_digest != first.output_digest
    ]


def _notes(transaction: Transaction, loaded: jobs.Loaded) -> dict[str, int]:
    """Why it has more copies than it began with, and what became of it when its host was banned."""
    job, app_id = loaded.job, loaded.lane.app_id
    first = next((task.host_id for task in job.tasks if task.host_id is not None), None)
    is_spot_check = False
    if first is not None and job.quorum > job.policy.quorum:
        standing = trust_store.standings(transaction, [first], [app_id]).get((first, app_id), trust.NEW)
        is_spot_check = trust.is_trusted(standing)
    notes = reasons.why_more_copies(job, is_spot_check=is_spot_check)
    again = trust_store.recheck_of_job(transaction, job.id)
    if again is not None:
        state, same = again
        notes["recheck-open" if state != "done" else "recheck-agrees" if same else "recheck-differs"] = 1
    return notes


def _kept_from(
    loaded: jobs.Loaded, standing: trust.Standing, offer: dispatch.Offer, twins: list[dispatch.Held], now: float
) -> str | None:
    """Why a host's kind or standing keeps it from the job."""
    job, policy = loaded.job, loaded.lane.policy
    if job.alike and job.alike != dispatch.class_of(policy.alike, offer.platform, offer.cpu_model):
        return "host-unlike"
    most, code = trust.room(standing, offer.cpus, now)
    if most <= 0:
        return code
    if trust.is_failing(standing, loaded.lane.batch_id, now):
        return "host-failing-batch"
    late = dispatch.late_seconds(twins, max(job.quorum, policy.target_tasks), now)
    return "host-not-proven" if late is not None and not trust.may_hurry(standing, late) else None


def _rejections(
    transaction: Transaction, loaded: jobs.Loaded, now: float, away_seconds: float
) -> tuple[int, dict[str, int]]:
    """Hosts by why they do not have a copy of the job. Hosts that are away count as away, whatever they lack."""
    row = transaction.one(
        "SELECT shape, enabled FROM queues JOIN projects ON projects.id = project_id WHERE queues.id = :id",
        id=loaded.lane.queue_id,
    )
    assert row is not None
    shape = queues.shape_of(row[0])
    twins = [
        dispatch.Held(
            host_id=task.host_id,
            user_id=task.user_id,
            outcome=task.outcome,
            received_at=task.received_at,
            sent_at=task.sent_at,
            counts=task.validity != "invalid",
        )
        for task in loaded.job.tasks
        if task.host_id is not None
    ]
    counts: dict[str, int] = {} if row[1] else {"project-disabled": 1}
    rows = transaction.rows("SELECT id, user_id, facts, last_seen_at, state FROM hosts WHERE state <> 'detached'")
    app_id = loaded.lane.app_id
    standings = trust_store.standings(transaction, (row[0] for row in rows), [app_id])
    for host_id, user_id, facts, last_seen_at, state in rows:
        offer = preflight.offer_of(msgspec.json.decode(facts, type=HostFacts))
        code = dispatch.never_fits(shape, offer)
        if code is None and state in ("suspended", "banned"):
            code = f"host-{state}"
        if code is None and last_seen_at < now - away_seconds:
            code = "no-host-awake"
        if code is None:
            code = (
                dispatch.may_have(twins, host_id, user_id, max(loaded.job.quorum, loaded.lane.policy.voices), now)
                or _kept_from(loaded, standings.get((host_id, app_id), trust.NEW), offer, twins, now)
                or "host-busy"
            )
        counts[code] = counts.get(code, 0) + 1
    return len(rows), counts


def _ahead(transaction: Transaction, loaded: jobs.Loaded) -> int | None:
    """How many ready tasks of the queue are served before the job's next one; counting stops at ten thousand."""
    if all(task.state is not TaskState.READY for task in loaded.job.tasks):
        return None
    row = transaction.one(
        "SELECT count(*) FROM (SELECT 1 FROM tasks WHERE state = 'ready' AND queue_id = :queue "
        "AND (rank, id) < (SELECT rank, id FROM tasks WHERE job_id = :job AND state = 'ready' ORDER BY rank, id LIMIT 1) "
        "LIMIT 10000) AS before",
        queue=loaded.lane.queue_id,
        job=loaded.job.id,
    )
    return int(row[0]) if row else None
