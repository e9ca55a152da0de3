"""The one component that changes jobs: every event that does comes here, and is answered after its commit.

The ledger loops: take all events that wait, open one transaction, let each kind of event load, decide and write its rows in
a few statements, commit once, answer everybody. Under load the turns grow by themselves and share the cost of the commit;
when idle an event waits for nobody. Nothing in memory is the truth: any number of processes may run a ledger on one
PostgreSQL database, and a killed one loses only what nobody was told.
"""

import asyncio
import collections
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import msgspec
import structlog
from msgspec import Struct

from distributio.server.reckoning import Reckoning
from distributio.store.database import Conflict, Database, DatabaseUnavailable, Transaction
from distributio.store.jobs import Lanes, Loaded, Saved, save

log = structlog.get_logger("ledger")

MOST_EVENTS = 256  # in one turn: more would make the first wait for the last
ID_BLOCK = 2_000  # numbers taken from the store at once
MOST_NOTICE_BYTES = 7_900  # PostgreSQL's limit for a notification is 8,000
MOST_TRIES = 6  # of a turn that crosses another ledger's


class Notices(Struct, kw_only=True):
    """What a turn changed, for those who wait for it. Sent after the commit, to every process of the site."""

    ready: dict[int, int] = {}  # queue to how many tasks became ready
    batches: set[int] = set()
    jobs: set[int] = set()
    logs: set[int] = set()  # tasks with more log
    hand_over: bool = False
    released: bool = False
    checking: bool = False

    def add(self, saved: Saved) -> None:
        """Take over what a save did."""
        for queue, more in saved.ready_queues.items():
            self.ready[queue] = self.ready.get(queue, 0) + more
        self.batches |= saved.batches
        self.hand_over |= saved.hand_over
        self.released |= saved.released
        self.checking |= saved.checking

    def __bool__(self) -> bool:
        return bool(
            self.ready or self.batches or self.jobs or self.logs or self.hand_over or self.released or self.checking
        )


class Work:
    """One turn of the ledger, as the handlers see it."""

    def __init__(self, transaction: Transaction, lanes: Lanes, ids: "Ids", now: float) -> None:
        self.transaction = transaction
        self.lanes = lanes
        self.now = now
        self.notices = Notices()
        self.reckoning = Reckoning(transaction, lanes, now)
        self._ids = ids

    def new_ids(self, table: str, count: int) -> int:
        """The first of `count` unused numbers for rows of a table."""
        return self._ids.take(self.transaction, table, count)

    def save(self, pairs: Sequence[tuple[Loaded, Any]], *, judges: bool = True) -> None:
        """Write what the decisions changed, and remember whom to tell. `judges`: it may bear on hosts."""
        self.notices.add(save(self.transaction, self.new_ids, pairs, self.now))
        if judges:
            self.reckoning.note(pairs)
        self.notices.jobs.update(loaded.job.id for loaded, after in pairs if after is not loaded.job)


class Ids:
    """Numbers in hand. Those taken in a transaction that failed are not used again."""

    def __init__(self) -> None:
        self._free: dict[str, range] = {}

    def take(self, transaction: Transaction, table: str, count: int) -> int:
        """The first of `count` unused numbers in a row."""
        free = self._free.get(table, range(0))
        if len(free) < count:
            block = max(count, ID_BLOCK)
            row = transaction.one(
                "INSERT INTO counters (name, next) VALUES (:name, :after) "
                "ON CONFLICT (name) DO UPDATE SET next = counters.next + :count RETURNING next",
                name=table,
                after=1 + block,
                count=block,
            )
            assert row is not None
            free = range(int(row[0]) - block, int(row[0]))
        self._free[table] = free[count:]
        return free[0] if count else 0

    def forget(self) -> None:
        """The transaction they were taken in has failed."""
        self._free.clear()


class Handler(Protocol):
    """Applies all events of one kind that a turn holds. Answers in the events' order; an exception instance among the
    answers is raised for that event alone."""

    def __call__(self, work: Work, events: Sequence[Any], /) -> list[Any]: ...


class LedgerClosed(RuntimeError):
    """The site is shutting down; ask again in a moment."""


class _Waiting(Struct):
    event: Any
    answer: "Future[Any] | asyncio.Future[Any]"
    loop: asyncio.AbstractEventLoop | None


