"""What validators say reaches the ledger, on both databases; and nothing they do stops the rest."""

import hashlib
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from auditor import audit
from builders import a_policy
from distributio.lifecycle.model import FilesState, HandOver, Job, JobState, Outcome, Policy, Report, Validity
from distributio.lifecycle.quorum import Opinion
from distributio.server.daemons.validator import Checker
from distributio.server.settings import Settings
from distributio.server.turns import Returned
from distributio.store import checks
from distributio.store.database import Database
from distributio.store.files import LocalFiles, output_key
from distributio.validators.judging import judge
from distributio.validators.sandbox import ValidatorTrouble
from distributio.validators.verdicts import Agreement, Verdict
from grid import Grid
from sites import digest_of, results_tar

NUMERIC = "numeric:rel=1e-06,abs=0"


class World:
    """A grid with what of a site the checker needs around it."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.grid = Grid(database, hosts_per_user=(1, 1, 1, 1, 1, 1, 1, 1))
        self.database, self.ledger = database, self.grid.ledger
        self.data, self.scratch = folder, folder / "scratch"
        self.scratch.mkdir()
        (folder / "validators").mkdir()
        self.files = LocalFiles(folder / "store")
        self.settings = Settings(data=folder, validator_seconds=5.0)
        self.now = 1_000_000.0

    def checker(self, retry_seconds: tuple[float, ...] = (5.0, 5.0)) -> Checker:
        return Checker(self, lambda: self.now, retry_seconds)

    def own(self, name: str, source: str) -> str:
        (self.data / "validators" / f"{name}.py").write_text(source)
        return name

    def submit(self, policy: Policy) -> int:
        return self.grid.submit(policy=policy)

    def bring(self, host: int, *contents: str | bytes, large: bool = False) -> None:
        """A host takes so many tasks and brings these outputs: texts in `x.txt`, or bytes that are no tar."""
        sent = [each.task_id for each in self.grid.turn(host, len(contents)).sent]
        assert len(sent) == len(contents)
        for task, content in zip(sent, contents, strict=True):
            tar = results_tar(**{"x.txt": content.encode()}) if isinstance(content, str) else content
            digest = digest_of(tar)
            if large:
                self.files.put(output_key(task, digest), io.BytesIO(tar))
            report = Report(outcome=Outcome.SUCCESS, exit_code=0, output_digest=digest, output_bytes=len(tar))
            self.grid.turn(host, 0, Returned(task=task, report=report, output=None if large else tar))

    def job(self, batch: int) -> Job:
        [job] = self.grid.jobs_of(batch)
        return job

    def notes(self, job: Job) -> list[tuple[int, int, str]]:
        with self.database.read() as transaction:
            return checks.notes_of(transaction, [job.id]).get(job.id, [])

    def trouble(self, job: Job) -> str:
        with self.database.read() as transaction:
            return checks.trouble_of(transaction, job.id)


@pytest.fixture
def world(database: Database, tmp_path: Path) -> Iterator[World]:
    world = World(database, tmp_path)
    yield world
    with database.read() as transaction:
        audit(transaction)
    assert not list(world.scratch.iterdir())
    world.grid.close()


def two(validator: str = NUMERIC, **more: int) -> Policy:
    return a_policy(quorum=2, target_tasks=2, max_tasks=8, max_successes=6, max_errors=4, validator=validator, **more)


def validities(job: Job) -> list[Validity]:
    return [task.validity for task in job.tasks]


@pytest.mark.parametrize("large", [False, True])
def test_outputs_that_agree_decide_the_job(world: World, large: bool) -> None:
    batch = world.submit(two())
    world.bring(0, "pi 3.14159265", large=large)
    assert world.checker().step() is False
    world.bring(1, "pi 3.14159266", large=large)
    assert world.job(batch).state is JobState.CHECKING
    assert world.grid.notices[-1].checking
    world.checker().step()
    job = world.job(batch)
    assert (job.state, job.canonical_attempt, job.hand_over) == (JobState.DONE, 0, HandOver.READY)
    assert validities(job) == [Validity.VALID, Validity.VALID]


def test_outputs_that_differ_ask_for_another_copy_and_the_words_are_kept(world: World) -> None:
    batch = world.submit(two())
    world.bring(0, "x 1.0")
    world.bring(1, "x 1.5")
    world.checker().step()
    job = world.job(batch)
    assert job.state is JobState.WAITING
    assert validities(job)[:2] == [Validity.INCONCLUSIVE] * 2
    [(attempt, other, words)] = world.notes(job)
    assert (attempt, other) == (0, 1)
    assert "x.txt, line 1, number 1: 1.0 and 1.5" in words
    world.bring(2, "x 1.5000001")
    world.checker().step()
    job = world.job(batch)
    assert job.state is JobState.DONE
    assert validities(job) == [Validity.INVALID, Validity.VALID, Validity.VALID]


def test_one_output_is_looked_at_alone(world: World) -> None:
    spec = world.own("mine", "def check(output): return 'x.txt' in output\ndef agree(a, b): return True\n")
    batch = world.submit(a_policy(validator=spec, max_errors=2, max_tasks=8))
    world.bring(0, b"no tar at all")
    world.checker().step()
    job = world.job(batch)
    assert job.tasks[0].outcome is Outcome.INVALID_OUTPUT
    assert "not a results tar" in world.notes(job)[0][2]
    world.bring(1, results_tar(other=b""))
    world.checker().step()
    assert world.job(batch).tasks[1].outcome is Outcome.INVALID_OUTPUT
    world.bring(2, "1")
    world.checker().step()
    assert world.job(batch).state is JobState.DONE


def test_an_output_that_is_gone_is_unreadable(world: World) -> None:
    batch = world.submit(two())
    world.bring(0, "1", large=True)
    world.bring(1, "2", large=True)
    task = world.job(batch).tasks[0]
    world.files.delete_key(output_key(task.id, task.output_digest))
    world.checker().step()
    assert "not on the site any more" in world.notes(world.job(batch))[0][2]


def test_jobs_that_wrote_nothing_agree(world: World) -> None:
    batch = world.submit(two())
    for host in (0, 1):
        [task] = [each.task_id for each in world.grid.turn(host, 1).sent]
        world.grid.turn(host, 0, Returned(task=task, report=Report(outcome=Outcome.SUCCESS, exit_code=0)))
    world.checker().step()
    assert world.job(batch).state is JobState.DONE


def test_a_validator_that_fails_is_tried_again_and_in_the_end_counts_as_no(world: World) -> None:
    batch = world.submit(two(world.own("mine", "def agree(a, b): return 1 / 0\n")))
    checker = world.checker((5.0, 10.0))
    world.bring(0, "1")
    world.bring(1, "2")
    for tries in range(2):
        checker.step()
        assert world.job(batch).state is JobState.CHECKING
        assert "ZeroDivisionError" in world.trouble(world.job(batch))
        assert checker.step() is False, tries
        world.now += 11.0
    checker.step()
    job = world.job(batch)
    assert job.state is JobState.WAITING
    assert validities(job)[:2] == [Validity.INCONCLUSIVE] * 2
    assert "ZeroDivisionError" in world.notes(job)[0][2]
    assert not world.trouble(job)


@pytest.mark.parametrize("harm", ["import os; os._exit(1)", "bytearray(8 << 30)", "import ctypes; ctypes.string_at(0)"])
def test_what_kills_a_validator_harms_no_other_job(world: World, harm: str) -> None:
    source = f"def agree(a, b):\n    if a.text('x.txt') == 'bad':\n        {harm}\n    return True\n"
    policy = two(world.own("mine", source))
    batches = [world.submit(policy) for _ in range(3)]
    world.bring(0, "good", "bad", "good")
    world.bring(1, "better", "worse", "better")
    checker = world.checker()
    checker.step()
    assert [world.job(batch).state for batch in batches] == [JobState.DONE, JobState.CHECKING, JobState.DONE]
    assert checker.step() is False


def test_a_validator_that_cannot_be_loaded_waits_for_the_operator_and_blames_nobody(world: World) -> None:
    batch = world.submit(two("mine"))
    other = world.submit(two())
    world.bring(0, "1", "1")
    world.bring(1, "1.0000001", "1.0000001")
    checker = world.checker()
    checker.step()
    assert world.job(other).state is JobState.DONE
    assert "'mine' is not known" in world.trouble(world.job(batch))
    for _ in range(5):
        world.now += 100.0
        checker.step()
    assert world.job(batch).state is JobState.CHECKING
    world.own("mine", "def agree(a, b): return True\n")
    world.now += 100.0
    checker.step()
    assert world.job(batch).state is JobState.DONE


def test_many_failures_of_one_validator_leave_its_other_jobs_for_later(world: World) -> None:
    spec = world.own("mine", "def agree(a, b): raise ValueError('never')\n")
    world.grid.submit(count=6, policy=two(spec))
    world.bring(0, *["1"] * 6)
    world.bring(1, *["2"] * 6)
    checker = world.checker()
    checker.step()
    assert checker.step() is False
    with world.database.read() as transaction:
        tries = [row[0] for row in transaction.rows("SELECT tries FROM check_delays ORDER BY job_id")]
    assert sorted(tries) == [0, 0, 0, 1, 1, 1]


def test_a_copy_that_comes_while_the_validator_thinks_is_compared_after_the_hand_over(world: World) -> None:
    batch = world.submit(replace(two(), target_tasks=3))
    world.bring(0, "1")
    [late] = [each.task_id for each in world.grid.turn(2, 1).sent]
    world.bring(1, "1.0000001")
    source_done = threading.Event()
    ledger_call = world.ledger.call

    def slow(event: object) -> object:
        if not source_done.is_set():
            source_done.set()
            tar = results_tar(**{"x.txt": b"1.0"})
            report = Report(outcome=Outcome.SUCCESS, exit_code=0, output_digest=digest_of(tar), output_bytes=len(tar))
            world.grid.turn(2, 0, Returned(task=late, report=report, output=tar))
        return ledger_call(event)

    world.ledger.call = slow  # type: ignore[method-assign]  # the moment before the opinion is told
    world.checker().step()
    world.ledger.call = ledger_call  # type: ignore[method-assign]
    job = world.job(batch)
    assert job.state is JobState.DONE
    assert Validity.UNCHECKED in validities(job)
    world.grid.hand_over()
    assert world.job(batch).files is FilesState.KEPT
    world.checker().step()
    job = world.job(batch)
    assert validities(job) == [Validity.VALID] * 3
    assert job.files is FilesState.RELEASED
    world.grid.delete()


def test_stopping_does_not_wait_for_the_validator_and_blames_nobody(world: World) -> None:
    batch = world.submit(two(world.own("mine", "import time\ndef agree(a, b):\n    time.sleep(60)\n")))
    world.settings = Settings(data=world.data, validator_seconds=60.0)
    world.bring(0, "1")
    world.bring(1, "2")
    checker = world.checker()
    stepping = threading.Thread(target=checker.step)
    stepping.start()
    deadline = time.monotonic() + 20
    while checker._asked is None or checker._asked._process is None:  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    checker.stop()
    stepping.join(10)
    assert not stepping.is_alive()
    assert world.job(batch).state is JobState.CHECKING
    assert not world.trouble(world.job(batch))


def test_batches_take_turns(world: World) -> None:
    first = world.grid.submit(count=30, policy=two())
    second = world.submit(two())
    world.bring(0, *[str(n) for n in range(31)])
    world.bring(1, *[f"{n}.0" for n in range(31)])
    with world.database.read() as transaction:
        due = checks.due(transaction, world.now, 4, 100)
    assert len(due) == 5
    assert due[1] == world.job(second).id
    while world.checker().step():
        pass
    assert {job.state for job in world.grid.jobs_of(first)} == {JobState.DONE}


# --- the judgement itself ---


class Scripted:
    """A validator whose answers a test chooses; what is not foreseen is trouble."""

    def __init__(self, good: set[str], agreeing: set[frozenset[str]]) -> None:
        self.good, self.agreeing = good, agreeing
        self.questions: list[tuple[str, ...]] = []

    def check(self, a: str) -> Verdict:
        self.questions.append((a,))
        return Verdict(a in self.good, f"{a} is bad")

    def agree(self, a: str, b: str) -> Agreement:
        self.questions.append((a, b))
        if frozenset((a, b)) not in self.agreeing and a != b:
            raise ValidatorTrouble(f"{a}{b}")
        return Agreement.yes()


def test_no_question_is_asked_twice_and_equal_bytes_need_none(world: World) -> None:
    batch = world.submit(two())
    world.bring(0, "1")
    world.bring(1, "1")
    job = world.job(batch)
    digest = job.tasks[0].output_digest
    asked = Scripted({"p"}, set())
    said = judge(job, asked, {digest: "p"}, {})
    assert asked.questions == [("p",)]
    assert said.opinion == Opinion(validity={0: Validity.VALID, 1: Validity.VALID}, canonical_attempt=0)


def test_an_unreadable_output_leaves_the_rest_to_another_copy(world: World) -> None:
    batch = world.submit(two())
    world.bring(0, "1")
    world.bring(1, "2")
    job = world.job(batch)
    places = {task.output_digest: name for task, name in zip(job.tasks, "pq", strict=True)}
    said = judge(job, Scripted({"p"}, set()), places, {})
    assert said.opinion.unreadable == {1}
    assert said.opinion.canonical_attempt is None
    assert [(note.attempt, note.other, note.words) for note in said.notes] == [(1, -1, "q is bad")]
    with pytest.raises(ValidatorTrouble):
        judge(job, Scripted({"p", "q"}, set()), places, {})
    patient = judge(job, Scripted({"p", "q"}, set()), places, {}, patient=True)
    assert set(patient.opinion.validity.values()) == {Validity.INCONCLUSIVE}
    assert hashlib.sha256(results_tar(**{"x.txt": b"1"})).hexdigest() in job.tasks[0].output_digest
