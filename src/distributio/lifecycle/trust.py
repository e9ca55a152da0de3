"""How far is a host believed with an app: what each result does to its standing, and what its standing allows.

A standing is kept for each host and app. An app is a runner and an image repository, so that what a host has earned holds
for every tag and batch of it. Trust rises by results that another owner's copy, or a known answer, has confirmed, and falls
by one wrong result. The allowance keeps a machine that fails everything from eating a batch: trouble lowers it to one task
at a time with growing rests, and one good result begins to raise it again.
"""

import hashlib
from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from distributio.lifecycle.model import Job, Outcome, Task, TaskState, Validity

TRUSTED_AFTER = 10  # confirmed results without a wrong one between them
MOST_ERROR_RATE = 0.1  # of a host that is trusted
FIRST_ERROR_RATE = 0.1  # of a host nobody knows
ERROR_WEIGHT = 0.05  # of one result in the rate of errors
LEAST_SPOT_CHECKS = 0.05  # of a trusted host's jobs are compared, however long it has been right

FULL_ALLOWANCE = 512  # tasks a day and processor: at this, nothing is counted
FIRST_ALLOWANCE = 64
MOST_CPUS = 256  # a host that says it has more is believed so many

REST_SECONDS = 15.0  # after a second trouble in a row, and twice as long after each that follows
MOST_REST_SECONDS = 4 * 3600.0
FAILURES_BEFORE_REST = 3  # of one batch's command on one host, where other hosts do better
FAILING_REST_SECONDS = 10.0
MOST_FAILING_REST_SECONDS = 3600.0

DEPENDABLE_AFTER = 3  # results that counted
TURNAROUND_WEIGHT = 0.1


class Deed(StrEnum):
    """What came of a copy, as it bears on its host."""

    CONFIRMED = "confirmed"  # valid, and others or a known answer say so
    ACCEPTED = "accepted"  # valid, on its own word
    WRONG = "wrong"  # its output is not what others, or a known answer, have
    ERROR = "error"  # the host could not run it, or failed what others did
    SILENT = "silent"  # its deadline passed without a word
    FAILED = "failed"  # the command failed: whose fault that is, others will show
    OFF = "off"  # no longer with the host, and nothing is known of it yet


VALID = frozenset({Deed.CONFIRMED, Deed.ACCEPTED})


class Event(Struct, frozen=True):
    """Something a host is to be judged by."""

    host_id: int
    deed: Deed
    batch_id: int
    sent_at: float
    turnaround_seconds: float = 0.0


class Standing(Struct, frozen=True, kw_only=True):
    """What a host has earned with an app."""

    consecutive_valid: int = 0  # confirmed since the last wrong one or error
    error_rate: float = FIRST_ERROR_RATE  # fades: half of it is forgotten in fourteen results
    allowance: int = FIRST_ALLOWANCE
    day: int = 0  # since 1970, of which `sent_today` speaks
    sent_today: int = 0
    troubles: int = 0  # in a row: wrong results and errors with no good result between them
    trouble_at: float = 0.0  # a copy sent before this belongs to the same trouble
    rest_until: float = 0.0
    failing_batch: int = 0
    failures: int = 0  # in a row, of that batch
    failing_until: float = 0.0
    turnaround_seconds: float = 0.0  # on average, of late
    valid: int = 0
    wrong: int = 0
    errors: int = 0

    @property
    def is_set_aside(self) -> bool:
        """Whether it gets one task at a time, to show that it is well again."""
        return self.troubles >= 2


NEW = Standing()


# --- what happened -----------------------------------------------------------------------------------------------


def events(before: Job, after: Job, batch_id: int) -> list[Event]:
    """What a change of a job says of the hosts that had its copies. Each copy is judged once: the change that decides is the
    one that judges."""
    found: list[Event] = []
    if after.tasks is before.tasks:
        return found
    newly_done = after.canonical_attempt is not None and before.canonical_attempt is None
    for old, task in zip(before.tasks, after.tasks, strict=False):
        if task.host_id is None:
            continue
        deed = None if old is task else _deed(old, task, after)
        if newly_done and task.outcome is Outcome.FAILED:
            deed = Deed.ERROR  # others could do it
        elif newly_done and after.expect and task.outcome is Outcome.INVALID_OUTPUT:
            deed = Deed.WRONG  # others knew the answer
        if deed is not None:
            sent_at = task.sent_at or 0.0
            found.append(
                Event(task.host_id, deed, batch_id, sent_at, max(0.0, (task.received_at or sent_at) - sent_at))
            )
    return found