class Ledger:
    """Applies events by the batch. `tell` is called with the notices of each committed turn, in the ledger's thread."""

    def __init__(
        self,
        database: Database,
        handlers: dict[type, Handler],
        tell: Callable[[Notices], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._handlers = handlers
        self._order = {kind: number for number, kind in enumerate(handlers)}
        self._tell = tell
        self._clock = clock
        self._lanes = Lanes()
        self._ids = Ids()
        self._queue: collections.deque[_Waiting] = collections.deque()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self.turns = 0
        self.events = 0

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self) -> None:
        """Finish what waits, then stop."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def depth(self) -> int:
        """How many events wait."""
        return len(self._queue)

    def ask(self, event: Any) -> "asyncio.Future[Any]":
        """Hand in an event from a coroutine; the answer comes after the commit."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._put(_Waiting(event, answer, loop))
        return answer

    def call(self, event: Any) -> Any:
        """Hand in an event from a thread, and wait for the answer."""
        answer: Future[Any] = Future()
        self._put(_Waiting(event, answer, None))
        return answer.result()

    def apply(self, events: Sequence[Any]) -> list[Any]:
        """One turn in the caller's own thread, for a ledger that was not started: whoever brings his own time has it so."""
        answers, notices = self._apply_with_patience(list(events))
        self._announce(notices)
        return answers

    def _put(self, waiting: _Waiting) -> None:
        if self._closing:
            raise LedgerClosed(LedgerClosed.__doc__)
        self._queue.append(waiting)
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._queue:
                most = min(len(self._queue), MOST_EVENTS)
                self._turn([self._queue.popleft() for _ in range(most)])
            if self._closing and not self._queue:
                return

    def _turn(self, waiting: list[_Waiting]) -> None:
        try:
            answers, notices = self._apply_with_patience([each.event for each in waiting])
        except DatabaseUnavailable as error:
            log.warning("the database is away", error=str(error), events=len(waiting))
            answers = [error] * len(waiting)
        except Exception as error:
            if len(waiting) == 1:
                log.error("event failed", kind=type(waiting[0].event).__name__, exc_info=error)
                answers = [error]
            else:
                # One of them is at fault: each gets a transaction of its own, and only that one fails.
                log.warning("turn failed, events are applied one by one", error=repr(error), events=len(waiting))
                for each in waiting:
                    self._turn([each])
                return
        else:
            self._announce(notices)
        _deliver(waiting, answers)

    def _announce(self, notices: Notices) -> None:
        """Tell of what is committed. Whoever cannot be told finds out when he next looks; the answers are due all the
        same."""
        try:
            if notices:
                self._tell(notices)
        except Exception as error:
            log.error("news not told", exc_info=error)

    def _apply_with_patience(self, events: list[Any]) -> tuple[list[Any], Notices]:
        for _ in range(MOST_TRIES - 1):
            try:
                return self._apply(events)
            except Conflict as error:
                log.debug("turn crossed another ledger's, applied again", error=str(error), events=len(events))
        return self._apply(events)

    def _apply(self, events: list[Any]) -> tuple[list[Any], Notices]:
        groups: dict[type, list[int]] = {}
        for index, event in enumerate(events):
            groups.setdefault(type(event), []).append(index)
        answers: list[Any] = [None] * len(events)
        try:
            with self._database.begin() as transaction:
                work = Work(transaction, self._lanes, self._ids, self._clock())
                for kind in sorted(groups, key=self._order.__getitem__):
                    indexes = groups[kind]
                    given = self._handlers[kind](work, [events[index] for index in indexes])
                    for index, answer in zip(indexes, given, strict=True):
                        answers[index] = answer
                work.reckoning.settle(work.save)
                if work.notices and transaction.is_postgresql:
                    announce(transaction, work.notices)
        except BaseException:
            self._ids.forget()
            raise
        self.turns += 1
        self.events += len(events)
        return answers, work.notices


def announce(transaction: Transaction, notices: Notices) -> None:
    """Tell the site's other processes, with the commit. What is too long to send is told in brief, and they look
    themselves for the rest."""
    text = msgspec.json.encode(notices).decode()
    if len(text) > MOST_NOTICE_BYTES:
        brief = Notices(
            ready={0: sum(notices.ready.values())} if notices.ready else {},
            hand_over=notices.hand_over,
            released=notices.released,
            checking=notices.checking,
        )
        text = msgspec.json.encode(brief).decode()
    transaction.tell("SELECT pg_notify('distributio', :text)", text=text)


def _deliver(waiting: list[_Waiting], answers: list[Any]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for each, answer in zip(waiting, answers, strict=True):
        if each.loop is not None:
            assert isinstance(each.answer, asyncio.Future)
            by_loop.setdefault(each.loop, []).append((each.answer, answer))
        elif isinstance(answer, BaseException):
            each.answer.set_exception(answer)
        else:
            each.answer.set_result(answer)
    for loop, pairs in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle, pairs)


def _settle(pairs: list[tuple["asyncio.Future[Any]", Any]]) -> None:
    for future, answer in pairs:
        if future.done():
            continue
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)
