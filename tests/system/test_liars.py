"""Twenty hosts of nine owners, of which some lie, err, boast or vanish: what is accepted is right, and they gain nothing.

Hosts are threads that speak to a real server over HTTP, as agents do; what became of it is proved from the database.
"""

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from auditor import audit
from distributio.lifecycle import trust
from distributio.lifecycle.credit import MILLIONTHS
from distributio.store import accounts
from distributio.store.database import Transaction
from distributio.wire.native import Assignment, JobChoice, PolicyChoice, TaskReport
from sites import API, Guest, GuestHost, RunningSite, digest_of, results_tar, success, wait_for

pytestmark = pytest.mark.system

SECONDS = 0.5  # a host waits for work at most so long in one turn
Answer = Callable[[Assignment], TaskReport]


def right(assignment: Assignment) -> bytes:
    """The answer to a job."""
    return f"the answer to {assignment.spec.environment.get('index') or assignment.job}".encode()


def honest(assignment: Assignment) -> TaskReport:
    return with_claim(success(assignment.task, answer=right(assignment)), 0.01)


def boasting(assignment: Assignment) -> TaskReport:
    """Right, and said to have taken for ever."""
    return with_claim(success(assignment.task, answer=right(assignment)), 1e9)


def lying(chance: random.Random) -> Answer:
    return lambda assignment: with_claim(success(assignment.task, answer=chance.randbytes(8)), 1e9)


def lying_alike(assignment: Assignment) -> TaskReport:
    """Machines of one owner agree in what is wrong."""
    return success(assignment.task, answer=b"a lie about " + assignment.job.encode())


def erring(assignment: Assignment) -> TaskReport:
    return TaskReport(task=assignment.task, outcome="error", cause="engine-error")


def with_claim(report: TaskReport, seconds: float) -> TaskReport:
    return TaskReport(**{name: getattr(report, name) for name in report.__struct_fields__} | {"wall_seconds": seconds})


class Actor(threading.Thread):
    """A host that does what it does until it is told to stop."""

    def __init__(self, host: GuestHost, answer: Answer | None) -> None:
        super().__init__(daemon=True)
        self.host = host
        self.answer = answer
        self.over = threading.Event()
        self.told: set[str] = set()  # why it got no work
        self.trouble: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.trouble = error

    def _work(self) -> None:
        if self.answer is None:
            self.host.turn(want=5)  # and was never heard of again
            return
        reports: list[TaskReport] = []
        while not self.over.is_set():
            answer = self.host.turn(*reports, want=4, wait_seconds=SECONDS)
            self.told |= {because.code for because in answer.why_no_work}
            reports = [self.answer(assignment) for assignment in answer.assignments]
            if not reports:
                self.over.wait(0.05)


class Crowd:
    """All of them, by what they are."""

    def __init__(self, site: RunningSite) -> None:
        chance = random.Random(7)
        kinds: dict[str, tuple[Answer | None, list[str]]] = {
            "honest": (honest, ["ann", "ben", "cleo", "dan", "ann", "ben", "cleo", "dan", "ann", "ben", "cleo"]),
            "boaster": (boasting, ["eve"]),
            "liar": (lying(chance), ["fred", "gus"]),
            "pair": (lying_alike, ["hal", "hal"]),
            "broken": (erring, ["ian", "ann"]),
            "gone": (None, ["dan", "eve"]),
        }
        owners: dict[str, Guest] = {}
        self.actors: dict[str, list[Actor]] = {}
        for kind, (answer, names) in kinds.items():
            for name in names:
                if name not in owners:
                    owners[name] = site.member(name, "default")
                boasts = kind in ("boaster", "liar")
                host = owners[name].attach(name=kind, gflops=1e12 if boasts else 5.0, cpus=8)
                self.actors.setdefault(kind, []).append(Actor(host, answer))

    def __enter__(self) -> "Crowd":
        for actor in self.all():
            actor.start()
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self.all():
            actor.over.set()
        for actor in self.all():
            actor.join(30)

    def all(self) -> list[Actor]:
        return [actor for actors in self.actors.values() for actor in actors]

    def check(self) -> None:
        for actor in self.all():
            assert actor.trouble is None, actor.trouble


