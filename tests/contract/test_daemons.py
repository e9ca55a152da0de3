"""Daemons do their work once and leave nothing over, whoever was killed before; on SQLite and on PostgreSQL."""

import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from auditor import audit
from builders import a_policy
from distributio.lifecycle.model import JobState
from distributio.server import main
from distributio.server.daemons import assimilator, deleter, transitioner
from distributio.server.ledger import Ledger
from distributio.server.settings import Settings
from distributio.server.site import Site
from distributio.store import catalog
from distributio.store.files import content_key, output_key, result_key
from grid import Grid, done
from sites import digest_of, results_tar

DAY = 86_400.0
TAR = results_tar(a=b"results")


class Office(Grid):
    """A grid whose ledger is a site's."""

    def __init__(self, site: Site) -> None:
        self.site = site
        super().__init__(site.database)

    def _ledger(self, database: object) -> Ledger:
        return self.site.ledger

    def finish(self, batch: int, *, inline: bool = True) -> list[int]:
        """Let a host do all jobs of a batch; its results travel in the report or are uploaded before."""
        tasks = [sent.task_id for sent in self.turn(0, 100).sent]
        for task in tasks:
            returned = done(task, digest_of(TAR))
            returned.report = type(returned.report)(
                outcome=returned.report.outcome, exit_code=0, output_digest=digest_of(TAR), output_bytes=len(TAR)
            )
            returned.log = b"said\n"
            if inline:
                returned.output = TAR
            else:
                self.site.files.put(output_key(task, digest_of(TAR)), io.BytesIO(TAR))
            self.turn(0, 0, returned)
        return tasks


@pytest.fixture
def office(database_url: str, tmp_path: Path) -> Iterator[Office]:
    site = Site(Settings(data=tmp_path / "site", database=database_url))
    site.ledger.start()
    office = Office(site)
    yield office
    office.audit()
    site.close()


def bytes_of(office: Office, key: str) -> bytes:
    return b"".join(office.site.files.stream_key(key))


@pytest.mark.parametrize("inline", [True, False])
def test_results_are_handed_over_and_working_copies_go(office: Office, inline: bool) -> None:
    batch = office.submit(3)
    tasks = office.finish(batch, inline=inline)
    assert not assimilator.step(office.site)
    for position in (1, 2, 3):
        assert bytes_of(office, result_key(batch, position, "results.tar")) == TAR
        assert bytes_of(office, result_key(batch, position, "log.txt")) == b"said\n"
        record = json.loads(bytes_of(office, result_key(batch, position, "result.json")))["predicate"]
        assert (record["job"], record["state"]) == (f"{batch}.{position}", "done")
        assert record["results"]["digest"] == digest_of(TAR)
        assert [attempt["outcome"] for attempt in record["attempts"]] == ["success"]
    deleter.step(office.site)
    assert [job.files.value for job in office.jobs_of(batch)] == ["deleted"] * 3
    assert not any(office.site.files.exists(output_key(task, digest_of(TAR))) for task in tasks)
    assert bytes_of(office, result_key(batch, 1, "results.tar")) == TAR


