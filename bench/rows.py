"""Each thing that is measured: how the load is made, and what its figures are."""

import collections
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from msgspec import Struct

from bench import crowd, generator, processes
from bench.crowd import Crowd, Host
from bench.generator import Question, Timed
from bench.sites import Site
from bench.table import Goal, Row, percentile

MB = 1e6


class Bench(Struct, kw_only=True):
    """A site under measurement, its hosts, and how long each row may take."""

    site: Site
    crowd: Crowd
    seconds: float
    scale: float  # of the numbers of jobs: 1, or less for a short run
    ceiling: float
    rows: list[Row] = []

    def spent(self) -> processes.Spent:
        """Processor time so far."""
        return processes.read(self.site.process, self.site.database_process)

    def add(self, name: str, unit: str, load: "Load", **more: Any) -> Row:
        """Note a row."""
        spent = load.spent
        row = Row(
            name=name,
            database=self.site.kind,
            value=load.count / load.seconds,
            unit=unit,
            server_ms=1000 * spent.server / max(1, load.count),
            database_ms=1000 * spent.database / max(1, load.count),
            other_cores=spent.other_cores,
            generator_cores=spent.generator / spent.at,
            server_mb=processes.resident_bytes(self.site.process) / MB,
        )
        if load.latencies:
            row.p50_ms = 1000 * percentile(load.latencies, 0.5)
            row.p99_ms = 1000 * percentile(load.latencies, 0.99)
        for field, value in more.items():
            setattr(row, field, value)
        self.rows.append(row)
        print(
            f"  {row.database:10s} {row.name:44s} {row.value:10.1f} {unit:10s}"
            f" p50 {row.p50_ms or 0:7.1f} p99 {row.p99_ms or 0:7.1f}"
            f"  cpu {row.server_ms:.3f}+{row.database_ms:.3f} ms  other {row.other_cores:.2f} gen {row.generator_cores:.2f}"
            f"  {row.server_mb:.0f} MB  {'; '.join(map(str, row.goals))}",
            flush=True,
        )
        return row


class Load(Struct, kw_only=True):
    """What a load did."""

    count: int = 0
    seconds: float = 0.0
    latencies: list[float] = []
    spent: processes.Spent | None = None


@contextmanager
def measured(bench: Bench) -> Iterator[Load]:
    """Time and processor time of what happens within."""
    load = Load()
    before = bench.spent()
    started = time.perf_counter()
    yield load
    load.seconds = time.perf_counter() - started
    load.spent = bench.spent().since(before)


def at_least(what: str, bound: float, reached: float) -> Goal:
    """A goal for a rate."""
    return Goal(what=what, bound=bound, reached=reached)


def at_most(what: str, bound: float, reached: float) -> Goal:
    """A goal for a cost."""
    return Goal(what=what, bound=bound, reached=reached, at_least=False)


# --- submitting -------------------------------------------------------------------------------------------------


def bulk(bench: Bench) -> None:
    """Batches of 20,000 jobs, each job with variables of its own; ready to be sent when the answer comes."""
    size = int(20_000 * bench.scale)
    requests = [crowd.submit_request(bench.site, crowd.submission(size, seed=n * size)) for n in range(5)]
    before = bench.site.database_bytes()
    with measured(bench) as load:
        for data in requests:
            generator.call(bench.site.address, data, 201)
            load.count += size
    _wait(lambda: bench.site.number("SELECT sum(ready) FROM queues") >= load.count, "the jobs to be ready")
    row = bench.add("Bulk submission, 20,000 jobs a request", "jobs/s", load)
    grown = (bench.site.database_bytes() - before) / load.count / 1000
    row.goals = [at_least("jobs/s", 20_000, row.value), at_most("kB of database a job", 1.2, grown)]


def single(bench: Bench) -> None:
    """One job a request, one after the other; then from 16 clients."""
    for clients in (1, 16):
        body = crowd.submission(1)
        data = crowd.submit_request(bench.site, body)
        load = _run(bench, clients, lambda data=data: Question(data), _created)  # type: ignore[misc]
        row = bench.add(f"Single submissions, {clients} client{'s' * (clients > 1)}", "jobs/s", load)
        row.goals = [at_least("jobs/s", 500, row.value)]
        if clients == 1:
            row.goals.append(at_most("p50 ms", 5, row.p50_ms or 0))


def _created(_about: Any, status: int, body: bytes) -> int:
    if status != 201:
        raise generator.Refused(f"{status} {body[:600]!r}")
    return 1


