"""What changed in a job, in words: every line the log has about a job's state comes from here."""

from msgspec import Struct

from distributio.lifecycle.model import Job, Task

_JOB_FIELDS = ("state", "quorum", "target_tasks", "canonical_attempt", "hand_over", "files")
_TASK_FIELDS = ("state", "outcome", "validity")


class Change(Struct, frozen=True):
    """One fact that is not what it was. `attempt` is None where it is about the job itself."""

    attempt: int | None
    field: str
    before: str
    after: str

    def __str__(self) -> str:
        thing = "job" if self.attempt is None else f"task {self.attempt}"
        if not self.before:
            return f"{thing}: {self.field} {self.after}"
        field = "" if self.field == "state" else f"{self.field} "
        return f"{thing}: {field}{self.before} -> {self.after}"


def changes(before: Job, after: Job) -> tuple[Change, ...]:
    """What is different, tasks first, as causes precede their consequences."""
    if before is after:
        return ()
    found: list[Change] = []
    if before.tasks is not after.tasks:
        for old, new in zip(before.tasks, after.tasks, strict=False):
            if old is not new:
                found += _task_changes(old, new)
        found += [Change(task.attempt, "created", "", str(task.state)) for task in after.tasks[len(before.tasks) :]]
    if before.reasons != after.reasons:
        found += [Change(None, "given up:", "", str(reason)) for reason in sorted(after.reasons - before.reasons)]
    for field in _JOB_FIELDS:
        old_value, new_value = getattr(before, field), getattr(after, field)
        if old_value != new_value:
            found.append(Change(None, field, "none" if old_value is None else str(old_value), str(new_value)))
    return tuple(found)


def _task_changes(old: Task, new: Task) -> list[Change]:
    found = [
        Change(new.attempt, field, str(getattr(old, field)), str(getattr(new, field)))
        for field in _TASK_FIELDS
        if getattr(old, field) is not getattr(new, field)
    ]
    if new.host_id is not None and old.host_id is None:
        found.append(Change(new.attempt, "host", "", str(new.host_id)))
    if new.cause and new.cause != old.cause:
        found.append(Change(new.attempt, "cause", "", new.cause))
    return found
