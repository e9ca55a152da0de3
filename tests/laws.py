"""What must always be true of a job: laws of where it stands, of every step it takes, and of all roads together.

A law's docstring is the law. Each takes values, raises AssertionError, and knows nothing of how the rules keep it.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from types import ModuleType

from distributio.lifecycle.model import (
    EXACT,
    FilesState,
    HandOver,
    Job,
    JobState,
    Outcome,
    Reason,
    Task,
    TaskState,
    Validity,
)
from distributio.lifecycle.roads import NOW, Roads, Stand, Step

Events = Sequence[str]  # what was recorded before the conclusions were drawn
GIVEN_UP = frozenset({Outcome.NO_REPLY, Outcome.ABANDONED})


# --- laws of a stand: a job after `advance` ---------------------------------------------------------------------


def advancing_twice_is_advancing_once(job: Job, rules: ModuleType, now: float) -> None:
    """Advancing what was advanced gives the very same value back."""
    assert rules.advance(job, now) is job


def never_more_copies_than_allowed(job: Job, rules: ModuleType, now: float) -> None:
    """A job never has more copies than its policy allows, and they are numbered in order."""
    assert len(job.tasks) <= job.policy.max_tasks
    assert [task.attempt for task in job.tasks] == list(range(len(job.tasks)))


def a_lease_ends_with_its_deadline(job: Job, rules: ModuleType, now: float) -> None:
    """A copy is with a host only until its deadline."""
    for task in job.tasks:
        if task.state is TaskState.IN_PROGRESS:
            assert task.deadline_at is not None
            assert task.deadline_at > now


def over_and_outcome_go_together(job: Job, rules: ModuleType, now: float) -> None:
    """A copy has an outcome exactly when it is over, a host once it was sent, and a validity only with an output."""
    for task in job.tasks:
        assert (task.state is TaskState.OVER) == (task.outcome is not Outcome.NONE)
        assert task.state is not TaskState.READY or task.host_id is None
        assert task.state is not TaskState.IN_PROGRESS or task.host_id is not None
        if task.validity is not Validity.UNCHECKED:
            assert task.outcome in (Outcome.SUCCESS, Outcome.INVALID_OUTPUT)
        if task.outcome is Outcome.INVALID_OUTPUT:
            assert task.validity is Validity.INVALID


def a_decided_job_sends_nothing_more(job: Job, rules: ModuleType, now: float) -> None:
    """A decided job has no copy that is ready or with a host."""
    if job.is_decided:
        assert all(task.state is TaskState.OVER for task in job.tasks)


def an_undecided_job_is_never_stuck(job: Job, rules: ModuleType, now: float) -> None:
    """An undecided job has a copy ready or with a host, or outputs that wait for a validator."""
    if not job.is_decided:
        assert any(task.state is not TaskState.OVER for task in job.tasks) or waits_for_a_check(job)


def the_verdict_is_one(job: Job, rules: ModuleType, now: float) -> None:
    """A job is done or has reasons to be given up, never both."""
    assert job.canonical_attempt is None or not job.reasons


_BY_DIGEST = frozenset({EXACT, "own"})  # the validator with code that walks every road compares digests, too


def valid_means_agreeing_with_the_canonical_output(job: Job, rules: ModuleType, now: float) -> None:
    """VALID copies exist only beside a canonical one, which is one of them; enough of them. Byte for byte they have its output,
    unless a validator with code has compared them."""
    valid = [task for task in job.tasks if task.validity is Validity.VALID]
    if job.canonical_attempt is None:
        assert not valid
        return
    canonical = job.tasks[job.canonical_attempt]
    assert canonical in valid
    assert all(task.outcome is Outcome.SUCCESS for task in valid)
    if job.policy.validator in _BY_DIGEST:
        assert all(task.output_digest == canonical.output_digest for task in valid)
    assert len(valid) >= job.quorum // 2 + 1
    compared = [task for task in job.tasks if task.outcome is Outcome.SUCCESS and task.validity in _COMPARED]
    assert len(compared) >= job.quorum


def files_are_kept_until_handed_over(job: Job, rules: ModuleType, now: float) -> None:
    """What hosts sent is kept until the job is handed over and nothing waits to be compared; then it is let go."""
    unchecked = any(task.outcome is Outcome.SUCCESS and task.validity in _WAITING for task in job.tasks)
    is_kept = job.files is FilesState.KEPT
    assert is_kept == (job.hand_over is not HandOver.DONE or unchecked)


def decided_means_handed_over(job: Job, rules: ModuleType, now: float) -> None:
    """A job is on its way to its owner exactly when it is decided, and its decision has an instant."""
    assert (job.hand_over is not HandOver.NOT_READY) == job.is_decided
    assert (job.decided_at is not None) == job.is_decided


def patience_has_a_limit(job: Job, rules: ModuleType, now: float) -> None:
    """Only outputs that wait to be compared postpone giving up; a reason to give up is a true one."""
    policy = job.policy
    outcomes = Counter(task.outcome for task in job.tasks)
    too_many = {
        Reason.TOO_MANY_FAILURES: outcomes[Outcome.FAILED] > policy.max_failures,
        Reason.TOO_MANY_ERRORS: outcomes[Outcome.ERROR] + outcomes[Outcome.INVALID_OUTPUT] > policy.max_errors,
        Reason.TOO_MANY_SUCCESSES: outcomes[Outcome.SUCCESS] > policy.max_successes,
    }
    for reason, is_true in too_many.items():
        assert reason not in job.reasons or is_true
        if is_true and reason is not Reason.TOO_MANY_SUCCESSES:
            assert job.is_decided or waits_for_a_check(job)
    in_play = sum(task.is_viable or task.state is not TaskState.OVER for task in job.tasks)
    if not job.is_decided:
        assert in_play + policy.max_tasks - len(job.tasks) >= job.quorum
    if Reason.TOO_MANY_TASKS in job.reasons:
        assert len(job.tasks) + job.quorum > policy.max_tasks


def no_agreement_is_thrown_away(job: Job, rules: ModuleType, now: float) -> None:
    """A job is not given up while a quorum of outputs is there and enough of them are the same."""
    if not job.reasons or Reason.CANCELLED in job.reasons:
        return
    outputs = Counter(
        task.output_digest
        for task in job.tasks
        if task.outcome is Outcome.SUCCESS and task.validity is not Validity.INVALID  # its host was banned
    )
    enough_in_all = outputs.total() >= job.quorum
    assert not (enough_in_all and max(outputs.values()) >= job.quorum // 2 + 1)


def not_checked_means_given_up(job: Job, rules: ModuleType, now: float) -> None:
    """An output stays unchecked for good only where the job was given up; there all unchecked ones do."""
    for task in job.tasks:
        assert task.validity is not Validity.NOT_CHECKED or job.reasons
        if job.reasons and task.outcome is Outcome.SUCCESS:
            assert task.validity in (Validity.NOT_CHECKED, Validity.INVALID)


def the_word_is_right(job: Job, rules: ModuleType, now: float) -> None:
    """The one word for people says what the rest of the job says."""
    if job.canonical_attempt is not None:
        assert job.state is JobState.DONE
    elif job.reasons:
        assert job.state is (JobState.CANCELLED if Reason.CANCELLED in job.reasons else JobState.FAILED)
    elif waits_for_a_check(job):
        assert job.state is JobState.CHECKING
    else:
        with_a_host = any(task.state is TaskState.IN_PROGRESS for task in job.tasks)
        assert job.state is (JobState.RUNNING if with_a_host else JobState.WAITING)


LAWS_OF_A_STAND: tuple[Callable[[Job, ModuleType, float], None], ...] = (
    advancing_twice_is_advancing_once,
    never_more_copies_than_allowed,
    a_lease_ends_with_its_deadline,
    over_and_outcome_go_together,
    a_decided_job_sends_nothing_more,
    an_undecided_job_is_never_stuck,
    the_verdict_is_one,
    valid_means_agreeing_with_the_canonical_output,
    files_are_kept_until_handed_over,
    decided_means_handed_over,
    patience_has_a_limit,
    no_agreement_is_thrown_away,
    not_checked_means_given_up,
    the_word_is_right,
)


# --- laws of a step ---------------------------------------------------------------------------------------------


def what_is_over_stays_over(before: Job, events: Events, after: Job) -> None:
    """A copy that is over ends no other way, but for a late report that still helps and an output found unreadable."""
    for old, new in zip(before.tasks, after.tasks, strict=False):
        if old.state is not TaskState.OVER or new.outcome is old.outcome:
            continue
        late = old.outcome in GIVEN_UP and not before.is_decided and any(word.startswith("late") for word in events)
        unreadable = old.outcome is Outcome.SUCCESS and new.outcome is Outcome.INVALID_OUTPUT
        assert new.state is TaskState.OVER
        assert late or (unreadable and "a validator speaks" in events)


def copies_are_never_lost(before: Job, events: Events, after: Job) -> None:
    """Copies are only ever added, and no more than are wanted."""
    assert len(after.tasks) >= len(before.tasks)
    if len(after.tasks) > len(before.tasks):
        assert not after.is_decided
        in_play = sum(task.is_viable or task.state is not TaskState.OVER for task in after.tasks)
        assert in_play <= max(after.quorum, after.target_tasks)


def a_verdict_never_changes(before: Job, events: Events, after: Job) -> None:
    """A decided job stays decided in the same way, at the same instant."""
    if before.is_decided:
        assert after.canonical_attempt == before.canonical_attempt
        assert after.reasons == before.reasons
        assert after.decided_at == before.decided_at


def only_its_owner_cancels(before: Job, events: Events, after: Job) -> None:
    """A job is cancelled by nothing else, and an undecided one at once."""
    if "cancelled" in events:
        assert after.is_decided
        assert before.is_decided or len(events) > 1 or after.state is JobState.CANCELLED
    elif Reason.CANCELLED not in before.reasons:
        assert Reason.CANCELLED not in after.reasons


def handed_over_once(before: Job, events: Events, after: Job) -> None:
    """Hand-over and files go forward only, and only the event itself makes them done."""
    hand_over, files = list(HandOver), list(FilesState)
    assert hand_over.index(after.hand_over) >= hand_over.index(before.hand_over)
    assert files.index(after.files) >= files.index(before.files)
    if after.hand_over is HandOver.DONE and before.hand_over is not HandOver.DONE:
        assert "handed over" in events
    if after.files is FilesState.DELETED and before.files is not FilesState.DELETED:
        assert "files deleted" in events


def a_checked_output_keeps_its_verdict(before: Job, events: Events, after: Job) -> None:
    """What was found valid or invalid stays so."""
    for old, new in zip(before.tasks, after.tasks, strict=False):
        if old.validity in (Validity.VALID, Validity.INVALID, Validity.NOT_CHECKED):
            assert new.validity is old.validity


def the_bar_is_never_lowered(before: Job, events: Events, after: Job) -> None:
    """Quorum and target only grow."""
    assert after.quorum >= before.quorum
    assert after.target_tasks >= before.target_tasks


LAWS_OF_A_STEP: tuple[Callable[[Job, Events, Job], None], ...] = (
    what_is_over_stays_over,
    copies_are_never_lost,
    a_verdict_never_changes,
    only_its_owner_cancels,
    handed_over_once,
    a_checked_output_keeps_its_verdict,
    the_bar_is_never_lowered,
)


# --- laws of all roads ------------------------------------------------------------------------------------------


def no_road_goes_in_circles(roads: Roads) -> None:
    """However events fall, a job comes nearer to its end: no stand is met twice."""
    ways_in = Counter(step.after for steps in roads.steps.values() for step in steps if step.after != step.before)
    open_stands = deque(stand for stand in roads.steps if not ways_in[stand])
    passed = 0
    while open_stands:
        stand = open_stands.popleft()
        passed += 1
        for step in roads.steps[stand]:
            if step.after != stand:
                ways_in[step.after] -= 1
                if not ways_in[step.after]:
                    open_stands.append(step.after)
    assert passed == len(roads.steps)


def every_road_ends_well(roads: Roads) -> None:
    """Where nothing more can happen, the job is decided and handed over, its files deleted, and all copies over."""
    ends = [stand.job for stand, steps in roads.steps.items() if all(step.after == stand for step in steps)]
    assert ends
    for job in ends:
        assert job.is_decided
        assert job.hand_over is HandOver.DONE
        assert job.files is FilesState.DELETED
        assert all(task.state is TaskState.OVER for task in job.tasks)


LAWS_OF_ALL_ROADS: tuple[Callable[[Roads], None], ...] = (no_road_goes_in_circles, every_road_ends_well)


# --- examining --------------------------------------------------------------------------------------------------


class Broken(AssertionError):
    """A law is broken; the message says which, where, and by what event."""


def examine_stand(job: Job, rules: ModuleType, now: float = NOW) -> None:
    """Hold one job against every law of a stand."""
    for law in LAWS_OF_A_STAND:
        try:
            law(job, rules, now)
        except AssertionError as error:
            raise Broken(f"{law.__name__}: {law.__doc__}\n{tell(job)}") from error


def examine_step(before: Job, events: Events, after: Job) -> None:
    """Hold one step against every law of a step."""
    for law in LAWS_OF_A_STEP:
        try:
            law(before, events, after)
        except AssertionError as error:
            message = f"{law.__name__}: {law.__doc__}\n{tell(before)}\n--{', '.join(events)}-->\n{tell(after)}"
            raise Broken(message) from error


def examine_roads(roads: Roads, rules: ModuleType) -> None:
    """Hold every stand, every step, and the whole against the laws."""
    for job in {stand.job for stand in roads.steps}:
        examine_stand(job, rules)
    for steps in roads.steps.values():
        for step in steps:
            examine_step(step.before.job, (step.event,), step.after.job)
    for law in LAWS_OF_ALL_ROADS:
        try:
            law(roads)
        except AssertionError as error:
            raise Broken(f"{law.__name__}: {law.__doc__}") from error


def road_to(roads: Roads, stand: Stand) -> list[Step]:
    """The shortest way to a stand, to tell how it came about."""
    came_by: dict[Stand, Step] = {}
    waiting = deque([roads.start])
    while waiting and stand not in came_by:
        here = waiting.popleft()
        for step in roads.steps[here]:
            if step.after not in came_by and step.after != roads.start:
                came_by[step.after] = step
                waiting.append(step.after)
    road: list[Step] = []
    while stand != roads.start:
        road.append(came_by[stand])
        stand = came_by[stand].before
    return road[::-1]


def waits_for_a_check(job: Job) -> bool:
    """Whether outputs wait to be compared: stated here on its own, as the laws do not borrow from the rules."""
    if job.reasons:
        return False
    outputs = [task for task in job.tasks if task.outcome is Outcome.SUCCESS and task.validity in _MAY_COUNT]
    if job.canonical_attempt is not None:
        fresh = any(task.validity is not Validity.VALID for task in outputs)
        return fresh and job.files is FilesState.KEPT
    return len(outputs) >= job.quorum and any(task.validity is Validity.UNCHECKED for task in outputs)


def tell(job: Job) -> str:
    """A job on a few lines."""
    lines = [
        f"job: {job.state} quorum {job.quorum} target {job.target_tasks} canonical {job.canonical_attempt}"
        f" reasons {sorted(job.reasons)} hand-over {job.hand_over} files {job.files} policy {job.policy}"
    ]
    return "\n".join(lines + [f"  {_tell_task(task)}" for task in job.tasks])


def _tell_task(task: Task) -> str:
    return f"task {task.attempt}: {task.state} {task.outcome} {task.validity} {task.output_digest}"


_MAY_COUNT = frozenset({Validity.UNCHECKED, Validity.INCONCLUSIVE, Validity.VALID})
_WAITING = frozenset({Validity.UNCHECKED, Validity.INCONCLUSIVE})
_COMPARED = frozenset({Validity.VALID, Validity.INVALID, Validity.UNCHECKED, Validity.INCONCLUSIVE})