def _run(
    bench: Bench, clients: int, ask: generator.Ask, tell: Callable[[Any, int, bytes], int], seconds: float | None = None
) -> Load:
    """Keep clients busy for a while; `tell` returns how much an answer counts."""
    until = time.perf_counter() + (seconds or bench.seconds)
    with measured(bench) as load:

        def count(about: Any, status: int, body: bytes) -> None:
            load.count += tell(about, status, body)

        timed: Timed = generator.drive(bench.site.address, clients, ask, count, lambda: time.perf_counter() > until)
    load.latencies = timed.latencies
    return load


# --- turns ------------------------------------------------------------------------------------------------------


def turns(bench: Bench) -> None:
    """Hosts that ask for work and name what they have, as agents do."""
    _fill(bench, int(bench.seconds * 60_000))
    for clients in (1, 8, 32, 128):
        row = _dispatch(bench, clients, 1, f"Turns, one job each, {clients} client{'s' * (clients > 1)}")
        if clients >= 32:
            row.goals.append(at_least("jobs/s", 2_000, row.value))
        if clients == 128:
            row.goals.append(at_most("p99 ms", 150, row.p99_ms or 0))
    for tasks in (10, 50):
        row = _dispatch(bench, 16, tasks, f"Turns, {tasks} jobs each, 16 clients")
        row.goals.append(at_least("jobs/s", 8_000, row.value))


def _dispatch(bench: Bench, clients: int, tasks: int, name: str) -> Row:
    load = _run(bench, clients, lambda: _asking(bench, tasks), lambda *told: _took(bench, *told))
    bench.crowd.renew()
    return bench.add(name, "jobs/s", load)


def _fill(bench: Bench, count: int) -> None:
    while count > 0:
        crowd.submit(bench.site, crowd.submission(min(count, 20_000)))
        count -= 20_000


def _asking(bench: Bench, tasks: int) -> Question | None:
    if not bench.crowd.idle:
        return None
    return bench.crowd.turn(bench.crowd.idle.popleft(), tasks)


def _took(bench: Bench, host: Host, status: int, body: bytes) -> int:
    answer = crowd.read(status, body)
    got = [each.task for each in answer.assignments]
    if not got:
        raise generator.Refused(f"a host got no work: {body[:300]!r}")
    host.held += got
    bench.crowd.idle.append(host)
    return len(got)


