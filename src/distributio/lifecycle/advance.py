"""What a job should become next: events that happen to it, and the rules that follow from them.

`advance` is a tuple of small rules over one frozen value. An event function records what happened and nothing else;
`advance` then draws every conclusion. Advancing twice is advancing once.
"""

from collections.abc import Callable

from msgspec.structs import replace

from distributio.lifecycle import quorum
from distributio.lifecycle.model import (
    EXACT,
    FilesState,
    HandOver,
    Job,
    JobState,
    Outcome,
    Reason,
    Report,
    Task,
    TaskState,
    Validity,
)

Rule = Callable[[Job, float], Job]


BANNED = "host-banned-with-task"  # why a copy was taken from a host for good
REPORTABLE = frozenset({Outcome.SUCCESS, Outcome.FAILED, Outcome.ERROR, Outcome.ABANDONED})


class NotAllowed(ValueError):
    """The event does not fit the state the job is in."""


# --- events -----------------------------------------------------------------------------------------------------


def sent(job: Job, attempt: int, host_id: int, user_id: int | None, now: float, alike: str = "") -> Job:
    """A ready copy is leased to a host until its deadline. The first one fixes the class of hosts the others go to."""
    task = job.tasks[attempt]
    if job.is_decided:
        raise NotAllowed(f"job {job.id} is decided: nothing more of it is sent")
    if task.state is not TaskState.READY:
        raise NotAllowed(f"task {attempt} of job {job.id} is {task.state}, not ready")
    deadline_at = now + job.policy.deadline_seconds
    leased = replace(
        task,
        state=TaskState.IN_PROGRESS,
        host_id=host_id,
        user_id=user_id,
        sent_at=now,
        deadline_at=deadline_at,
    )
    fixed = job if job.alike == alike else replace(job, alike=job.alike or alike)
    return _with_task(fixed, leased)


def doubted(job: Job) -> Job:
    """A copy went to a host that is not trusted, or was chosen for a spot check, or its host was found wrong elsewhere: more
    copies must be compared. What is decided stays decided."""
    policy = job.policy
    if job.is_decided or not policy.adaptive or job.quorum >= policy.adaptive_quorum:
        return job
    return replace(job, quorum=policy.adaptive_quorum, target_tasks=max(job.target_tasks, policy.adaptive_quorum))


def hurried(job: Job) -> Job:
    """A copy is late and few jobs of the batch are left: one copy more is wanted in play. The quorum stays as it is."""
    states = [task.state for task in job.tasks if task.state is not TaskState.OVER or task.is_viable]
    enough = max(job.policy.target_tasks, job.quorum)
    if job.is_decided or job.target_tasks > enough or len(states) < enough:
        return job
    if TaskState.READY in states or TaskState.IN_PROGRESS not in states:
        return job
    return replace(job, target_tasks=enough + 1)


def discredited(job: Job, host_id: int) -> Job:
    """A host is not to be believed any more: what it holds goes to others, and what it brought and nobody has compared is
    wrong until another brings the same. What is decided stays decided."""
    if job.is_decided:
        return job
    held = _replace_tasks(
        job,
        lambda task: task.host_id == host_id and task.state is TaskState.IN_PROGRESS,
        state=TaskState.OVER,
        outcome=Outcome.ABANDONED,
        cause=BANNED,
    )
    return _replace_tasks(held, lambda task: task.host_id == host_id and task.is_viable, validity=Validity.INVALID)


def reported(job: Job, attempt: int, report: Report, now: float) -> Job:
    """A host says how its copy ended. A report for what is over already changes nothing, unless it was given up
    for lost: then it is late but welcome while the job is undecided."""
    if report.outcome not in REPORTABLE:
        raise NotAllowed(f"a host cannot report {report.outcome}; it reports one of {', '.join(sorted(REPORTABLE))}")
    task = job.tasks[attempt]
    if not _accepts_report(job, task):
        return job
    over = replace(
        task,
        state=TaskState.OVER,
        outcome=report.outcome,
        received_at=now,
        exit_code=report.exit_code,
        cause=report.cause,
        output_digest=report.output_digest,
        output_bytes=report.output_bytes,
        wall_seconds=report.wall_seconds,
        cpu_seconds=report.cpu_seconds,
        memory_bytes=report.memory_bytes,
    )
    return _with_task(job, over)


