"""Which outputs agree, and which of them speaks for the job."""

from collections.abc import Callable, Mapping

from msgspec import Struct

from distributio.lifecycle.model import FilesState, Job, Task, Validity

Agree = Callable[[Task, Task], bool]


class Opinion(Struct, frozen=True, kw_only=True):
    """What a comparison says: the validity of each attempt it looked at, those whose output cannot be read at all,
    and the canonical attempt where enough agree."""

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
    if job.canonical_attempt is not None:
        return job.files is FilesState.KEPT and any(
            task.is_viable and task.validity is not Validity.VALID for task in job.tasks
        )
    viable = [task for task in job.tasks if task.is_viable]
    return len(viable) >= job.quorum and any(task.validity is Validity.UNCHECKED for task in viable)


def needed_to_agree(quorum: int) -> int:
    """How many outputs must agree with one for it to speak for the job, itself included: a strict majority of the
    quorum, as BOINC's validator has it."""
    return quorum // 2 + 1


def compare(job: Job, agree: Agree) -> Opinion:
    """Compare what is viable. With a canonical output, each new one is held against it alone."""
    viable = [task for task in job.tasks if task.is_viable]
    canonical = job.canonical
    if canonical is not None:
        return Opinion(
            validity={
                task.attempt: Validity.VALID if agree(canonical, task) else Validity.INVALID
                for task in viable
                if task.validity is not Validity.VALID
            }
        )
    for candidate in viable:
        friends = [task for task in viable if task is candidate or agree(candidate, task)]
        if len(friends) >= needed_to_agree(job.quorum) and len(viable) >= job.quorum:
            valid = {task.attempt for task in friends}
            return Opinion(
                validity={
                    task.attempt: Validity.VALID if task.attempt in valid else Validity.INVALID for task in viable
                },
                canonical_attempt=candidate.attempt,
            )
    return Opinion(validity={task.attempt: Validity.INCONCLUSIVE for task in viable})
