"""Hand decided jobs over: the canonical results tar and result.json go to the results folder or bucket, once.

Writing the same files again is harmless, so a killed assimilator starts where it likes. The site's working copies are
released in the transaction that notes the hand-over.
"""

import msgspec
import structlog

from distributio.lifecycle.advance import advance, files_deleted, handed_over
from distributio.lifecycle.model import Job
from distributio.server import records
from distributio.server.site import Site
from distributio.server.submissions import Change
from distributio.store import checks, jobs, logs, views
from distributio.store.database import Transaction
from distributio.store.files import output_key, result_key
from distributio.wire.native import INLINE_OUTPUT_BYTES, JobView

log = structlog.get_logger("assimilator")

MOST = 500


def step(site: Site) -> bool:
    """Hand over some jobs; return whether there may be more."""
    with site.database.leadership("assimilator") as leads:
        if not leads:
            return False
        with site.database.read() as transaction:
            ready = jobs.to_hand_over(transaction, MOST)
            if not ready:
                return False
            material = gather(transaction, ready, {"name": site.settings.name, "url": site.url})
        written = _write(site, material)
        plain = [each.number for each in written if not each.uploaded]
        others = [each.number for each in written if each.uploaded]
        if plain:
            site.ledger.call(Change(job_ids=plain, event=_over_and_gone, drop_outputs=True))
        if others:
            site.ledger.call(Change(job_ids=others, event=handed_over, drop_outputs=True))
    return len(written) == MOST


def _over_and_gone(job: Job) -> Job:
    """Handed over, with nothing in the file store that would have to be deleted."""
    released = advance(handed_over(job), job.decided_at or 0.0)
    return files_deleted(released)


class Material(msgspec.Struct, kw_only=True):
    """What is handed over for one job."""

    number: int
    view: JobView
    statement: bytes  # the record, not signed yet
    log: bytes
    output: bytes | None  # the canonical tar, where it is kept in the database
    canonical: tuple[int, str] | None  # its task and digest, where it was uploaded
    output_bytes: int
    uploaded: bool  # whether any task of the job has a file in the store


def gather(transaction: Transaction, numbers: list[int], site: dict[str, str]) -> list[Material]:
    """Read all that is handed over for these jobs, in the name of a site."""
    found = views.jobs_by_number(transaction, numbers)
    task_ids = [task.id for view, _, _ in found.values() for task in view.tasks]
    outputs = {
        row[0]: bytes(row[1])
        for row in transaction.rows("SELECT task_id, bytes FROM outputs WHERE task_id IN (:ids...)", ids=task_ids)
    }
    printed_by = logs.read_many(transaction, task_ids)
    batches = {
        row[0]: records.batch_of(row[1], row[2], row[3], row[4], row[5], site)
        for row in transaction.rows(
            "SELECT batches.id, spec, policy, images.digest, images.platforms, users.name FROM batches "
            "JOIN users ON users.id = batches.user_id LEFT JOIN images ON images.id = batches.image_id "
            "WHERE batches.id IN (:ids...)",
            ids=sorted({view.batch for view, _, _ in found.values()}),
        )
    }
    notes = checks.notes_of(transaction, numbers)
    material = []
    for number, (view, choice, canonical_attempt) in found.items():
        canonical = view.tasks[canonical_attempt] if canonical_attempt is not None else None
        telling = canonical or next((task for task in reversed(view.tasks) if task.host is not None), None)
        in_store = canonical is not None and canonical.output_bytes > 0 and canonical.id not in outputs
        printed = printed_by.get(telling.id, b"") if telling is not None else b""
        words = records.words_of(notes.get(number, []))
        material.append(
            Material(
                number=number,
                view=view,
                statement=records.record(view, choice, batches[view.batch], canonical, printed, words),
                log=printed,
                output=outputs.get(canonical.id) if canonical is not None else None,
                canonical=(canonical.id, canonical.output_digest) if canonical is not None and in_store else None,
                output_bytes=canonical.output_bytes if canonical is not None else 0,
                uploaded=any(task.output_digest and task.id not in outputs for task in view.tasks),
            )
        )
    return material


def _write(site: Site, material: list[Material]) -> list[Material]:
    """Write what is handed over; return the jobs it was done for. One whose output is gone keeps nobody else waiting."""
    small: list[tuple[str, bytes]] = []
    written = []
    for each in material:
        batch, position = each.view.batch, each.view.position
        if each.canonical is not None and not _copy(site, each, small):
            log.error("results are not in the store, the job is not handed over", job=each.view.id)
            continue
        if each.output is not None and each.view.has_results:
            small.append((result_key(batch, position, "results.tar"), each.output))
        if each.log:
            small.append((result_key(batch, position, "log.txt"), each.log))
        # The record comes last: whoever sees it sees everything.
        small.append((result_key(batch, position, "result.json"), site.signer.sign(each.statement)))
        written.append(each)
    site.files.put_many(small)
    return written


def _copy(site: Site, each: Material, small: list[tuple[str, bytes]]) -> bool:
    """Copy an uploaded output to its place, or put it with the other small ones; return whether it was there."""
    assert each.canonical is not None
    target = result_key(each.view.batch, each.view.position, "results.tar")
    try:
        source = site.files.open_key(output_key(*each.canonical))
    except FileNotFoundError:
        return False
    with source:
        if each.output_bytes <= INLINE_OUTPUT_BYTES:
            small.append((target, source.read()))
        else:
            site.files.put(target, source)
    return True
