"""Which outputs agree, and which of them speaks for the job."""

from collections.abc import Callable, Mapping

from msgspec import Struct

from distributio.lifecycle.model import FilesState, Job, Outcome, Task, Validity

Agree = Callable[[Task, Task], bool]


class Opinion(Struct, frozen=True, kw_only=True):
    """What a comparison says: the validity of each attempt it looked at, those whose output cannot be read at all,
    and the canonical attempt: the one that enough agree with, or the one it was given to compare with."""

    validity: Mapping[int, Validity]
    unreadable: frozenset[int] = frozenset()
    canonical_attempt: int | None = None


def same_digest(a: Task, b: Task) -> bool:
    """Byte for byte the same results tar."""
    return a.output_digest == b.output_digest


def wants_check(job: Job) -> bool:
    """Whether there is an output to compare: a full quorum of viable ones with something new among them, or a
    straggler beside a canonical output that is still kept."""
    if job.reasons:
        return False
    viable = fresh = settled = 0
    for task in job.tasks:
        if task.is_viable:
            viable += 1
            fresh += task.validity is Validity.UNCHECKED
            settled += task.validity is Validity.VALID
    if job.canonical_attempt is not None:
        return viable > settled and job.files is FilesState.KEPT
    return fresh > 0 and viable >= job.quorum


def needed_to_agree(quorum: int) -> int:
    """How many outputs must agree with one for it to speak for the job, itself included: a strict majority of the
    quorum, as BOINC's validator has it."""
    return quorum // 2 + 1


def is_sound(job: Job, canonical_attempt: int | None) -> bool:
    """Whether the validities of a job's tasks bear out its canonical attempt: it and enough others are valid among a
    full quorum; or there is none, and nothing is valid."""
    valid = [task.attempt for task in job.tasks if task.validity is Validity.VALID]
    if canonical_attempt is None:
        return not valid
    compared = sum(task.outcome is Outcome.SUCCESS for task in job.tasks)
    return canonical_attempt in valid and len(valid) >= needed_to_agree(job.quorum) and compared >= job.quorum


def compare(job: Job, agree: Agree) -> Opinion:
    """Compare what is viable. The output that most agree with speaks for the job, the earliest of several. With a
    canonical output, each new one is held against it alone."""
    viable = [task for task in job.tasks if task.is_viable]
    canonical = job.canonical
    if canonical is not None:
        fresh = [task for task in viable if task.validity is not Validity.VALID]
        return Opinion(
            validity={task.attempt: _verdict(agree(canonical, task)) for task in fresh},
            canonical_attempt=job.canonical_attempt,
        )
    best: list[Task] = []
    speaker: Task | None = None
    if len(viable) >= job.quorum:
        for candidate in viable:
            friends = [task for task in viable if task is candidate or agree(candidate, task)]
            if len(friends) > len(best):
                speaker, best = candidate, friends
            if 2 * len(best) >= len(viable):
                break  # what is left agrees with nobody here, and is no larger
    if speaker is None or len(best) < needed_to_agree(job.quorum):
        return Opinion(validity={task.attempt: Validity.INCONCLUSIVE for task in viable})
    valid = {task.attempt for task in best}
    return Opinion(
        validity={task.attempt: _verdict(task.attempt in valid) for task in viable},
        canonical_attempt=speaker.attempt,
    )


def _verdict(agrees: bool) -> Validity:
    return Validity.VALID if agrees else Validity.INVALID
