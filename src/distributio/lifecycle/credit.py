"""What is a valid result worth: the benchmark-normalised time of the resources it took, capped by those who agree with it.

The unit is the cobblestone of the BOINC projects: 200 of them are one day of a machine that does a billion floating-point
operations a second. Amounts are whole millionths of a cobblestone, so that sums are exact and no order of adding changes
one. A recent average fades by half each week; it is kept as one number that is only ever added to.
"""

import math
from collections.abc import Sequence

from msgspec import Struct

from distributio.lifecycle.model import Job, Task, Validity

COBBLESTONES_A_DAY = 200.0  # of one GFLOPS
MILLIONTHS = 1_000_000
_PER_GFLOP = COBBLESTONES_A_DAY * MILLIONTHS / 86_400.0

UNKNOWN_GFLOPS = 1.0  # a processor whose benchmark is not known
LEAST_GFLOPS = 0.05
MOST_GFLOPS = 32.0  # of one processor: what says more is not believed
ENOUGH_CONFIRMED_SECONDS = 600.0  # processor time before an app's average says anything

HALF_LIFE_SECONDS = 7 * 86_400.0
# The first second of 2026. Amounts are kept as they would have counted then, and double each week; a site that is still
# there in 2044 moves this on by dividing what it has.
EPOCH = 1_767_225_600.0


class Grant(Struct, frozen=True, kw_only=True):
    """What one valid task earned: `credit` in millionths."""

    task_id: int
    host_id: int
    user_id: int | None
    credit: int
    cpu_seconds: float  # processors asked for, times the time they were used
    confirmed: bool  # whether another result bears it out


def believed_gflops(reported: float) -> float:
    """A processor's speed, as far as a host's own word for it is taken."""
    if not math.isfinite(reported) or reported <= 0:
        return UNKNOWN_GFLOPS
    return min(max(reported, LEAST_GFLOPS), MOST_GFLOPS)


def believed_seconds(task: Task, most_seconds: float) -> float:
    """How long a task ran, as far as its host's own word for it is taken: no longer than the host had it, nor than it may."""
    had = (task.received_at or 0.0) - (task.sent_at or 0.0)
    seconds = min(task.wall_seconds, had, most_seconds)
    return seconds if seconds > 0 else 0.0


def gflop_of(credit: int) -> float:
    """The work that an amount stands for, in billions of operations."""
    return credit / _PER_GFLOP


def lone_gflops(confirmed_gflop: float, confirmed_seconds: float) -> float:
    """The most that a result is credited by which no other bears out, for each second of a processor: what the confirmed
    results of its app came to on average."""
    if confirmed_seconds < ENOUGH_CONFIRMED_SECONDS:
        return UNKNOWN_GFLOPS
    return believed_gflops(confirmed_gflop / confirmed_seconds)


def low_median(claims: Sequence[int]) -> int:
    """The middle one; of two in the middle the lower, so that no minority can raise it."""
    return sorted(claims)[(len(claims) - 1) // 2]


def newly_valid(before: Job, after: Job) -> list[Task]:
    """The tasks this change found valid."""
    known = len(before.tasks)
    return [
        task
        for index, task in enumerate(after.tasks)
        if task.validity is Validity.VALID
        and (index >= known or before.tasks[index].validity is not Validity.VALID)
        and task.host_id is not None
    ]


def grants(
    before: Job, after: Job, gflops: dict[int, float], *, cpus: float, most_seconds: float, most_lone_gflops: float
) -> list[Grant]:
    """What the tasks earn that this change found valid. `gflops` has the speed of one processor of each of their hosts, as
    believed. Each is paid what it claims, and no more than the middle of what those claim that agree; one that stands alone
    no more than the app's average for its time."""
    fresh = newly_valid(before, after)
    valid = fresh
    if len(after.tasks) > 1:
        valid = [task for task in after.tasks if task.validity is Validity.VALID and task.host_id is not None]
    confirmed = len(valid) > 1
    ceiling = MOST_GFLOPS if confirmed else most_lone_gflops
    times = [believed_seconds(task, most_seconds) * cpus for task in valid]
    claims = [
        round(seconds * min(gflops.get(task.host_id or 0, UNKNOWN_GFLOPS), ceiling) * _PER_GFLOP)
        for task, seconds in zip(valid, times, strict=True)
    ]
    most = low_median(claims) if claims else 0
    return [
        Grant(
            task_id=task.id,
            host_id=task.host_id or 0,
            user_id=task.user_id,
            credit=min(claimed, most),
            cpu_seconds=seconds,
            confirmed=confirmed,
        )
        for task, seconds, claimed in zip(valid, times, claims, strict=True)
        if valid is fresh or task in fresh
    ]


# --- averages that fade -------------------------------------------------------------------------------------------


def kept_forward(credit: int, at: float) -> float:
    """An amount as it is added to a fading sum."""
    return credit * math.pow(2.0, (at - EPOCH) / HALF_LIFE_SECONDS)


def recent_average(kept: float, now: float) -> float:
    """The recent average of a fading sum, in cobblestones a day."""
    return (
        kept
        * math.pow(2.0, (EPOCH - now) / HALF_LIFE_SECONDS)
        * math.log(2.0)
        * 86_400.0
        / HALF_LIFE_SECONDS
        / MILLIONTHS
    )


def in_cobblestones(credit: int) -> float:
    """An amount as people read it."""
    return credit / MILLIONTHS
