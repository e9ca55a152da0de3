"""A host's turn in the ledger: its reports are recorded, what it no longer needs is called off, new work is found.

All turns that wait are applied together: their reports in one load and one save, then their wishes for work against one
reading of the queues.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Struct

from distributio.lifecycle import dispatch, trust
from distributio.lifecycle.advance import advance, doubted, reported, sent
from distributio.lifecycle.dispatch import Offer, Shape, Waiting
from distributio.lifecycle.model import Job, Outcome, Report, TaskState, Validity
from distributio.server.guests import Guest
from distributio.server.ledger import Work
from distributio.store import jobs, logs, queues
from distributio.store.database import Transaction
from distributio.wire.native import LOG_BYTES

SLACK = 16  # ready tasks read beyond those wanted, where some did not suit a host; twice as many each time
MOST_PASSED = 256  # tasks of one rank that do not suit a host are passed over before the next rank is looked at
MOST_RANKS = 4  # are looked at so before the host is sent away


class Returned(Struct, kw_only=True):
    """A report the edge has checked: its output, if any, is held by the site or comes along in `output`."""

    task: int
    report: Report
    output: bytes | None = None
    log: bytes | None = None
    log_offset: int = 0


class HostTurn(Struct, kw_only=True):
    """Everything a host says at once. `held` is None where the host did not say what it holds."""

    host_id: int
    user_id: int | None
    reports: list[Returned] = []
    held: list[tuple[int, str, float | None]] | None = None  # task, phase, fraction
    offer: Offer | None = None
    facts: str | None = None  # to be remembered, as JSON
    gflops: float = 0.0  # as the facts have it
    is_start: bool = False  # the host has just started: what it does not hold is lost to it


class Sent(Struct, frozen=True):
    """A task a host is to run."""

    task_id: int
    job_id: int
    attempt: int
    batch_id: int
    position: int
    choice: str | None
    deadline_at: float


class HostAnswer(Struct, kw_only=True):
    """What the ledger decided for one host."""

    acknowledged: list[int] = []
    sent: list[Sent] = []
    cancel: list[int] = []
    rejections: dict[str, int] = {}


def apply_turns(work: Work, events: Sequence[HostTurn]) -> list[HostAnswer]:
    """The ledger's handler for turns."""
    answers = [HostAnswer() for _ in events]
    _record_reports(work, events, answers)
    _call_off(work, events, answers)
    _find_work(work, events, answers)
    _remember_hosts(work, events)
    return answers


def _record_reports(work: Work, events: Sequence[HostTurn], answers: list[HostAnswer]) -> None:
    wanted = [returned.task for event in events for returned in event.reports]
    if not wanted:
        return
    places = {
        task: (job, attempt, host)
        for task, job, attempt, host in work.transaction.rows(
            "SELECT id, job_id, attempt, host_id FROM tasks WHERE id IN (:ids...)", ids=wanted
        )
    }
    loaded = jobs.load(work.transaction, work.lanes, (place[0] for place in places.values()))
    after: dict[int, Job] = {}
    outputs: list[tuple[object, ...]] = []
    lines: list[logs.Piece] = []
    done: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for event, answer in zip(events, answers, strict=True):
        for returned in event.reports:
            # Reports for what the site has forgotten, or for another host's task, are done with and change nothing.
            answer.acknowledged.append(returned.task)
            place = places.get(returned.task)
            if place is None or place[2] != event.host_id:
                continue
            job_id, attempt, _ = place
            before = after.get(job_id, loaded[job_id].job)
            changed = (
                before if _is_second_voice(before, attempt) else reported(before, attempt, returned.report, work.now)
            )
            if changed is before:
                continue
            after[job_id] = changed
            if returned.output is not None:
                outputs.append((returned.task, returned.output))
            if returned.log:
                lines.append((returned.task, returned.log_offset, returned.log))
            counts = done[event.host_id]
            counts[returned.report.outcome is not Outcome.SUCCESS] += 1
    work.transaction.insert_many("outputs", ("task_id", "bytes"), outputs, "ON CONFLICT (task_id) DO NOTHING")
    logs.keep(work.transaction, lines)
    work.transaction.add_many(
        "hosts", "id", ("tasks_done", "tasks_failed"), [(good, bad, host) for host, (good, bad) in done.items()]
    )
    work.notices.logs.update(task for task, _, _ in lines)
    work.save(_decide(loaded, after, work.now))