def _accepts_report(job: Job, task: Task) -> bool:
    if task.state is TaskState.IN_PROGRESS:
        return True
    if task.cause == BANNED:
        return False
    gave_up = task.outcome is Outcome.NO_REPLY or (task.outcome is Outcome.ABANDONED and task.host_id is not None)
    return gave_up and not job.is_decided


def cancelled(job: Job) -> Job:
    """Its owner no longer wants the job. What is decided stays decided."""
    if job.is_decided:
        return job
    return replace(job, reasons=job.reasons | {Reason.CANCELLED})


def validated(job: Job, opinion: quorum.Opinion) -> Job:
    """A validator has compared the outputs: each attempt's validity, and the canonical one if enough agree. An opinion
    that no longer fits, because the job moved on while the validator was thinking, changes nothing."""
    if job.reasons:
        return job
    judged = replace(job, tasks=tuple([_judged(task, opinion) for task in job.tasks]))
    if job.canonical_attempt is not None:
        return judged if opinion.canonical_attempt == job.canonical_attempt else job
    if not quorum.is_sound(judged, opinion.canonical_attempt):
        return job
    return replace(judged, canonical_attempt=opinion.canonical_attempt)


def _judged(task: Task, opinion: quorum.Opinion) -> Task:
    if not task.is_viable or task.validity is Validity.VALID:
        return task
    if task.attempt in opinion.unreadable:
        return replace(task, outcome=Outcome.INVALID_OUTPUT, validity=Validity.INVALID)
    validity = opinion.validity.get(task.attempt, task.validity)
    return task if validity is task.validity else replace(task, validity=validity)


def handed_over(job: Job) -> Job:
    """The owner has the verdict and the canonical output."""
    if job.hand_over is HandOver.READY:
        return replace(job, hand_over=HandOver.DONE)
    return job


def files_deleted(job: Job) -> Job:
    """What hosts sent for the job is gone from the site's working store."""
    if job.files is FilesState.RELEASED:
        return replace(job, files=FilesState.DELETED)
    return job


# --- rules, in order --------------------------------------------------------------------------------------------


def expire_overdue_tasks(job: Job, now: float) -> Job:
    """A task past its deadline is over, without reply."""
    return _replace_tasks(
        job,
        lambda task: task.state is TaskState.IN_PROGRESS and task.deadline_at is not None and task.deadline_at <= now,
        state=TaskState.OVER,
        outcome=Outcome.NO_REPLY,
        cause="deadline-passed",
    )


def refuse_wrong_answers(job: Job, now: float) -> Job:
    """Where the answer is known beforehand, an output that is not it cannot count."""
    if not job.expect or job.canonical_attempt is not None:
        return job
    return _replace_tasks(
        job,
        lambda task: task.is_viable and task.output_digest != job.expect,
        outcome=Outcome.INVALID_OUTPUT,
        validity=Validity.INVALID,
        cause="wrong-answer",
    )


def compare_digests(job: Job, now: float) -> Job:
    """With the exact validator, equal digests agree: decided here, in the transaction of the report."""
    if job.policy.validator != EXACT or not quorum.wants_check(job):
        return job
    return validated(job, quorum.compare(job, quorum.same_digest))


def ask_for_more_copies_when_none_agree(job: Job, now: float) -> Job:
    """Enough outputs came back and no quorum of them agrees: one more copy than are viable is wanted."""
    if job.is_decided:
        return job
    viable = [task for task in job.tasks if task.is_viable]
    disagree = len(viable) >= job.quorum and all(task.validity is Validity.INCONCLUSIVE for task in viable)
    if disagree and len(viable) >= job.target_tasks:
        return replace(job, target_tasks=len(viable) + 1)
    return job


def give_up_when_hopeless(job: Job, now: float) -> Job:
    """Too many failures, errors or copies, or outputs that never agree, end the job; not while a quorum of outputs
    waits to be compared, for that may yet decide it."""
    if job.is_decided or quorum.wants_check(job):
        return job
    policy = job.policy
    failures = errors = successes = awaited = 0
    for task in job.tasks:
        if task.state is not TaskState.OVER:
            awaited += 1
        elif task.is_viable:
            successes += 1
        elif task.outcome is Outcome.FAILED:
            failures += 1
        elif task.outcome is Outcome.ERROR or task.outcome is Outcome.INVALID_OUTPUT:
            errors += 1
    room = policy.max_tasks - len(job.tasks)
    reasons: set[Reason] = set()
    if failures > policy.max_failures:
        reasons.add(Reason.TOO_MANY_FAILURES)
    if errors > policy.max_errors:
        reasons.add(Reason.TOO_MANY_ERRORS)
    if successes > policy.max_successes:
        reasons.add(Reason.TOO_MANY_SUCCESSES)
    # Copies in play may decide the job, so a last copy used up is the end only when those left cannot be enough,
    # or have all been compared.
    if successes + awaited + room < job.quorum or (awaited == 0 and room <= 0):
        reasons.add(Reason.TOO_MANY_TASKS)
    return replace(job, reasons=frozenset(reasons)) if reasons else job