def test_a_killed_assimilator_starts_where_it_likes(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = office.submit(2)
    office.finish(batch)

    def killed(event: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(office.site.ledger, "call", killed)
        with pytest.raises(KeyboardInterrupt):
            assimilator.step(office.site)
    assert bytes_of(office, result_key(batch, 1, "results.tar")) == TAR
    assert [job.hand_over.value for job in office.jobs_of(batch)] == ["ready"] * 2
    assimilator.step(office.site)
    assert [job.hand_over.value for job in office.jobs_of(batch)] == ["done"] * 2


def test_results_that_are_gone_keep_nobody_waiting(office: Office) -> None:
    lost, kept = office.submit(1), None
    task = office.finish(lost, inline=False)[0]
    office.site.files.delete_key(output_key(task, digest_of(TAR)))
    kept = office.submit(2)
    office.finish(kept, inline=False)
    assert not assimilator.step(office.site)
    assert [job.hand_over.value for job in office.jobs_of(kept)] == ["done"] * 2
    assert [job.hand_over.value for job in office.jobs_of(lost)] == ["ready"]
    office.site.files.put(output_key(task, digest_of(TAR)), io.BytesIO(TAR))
    assimilator.step(office.site)
    assert [job.hand_over.value for job in office.jobs_of(lost)] == ["done"]


def test_jobs_that_failed_or_were_cancelled_are_handed_over_too(office: Office) -> None:
    batch = office.submit(2)
    office.cancel(batch)
    assimilator.step(office.site)
    record = json.loads(bytes_of(office, result_key(batch, 2, "result.json")))["predicate"]
    assert (record["state"], record["reasons"], record["attempts"]) == ("cancelled", ["cancelled"], [])
    assert not office.site.files.exists(result_key(batch, 2, "results.tar"))


def test_deadlines_pass_without_anybody_speaking(office: Office) -> None:
    batch = office.submit(1, a_policy(deadline_seconds=60))
    office.turn(0, 1)
    with office.database.read() as transaction:
        deadline = transaction.rows("SELECT deadline_at FROM tasks WHERE deadline_at IS NOT NULL")[0][0]
    transitioner.step(office.site, lambda: deadline - 1)
    assert office.jobs_of(batch)[0].state is JobState.RUNNING
    with office.database.begin() as transaction:  # the ledger has the machine's own clock
        transaction.run("UPDATE tasks SET deadline_at = :past WHERE deadline_at IS NOT NULL", past=time.time() - 1)
    transitioner.step(office.site, time.time)
    job = office.jobs_of(batch)[0]
    assert [task.outcome.value for task in job.tasks] == ["no_reply", "none"]


def test_what_nobody_needs_is_swept_away(office: Office) -> None:
    site, now = office.site, time.time()
    needed, claimed, orphan, fresh = b"needed", b"claimed", b"orphan", b"fresh"
    for data in (needed, claimed, orphan, fresh):
        site.files.put(content_key(digest_of(data)), io.BytesIO(data))
    with office.database.begin() as transaction:
        for data in (needed, claimed):
            catalog.add_file(transaction, office.projects[0], digest_of(data), len(data), now - 9 * DAY)
    batch = office.submit(1, input_digests=[digest_of(needed)])
    task = office.finish(batch, inline=False)[0]
    office.submit(1, input_digests=[digest_of(needed)])
    part, young = site.scratch / "file-1-x.part", site.scratch / "file-1-y.part"
    stray = output_key(10**9, digest_of(TAR))
    site.files.put(stray, io.BytesIO(TAR))
    for path in (part, young):
        path.write_bytes(b"half")
    aged = [part, *(site.files.path_of(key) for key in (stray, output_key(task, digest_of(TAR))))]
    aged += [site.files.path_of(content_key(digest_of(data))) for data in (needed, claimed, orphan)]
    for path in aged:
        assert path is not None
        os.utime(path, (now - 9 * DAY, now - 9 * DAY))
    deleter.Sweep(site).sweep(now)
    kept = [data for data in (needed, claimed, orphan, fresh) if site.content.has(digest_of(data))]
    assert kept == [needed, fresh]
    assert not part.exists()
    assert young.exists()
    assert not site.files.exists(stray)
    assert site.files.exists(output_key(task, digest_of(TAR)))
    assimilator.step(site)
    deleter.step(site)
    assert not site.files.exists(output_key(task, digest_of(TAR)))
    assert bytes_of(office, result_key(batch, 1, "results.tar")) == TAR


def test_old_logs_are_forgotten_with_their_batch(office: Office) -> None:
    old, going_on = office.submit(1), office.submit(2)
    office.finish(old)
    office.turn(1, 1)
    with office.database.begin() as transaction:
        assert transaction.one("SELECT count(*) > 0 FROM logs") in ((True,), (1,))
        transaction.run("UPDATE batches SET ended_at = 1 WHERE ended_at IS NOT NULL")
    deleter.Sweep(office.site).sweep(time.time())
    with office.database.read() as transaction:
        assert transaction.one("SELECT count(*) FROM logs") == (0,)
        audit(transaction)
    assert len(office.jobs_of(going_on)) == 2


def test_the_sweep_rests_between_rounds(office: Office) -> None:
    rounds: list[float] = []
    clock = [1000.0]
    sweep = deleter.Sweep(office.site, lambda: clock[0])
    sweep.sweep = rounds.append  # type: ignore[method-assign]
    for at in (1000.0, 1001.0, 1000.0 + deleter.SWEEP_SECONDS):
        clock[0] = at
        sweep.step()
    assert rounds == [1000.0, 1000.0 + deleter.SWEEP_SECONDS]


def test_daemons_work_when_they_are_told_and_stop_when_they_are_told(office: Office) -> None:
    daemons = main.make_daemons(office.site)
    for daemon in daemons:
        daemon.start()
    try:
        batch = office.submit(5)
        office.finish(batch)
        deadline = time.monotonic() + 20
        while {job.files.value for job in office.jobs_of(batch)} != {"deleted"}:
            assert time.monotonic() < deadline, "the results were not handed over"
            time.sleep(0.02)
    finally:
        started = time.monotonic()
        for daemon in daemons:
            daemon.close()
    assert time.monotonic() - started < 5
