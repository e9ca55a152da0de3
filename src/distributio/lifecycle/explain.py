"""Why is a job where it is, and why has a host no work: said in words, what the reader can change first."""

from collections import Counter
from collections.abc import Iterable, Mapping

from distributio.lifecycle.model import Job, JobState, Outcome, Reason, Task, TaskState, Validity
from distributio.lifecycle.reasons import REASONS as REASONS
from distributio.lifecycle.reasons import Because as Because
from distributio.lifecycle.reasons import ReasonText as ReasonText
from distributio.lifecycle.reasons import Who as Who
from distributio.lifecycle.reasons import because as because

# What each reader can change comes first, then what those he can ask can change, and last what time changes.
_READERS: dict[Who, tuple[Who, ...]] = {
    Who.SUBMITTER: (Who.SUBMITTER, Who.OPERATOR, Who.LENDER, Who.TIME),
    Who.LENDER: (Who.LENDER, Who.OPERATOR, Who.SUBMITTER, Who.TIME),
    Who.OPERATOR: (Who.OPERATOR, Who.LENDER, Who.SUBMITTER, Who.TIME),
    Who.TIME: (Who.SUBMITTER, Who.LENDER, Who.OPERATOR, Who.TIME),
}

# A host counted so could run the job and is not here for it; one counted so is, and only has no room or right now.
_ABSENT = frozenset({"no-host-awake", "host-suspended", "host-not-now"})
_PRESENT = frozenset({"host-busy", "same-owner", "host-just-failed", "others-first", "host-not-proven"})
_NONE_HERE = ("none of them is here now", "it is not here now")
_WITHOUT_CAUSE: dict[Outcome, str] = {
    Outcome.FAILED: "exit-code",
    Outcome.ERROR: "engine-error",
    Outcome.ABANDONED: "owner-stopped",
    Outcome.NO_REPLY: "deadline-passed",
    Outcome.INVALID_OUTPUT: "unreadable-output",
}


def code_of(reason: Reason) -> str:
    """The code of a reason to give a job up."""
    return reason.value.replace("_", "-")


def in_order(counts: Mapping[str, int], reader: Who = Who.SUBMITTER) -> list[Because]:
    """Reasons in words: what the reader can change first, then what applies most often."""
    ranks = _READERS[reader]

    def rank(code: str) -> tuple[int, int, int, str]:
        text = REASONS.get(code)
        if text is None:
            return (len(ranks), -counts[code], len(REASONS), code)
        return (ranks.index(text.who_can_change), -counts[code], text.order, code)

    return [because(code, counts[code]) for code in sorted(counts, key=rank) if counts[code] > 0]


def cause_of(task: Task) -> str:
    """Why a copy brought no output that counts, as a code; empty if it did, or is not over, or was not needed."""
    if task.outcome not in _WITHOUT_CAUSE:
        return ""
    return task.cause or _WITHOUT_CAUSE[task.outcome]


def why_more_copies(job: Job, *, is_spot_check: bool) -> dict[str, int]:
    """Why a job has more copies than it began with, by code. `is_spot_check`: its first host is trusted."""
    found: dict[str, int] = {}
    if job.is_decided:
        return found
    if job.quorum > job.policy.quorum:
        found["second-copy-spot-check" if is_spot_check else "second-copy-unproven"] = 1
    differing = any(task.validity is Validity.INCONCLUSIVE for task in job.tasks)
    if not differing and job.target_tasks > max(job.quorum, job.policy.target_tasks):
        found["extra-copy"] = 1
    return found


def explain_job(
    job: Job,
    rejections: Mapping[str, int],
    hosts_total: int,
    ahead: int | None = None,
    notes: Mapping[str, int] | None = None,
) -> tuple[str, list[Because]]:
    """One sentence on where a job stands, and the reasons for it. `rejections` counts the hosts by why they do not have
    a copy of it; `hosts_total` those that are attached; `ahead` the tasks that are served before it; `notes` what else
    there is to say, by code."""
    summary, because = _explain_job(job, rejections, hosts_total, ahead)
    return summary, in_order(notes or {}) + because