def _wait(holds: Callable[[], bool], what: str, seconds: float = 600.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise generator.Refused(f"waited {seconds:.0f} seconds for {what}")
        time.sleep(0.05)


# --- whole lives ------------------------------------------------------------------------------------------------


def life(bench: Bench) -> None:
    """From submission to the last file deleted, every job with a results tar of 10 kB of its own."""
    for tasks, apart, jobs in ((10, False, 15_000), (1, False, 8_000), (1, True, 4_000)):
        how = "uploaded apart" if apart else "inside the report"
        name = f"Whole life, {tasks} job{'s' * (tasks > 1)} a turn, results {how}"
        load = _lives(bench, int(jobs * bench.scale), tasks, apart=apart)
        row = bench.add(name, "jobs/s", load)
        row.of_ceiling = row.value / bench.ceiling
        cost = (row.server_ms or 0) + (row.database_ms or 0)
        row.goals = [at_least("jobs/s", 1_500, row.value), at_most("CPU ms a job", 1, cost)]


def _lives(bench: Bench, jobs: int, tasks: int, *, apart: bool) -> Load:
    site, hosts = bench.site, bench.crowd
    hosts.uploads_apart = apart
    body = crowd.submission(jobs)
    with measured(bench) as load:
        batch = crowd.submit(site, body)
        left = jobs
        uploads: collections.deque[Question] = collections.deque()

        def ask() -> Question | None:
            if uploads:
                return uploads.popleft()
            if not hosts.idle or left <= 0:
                return None
            return hosts.turn(hosts.idle.popleft(), tasks)

        def tell(host: Host, status: int, answer: bytes) -> None:
            nonlocal left
            if status == 201:  # an upload: its host may now report
                hosts.idle.appendleft(host)
                return
            told = crowd.read(status, answer)
            left -= len(told.acknowledged)
            host.ended = [each.task for each in told.assignments]
            if apart and host.ended:
                uploads.append(hosts.upload(host, host.ended[0]))
            elif host.ended:
                hosts.idle.appendleft(host)
            else:
                hosts.idle.append(host)

        timed = generator.drive(site.address, 32, ask, tell, lambda: left <= 0)
        ending = f"SELECT count(*) FROM jobs WHERE batch_id = {batch} AND files = 'deleted'"
        _wait(lambda: site.number(ending) == jobs, "the last job to be handed over")
        load.count = jobs
    load.latencies = timed.latencies
    hosts.uploads_apart = False
    done = site.number(f"SELECT done FROM batches WHERE id = {batch}")
    if done != jobs:
        raise generator.Refused(f"{done} of {jobs} jobs are done")
    return load


# --- uploads ----------------------------------------------------------------------------------------------------


def uploads(bench: Bench) -> None:
    """Results tars on their own: many small ones, a few large ones."""
    site, hosts = bench.site, bench.crowd
    _fill(bench, 20_000)
    waiting: collections.deque[Question] = collections.deque()
    for _ in range(int(40 * bench.scale) or 1):
        host = hosts.hosts[_ % len(hosts.hosts)]
        answer = crowd.read(200, generator.call(site.address, hosts.turn(host, 500).data))
        host.held += [each.task for each in answer.assignments]
        waiting.extend(hosts.upload(host, each.task) for each in answer.assignments)
    load = _run(bench, 32, lambda: waiting.popleft() if waiting else None, _created)
    row = bench.add("Uploads of 10 kB, 32 clients", "files/s", load)
    row.goals = [at_least("files/s", 3_000, row.value)]

    host = hosts.hosts[0]
    big = crowd.make_output(1, 100_000_000)
    count = max(2, int(20 * bench.scale))
    requests = [Question(crowd.put_output(host, task, big)) for task in host.held[-count:]]
    load = _run(bench, 2, lambda: requests.pop() if requests else None, _created, 600.0)
    load.count *= len(big.data) // 1_000_000
    row = bench.add("Uploads of 100 MB, 2 clients", "MB/s", load)
    row.goals = [at_least("MB/s", 300, row.value)]


# --- many queued, waiting ---------------------------------------------------------------------------------------


def queued(bench: Bench) -> None:
    """The rate of turns with ten thousand jobs in the queue, and with a million."""
    rates = []
    for count in (10_000, int(1_000_000 * bench.scale)):
        left = count + int(bench.seconds * 5_000)
        while left > 0:
            crowd.submit(bench.site, crowd.submission(min(left, 100_000), alike=True))
            left -= 100_000
        load = _run(bench, 32, lambda: _asking(bench, 1), lambda *told: _took(bench, *told))
        row = bench.add(f"Turns, one job each, 32 clients, {count:,} queued", "jobs/s", load)
        rates.append(row.value)
        if len(rates) == 2:
            row.goals = [at_least("of the rate with 10,000", 0.9, rates[1] / rates[0])]
        bench.crowd.renew()


def latency(bench: Bench) -> None:
    """A host waits; a job is submitted: how long after the submitter's answer the host has it."""
    import threading

    host = bench.crowd.hosts[0]
    data = crowd.submit_request(bench.site, crowd.submission(1))
    times: list[float] = []
    with measured(bench) as load:
        for _ in range(max(10, int(100 * bench.scale))):
            answered: list[float] = []

            def wait(answered: list[float] = answered) -> None:
                body = generator.call(bench.site.address, bench.crowd.turn(host, 1, 25.0).data)
                answered.append(time.perf_counter())
                host.held = [each.task for each in crowd.read(200, body).assignments]

            thread = threading.Thread(target=wait)
            host.held = []
            thread.start()
            time.sleep(0.03)
            generator.call(bench.site.address, data, 201)
            submitted = time.perf_counter()
            thread.join()
            times.append(max(0.0, answered[0] - submitted))
            _clear_one(bench, host)
            load.count += 1
    load.latencies = times
    bench.add("From the submitter's answer to the waiting host's", "jobs/s", load)


def _clear_one(bench: Bench, host: Host) -> None:
    """The host gives its task back as done, so that the next question waits."""
    host.ended, host.held = host.held, []
    generator.call(bench.site.address, bench.crowd.turn(host, 0).data)
    host.ended = []


ROWS: dict[str, Callable[[Bench], None]] = {
    "bulk": bulk,
    "single": single,
    "turns": turns,
    "life": life,
    "uploads": uploads,
    "latency": latency,
    "queued": queued,
}
