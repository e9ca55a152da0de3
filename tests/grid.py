"""A ledger with people, projects and hosts around it, for tests: what happens is said in a word, time is the test's."""

import threading
from collections.abc import Sequence
from typing import Any

import msgspec

from auditor import audit
from builders import NOW, a_policy
from distributio.lifecycle.advance import files_deleted, handed_over
from distributio.lifecycle.dispatch import Offer, Shape
from distributio.lifecycle.model import Job, Outcome, Policy, Report
from distributio.server.ledger import Ledger, Notices, Work
from distributio.server.submissions import Cancel, Change, Submit, apply_cancels, apply_changes, apply_submissions
from distributio.server.turns import HostAnswer, HostTurn, Returned, apply_turns
from distributio.store import accounts, jobs
from distributio.store.database import Database
from distributio.wire.native import HostFacts, Spec

PLENTY = 1 << 50
SHAPE = Shape(runner="fake", cpus=1.0)
LARGE = Shape(runner="fake", cpus=2.0)


class Hold(msgspec.Struct):
    """Keeps the ledger busy until it is let go, so that what waits meanwhile is one turn."""

    gate: threading.Event


class Grid:
    """The ledger of one process, and what tests say to it."""

    def __init__(self, database: Database, *, hosts_per_user: Sequence[int] = (1, 1, 1)) -> None:
        self.database = database
        self.now = NOW
        self.notices: list[Notices] = []
        self.ledger = self._ledger(database)
        self.users: list[int] = []
        self.projects: list[int] = []
        self.hosts: list[tuple[int, int]] = []  # number and owner
        with database.begin() as transaction:
            for name in ("pulsar", "folding"):
                self.projects.append(accounts.create_project(transaction, name, self.now))
            for number, count in enumerate(hosts_per_user):
                user = accounts.create_user(transaction, f"user{number}", self.now)
                self.users.append(user)
                for _ in range(count):
                    public_id, _ = accounts.attach_host(transaction, user, HostFacts(), self.now)
                    known = accounts.host_by_public_id(transaction, public_id)
                    assert known is not None
                    self.hosts.append((known.id, user))

    def _ledger(self, database: Database) -> Ledger:
        handlers = {
            HostTurn: apply_turns,
            Submit: apply_submissions,
            Cancel: apply_cancels,
            Change: apply_changes,
            Hold: _hold,
        }
        ledger = Ledger(database, handlers, self.notices.append, clock=lambda: self.now)  # type: ignore[arg-type]
        ledger.start()
        return ledger

    def beside(self, database: Database) -> "Grid":
        """The same grid as another process sees it."""
        other = object.__new__(Grid)
        other.__dict__.update(self.__dict__)
        other.database, other.notices = database, []
        other.ledger = other._ledger(database)
        return other

    def close(self) -> None:
        """Stop the ledger."""
        self.ledger.close()

    def audit(self) -> None:
        """The database adds up."""
        with self.database.read() as transaction:
            audit(transaction)

    # --- what people say ---

    def submission(self, count: int = 1, policy: Policy | None = None, **more: Any) -> Submit:
        project = self.projects[more.pop("project", 0)]
        fields: dict[str, Any] = {
            "project_id": project,
            "user_id": self.users[0],
            "name": "batch",
            "labels": "{}",
            "spec": msgspec.json.encode(Spec(runner="fake", command=["true"])).decode(),
            "policy": policy or a_policy(),
            "shape": SHAPE,
            "image_id": None,
            "priority": 0,
            "count": count,
            "choices": None,
            "input_digests": [],
            "idempotency_key": None,
            "request_digest": "",
        }
        return Submit(**(fields | more))

    def submit(self, count: int = 1, policy: Policy | None = None, **more: Any) -> int:
        """Submit a batch; return its number."""
        batch: int = self.ledger.call(self.submission(count, policy, **more))
        return batch

    def cancel(self, batch: int) -> None:
        """Cancel a batch."""
        after: int | None = 0
        while after is not None:
            after = self.ledger.call(Cancel(batch_id=batch, after=after))

    # --- what hosts say ---

    def turn_of(
        self,
        host: int,
        want: int = 0,
        reports: Sequence[Returned] = (),
        held: Sequence[int] | None = (),
        **more: Any,
    ) -> HostTurn:
        number, user = self.hosts[host]
        return HostTurn(
            host_id=number,
            user_id=user,
            reports=list(reports),
            held=None if held is None else [(task, "running", 0.5) for task in held],
            offer=an_offer(want) if want else None,
            **more,
        )

    def turn(self, host: int, want: int = 0, *reports: Returned, **more: Any) -> HostAnswer:
        """One turn of a host."""
        answer: HostAnswer = self.ledger.call(self.turn_of(host, want, reports, **more))
        return answer

    def work(self, host: int, want: int = 1) -> list[int]:
        """Let a host take tasks and report success for all; return them."""
        tasks = [sent.task_id for sent in self.turn(host, want).sent]
        self.turn(host, 0, *[done(task) for task in tasks])
        return tasks

    # --- what time and the daemons do ---

    def expire(self) -> None:
        """Deadlines pass."""
        with self.database.read() as transaction:
            due = jobs.overdue(transaction, self.now, 1000)
        if due:
            self.ledger.call(Change(job_ids=due))

    def hand_over(self) -> None:
        """All that is decided is handed over."""
        with self.database.read() as transaction:
            ready = jobs.to_hand_over(transaction, 1000)
        if ready:
            self.ledger.call(Change(job_ids=ready, event=handed_over, drop_outputs=True))

    def delete(self) -> None:
        """All that is released is deleted."""
        with self.database.read() as transaction:
            released = jobs.to_delete(transaction, 1000)
        if released:
            self.ledger.call(Change(job_ids=released, event=files_deleted, drop_outputs=True))

    def jobs_of(self, batch: int) -> list[Job]:
        """A batch's jobs as they are now."""
        with self.database.read() as transaction:
            rows = transaction.rows("SELECT id FROM jobs WHERE batch_id = :batch ORDER BY id", batch=batch)
            loaded = jobs.load(transaction, jobs.Lanes(), [row[0] for row in rows], only_read=True)
        return [each.job for each in loaded.values()]

    # --- several at once ---

    def together(self, *events: Any) -> list[Any]:
        """Let the ledger find all these events at once; return their answers, exceptions included."""
        gate = threading.Event()
        answers: dict[int, Any] = {}
        holder = threading.Thread(target=self.ledger.call, args=(Hold(gate=gate),))
        holder.start()
        while self.ledger.depth():
            threading.Event().wait(0.001)

        def ask(index: int, event: Any) -> None:
            try:
                answers[index] = self.ledger.call(event)
            except Exception as error:
                answers[index] = error

        threads = []
        for index, event in enumerate(events):
            threads.append(threading.Thread(target=ask, args=(index, event)))
            threads[-1].start()
            while self.ledger.depth() <= index:
                threading.Event().wait(0.001)
        gate.set()
        for thread in [*threads, holder]:
            thread.join()
        return [answers[index] for index in range(len(events))]


def _hold(work: Work, events: Sequence[Hold]) -> list[None]:
    for event in events:
        event.gate.wait(30)
    return [None] * len(events)


def an_offer(tasks: int, **more: Any) -> Offer:
    """A host with room for everything."""
    fields: dict[str, Any] = {
        "platform": "linux/amd64", "runners": ("fake",), "cpus": PLENTY, "memory_bytes": PLENTY, "disk_bytes": PLENTY,
        "gpus": 8, "network_allowed": True, "free_cpus": PLENTY, "free_memory_bytes": PLENTY,
        "free_disk_bytes": PLENTY, "free_gpus": 8, "free_tasks": tasks,
    }  # fmt: skip
    return Offer(**(fields | more))


def done(task: int, digest: str = "sha256:a") -> Returned:
    """A report of success."""
    return Returned(task=task, report=Report(outcome=Outcome.SUCCESS, exit_code=0, output_digest=digest))


def ended(task: int, outcome: Outcome, cause: str = "exit-code") -> Returned:
    """A report of another end."""
    return Returned(task=task, report=Report(outcome=outcome, exit_code=1, cause=cause))