def _decide(loaded: dict[int, jobs.Loaded], after: dict[int, Job], now: float) -> list[tuple[jobs.Loaded, Job]]:
    """Draw the conclusions. What a host brought that this very turn shows to be wrong elsewhere is not believed alone."""
    decided = {job_id: advance(job, now) for job_id, job in after.items()}
    wrong: set[int] = set()
    for job_id, job in decided.items():
        if job.quorum > 1 or job.expect:
            wrong |= trust.found_wrong(loaded[job_id].job, job)
    if wrong:
        for job_id, job in decided.items():
            speaks = job.canonical
            if speaks is not None and speaks.host_id in wrong and not loaded[job_id].job.is_decided:
                decided[job_id] = advance(doubted(after[job_id]), now)
    return [(loaded[job_id], job) for job_id, job in decided.items()]


def _is_second_voice(job: Job, attempt: int) -> bool:
    """Whether a copy that was given up comes late from an owner who has another one that counts: he would agree with
    himself."""
    late = job.tasks[attempt]
    if job.quorum == 1 or late.state is not TaskState.OVER:
        return False
    return any(
        task is not late
        and (task.host_id == late.host_id or (late.user_id is not None and task.user_id == late.user_id))
        and (task.state is TaskState.IN_PROGRESS or task.outcome is Outcome.SUCCESS)
        for task in job.tasks
    )


def _call_off(work: Work, events: Sequence[HostTurn], answers: list[HostAnswer]) -> None:
    """Tell hosts which of the tasks they hold are over, give again what was sent and never arrived, and take back what a
    host lost with its memory."""
    speaking = [(event, answer) for event, answer in zip(events, answers, strict=True) if event.held is not None]
    if not speaking:
        return
    held_tasks = [task for event, _ in speaking for task, _, _ in event.held or ()]
    asking = sorted({event.host_id for event, _ in speaking if event.offer is not None or event.is_start})
    named, leased = work.transaction.several(
        (
            "SELECT tasks.id, host_id, phase, fraction FROM tasks LEFT JOIN progress ON progress.task_id = tasks.id "
            "WHERE tasks.id IN (:ids...) AND state = 'in_progress'",
            {"ids": held_tasks},
        ),
        (
            "SELECT host_id, tasks.id, job_id, attempt, batch_id, position, choice, deadline_at FROM tasks "
            "JOIN jobs ON jobs.id = tasks.job_id WHERE host_id IN (:hosts...) AND tasks.state = 'in_progress'",
            {"hosts": asking},
        ),
    )
    going_on = {task: host for task, host, _, _ in named}
    said = {task: (phase, fraction) for task, _, phase, fraction in named}
    on_hosts: dict[int, list[Sent]] = defaultdict(list)
    for host, *place in leased:
        on_hosts[host].append(Sent(*place))
    lost: list[tuple[int, int]] = []
    for event, answer in speaking:
        held = {task for task, _, _ in event.held or ()}
        known = held | {returned.task for returned in event.reports}
        answer.cancel = [task for task in held if going_on.get(task) != event.host_id]
        if event.offer is not None or event.is_start:
            missing = [each for each in on_hosts[event.host_id] if each.task_id not in known]
            if event.is_start:
                lost += [(each.job_id, each.attempt) for each in missing]
            else:
                answer.sent += missing
    _abandon(work, lost)
    _note_progress(work, speaking, said)


def _abandon(work: Work, lost: list[tuple[int, int]]) -> None:
    if not lost:
        return
    loaded = jobs.load(work.transaction, work.lanes, (job for job, _ in lost))
    after = {job_id: each.job for job_id, each in loaded.items()}
    for job_id, attempt in lost:
        report = Report(outcome=Outcome.ABANDONED, cause="host-restarted")
        after[job_id] = reported(after[job_id], attempt, report, work.now)
    work.save([(loaded[job_id], advance(job, work.now)) for job_id, job in after.items()])


def _note_progress(
    work: Work, speaking: Iterable[tuple[HostTurn, HostAnswer]], said: dict[int, tuple[str | None, float | None]]
) -> None:
    """Write down what has changed since `said`."""
    rows: list[tuple[object, ...]] = []
    for event, answer in speaking:
        called_off = set(answer.cancel)
        rows += [
            (task, phase, fraction, work.now)
            for task, phase, fraction in event.held or ()
            if task not in called_off and said.get(task) != (phase, fraction)
        ]
    if rows:
        work.transaction.insert_many(
            "progress",
            ("task_id", "phase", "fraction", "at"),
            rows,
            "ON CONFLICT (task_id) DO UPDATE SET phase = excluded.phase, fraction = excluded.fraction, at = excluded.at",
        )