def _deed(old: Task, task: Task, job: Job) -> Deed | None:
    if task.validity is not old.validity:
        if task.validity is Validity.VALID:
            return Deed.CONFIRMED if job.quorum > 1 or job.expect else Deed.ACCEPTED
        if task.validity is Validity.INVALID:
            if task.outcome is Outcome.SUCCESS:
                return Deed.WRONG
            # An answer that nobody gave may be the submitter's mistake: judged when somebody has given it.
            return Deed.OFF if job.expect else Deed.ERROR
    return None if task.outcome is old.outcome else _OF_OUTCOME.get(task.outcome)


_OF_OUTCOME: dict[Outcome, Deed] = {
    Outcome.SUCCESS: Deed.OFF,
    Outcome.ERROR: Deed.ERROR,
    Outcome.NO_REPLY: Deed.SILENT,
    Outcome.FAILED: Deed.FAILED,
    Outcome.ABANDONED: Deed.OFF,
    Outcome.NOT_NEEDED: Deed.OFF,
}


def found_wrong(before: Job, after: Job) -> set[int]:
    """The hosts this change shows to have sent a wrong output."""
    return {event.host_id for event in events(before, after, 0) if event.deed is Deed.WRONG}


def judged(standing: Standing, event: Event, now: float, *, others_do_better: bool = False) -> Standing:
    """The standing after an event. `others_do_better` says that the failing command succeeds, or is being tried, elsewhere."""
    deed = event.deed
    if deed is Deed.CONFIRMED or deed is Deed.ACCEPTED:
        return _praised(standing, event)
    if deed is Deed.WRONG or deed is Deed.ERROR:
        return _blamed(standing, event, now)
    if deed is Deed.SILENT:
        return replace(
            standing,
            error_rate=_rate(standing, 1.0),
            allowance=_lowered(standing.allowance),
            errors=standing.errors + 1,
        )
    if deed is Deed.FAILED:
        return _failed(standing, event, now, others_do_better=others_do_better)
    if standing.is_set_aside and standing.rest_until > now:
        # A probe that is over need not be waited for any longer.
        return replace(standing, rest_until=min(standing.rest_until, now + rest_seconds(standing.troubles)))
    return standing


def _praised(standing: Standing, event: Event) -> Standing:
    known = standing.turnaround_seconds
    turnaround = event.turnaround_seconds
    average = known + TURNAROUND_WEIGHT * (turnaround - known) if standing.valid else turnaround
    return replace(
        standing,
        consecutive_valid=standing.consecutive_valid + (event.deed is Deed.CONFIRMED),
        error_rate=_rate(standing, 0.0),
        allowance=min(FULL_ALLOWANCE, 2 * standing.allowance + 1),
        troubles=0,
        rest_until=0.0,
        failures=0,
        failing_until=0.0,
        turnaround_seconds=average,
        valid=standing.valid + 1,
    )


def _blamed(standing: Standing, event: Event, now: float) -> Standing:
    wrong = event.deed is Deed.WRONG
    blamed = replace(
        standing,
        consecutive_valid=0,
        error_rate=_rate(standing, 1.0),
        wrong=standing.wrong + wrong,
        errors=standing.errors + (not wrong),
    )
    if event.sent_at < standing.trouble_at:
        return blamed  # it was under way when the trouble began: a broken engine fails all it holds, and that is one trouble
    troubles = standing.troubles + 1
    return replace(
        blamed,
        allowance=_lowered(standing.allowance),
        troubles=troubles,
        trouble_at=now,
        rest_until=now + rest_seconds(troubles),
    )


def _failed(standing: Standing, event: Event, now: float, *, others_do_better: bool) -> Standing:
    same = event.batch_id == standing.failing_batch
    failures = standing.failures + 1 if same else 1
    until = standing.failing_until if same else 0.0
    if others_do_better and failures >= FAILURES_BEFORE_REST:
        rest = FAILING_REST_SECONDS * 2.0 ** min(failures - FAILURES_BEFORE_REST, 20)
        until = now + min(rest, MOST_FAILING_REST_SECONDS)
    failed = replace(standing, failing_batch=event.batch_id, failures=failures, failing_until=until)
    if failed.is_set_aside and failed.rest_until > now:
        return replace(failed, rest_until=min(failed.rest_until, now + rest_seconds(failed.troubles)))
    return failed


