"""Who waits for what: hosts for work, browsers and terminals for news of a batch, a job or a log.

The ledger says after each commit what it changed; the hub wakes those who wait for it. Waiting is an optimisation of asking:
whoever is woken asks the database, and whoever is not asks now and then.
"""

import asyncio
import collections
from collections.abc import Iterator
from contextlib import contextmanager

from distributio.server.ledger import Notices


class Hub:
    """Lives on the event loop; `notify` may be called from any thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle: collections.OrderedDict[int, asyncio.Future[None]] = collections.OrderedDict()
        self._next_idle = 0
        self._idle_hosts: dict[int, int] = {}
        self._topics: dict[tuple[str, int], set[asyncio.Event]] = {}
        self.closing = False
        self.readied = 0  # how often tasks became ready
        self._tries = 0  # hosts still to be asked about tasks that became ready

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop on which everybody waits."""
        self._loop = loop

    def notify(self, notices: Notices) -> None:
        """Something was committed."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._wake, notices)

    def notify_log(self, task_id: int) -> None:
        """A task's log has grown. Called on the event loop."""
        for event in self._topics.get(("log", task_id), ()):
            event.set()

    def _wake(self, notices: Notices) -> None:
        for kind, numbers in (("batch", notices.batches), ("job", notices.jobs), ("log", notices.logs)):
            for number in numbers:
                for event in self._topics.get((kind, number), ()):
                    event.set()
        if notices.ready:
            self.readied += 1
            self._tries = len(self._idle)
            for _ in range(min(sum(notices.ready.values()), len(self._idle))):
                self._wake_one()

    def _wake_one(self) -> None:
        while self._idle and self._tries > 0:
            self._tries -= 1
            _, future = self._idle.popitem(last=False)
            if not future.done():
                future.set_result(None)
                return

    def pass_on(self) -> None:
        """A host that was woken found nothing it could take: the next one is asked."""
        self._wake_one()

    def newer_turn(self, host_id: int) -> None:
        """The host has spoken again: its turn that waits here for work need not wait any longer."""
        future = self._idle.pop(self._idle_hosts.pop(host_id, 0), None)
        if future is not None and not future.done():
            future.set_result(None)

    async def work(self, seconds: float, host_id: int) -> bool:
        """Wait until there may be work for the host; return whether there may."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        number = self._next_idle = self._next_idle + 1
        self._idle[number] = future
        self._idle_hosts[host_id] = number
        try:
            async with asyncio.timeout(seconds):
                await future
        except TimeoutError:
            return False
        finally:
            self._idle.pop(number, None)
            if self._idle_hosts.get(host_id) == number:
                del self._idle_hosts[host_id]
        return True

    @contextmanager
    def follow(self, *topics: tuple[str, int]) -> Iterator[asyncio.Event]:
        """An event that is set whenever one of the topics ("batch" | "job" | "log", number) has news."""
        event = asyncio.Event()
        for topic in topics:
            self._topics.setdefault(topic, set()).add(event)
        try:
            yield event
        finally:
            for topic in topics:
                listeners = self._topics[topic]
                listeners.discard(event)
                if not listeners:
                    del self._topics[topic]

    def close(self) -> None:
        """The site stops: nobody needs to wait any longer."""
        self.closing = True
        while self._idle:
            _, future = self._idle.popitem()
            if not future.done():
                future.set_result(None)
        for listeners in self._topics.values():
            for event in listeners:
                event.set()

    def waiting_hosts(self) -> int:
        """How many hosts wait for work."""
        return len(self._idle)