def withdraw_what_is_not_needed(job: Job, now: float) -> Job:
    """A decided job sends nothing more, and its twins on hosts are no longer wanted."""
    if not job.is_decided:
        return job
    return _replace_tasks(
        job,
        lambda task: task.state is not TaskState.OVER,
        state=TaskState.OVER,
        outcome=Outcome.NOT_NEEDED,
    )


def settle_unchecked_tasks(job: Job, now: float) -> Job:
    """After a failed job no output will be compared."""
    if not job.reasons:
        return job
    return _replace_tasks(job, lambda task: task.is_viable, validity=Validity.NOT_CHECKED)


def free_the_class(job: Job, now: float) -> Job:
    """A class of hosts of which nothing came, and nothing is to come, need not be kept to."""
    if not job.alike or job.is_decided:
        return job
    for task in job.tasks:
        if task.state is TaskState.IN_PROGRESS or task.outcome is Outcome.NO_REPLY or task.is_viable:
            return job
    return replace(job, alike="")


def create_missing_tasks(job: Job, now: float) -> Job:
    """Enough copies are in play until one is canonical; none is added while outputs wait to be compared."""
    room = job.policy.max_tasks - len(job.tasks)
    if job.is_decided or room <= 0 or quorum.wants_check(job):
        return job
    missing = max(job.target_tasks, job.quorum)
    for task in job.tasks:
        missing -= task.state is not TaskState.OVER or task.is_viable
    if missing <= 0:
        return job
    first = len(job.tasks)
    fresh = [Task(attempt=first + n) for n in range(min(missing, room))]
    return replace(job, tasks=(*job.tasks, *fresh))


def hand_over_when_settled(job: Job, now: float) -> Job:
    """A decided job is ready to be handed over, once."""
    if job.is_decided and job.hand_over is HandOver.NOT_READY:
        return replace(job, hand_over=HandOver.READY, decided_at=now)
    return job


def release_files(job: Job, now: float) -> Job:
    """Outputs are kept until the job is handed over and nothing waits to be compared with them."""
    if job.hand_over is HandOver.DONE and job.files is FilesState.KEPT and not quorum.wants_check(job):
        return replace(job, files=FilesState.RELEASED)
    return job


def name_the_state(job: Job, now: float) -> Job:
    """One word for people."""
    if job.canonical_attempt is not None:
        state = JobState.DONE
    elif Reason.CANCELLED in job.reasons:
        state = JobState.CANCELLED
    elif job.reasons:
        state = JobState.FAILED
    elif quorum.wants_check(job):
        state = JobState.CHECKING
    elif any(task.state is TaskState.IN_PROGRESS for task in job.tasks):
        state = JobState.RUNNING
    else:
        state = JobState.WAITING
    return job if state is job.state else replace(job, state=state)


RULES: tuple[Rule, ...] = (
    expire_overdue_tasks,
    refuse_wrong_answers,
    compare_digests,
    ask_for_more_copies_when_none_agree,
    give_up_when_hopeless,
    withdraw_what_is_not_needed,
    settle_unchecked_tasks,
    free_the_class,
    create_missing_tasks,
    hand_over_when_settled,
    release_files,
    name_the_state,
)


def advance(job: Job, now: float) -> Job:
    """Return the job as it should be at `now`."""
    for rule in RULES:
        job = rule(job, now)
    return job


def _with_task(job: Job, task: Task) -> Job:
    tasks = job.tasks
    return replace(job, tasks=(*tasks[: task.attempt], task, *tasks[task.attempt + 1 :]))


def _replace_tasks(job: Job, wanted: Callable[[Task], bool], **fields: object) -> Job:
    if not any(map(wanted, job.tasks)):
        return job
    return replace(job, tasks=tuple(replace(task, **fields) if wanted(task) else task for task in job.tasks))
