"""The only place where tests of the rules make values: every field has a default, a test says what it is about."""

from typing import Any

from msgspec.structs import replace

from distributio.lifecycle.model import Job, Outcome, Policy, Report, Task, TaskState, Validity

NOW = 1_000.0


def a_policy(**fields: Any) -> Policy:
    """What a batch asks of its jobs; `target_tasks` follows the quorum."""
    if "quorum" in fields:
        fields.setdefault("target_tasks", fields["quorum"])
    return Policy(**fields)


def a_job(*tasks: Task, policy: Policy | None = None, **fields: Any) -> Job:
    """A job with these copies, numbered in order."""
    policy = policy or a_policy()
    fields.setdefault("quorum", policy.quorum)
    fields.setdefault("target_tasks", policy.target_tasks)
    numbered = tuple(
        replace(task, attempt=attempt, host_id=None if task.host_id is None else attempt + 1)
        for attempt, task in enumerate(tasks)
    )
    return Job(id=fields.pop("id", 1), policy=policy, tasks=numbered, **fields)


def ready() -> Task:
    """A copy that waits for a host."""
    return Task(attempt=0)


def running(**fields: Any) -> Task:
    """A copy that a host has, with an hour left."""
    defaults: dict[str, Any] = {"host_id": 1, "user_id": 1, "sent_at": NOW, "deadline_at": NOW + 3600}
    return Task(attempt=0, state=TaskState.IN_PROGRESS, **(defaults | fields))


def over(outcome: Outcome, **fields: Any) -> Task:
    """A copy that ended so."""
    task = running(**({"received_at": NOW} | fields))
    return replace(task, state=TaskState.OVER, outcome=outcome)


def success(digest: str = "a", validity: Validity = Validity.UNCHECKED, **fields: Any) -> Task:
    """A copy that came back with this output."""
    return over(Outcome.SUCCESS, output_digest=digest, validity=validity, **fields)


def a_report(outcome: Outcome = Outcome.SUCCESS, **fields: Any) -> Report:
    """What a host says of a copy that ended."""
    if outcome is Outcome.SUCCESS:
        fields.setdefault("output_digest", "a")
        fields.setdefault("exit_code", 0)
    return Report(outcome=outcome, **fields)
