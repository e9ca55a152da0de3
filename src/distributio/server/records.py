"""What a result's record says: enough to know what ran, where, how often, and why its result is believed."""

import hashlib
from typing import Any

import msgspec
from msgspec import Struct

import distributio
from distributio.store import views
from distributio.wire.native import JobChoice, JobView, Spec, TaskView
from distributio.wire.provenance import Statement, Subject, payload_of, subject


class Batch(Struct, frozen=True, kw_only=True):
    """What the jobs of a batch share in their records."""

    spec: Spec
    policy: dict[str, Any]
    image_digest: str
    manifests: dict[str, str]
    user: str
    site: dict[str, str]  # name and url


def record(
    view: JobView, choice: JobChoice | None, batch: Batch, canonical: TaskView | None, log: bytes, words: list[Any]
) -> bytes:
    """The statement about a job, as it is signed. Its subjects are the files that are handed over with it."""
    subjects: list[Subject] = []
    if view.has_results and canonical is not None:
        subjects.append(subject("results.tar", canonical.output_digest))
    if log:
        subjects.append(subject("log.txt", f"sha256:{hashlib.sha256(log).hexdigest()}"))
    return payload_of(Statement(subject=subjects, predicate=_predicate(view, choice, batch, canonical, words)))


def _predicate(
    view: JobView, choice: JobChoice | None, batch: Batch, canonical: TaskView | None, words: list[Any]
) -> dict[str, Any]:
    filled = views.fill(batch.spec, choice)
    return {
        "job": view.id,
        "batch": view.batch,
        "name": view.name,
        "project": view.project,
        "submitted_by": batch.user,
        "site": batch.site,
        "state": view.state,
        "reasons": view.reasons,
        "exit_code": view.exit_code,
        "cause": view.cause,
        "image": {"reference": batch.spec.image, "digest": batch.image_digest, "manifests": batch.manifests},
        "command": filled.command,
        "entrypoint": filled.entrypoint,
        "environment": filled.environment,
        "inputs": [{"path": each.path, "digest": each.digest} for each in filled.inputs],
        "limits": filled.limits,
        "validator": {
            "name": batch.policy["validator"],
            "quorum": batch.policy["quorum"],
            "agreeing": sum(task.validity == "valid" for task in view.tasks),
            "words": words,
        },
        "results": {
            "file": "results.tar" if view.has_results else "",
            "digest": canonical.output_digest if canonical else "",
            "bytes": canonical.output_bytes if canonical else 0,
        },
        "attempts": [
            {
                "attempt": task.attempt,
                "host": task.host,
                "outcome": task.outcome,
                "validity": task.validity,
                "exit_code": task.exit_code,
                "cause": task.cause,
                "sent_at": task.sent_at,
                "received_at": task.received_at,
                "wall_seconds": task.wall_seconds,
                "cpu_seconds": task.cpu_seconds,
                "memory_bytes": task.memory_bytes,
                "output_digest": task.output_digest,
            }
            for task in view.tasks
            if task.host is not None
        ],
        "submitted_at": view.created_at,
        "decided_at": view.decided_at,
        "software": f"distributio {distributio.__version__}",
    }


def words_of(notes: list[tuple[int, int, str]]) -> list[dict[str, Any]]:
    """What the validator said of attempts, as the record has it."""
    return [
        {"attempts": [attempt] if other < 0 else [attempt, other], "words": words} for attempt, other, words in notes
    ]


def batch_of(
    spec: str, policy: str, image_digest: str | None, platforms: str | None, user: str, site: dict[str, str]
) -> Batch:
    """The shared part, from a batch's row."""
    return Batch(
        spec=msgspec.json.decode(spec, type=Spec),
        policy=msgspec.json.decode(policy),
        image_digest=image_digest or "",
        manifests=msgspec.json.decode(platforms) if platforms else {},
        user=user,
        site=site,
    )
