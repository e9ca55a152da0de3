"""Ask validators about outputs that wait to be compared, and tell the ledger what follows.

The code runs in a process of its own, over files written from the results tars; it can be wrong, slow or dead without harm.
A job on which it fails is put off, longer each time; in the end what it owes counts as no. A validator that cannot be started at
all is nobody's output's fault: its jobs wait for the operator.
"""

import contextlib
import io
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import structlog
from msgspec import Struct

from distributio.lifecycle.advance import validated
from distributio.lifecycle.model import Job
from distributio.lifecycle.quorum import Opinion, wants_check
from distributio.server.ledger import Ledger
from distributio.server.settings import Settings
from distributio.server.submissions import Change
from distributio.server.validation import Validators
from distributio.store import checks, jobs
from distributio.store.database import Database
from distributio.store.files import Files, output_key
from distributio.validators import names
from distributio.validators.judging import Judgement, judge
from distributio.validators.program import Program
from distributio.validators.sandbox import NotLoaded, Sandbox, ValidatorTrouble
from distributio.validators.unpack import unpack
from distributio.validators.worker import Setup
from distributio.wire.results_tar import Bounds as TarBounds
from distributio.wire.tar_blocks import BadResults

log = structlog.get_logger("validator")

EACH = 200  # jobs of one batch in a step, at most; batches take turns
MOST = 200
RETRY_SECONDS = (5.0, 30.0, 120.0)
NOT_LOADED_SECONDS = 60.0
MOST_TROUBLE = 3  # failures on one validator's jobs in a step before the rest of them wait
GROUP_SECONDS = 120.0  # of one validator's jobs in a step
FOLDER = "check-"


class Work(Struct, frozen=True):
    """One job to be judged, with the small outputs that are kept in the database."""

    job: Job
    outputs: dict[int, bytes]  # by task
    tries: int


class Surroundings(Protocol):
    """What of a site the checker needs."""

    database: Database
    ledger: Ledger
    files: Files
    settings: Settings
    scratch: Path
    data: Path