def wants_evidence(standing: Standing, event: Event) -> bool:
    """Whether it matters how other hosts fare with the batch of a failed command."""
    same = event.batch_id == standing.failing_batch
    return event.deed is Deed.FAILED and same and standing.failures + 1 >= FAILURES_BEFORE_REST


def others_do_better(standing: Standing, done: int, failed: int, others_at_work: bool) -> bool:
    """Whether the failures of a host in a batch are its own: of so many done and failed jobs of the batch, others did not
    fail as it did, and some succeeded or are at work."""
    by_others = failed - standing.failures
    return by_others <= standing.failures and (done > 0 or others_at_work)


def rest_seconds(troubles: int) -> float:
    """How long a host rests after so many troubles in a row."""
    return min(REST_SECONDS * 2.0 ** min(troubles - 2, 20), MOST_REST_SECONDS) if troubles > 1 else 0.0


def _rate(standing: Standing, value: float) -> float:
    return standing.error_rate + ERROR_WEIGHT * (value - standing.error_rate)


def _lowered(allowance: int) -> int:
    # The reference server takes one off a day's allowance; a quarter of it makes it minutes instead of days.
    return max(1, allowance // 4)


# --- what it allows ----------------------------------------------------------------------------------------------


def is_trusted(standing: Standing) -> bool:
    """Whether it is believed without a second copy, spot checks apart."""
    return standing.consecutive_valid >= TRUSTED_AFTER and standing.error_rate <= MOST_ERROR_RATE


def spot_check_share(standing: Standing) -> float:
    """The share of its jobs that get a second copy: all of them until it is trusted, then fewer the longer it is right."""
    if not is_trusted(standing):
        return 1.0
    return max(LEAST_SPOT_CHECKS, 1.0 / standing.consecutive_valid)


def may_work_alone(standing: Standing, drawn: float) -> bool:
    """Whether a job goes to this host with no second copy; `drawn` is the job's own number between 0 and 1."""
    return drawn >= spot_check_share(standing)


def draw(seed: str, job_id: int) -> float:
    """A job's number for spot checks: the same whoever asks and whenever, and not to be guessed without the site's seed."""
    digest = hashlib.blake2b(f"{seed}:{job_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def room(standing: Standing, cpus: float, now: float) -> tuple[int, str]:
    """How many tasks of the app the host may be given now, and the reason code where that is a limit."""
    if standing.troubles and now < standing.rest_until:
        return 0, "host-set-aside"
    if standing.is_set_aside:
        return 1, "host-set-aside"
    if standing.allowance >= FULL_ALLOWANCE:
        return 1 << 20, ""
    most = 1 if standing.allowance == 1 else int(standing.allowance * min(max(cpus, 1.0), MOST_CPUS))
    spent = standing.sent_today if standing.day == day_of(now) else 0
    return max(0, most - spent), "daily-allowance"


def was_sent(standing: Standing, count: int, lease_seconds: float, now: float) -> Standing:
    """The standing after so many tasks of the app were sent. A probe is waited for, as long as its lease."""
    if standing.is_set_aside:
        standing = replace(standing, rest_until=now + lease_seconds)
    if standing.allowance >= FULL_ALLOWANCE:
        return standing
    today = day_of(now)
    spent = standing.sent_today if standing.day == today else 0
    return replace(standing, day=today, sent_today=spent + count)


def day_of(now: float) -> int:
    """The day, counted since 1970."""
    return int(now // 86_400)


def is_failing(standing: Standing, batch_id: int, now: float) -> bool:
    """Whether the host rests from one batch, whose command fails on it and not elsewhere."""
    return standing.failing_batch == batch_id and now < standing.failing_until


def may_hurry(standing: Standing, late_seconds: float) -> bool:
    """Whether an extra copy of a job whose copy is late so long may go to this host: one that has been right, is well, and
    usually brings such work back sooner."""
    return (
        standing.valid >= DEPENDABLE_AFTER
        and standing.troubles == 0
        and standing.error_rate <= MOST_ERROR_RATE
        and standing.turnaround_seconds <= late_seconds
    )


def is_unchecked_work_of(job: Job, host_id: int) -> bool:
    """Whether an undecided job has a copy of this host's that is not yet compared: with it, or back from it."""
    return not job.is_decided and any(
        task.host_id == host_id and (task.state is TaskState.IN_PROGRESS or task.is_viable) for task in job.tasks
    )
