"""Delete what nothing needs: outputs of jobs that were handed over, content without a reference, old logs, dead uploads."""

import contextlib
import time
from collections.abc import Callable

from distributio.lifecycle.advance import files_deleted
from distributio.server.boinc_uploads import WaitingRoom
from distributio.server.site import Site
from distributio.server.submissions import Change
from distributio.store import catalog, jobs
from distributio.store.database import Transaction
from distributio.store.files import output_key

MOST = 500
SWEEP_SECONDS = 3600.0
DAY_SECONDS = 86_400.0


def step(site: Site) -> bool:
    """Delete the outputs of some released jobs; return whether there may be more."""
    with site.database.leadership("deleter") as leads:
        if not leads:
            return False
        with site.database.read() as transaction:
            released = jobs.to_delete(transaction, MOST)
            outputs = _outputs_of(transaction, released)
        if not released:
            return False
        for task, digest in outputs:
            site.files.delete_key(output_key(task, digest))
        site.ledger.call(Change(job_ids=released, event=files_deleted, drop_outputs=True))
    return len(released) == MOST


def _outputs_of(transaction: Transaction, job_ids: list[int]) -> list[tuple[int, str]]:
    rows = transaction.rows(
        "SELECT id, output_digest FROM tasks WHERE job_id IN (:ids...) AND output_digest IS NOT NULL", ids=job_ids
    )
    return [(row[0], row[1]) for row in rows]


class Sweep:
    """The hourly round through what has no event of its own."""

    def __init__(self, site: Site, clock: Callable[[], float] = time.time) -> None:
        self._site = site
        self._clock = clock
        self._next_at = 0.0

    def step(self) -> bool:
        """Make a round if it is time."""
        now = self._clock()
        if now < self._next_at:
            return False
        self._next_at = now + SWEEP_SECONDS
        with self._site.database.leadership("sweep") as leads:
            if leads:
                self.sweep(now)
        return False

    def sweep(self, now: float) -> None:
        """Make a round."""
        settings = self._site.settings
        unused_before = now - settings.keep_unused_files_days * DAY_SECONDS
        while True:
            with self._site.database.begin() as transaction:
                if not catalog.forget_unused_files(transaction, unused_before, MOST):
                    break
        for key, written_at in list(self._site.files.keys("blobs/sha256")):
            digest = f"sha256:{key.rpartition('/')[2]}"
            if written_at < unused_before and len(digest) == 71:
                with self._site.database.read() as transaction:
                    needed = catalog.is_content_needed(transaction, digest)
                if not needed:
                    self._site.files.delete_key(key)
        for key, written_at in list(self._site.files.keys("outputs")):
            if written_at < unused_before and not self._is_awaited(key):
                self._site.files.delete_key(key)
        for part in self._site.scratch.glob("*.part"):
            with contextlib.suppress(FileNotFoundError):
                if part.stat().st_mtime < unused_before:
                    part.unlink()
        WaitingRoom(self._site.boinc).sweep(self._site, unused_before)
        self._forget_logs(now - settings.keep_logs_days * DAY_SECONDS)

    def _is_awaited(self, key: str) -> bool:
        """Whether an uploaded output belongs to a job whose files are kept."""
        task = key.rpartition("/")[2].partition("-")[0]
        if not task.isdigit():
            return False
        with self._site.database.read() as transaction:
            row = transaction.one(
                "SELECT files FROM jobs JOIN tasks ON tasks.job_id = jobs.id WHERE tasks.id = :task", task=int(task)
            )
        return row is not None and row[0] == "kept"

    def _forget_logs(self, before: float) -> None:
        with self._site.database.begin() as transaction:
            transaction.run(
                "DELETE FROM logs WHERE task_id IN (SELECT tasks.id FROM tasks JOIN jobs ON jobs.id = tasks.job_id "
                "JOIN batches ON batches.id = jobs.batch_id WHERE batches.ended_at < :before)",
                before=before,
            )