class Checker:
    """The daemon's step. `stop` may be called from another thread."""

    def __init__(
        self, site: Surroundings, clock: Callable[[], float] = time.time, retry_seconds: Sequence[float] = RETRY_SECONDS
    ) -> None:
        self._site = site
        self._clock = clock
        self._retry_seconds = retry_seconds
        self._validators = Validators(site.data, site.settings.validator_engine)
        self._asked: Sandbox | Program | None = None
        self._closing = threading.Event()
        self._is_tidy = False

    def stop(self) -> None:
        """Let go of what is being asked: the jobs wait for the next start."""
        self._closing.set()
        asked = self._asked
        if asked is not None:
            asked.interrupt()

    def step(self) -> bool:
        """Judge some jobs; return whether there may be more."""
        with self._site.database.leadership("validator") as leads:
            if not leads:
                return False
            self._tidy()
            groups = self._due()
            for spec, group in groups.items():
                if not self._closing.is_set():
                    self._judge_all(spec, group)
        return bool(groups) and not self._closing.is_set()

    def _tidy(self) -> None:
        """Only the leader works in the scratch folder, so what lies there was left by one that was killed."""
        if not self._is_tidy:
            for folder in self._site.scratch.glob(f"{FOLDER}*"):
                shutil.rmtree(folder, ignore_errors=True)
            self._is_tidy = True

    def _due(self) -> dict[str, list[Work]]:
        with self._site.database.read() as transaction:
            wanted = checks.due(transaction, self._clock(), EACH, MOST)
            if not wanted:
                return {}
            loaded = jobs.load(transaction, jobs.Lanes(), wanted, only_read=True)
            tries = checks.tries_of(transaction, wanted)
            task_ids = [task.id for each in loaded.values() for task in each.job.tasks if task.is_viable]
            outputs = checks.outputs_of(transaction, task_ids) if task_ids else {}
        groups: dict[str, list[Work]] = defaultdict(list)
        for number in wanted:
            job = loaded[number].job
            if wants_check(job):
                mine = {task.id: outputs[task.id] for task in job.tasks if task.id in outputs}
                groups[job.policy.validator].append(Work(job, mine, tries.get(number, 0)))
        return groups

    def _judge_all(self, spec: str, group: list[Work]) -> None:
        judged: dict[int, Judgement] = {}
        trouble: list[tuple[Work, str]] = []
        begun = time.monotonic()
        with self._workplace() as folder:
            try:
                with self._asking(spec, folder) as asked:
                    for work in group:
                        if self._closing.is_set() or time.monotonic() - begun > GROUP_SECONDS:
                            break
                        if len(trouble) >= MOST_TROUBLE:
                            self._put_off([each for each in group if each.job.id not in judged], self._retry_seconds[0])
                            break
                        try:
                            judged[work.job.id] = self._judge(asked, work, folder)
                        except NotLoaded:
                            raise
                        except ValidatorTrouble as error:
                            trouble.append((work, str(error)))
            except (NotLoaded, names.BadValidator) as error:
                if not self._closing.is_set():
                    log.warning("the validator cannot be used; its jobs wait", validator=spec, error=str(error))
                    rest = [each for each in group if each.job.id not in judged]
                    self._put_off(rest, NOT_LOADED_SECONDS, str(error))
        if not self._closing.is_set():
            for work, words in trouble:
                log.warning("the validator failed on a job", validator=spec, job=work.job.id, error=words)
                again = self._retry_seconds[min(work.tries, len(self._retry_seconds) - 1)]
                self._put_off([work], again, words, more_tries=1)
        self._tell(judged)

    @contextlib.contextmanager
    def _workplace(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix=FOLDER, dir=self._site.scratch) as name:
            folder = Path(name)
            folder.chmod(0o755)
            yield folder

    @contextlib.contextmanager
    def _asking(self, spec: str, folder: Path) -> Iterator[Sandbox | Program]:
        choice, source = self._validators.choose_with_source(spec)
        bounds = self._validators.bounds_of(self._site.settings)
        asked: Sandbox | Program
        if choice.name == names.PROGRAM:
            asked = Program(self._site.settings.validator_engine, choice, bounds, folder)
        else:
            asked = Sandbox(Setup(choice=choice, source=source, bounds=bounds), folder)
        with asked:
            self._asked = asked
            try:
                yield asked
            finally:
                self._asked = None

    def _judge(self, asked: Sandbox | Program, work: Work, folder: Path) -> Judgement:
        places: dict[str, str] = {}
        unreadable: dict[str, str] = {}
        for task in work.job.tasks:
            digest = task.output_digest
            if not task.is_viable or digest in places or digest in unreadable:
                continue
            place = f"{work.job.id}-{task.attempt}"
            try:
                self._bring(work, task.id, digest, folder / place)
                places[digest] = place
            except FileNotFoundError:
                unreadable[digest] = "its output is not on the site any more"
            except BadResults as error:
                unreadable[digest] = f"its output is not a results tar: {error}"
        try:
            patient = work.tries >= len(self._retry_seconds)
            return judge(work.job, asked, places, unreadable, patient=patient)
        finally:
            for place in places.values():
                shutil.rmtree(folder / place, ignore_errors=True)

    def _bring(self, work: Work, task: int, digest: str, target: Path) -> None:
        if not digest:
            target.mkdir()  # the command wrote nothing
            target.chmod(0o755)
            return
        bounds = TarBounds(content_bytes=self._site.settings.max_output_bytes)
        if task in work.outputs:
            unpack(io.BytesIO(work.outputs[task]), target, bounds)
            return
        with self._site.files.open_key(output_key(task, digest)) as source:
            unpack(source, target, bounds)

    def _put_off(self, group: Sequence[Work], seconds: float, words: str = "", *, more_tries: int = 0) -> None:
        until = self._clock() + seconds
        with self._site.database.begin() as transaction:
            known = {each.job.id: words or checks.trouble_of(transaction, each.job.id) for each in group}
            rows = [(each.job.id, each.tries + more_tries, until, known[each.job.id]) for each in group]
            checks.put_off(transaction, rows)

    def _tell(self, judged: dict[int, Judgement]) -> None:
        if not judged:
            return
        opinions: dict[int, Opinion] = {number: each.opinion for number, each in judged.items()}
        notes = [
            (number, note.attempt, note.other, note.words) for number, each in judged.items() for note in each.notes
        ]
        # The words come first: whoever sees the verdict can ask why.
        with self._site.database.begin() as transaction:
            checks.note(transaction, notes)
            checks.settle(transaction, list(judged))
        changed = self._site.ledger.call(
            Change(job_ids=sorted(judged), event=lambda job: validated(job, opinions[job.id]))
        )
        unmoved = sorted(judged.keys() - set(changed))
        if unmoved:
            # They moved on while the validator was thinking; a moment later the rows say how.
            with self._site.database.begin() as transaction:
                checks.put_off(transaction, [(number, 0, self._clock() + 1.0, "") for number in unmoved])
