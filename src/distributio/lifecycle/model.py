"""The values the rules speak of: a job, its tasks, and the words for what they can be.

A `Job` value holds one piece of work and all of its copies, so a rule sees everything that bears on its decision.
Values are frozen; change is `msgspec.structs.replace`. (msgspec structs rather than dataclasses: replacing is
the hot path of the whole server, and theirs is three times as fast.)
"""

from enum import StrEnum

from msgspec import Struct


class TaskState(StrEnum):
    """Where one copy of a job stands."""

    READY = "ready"  # waiting for a host
    IN_PROGRESS = "in_progress"  # leased to a host
    OVER = "over"  # nothing more is expected of it


class Outcome(StrEnum):
    """How a copy that is over ended."""

    NONE = "none"  # it is not over yet
    SUCCESS = "success"  # the command ended with exit code 0 and its output is held by the site
    FAILED = "failed"  # the command's own fault: exit code, or a limit of the job was hit
    ERROR = "error"  # the host's fault: engine, image or transfer trouble
    NO_REPLY = "no_reply"  # the deadline passed in silence
    ABANDONED = "abandoned"  # given back: the owner wanted the machine, or it lost the task
    NOT_NEEDED = "not_needed"  # the job was decided or cancelled first
    INVALID_OUTPUT = "invalid_output"  # a validator could not accept the output on its own


class Validity(StrEnum):
    """What comparing outputs has said of a copy."""

    UNCHECKED = "unchecked"  # not compared yet, or there is no output to compare
    VALID = "valid"  # it agrees with the output that speaks for the job
    INVALID = "invalid"  # it does not
    INCONCLUSIVE = "inconclusive"  # compared, and not enough copies agree yet
    NOT_CHECKED = "not_checked"  # the job failed before a check was needed


class Reason(StrEnum):
    """Why a job failed. A job may have several."""

    CANCELLED = "cancelled"  # its owner no longer wants it
    TOO_MANY_FAILURES = "too_many_failures"  # the command itself fails
    TOO_MANY_ERRORS = "too_many_errors"  # hosts could not run it
    TOO_MANY_TASKS = "too_many_tasks"  # copies used up, lost or late ones included
    TOO_MANY_SUCCESSES = "too_many_successes"  # outputs that never agree


class HandOver(StrEnum):
    """Whether a decided job has been handed to its owner."""

    NOT_READY = "not_ready"  # there is no verdict yet
    READY = "ready"  # there is one, and its result is to be written
    DONE = "done"  # its owner can have it


class FilesState(StrEnum):
    """Whether the site still keeps what hosts sent for a job."""

    KEPT = "kept"  # they may still be compared or handed over
    RELEASED = "released"  # nothing needs them: the deleter may take them
    DELETED = "deleted"  # they are gone; what was handed over is not


class JobState(StrEnum):
    """A job in one word, for people: derived from everything else by `advance`."""

    WAITING = "waiting"  # no host has a copy now
    RUNNING = "running"  # at least one host has
    CHECKING = "checking"  # enough copies are back and are being compared
    DONE = "done"  # an output speaks for it
    FAILED = "failed"  # it was given up, for the reasons it has
    CANCELLED = "cancelled"  # its owner no longer wants it


UNDECIDED_STATES = frozenset({JobState.WAITING, JobState.RUNNING, JobState.CHECKING})
DECIDED_STATES = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED})

EXACT = "exact"  # the validator that compares digests, inside the deciding transaction


class Policy(Struct, frozen=True, kw_only=True):
    """What a batch asks of every one of its jobs. Counts are of tasks; `deadline_seconds` is the length of a lease. With
    `adaptive`, one copy is enough from a host that is trusted, and `adaptive_quorum` are compared where it is not."""

    quorum: int = 1
    target_tasks: int = 1
    max_failures: int = 0  # more failures of the command than this end the job
    max_errors: int = 3  # more errors of hosts than this end the job
    max_tasks: int = 12
    max_successes: int = 6
    deadline_seconds: int = 86_400
    validator: str = EXACT
    adaptive: bool = False
    adaptive_quorum: int = 2
    alike: str = ""  # how alike the hosts of one job's copies must be: a word of lifecycle/dispatch.ALIKE

    @property
    def voices(self) -> int:
        """How many copies may come to be compared: they are of as many owners from the start."""
        return max(self.quorum, self.adaptive_quorum) if self.adaptive else self.quorum


class Task(Struct, frozen=True, kw_only=True):
    """One copy of a job for one host, from before it is sent until it is forgotten."""

    id: int = 0  # 0 until the store has numbered it
    attempt: int
    state: TaskState = TaskState.READY
    outcome: Outcome = Outcome.NONE
    validity: Validity = Validity.UNCHECKED
    host_id: int | None = None
    user_id: int | None = None  # the host's owner when it was sent: one task per user per job
    sent_at: float | None = None
    deadline_at: float | None = None
    received_at: float | None = None
    exit_code: int | None = None
    cause: str = ""  # a reason code from lifecycle/explain.py
    output_digest: str = ""  # "sha256:..." of the results tar; empty: nothing was written
    output_bytes: int = 0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory_bytes: int = 0

    @property
    def is_viable(self) -> bool:
        """Whether this copy may still count towards the quorum."""
        return self.outcome is Outcome.SUCCESS and self.validity in _MAY_COUNT


_MAY_COUNT = frozenset({Validity.UNCHECKED, Validity.INCONCLUSIVE, Validity.VALID})


class Job(Struct, frozen=True, kw_only=True):
    """One piece of work and all its copies. `policy` is the batch's; quorum and target may grow for one job."""

    id: int
    policy: Policy
    quorum: int
    target_tasks: int
    state: JobState = JobState.WAITING
    reasons: frozenset[Reason] = frozenset()
    canonical_attempt: int | None = None
    hand_over: HandOver = HandOver.NOT_READY
    files: FilesState = FilesState.KEPT
    decided_at: float | None = None
    alike: str = ""  # the class of hosts its copies go to, once the first has fixed it
    expect: str = ""  # the digest of the output, where it is known beforehand
    tasks: tuple[Task, ...] = ()

    @property
    def is_decided(self) -> bool:
        """Whether the verdict is in: a canonical task, or a reason to give up."""
        return self.canonical_attempt is not None or bool(self.reasons)

    @property
    def canonical(self) -> Task | None:
        """The task whose output speaks for the job."""
        return None if self.canonical_attempt is None else self.tasks[self.canonical_attempt]


class Report(Struct, frozen=True, kw_only=True):
    """What a host says of a task that ended. Sizes in bytes, times in seconds."""

    outcome: Outcome
    exit_code: int | None = None
    cause: str = ""
    output_digest: str = ""
    output_bytes: int = 0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory_bytes: int = 0


def new_job(job_id: int, policy: Policy, expect: str = "") -> Job:
    """A job as it is submitted: no copies yet; `advance` makes them."""
    return Job(id=job_id, policy=policy, quorum=policy.quorum, target_tasks=policy.target_tasks, expect=expect)