def answers_of(transaction: Transaction, batches: list[int]) -> list[tuple[Any, ...]]:
    return transaction.rows(
        "SELECT batch_id, position, output_digest, quorum, state FROM jobs "
        "LEFT JOIN (SELECT job_id, attempt, output_digest FROM tasks) AS spoken "
        "ON job_id = jobs.id AND attempt = canonical_attempt WHERE batch_id IN (:batches...)",
        batches=batches,
    )


def grants_by_job(transaction: Transaction, host: str) -> list[tuple[int, int]]:
    """What a host was granted, beside the least of those it agreed with."""
    return [
        (int(mine), int(theirs))
        for mine, theirs in transaction.rows(
            "SELECT mine.credit, min(theirs.credit) FROM hosts JOIN credit_grants AS mine ON mine.host_id = hosts.id "
            "JOIN tasks AS own ON own.id = mine.task_id JOIN tasks AS other ON other.job_id = own.job_id "
            "AND other.id <> own.id JOIN credit_grants AS theirs ON theirs.task_id = other.id "
            "WHERE public_id = :host GROUP BY mine.task_id, mine.credit",
            host=host,
        )
    ]


def test_liars_gain_nothing_and_nothing_wrong_is_accepted(either_site: RunningSite) -> None:
    site = either_site
    operator = site.operator()
    patient = {"deadline_seconds": 3, "max_errors": 12, "max_tasks": 60, "max_successes": 30}
    with Crowd(site) as crowd:
        known = [
            JobChoice(
                variables={"index": f"k{number}"},
                expect=digest_of(results_tar(answer=f"the answer to k{number}".encode())),
            )
            for number in range(20)
        ]
        batches = [
            operator.submit(120, policy=PolicyChoice(quorum=2, **patient)),
            operator.submit(120, policy=PolicyChoice(adaptive=True, **patient)),
            operator.submit(1, policy=PolicyChoice(**patient), jobs=known),
        ]
        wait_for(lambda: all(operator.batch(batch).ended_at for batch in batches), "the end of all batches", 60)
        wait_for(
            lambda: all(is_aside(operator, actor) for actor in crowd.actors["broken"]), "the broken to be set aside"
        )
    crowd.check()

    site.look(audit)
    answers = site.look(answers_of, batches)
    assert len(answers) == 260
    for batch, position, digest, _, state in answers:
        asked = f"k{position - 1}" if batch == batches[2] else f"{batch}.{position}"
        assert state == "done"
        assert digest == digest_of(results_tar(answer=f"the answer to {asked}".encode())), f"job {batch}.{position}"

    operator.submit(1)  # something waits that they could have been given
    for actor in crowd.actors["liar"] + crowd.actors["pair"]:
        told = {because.code for because in actor.host.turn(want=1).why_no_work}
        view = operator.get(f"/hosts/{actor.host.id}")
        assert view["credit"] == 0
        assert sum(app["wrong"] for app in view["apps"]) > 0
        assert not any(app["trusted"] for app in view["apps"])
        assert any(app["set_aside"] for app in view["apps"])
        assert "host-set-aside" in {because["code"] for because in view["why_idle"]}
        assert "host-set-aside" in told | actor.told
    for actor in crowd.actors["honest"]:
        view = operator.get(f"/hosts/{actor.host.id}")
        assert not any(app["wrong"] or app["set_aside"] for app in view["apps"])
    boaster = crowd.actors["boaster"][0].host.id
    granted = site.look(grants_by_job, boaster)
    assert granted
    assert all(mine <= theirs for mine, theirs in granted)
    total = sum(host["credit"] for host in operator.get("/hosts?all=1")["items"])
    people = sum(leader["credit"] for leader in operator.get("/leaderboard")["items"])
    assert total > 0
    assert total == pytest.approx(people, abs=1 / MILLIONTHS)
    assert all(leader["name"] == "" for leader in operator.get("/leaderboard")["items"])