def _explain_job(
    job: Job, rejections: Mapping[str, int], hosts_total: int, ahead: int | None
) -> tuple[str, list[Because]]:
    causes = Counter(filter(None, map(cause_of, job.tasks)))
    if job.state is JobState.DONE:
        return _done(job), in_order(causes)
    if job.reasons:
        given_up = [because(code_of(reason)) for reason in sorted(job.reasons, key=list(Reason).index)]
        return _given_up(job, given_up[0]), given_up + in_order(causes)
    if job.state is JobState.CHECKING:
        return f"Checking: {_count(_outputs(job), 'output')} came back and are being compared.", in_order(causes)
    if job.state is JobState.RUNNING:
        return _running(job), in_order(causes)
    reasons = dict(rejections)
    if hosts_total == 0:
        reasons["no-hosts-yet"] = 1
    return _waiting(job, rejections, hosts_total, ahead), in_order(reasons) + in_order(causes)


def explain_host(rejections: Mapping[str, int]) -> list[Because]:
    """Why a host has no work, what its owner can change first. `rejections` counts tasks by why they are not for it."""
    return in_order(rejections or {"no-ready-tasks": 1}, Who.LENDER)


def _done(job: Job) -> str:
    valid = sum(task.validity is Validity.VALID for task in job.tasks)
    copies = _count(len(job.tasks), "copy", "copies")
    if job.quorum == 1:
        return f"Done: an output came back ({copies} made)."
    return f"Done: {valid} outputs agree ({copies} made, quorum {job.quorum})."


def _given_up(job: Job, first: Because) -> str:
    if job.state is JobState.CANCELLED:
        return "Cancelled: its owner no longer wants it."
    last = _last_failure(job.tasks)
    return f"Failed: {first.sentence[0].lower()}{first.sentence[1:]}{last}"


def _last_failure(tasks: Iterable[Task]) -> str:
    failed = [task for task in tasks if task.outcome is Outcome.FAILED]
    if not failed:
        return ""
    code = failed[-1].exit_code
    if cause_of(failed[-1]) == "exit-code" and code is not None:
        return f" The last exit code was {code}."
    return f" The last time: {because(cause_of(failed[-1])).sentence}"


def _running(job: Job) -> str:
    hosts = sum(task.state is TaskState.IN_PROGRESS for task in job.tasks)
    ready = sum(task.state is TaskState.READY for task in job.tasks)
    back = _outputs(job)
    parts = [f"Running on {_count(hosts, 'host')}"]
    if back:
        parts.append(f"{back} of {job.quorum} outputs are back")
    if ready:
        parts.append(f"{_count(ready, 'copy', 'copies')} more {'waits' if ready == 1 else 'wait'} for a host")
    return ", ".join(parts) + "."


def _waiting(job: Job, rejections: Mapping[str, int], hosts_total: int, ahead: int | None) -> str:
    if hosts_total == 0:
        return "Waiting: no host is attached to this site yet."
    absent = sum(count for code, count in rejections.items() if code in _ABSENT)
    present = sum(count for code, count in rejections.items() if code in _PRESENT)
    if not present and sum(rejections.values()) >= hosts_total:
        if absent:
            return f"Waiting: {_count(absent, 'host')} could run it, and {_NONE_HERE[absent == 1]}."
        return f"Waiting: no host of the {hosts_total} could run it."
    if rejections.get("same-owner", 0) == present > 0:
        return "Waiting for a host of another owner: copies that are compared go to different owners."
    if ahead:
        return f"Waiting for a host: {_count(ahead, 'task')} {'is' if ahead == 1 else 'are'} served before it."
    if ahead == 0:
        return "Waiting for a host: it is the next to be served."
    if len(job.tasks) > 1:
        return "Waiting for a host for another copy."
    return "Waiting for a host."


def _outputs(job: Job) -> int:
    return sum(task.is_viable for task in job.tasks)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
