"""Foresees when batches end, and gives their last late copies a rival on a quick machine."""

from collections import deque
from collections.abc import Callable

from distributio.lifecycle import tail
from distributio.lifecycle.advance import hurried
from distributio.lifecycle.tail import Progress
from distributio.server.ledger import Notices
from distributio.server.site import Site
from distributio.server.submissions import Change
from distributio.store import tail as tail_store
from distributio.store.database import Transaction

MOST = 500
WATCH_SECONDS = 600.0  # of the past say how fast a batch goes
TYPICAL_SECONDS = 30.0  # for which a batch's usual turnaround is taken to stay as it is


class Forecaster:
    """Remembers how batches went on; what it forgets in a restart it sees again in a while."""

    def __init__(self, site: Site, clock: Callable[[], float]) -> None:
        self._site = site
        self._clock = clock
        self._history: dict[int, deque[tuple[float, int]]] = {}
        self._typical: dict[int, tuple[float, float | None]] = {}
        self._told: dict[int, float | None] = {}

    def step(self) -> bool:
        """Look at every batch that goes on."""
        with self._site.database.leadership("forecaster") as leads:
            if not leads:
                return False
            now = self._clock()
            late: list[int] = []
            etas: dict[int, float | None] = {}
            with self._site.database.read() as transaction:
                batches = tail_store.going_on(transaction, MOST)
                for batch, progress in batches.items():
                    etas[batch] = self._forecast(transaction, batch, progress, now)
                    late += self._late(transaction, batch, progress, now)
            self._forget(batches)
            self._tell({batch: eta for batch, eta in etas.items() if _differs(eta, self._told.get(batch), now)})
            if late:
                self._site.ledger.call(Change(job_ids=late, event=hurried))
        return False

    def _forecast(self, transaction: Transaction, batch: int, progress: Progress, now: float) -> float | None:
        history = self._history.setdefault(batch, deque())
        history.append((now, progress.decided))
        while len(history) > 2 and history[0][0] < now - WATCH_SECONDS:
            history.popleft()
        all_begun = progress.waiting == 0
        return tail.forecast(
            progress,
            tail.pace_of(history, progress.created_at),
            self._typical_of(transaction, batch, now) if all_begun else None,
            tail_store.last_sent_at(transaction, batch) if all_begun else None,
            now,
        )

    def _late(self, transaction: Transaction, batch: int, progress: Progress, now: float) -> list[int]:
        typical = self._typical_of(transaction, batch, now) if tail.is_in_tail(progress) else None
        if typical is None:
            return []
        return tail_store.jobs_sent_before(transaction, batch, tail.sent_before(typical, now), MOST)

    def _typical_of(self, transaction: Transaction, batch: int, now: float) -> float | None:
        known = self._typical.get(batch)
        if known is None or known[0] < now - TYPICAL_SECONDS or known[1] is None:
            known = self._typical[batch] = (now, tail.typical_seconds(tail_store.turnarounds(transaction, batch)))
        return known[1]

    def _tell(self, etas: dict[int, float | None]) -> None:
        if not etas:
            return
        with self._site.database.begin() as transaction:
            tail_store.remember(transaction, etas)
        self._told |= etas
        self._site.hub.notify(Notices(batches=set(etas)))

    def _forget(self, batches: dict[int, Progress]) -> None:
        for memory in (self._history, self._typical, self._told):
            for batch in [each for each in memory if each not in batches]:
                del memory[batch]


def _differs(eta: float | None, told: float | None, now: float) -> bool:
    """Whether a forecast is another than the one told: by more than a tenth of the time that is left."""
    if eta is None or told is None:
        return eta is not told
    return abs(eta - told) > max(2.0, 0.1 * (eta - now))