def is_aside(operator: Guest, actor: Actor) -> bool:
    return any(app["set_aside"] for app in operator.get(f"/hosts/{actor.host.id}")["apps"])


def test_trust_is_earned_and_then_one_copy_is_enough(site: RunningSite) -> None:
    operator = site.operator()
    site.look(accounts.set_site_value, "spot_check_seed", "a seed")
    hosts = [site.member(name, "default").attach(name=name) for name in ("ann", "ben")]
    actors = [Actor(host, honest) for host in hosts]
    for actor in actors:
        actor.start()
    adaptive = PolicyChoice(adaptive=True)
    batches = []
    for count in (9, 40, 200):
        batches.append(operator.submit(count, policy=adaptive))
        wait_for(lambda: operator.batch(batches[-1]).ended_at, "the end of a batch")
    for actor in actors:
        actor.over.set()
        actor.join(30)
        assert actor.trouble is None
    strangers, _, trusted = ([quorum for _, _, _, quorum, _ in site.look(answers_of, [batch])] for batch in batches)
    assert set(strangers) == {2}
    checked = [trust.draw("a seed", job) for job in range(50, 250)]
    assert sum(draw < trust.LEAST_SPOT_CHECKS for draw in checked) <= trusted.count(2)
    assert trusted.count(2) <= sum(draw < 1 / trust.TRUSTED_AFTER for draw in checked)
    site.look(audit)


def test_what_a_banned_host_did_alone_is_done_again(site: RunningSite) -> None:
    operator = site.operator()
    owner = site.member("fred", "default")
    liar = owner.attach(name="liar")
    batch = operator.submit(4)
    sent = liar.turn(want=4).assignments
    liar.turn(
        success(sent[0].task, answer=right(sent[0])),
        *[success(each.task, answer=b"a lie") for each in sent[1:3]],
        held=[sent[3].task],
    )
    change = {"state": "banned", "reason": "it lies"}
    owner.ask("PATCH", f"{API}/hosts/{liar.id}", 403, json=change)
    changed = operator.ask("PATCH", f"{API}/hosts/{liar.id}", json=change).json()
    assert changed["host"]["state"] == "banned"
    assert owner.get(f"/hosts/{liar.id}")["ban_reason"] == "it lies"
    (again,) = changed["rechecks"]

    answer = liar.turn(success(sent[3].task, answer=b"a last lie"), want=4)
    assert not answer.assignments
    assert answer.acknowledged == [sent[3].task]
    assert [because.code for because in answer.why_no_work] == ["host-banned"]
    assert operator.job(f"{batch}.4").state == "waiting"
    assert operator.get(f"/jobs/{batch}.2/explain")["because"][0]["code"] == "recheck-open"

    other = site.member("ann", "default").attach(name="other")
    answers = {f"{again}.{position}": f"the answer to {batch}.{position}".encode() for position in (1, 2, 3)}
    given = other.turn(want=4).assignments
    other.turn(*[success(each.task, answer=answers.get(each.job, right(each))) for each in given])
    assert operator.batch(again).labels == {"recheck-of": str(batch)}
    compared = operator.get(f"/batches/{batch}/rechecks")["items"]
    assert [(each["job"], each["agrees"]) for each in compared] == [
        (f"{batch}.1", True),
        (f"{batch}.2", False),
        (f"{batch}.3", False),
    ]
    codes = [operator.get(f"/jobs/{batch}.{position}/explain")["because"][0]["code"] for position in (1, 2)]
    assert codes == ["recheck-agrees", "recheck-differs"]
    assert operator.batch(batch).counts["done"] == 4, "what was decided stays decided"

    once_more = operator.ask("PATCH", f"{API}/hosts/{liar.id}", json=change).json()
    assert once_more["rechecks"] == [], "nothing is done again twice"
    operator.ask("PATCH", f"{API}/hosts/{liar.id}", json={"state": "active"})
    operator.submit(1)
    wait_for(lambda: liar.turn(want=1).assignments, "work after the ban")
    site.look(audit)