class _Supply:
    """The ready tasks of one queue, read as they are wanted."""

    def __init__(self, work: Work, queue: Waiting, expected: int) -> None:
        self._work = work
        self._queue = queue
        self._expected = expected
        self._place = (-(1 << 31), 0)
        self._in_hand: list[jobs.Candidate] = []
        self._twins: dict[int, list[dispatch.Held]] = defaultdict(list)
        self._classes: dict[int, str] = {}  # of hosts, that a copy chosen in this turn has fixed for its job
        self._lanes: dict[int, jobs.Lane] = {}
        self._dry = False
        self._slack = 0  # what does not suit is only known once it is read

    def place(self) -> tuple[int, int]:
        """Rank and number of the next task, as far as the queue has been read."""
        return (self._in_hand[0].rank, self._in_hand[0].task_id) if self._in_hand else self._place

    def take(self, guest: Guest, most: int, rejections: dict[str, int]) -> list[jobs.Candidate]:
        """At most `most` tasks this host may have."""
        taken: list[jobs.Candidate] = []
        passed: list[jobs.Candidate] = []
        while len(taken) < most:
            if not self._in_hand and (self._dry or not self._read(most - len(taken))):
                break
            candidate = self._in_hand.pop(0)
            lane = self._lanes[candidate.batch_id]
            why_not = guest.is_kept_from(lane) or guest.may_have(
                candidate, lane, self._twins.get(candidate.job_id, ()), self._classes
            )
            if why_not is None:
                taken.append(candidate)
                guest.took(lane.app_id)
                if candidate.quorum > 1 or candidate.attempt > 0:
                    self._twins[candidate.job_id].append(guest.holds())
            else:
                rejections[why_not] = rejections.get(why_not, 0) + 1
                passed.append(candidate)
                if len(passed) % MOST_PASSED == 0:
                    if len(passed) >= MOST_RANKS * MOST_PASSED:
                        break
                    self._skip(candidate.rank)
        self._in_hand = passed + self._in_hand
        return taken

    def _skip(self, rank: int) -> None:
        """So many of one rank do not suit: what stands behind them is not to wait for them."""
        self._in_hand = [each for each in self._in_hand if each.rank > rank]
        if not self._dry and self._place[0] <= rank:
            self._place = (rank + 1, 0)

    def _read(self, wanted: int) -> bool:
        most = max(wanted, self._expected) + self._slack
        self._slack = min(max(SLACK, 2 * self._slack), MOST_PASSED)
        found = jobs.claim(self._work.transaction, self._queue.queue_id, self._place, most)
        self._dry = len(found) < most
        if not found:
            return False
        self._place = (found[-1].rank, found[-1].task_id)
        self._in_hand += found
        self._lanes = self._work.lanes.get(self._work.transaction, {each.batch_id for each in found})
        copied = sorted({each.job_id for each in found if each.attempt > 0 or each.quorum > 1})
        if copied:
            for job, host, user, outcome, received, sent_at, validity in self._work.transaction.rows(
                "SELECT job_id, host_id, user_id, outcome, received_at, sent_at, validity FROM tasks "
                "WHERE job_id IN (:ids...) AND host_id IS NOT NULL",
                ids=copied,
            ):
                twin = dispatch.Held(
                    host_id=host,
                    user_id=user,
                    outcome=outcome,
                    received_at=received,
                    sent_at=sent_at,
                    counts=validity != Validity.INVALID,
                )
                self._twins[job].append(twin)
        return True


def _find_work(work: Work, events: Sequence[HostTurn], answers: list[HostAnswer]) -> None:
    asking = [
        (event, answer)
        for event, answer in zip(events, answers, strict=True)
        if event.offer is not None and event.offer.free_tasks > 0 and not answer.sent
    ]
    if not asking:
        return
    lending = _lending(work.transaction, [event.host_id for event, _ in asking])
    asking = [(event, answer) for event, answer in asking if event.host_id in lending]
    waiting = queues.waiting(work.transaction, work.now)
    if not waiting:
        for _, answer in asking:
            answer.rejections["no-ready-tasks"] = 1
        return
    expected = sum(event.offer.free_tasks for event, _ in asking if event.offer)
    supplies = {queue.queue_id: _Supply(work, queue, min(expected, queue.ready)) for queue in waiting}
    shares = queues.Shares(waiting)
    work.reckoning.expect(event.host_id for event, _ in asking)
    chosen: list[tuple[HostTurn, HostAnswer, jobs.Candidate]] = []
    for event, answer in asking:
        assert event.offer is not None
        guest = Guest(work, event.host_id, event.user_id, event.offer)
        chosen += [(event, answer, candidate) for candidate in _choose(guest, event.offer, answer, supplies, shares)]
    _send(work, chosen)
    shares.save(work.transaction, work.now)


