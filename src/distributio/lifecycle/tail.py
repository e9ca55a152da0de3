"""When will a batch end, and which of its last copies are late enough that another machine is given one as well."""

from collections.abc import Sequence
from statistics import median

from msgspec import Struct

TAIL_SHARE = 0.05  # of its jobs: the last ones, of which the batch's end hangs
LATE = 2.0  # a copy is late after so many times what others took
ENOUGH = 3  # results before anything is said of how long one takes
LEAST_LATE_SECONDS = 5.0  # less is not worth a second copy


class Progress(Struct, frozen=True, kw_only=True):
    """How far a batch is: jobs that wait for a host, that are begun, and that are over."""

    job_count: int
    waiting: int
    decided: int
    created_at: float

    @property
    def remaining(self) -> int:
        """Jobs that are not over."""
        return self.job_count - self.decided


def typical_seconds(turnarounds: Sequence[float]) -> float | None:
    """How long one copy usually takes, from when it is sent until it is back; None while too few are back."""
    return median(turnarounds) if len(turnarounds) >= ENOUGH else None


def is_in_tail(progress: Progress) -> bool:
    """Whether only the last jobs of a batch are left, and all of them are begun."""
    return progress.waiting == 0 and 0 < progress.remaining <= max(1, int(TAIL_SHARE * progress.job_count))


def sent_before(typical: float, now: float) -> float:
    """Copies that were sent before this instant are late."""
    return now - max(LATE * typical, LEAST_LATE_SECONDS)


def forecast(
    progress: Progress, pace: float | None, typical: float | None, last_sent_at: float | None, now: float
) -> float | None:
    """When the batch may end. While jobs wait: at the pace of late, in jobs a second; when all are begun: when the copy that
    was sent last has taken as long as others did."""
    if progress.remaining == 0:
        return None
    if progress.waiting == 0 and typical is not None and last_sent_at is not None:
        return max(now, last_sent_at + typical)
    if not pace:
        return None
    return now + progress.remaining / pace


def pace_of(history: Sequence[tuple[float, int]], created_at: float) -> float | None:
    """Jobs a second, from instants with how many were over: over the time that was watched, or since the batch was made."""
    if not history:
        return None
    (first_at, first), (last_at, last) = history[0], history[-1]
    if last > first and last_at > first_at:
        return (last - first) / (last_at - first_at)
    return last / (last_at - created_at) if last and last_at > created_at else None
