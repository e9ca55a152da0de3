"""What a turn of the ledger means for the hosts: their standings and their credit, in the transaction that decides.

While the turn goes on, what happens is only noted. Standings that a decision needs are read for all hosts of the turn at
once; at the end everything is written in a few statements.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from msgspec import Struct

from distributio.lifecycle import credit, trust
from distributio.lifecycle.advance import advance, doubted
from distributio.lifecycle.model import Job
from distributio.lifecycle.trust import NEW, Deed, Event, Standing
from distributio.store import credit as credit_store
from distributio.store import jobs
from distributio.store import trust as trust_store
from distributio.store.database import Transaction
from distributio.store.jobs import Lanes, Loaded
from distributio.store.trust import Place

Save = Callable[[Sequence[tuple[Loaded, Any]]], None]


class _Sent(Struct, frozen=True):
    lease_seconds: float


class _Account(Struct):
    """A standing as it was read, and as it is after so many of the turn's entries."""

    read: Standing
    now: Standing
    used: int = 0


class Reckoning:
    """One turn's reckoning."""

    def __init__(self, transaction: Transaction, lanes: Lanes, now: float) -> None:
        self._transaction = transaction
        self._lanes = lanes
        self._now = now
        self._log: dict[Place, list[Event | _Sent]] = defaultdict(list)
        self._earning: list[tuple[Loaded, Job]] = []
        self._wrong: set[int] = set()
        self._hosts: list[int] = []  # those that ask for work in this turn
        self._accounts: dict[Place, _Account] = {}
        self._apps_read: set[int] = set()
        self._evidence: dict[tuple[int, int], tuple[int, int, bool]] = {}

    def note(self, pairs: Sequence[tuple[Loaded, Job]]) -> None:
        """Jobs have changed so."""
        for loaded, after in pairs:
            before, lane = loaded.job, loaded.lane
            if after is before or after.tasks is before.tasks:
                continue
            earns = False
            for event in trust.events(before, after, lane.batch_id):
                self._log[event.host_id, lane.app_id].append(event)
                if event.deed in trust.VALID:
                    earns = True
                elif event.deed is Deed.WRONG:
                    self._wrong.add(event.host_id)
            if earns:
                self._earning.append((loaded, after))

    def note_sent(self, host_id: int, app_id: int, lease_seconds: float) -> None:
        """A task was sent."""
        self._log[host_id, app_id].append(_Sent(lease_seconds))

    def expect(self, host_ids: Iterable[int]) -> None:
        """These hosts ask for work: their standings may be wanted."""
        self._hosts = sorted(set(host_ids))
        self._apps_read.clear()

    def standing(self, host_id: int, app_id: int) -> Standing:
        """The standing of a host that asks for work, this turn's events included."""
        if app_id not in self._apps_read:
            self._apps_read.add(app_id)
            found = trust_store.standings(self._transaction, self._hosts, [app_id])
            for host in self._hosts:
                self._open((host, app_id), found.get((host, app_id), NEW))
        place = (host_id, app_id)
        return self._after(place) if place in self._accounts else NEW

    def may_work_alone(self, host_id: int, app_id: int, job_id: int) -> bool:
        """Whether a job goes to a host with no second copy."""
        drawn = trust.draw(self._lanes.seed(self._transaction), job_id)
        return trust.may_work_alone(self.standing(host_id, app_id), drawn)

    def settle(self, save: Save) -> None:
        """Write all of it; `save` saves jobs. Distrust spreads first: what a host found wrong has in hand is doubted."""
        if self._wrong:
            self._doubt(save)
        self._settle_credit()
        self._settle_trust()

    def _doubt(self, save: Save) -> None:
        suspects = trust_store.unchecked_work_of(self._transaction, self._wrong)
        loaded = jobs.load(self._transaction, self._lanes, suspects)
        pairs = []
        for each in loaded.values():
            if any(trust.is_unchecked_work_of(each.job, host) for host in self._wrong):
                suspected = doubted(each.job)
                if suspected is not each.job:
                    pairs.append((each, advance(suspected, self._now)))
        if pairs:
            save(pairs)

    def _settle_credit(self) -> None:
        if not self._earning:
            return
        hosts = {task.host_id for _, after in self._earning for task in after.tasks if task.host_id is not None}
        gflops = credit_store.gflops_of(self._transaction, hosts)
        credit_store.record(
            self._transaction,
            [
                (grant, loaded.lane.project_id, loaded.lane.app_id)
                for loaded, after in self._earning
                for grant in credit.grants(
                    loaded.job,
                    after,
                    gflops,
                    cpus=loaded.lane.cpus,
                    most_seconds=loaded.lane.most_seconds,
                    most_lone_gflops=loaded.lane.lone_gflops,
                )
            ],
            self._now,
        )

    def _settle_trust(self) -> None:
        places = {place for place in self._log if place[1]}
        if not places:
            return
        transaction = self._transaction
        if transaction.is_postgresql or places - self._accounts.keys():
            self._read_again(places)
        changed = {place: self._after(place) for place in places}
        changed = {place: after for place, after in changed.items() if after is not self._accounts[place].read}
        trust_store.save(transaction, changed)

    def _read_again(self, places: set[Place]) -> None:
        """As they are to be written, on PostgreSQL locked: another process may have changed them since they were read."""
        transaction = self._transaction
        hosts, apps = {host for host, _ in places}, {app for _, app in places}
        found = trust_store.standings(transaction, hosts, apps, lock=True)
        if transaction.is_postgresql and (fresh := places - found.keys()):
            # Another process may be making the same rows: whoever is second waits for the first.
            trust_store.keep_places(transaction, fresh)
            found = trust_store.standings(transaction, hosts, apps, lock=True)
        for place in places:
            self._open(place, found.get(place, NEW))

    def _open(self, place: Place, read: Standing) -> None:
        account = self._accounts.get(place)
        if account is None or account.read != read:
            self._accounts[place] = _Account(read, read)

    def _after(self, place: Place) -> Standing:
        """A standing after everything that was noted so far."""
        account = self._accounts[place]
        entries = self._log.get(place, ())
        for entry in entries[account.used :]:
            standing = account.now
            if type(entry) is Event:
                better = trust.wants_evidence(standing, entry) and self._others_do_better(place[0], entry, standing)
                account.now = trust.judged(standing, entry, self._now, others_do_better=better)
            elif type(entry) is _Sent:
                account.now = trust.was_sent(standing, 1, entry.lease_seconds, self._now)
        account.used = len(entries)
        return account.now

    def _others_do_better(self, host_id: int, event: Event, standing: Standing) -> bool:
        key = (event.batch_id, host_id)
        if key not in self._evidence:
            self._evidence[key] = trust_store.evidence(self._transaction, event.batch_id, host_id)
        return trust.others_do_better(standing, *self._evidence[key])