def _lending(transaction: Transaction, host_ids: list[int]) -> set[int]:
    """Those of these hosts that may have work. A host may have left while its question waited."""
    rows = transaction.rows("SELECT id FROM hosts WHERE id IN (:ids...) AND state = 'active'", ids=host_ids)
    return {row[0] for row in rows}


def _choose(
    guest: Guest, offer: Offer, answer: HostAnswer, supplies: dict[int, _Supply], shares: queues.Shares
) -> list[jobs.Candidate]:
    chosen: list[jobs.Candidate] = []
    exhausted: set[int] = set()
    while offer.free_tasks > 0:
        progressed = False
        for queue in shares.in_turn():
            if queue.queue_id in exhausted:
                continue
            why_not = dispatch.never_fits(queue.shape, offer)
            room = 0 if why_not else dispatch.fits_now(queue.shape, offer)
            if room == 0:
                code = why_not or "host-busy"
                answer.rejections[code] = answer.rejections.get(code, 0) + queue.ready
                exhausted.add(queue.queue_id)
                continue
            # Alone in line a queue may fill the host; beside others each gives one task and is asked again.
            most = room if shares.is_alone() else 1
            taken = supplies[queue.queue_id].take(guest, most, answer.rejections)
            if not taken:
                exhausted.add(queue.queue_id)
                continue
            chosen += taken
            offer = _less(offer, queue.shape, len(taken))
            shares.charge(queue, len(taken), supplies[queue.queue_id].place())
            progressed = True
            break
        if not progressed:
            break
    return chosen


def _less(offer: Offer, shape: Shape, count: int) -> Offer:
    return msgspec.structs.replace(
        offer,
        free_cpus=offer.free_cpus - shape.cpus * count,
        free_memory_bytes=offer.free_memory_bytes - shape.memory_bytes * count,
        free_disk_bytes=offer.free_disk_bytes - shape.disk_bytes * count,
        free_gpus=offer.free_gpus - shape.gpus * count,
        free_tasks=offer.free_tasks - count,
    )


def _send(work: Work, chosen: list[tuple[HostTurn, HostAnswer, jobs.Candidate]]) -> None:
    if not chosen:
        return
    loaded = jobs.load(work.transaction, work.lanes, (candidate.job_id for _, _, candidate in chosen))
    after: dict[int, Job] = {}
    for event, answer, candidate in chosen:
        each = loaded[candidate.job_id]
        before = after.get(candidate.job_id, each.job)
        if before.tasks[candidate.attempt].state is not TaskState.READY:
            continue  # decided or cancelled while this turn waited for the job's lock
        lane, offer = each.lane, event.offer
        assert offer is not None
        host_class = dispatch.class_of(lane.policy.alike, offer.platform, offer.cpu_model)
        if before.alike and before.alike != host_class:
            continue  # another process has fixed another class meanwhile
        changed = sent(before, candidate.attempt, event.host_id, event.user_id, work.now, host_class)
        if lane.policy.adaptive and not work.reckoning.may_work_alone(event.host_id, lane.app_id, before.id):
            changed = doubted(changed)
        work.reckoning.note_sent(event.host_id, lane.app_id, lane.policy.deadline_seconds)
        after[candidate.job_id] = changed
        deadline_at = changed.tasks[candidate.attempt].deadline_at
        assert deadline_at is not None
        answer.sent.append(
            Sent(
                candidate.task_id,
                candidate.job_id,
                candidate.attempt,
                candidate.batch_id,
                candidate.position,
                candidate.choice,
                deadline_at,
            )
        )
    work.save([(loaded[job_id], advance(job, work.now)) for job_id, job in after.items()], judges=False)


def _remember_hosts(work: Work, events: Sequence[HostTurn]) -> None:
    rows: dict[int, tuple[object, ...]] = {}
    for event in events:
        if event.facts is not None:
            rows[event.host_id] = (event.facts, event.gflops, event.host_id)
    work.transaction.update_many("hosts", "id", ("facts", "gflops"), list(rows.values()))


def room_for_log(held: int, data: bytes) -> bytes:
    """As much of a piece of log as the site still keeps of this task's."""
    return data[: max(0, LOG_BYTES - held)]
