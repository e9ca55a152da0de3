"""Where can a job go? Every stand that events can bring a small job to, and every step between them.

The life-cycle page of the reference is drawn from this search, and the tests examine each stand and step it finds.
Times are reduced to "before" and "after" a deadline, outputs to "a" and "b", so that there are finitely many stands.
"""

from collections import deque
from collections.abc import Iterator
from types import ModuleType

from msgspec import Struct
from msgspec.structs import replace

from distributio.lifecycle import advance as rules_in_force
from distributio.lifecycle.model import (
    EXACT,
    FilesState,
    HandOver,
    Job,
    Outcome,
    Policy,
    Report,
    Task,
    TaskState,
    Validity,
    new_job,
)
from distributio.lifecycle.quorum import Opinion

NOW = 0.0

REPORTS: dict[str, Report] = {
    "success a": Report(outcome=Outcome.SUCCESS, output_digest="a"),
    "success b": Report(outcome=Outcome.SUCCESS, output_digest="b"),
    "failed": Report(outcome=Outcome.FAILED),
    "error": Report(outcome=Outcome.ERROR),
    "abandoned": Report(outcome=Outcome.ABANDONED),
}


class Thought(Struct, frozen=True):
    """What a validator has concluded and not yet said; by then the job may have moved on."""

    validity: tuple[tuple[int, Validity], ...]
    unreadable: frozenset[int]
    canonical_attempt: int | None


class Stand(Struct, frozen=True):
    """Where a job stands, and what validators are about to say of it."""

    job: Job
    thoughts: tuple[Thought, ...] = ()


class Step(Struct, frozen=True):
    """One event, and all that followed from it. `recorded` is the job before any conclusion was drawn."""

    before: Stand
    event: str
    recorded: Job
    after: Stand


class Roads(Struct, frozen=True):
    """All stands from the first on, each with the steps that lead out of it."""

    start: Stand
    steps: dict[Stand, tuple[Step, ...]]


def explore(
    policy: Policy,
    *,
    validators: int = 1,
    rules: ModuleType = rules_in_force,
    expect: str = "",
    distrust: bool = False,
) -> Roads:
    """Visit every stand, breadth first. `validators` may think at the same time where the policy names one with code;
    `rules` are the events and `advance` to follow; with `distrust` hosts are doubted, banned and late as well."""
    start = Stand(rules.advance(new_job(1, policy, expect), NOW))
    steps: dict[Stand, tuple[Step, ...]] = {}
    found = {start}
    waiting = deque([start])
    while waiting:
        stand = waiting.popleft()
        steps[stand] = tuple(steps_from(stand, validators, rules, distrust=distrust))
        for step in steps[stand]:
            if step.after not in found:
                found.add(step.after)
                waiting.append(step.after)
    return Roads(start, steps)


def steps_from(stand: Stand, validators: int, rules: ModuleType, *, distrust: bool = False) -> Iterator[Step]:
    """Everything that may happen next."""
    job = stand.job
    happens = [*happenings(job, rules), *(distrusts(job, rules) if distrust else ())]
    for event, recorded in happens:
        yield Step(stand, event, recorded, Stand(rules.advance(recorded, NOW), stand.thoughts))
    if job.policy.validator == EXACT:
        return
    if len(stand.thoughts) < validators and rules.quorum.wants_check(job):
        for thought in thoughts(job, rules):
            if thought not in stand.thoughts:
                pondered = tuple(sorted((*stand.thoughts, thought), key=repr))
                yield Step(stand, "a validator looks", job, Stand(job, pondered))
    for thought in stand.thoughts:
        recorded = rules.validated(job, opinion(thought))
        others = tuple(other for other in stand.thoughts if other is not thought)
        yield Step(stand, "a validator speaks", recorded, Stand(rules.advance(recorded, NOW), others))


def happenings(job: Job, rules: ModuleType) -> Iterator[tuple[str, Job]]:
    """Every event but a validator's, with the job just after it was recorded."""
    undecided = not job.is_decided
    # Which of two different outputs comes first makes no difference: call it "a".
    has_output = bool(job.expect) or any(task.output_digest for task in job.tasks)
    for task in job.tasks:
        if task.state is TaskState.READY and undecided:
            yield "sent", rules.sent(job, task.attempt, task.attempt + 1, task.attempt + 1, NOW)
        if task.state is TaskState.IN_PROGRESS:
            yield "the deadline passes", _overdue(job, task)
        if task.host_id is not None:
            late = "late: " if task.state is TaskState.OVER else ""
            for word, report in REPORTS.items():
                if word == "success b" and not has_output:
                    continue
                recorded = rules.reported(job, task.attempt, report, NOW)
                if recorded is not job:
                    yield late + word, recorded
    if undecided:
        yield "cancelled", rules.cancelled(job)
    if job.hand_over is HandOver.READY:
        yield "handed over", rules.handed_over(job)
    if job.files is FilesState.RELEASED:
        yield "files deleted", rules.files_deleted(job)


def distrusts(job: Job, rules: ModuleType) -> Iterator[tuple[str, Job]]:
    """What the site does by itself about hosts that it does not trust, and about copies that are late."""
    for event, recorded in (("doubted", rules.doubted(job)), ("hurried", rules.hurried(job))):
        if recorded is not job:
            yield event, recorded
    for task in job.tasks:
        if task.host_id is not None:
            recorded = rules.discredited(job, task.host_id)
            if recorded is not job:
                yield "its host is banned", recorded


def thoughts(job: Job, rules: ModuleType) -> Iterator[Thought]:
    """What an honest validator may conclude: it can read everything, or all but one."""
    yield _thought(rules.quorum.compare(job, rules.quorum.same_digest), frozenset())
    for task in job.tasks:
        if task.is_viable and task.validity is not Validity.VALID:
            without = _put(job, replace(task, validity=Validity.INVALID))
            yield _thought(rules.quorum.compare(without, rules.quorum.same_digest), frozenset({task.attempt}))


def opinion(thought: Thought) -> Opinion:
    """The thought, said."""
    return Opinion(
        validity=dict(thought.validity),
        unreadable=thought.unreadable,
        canonical_attempt=thought.canonical_attempt,
    )


def _thought(opinion: Opinion, unreadable: frozenset[int]) -> Thought:
    return Thought(tuple(sorted(opinion.validity.items())), unreadable, opinion.canonical_attempt)


def _overdue(job: Job, task: Task) -> Job:
    return _put(job, replace(task, deadline_at=NOW))


def _put(job: Job, task: Task) -> Job:
    return replace(job, tasks=(*job.tasks[: task.attempt], task, *job.tasks[task.attempt + 1 :]))
