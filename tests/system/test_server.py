"""A server as its operator has it: it starts or says why not, stops at once, and loses nothing when it is killed."""

import concurrent.futures
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import msgspec
import pytest

from auditor import audit
from databases import Cluster
from distributio.wire.native import BatchSubmission, Spec
from sites import API, Guest, GuestHost, RunningSite, digest_of, results_tar, running, success, wait_for

pytestmark = pytest.mark.system

STOP_SECONDS = 12  # half of what a host's open question would take; on an idle machine it is one or two


def audited(site: RunningSite) -> None:
    """What is in the site's database adds up."""
    site.look(audit)


# --- starting ---------------------------------------------------------------------------------------------------


def test_the_operators_token_is_his_alone(site: RunningSite) -> None:
    token = site.data / "operator-token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert site.operator().get("/whoami") == {
        "user": "operator", "is_operator": True, "project": "default", "projects": {"default": "manager"},
        "credit": 0.0, "recent_average": 0.0, "shows_name": False,
    }  # fmt: skip
    known = site.folder / "config" / "sites.toml"
    assert site.operator_token in known.read_text()
    assert known.stat().st_mode & 0o077 == 0
    open_to_others = [path for path in site.data.rglob("*") if path.stat().st_mode & 0o077]
    assert open_to_others == []


def test_a_second_server_on_the_same_data_is_refused(site: RunningSite) -> None:
    other = RunningSite(site.folder)
    assert other.data == site.data
    refused = other.try_start()
    assert refused.returncode == 2
    assert "Another site serves this data folder" in refused.stderr
    assert site.operator().get("/whoami")["user"] == "operator"


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        site = RunningSite(tmp_path)
        site.port = taken.getsockname()[1]
        refused = site.try_start()
    assert refused.returncode == 2
    assert f"cannot listen on 127.0.0.1:{site.port}" in refused.stderr
    assert "--listen" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"colour = 'red'", "unknown setting colour"),
        (b"name = ", "is not TOML"),
        (b"name = '\xff'", "is not TOML"),
        (b"poll_seconds = 600", "poll_seconds"),
        (b"log_level = 'loud'", "log_level"),
        (b"listen = 'here'", "ADDRESS:PORT"),
        (b"database = 'mysql://x'", "names no database"),
        (b"processes = 3", "need PostgreSQL"),
        (b"storage = 's3://bucket?colour=red'", "colour"),
    ],
)
def test_a_setting_that_is_not_understood_is_named(tmp_path: Path, text: bytes, says: str) -> None:
    site = RunningSite(tmp_path)
    site.data.mkdir()
    (site.data / "distributio.toml").write_bytes(text)
    words = site.command()
    if b"listen" in text:
        words = words[: words.index("--listen")]
    refused = subprocess.run(words, env=site.environment, capture_output=True, text=True, timeout=30, check=False)
    assert refused.returncode == 2, refused.stderr
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr


def test_settings_come_from_file_environment_and_command_line(tmp_path: Path) -> None:
    site = RunningSite(tmp_path, name="From the environment", max_jobs_per_batch="7")
    site.data.mkdir()
    (site.data / "distributio.toml").write_text(
        'name = "From the file"\nlisten = "127.0.0.1:1"\nmax_jobs_per_batch = 9\n'
    )
    for _ in running(site):
        operator = site.operator()
        assert operator.get("/status")["name"] == "From the environment"
        body = msgspec.json.encode(BatchSubmission(spec=Spec(runner="fake"), count=8))
        assert "7" in operator.http.post(f"{API}/batches", content=body).json()["detail"]


def test_a_folder_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    (tmp_path / "site").write_text("a file")
    refused = RunningSite(tmp_path).try_start()
    assert refused.returncode == 2
    assert str(tmp_path / "site") in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_database_that_is_away_is_named(tmp_path: Path) -> None:
    refused = RunningSite(tmp_path, f"postgresql://nobody@/x?host={tmp_path}").try_start()
    assert refused.returncode == 2
    assert "database does not answer" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_tables_of_a_newer_release_are_left_alone(site: RunningSite) -> None:
    site.stop()
    site.look(lambda transaction: transaction.run("UPDATE alembic_version SET version_num = '9999'"))
    refused = site.try_start()
    assert refused.returncode == 2
    assert "not of this release" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_site_below_a_path_is_served_there(tmp_path: Path) -> None:
    site = RunningSite(tmp_path, site_url="http://grid.example/team/")
    for _ in running(site):
        operator = site.operator()
        assert operator.ask("GET", "/team/api/v1/whoami").json()["user"] == "operator"
        assert operator.get("/status")["url"] == "http://grid.example/team"
        assert operator.http.get("/teamster/api/v1/whoami").status_code == 404


def test_health_and_figures_are_public(site: RunningSite) -> None:
    stranger = site.guest()
    assert stranger.ask("GET", "/livez").text == "ok\n"
    assert stranger.ask("GET", "/readyz").text == "ok database\nok store\nok ledger\n"
    site.operator().submit(3)
    figures = stranger.ask("GET", "/metrics").text
    assert 'distributio_jobs{state="waiting"} 3.0' in figures
    assert "distributio_tasks_ready 3.0" in figures


# --- stopping ---------------------------------------------------------------------------------------------------


def test_it_stops_at_once_whoever_waits(either_site: RunningSite) -> None:
    site = either_site
    operator = site.operator()
    batch = operator.submit(1, spec=Spec(runner="fake", platform="linux/none"))
    hosts = [operator.attach() for _ in range(3)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        polls = [pool.submit(host.turn, want=1, wait_seconds=25.0) for host in hosts]
        wait_for(lambda: "hosts_waiting 3.0" in operator.http.get("/metrics").text, "the questions")
        follower, reader = site.operator(), site.operator()
        with (
            follower.http.stream("GET", f"{API}/batches/{batch}/events") as events,
            reader.http.stream("GET", f"{API}/jobs/{batch}.1/log?follow=1") as log,
        ):
            next(events.iter_lines())
            next(log.iter_lines())
            started = time.monotonic()
            assert site.stop() == 0
            assert time.monotonic() - started < STOP_SECONDS
        for poll in polls:
            assert poll.result().assignments == []
    assert "stopped" in site.log()
    assert "Traceback" not in site.log()
    site.start()
    assert operator.batch(batch).counts["waiting"] == 1
    audited(site)


def test_what_was_answered_is_kept_when_it_is_killed(either_site: RunningSite) -> None:
    site = either_site
    operator = site.operator()
    host = operator.attach()
    first = operator.submit(20)
    tasks = [each.task for each in host.turn(want=20).assignments]
    host.turn(*[success(task, a=b"result") for task in tasks[:10]], held=tasks[10:])
    second = operator.submit(5)
    site.kill()
    site.start()
    assert operator.batch(first).counts["done"] == 10
    assert operator.batch(second).counts["waiting"] == 5
    answer = host.turn(*[success(task, a=b"result") for task in tasks[:12]], held=tasks[12:])
    assert sorted(answer.acknowledged) == sorted(tasks[:12])
    wait_for(lambda: operator.job(f"{first}.12").handed_over, "the hand-over")
    assert operator.batch(first).counts["done"] == 12
    assert operator.ask("GET", f"{API}/jobs/{first}.1/results.tar").content == results_tar(a=b"result")
    audited(site)


def test_it_is_killed_again_and_again_in_the_middle_of_work(either_site: RunningSite) -> None:
    site = either_site
    operator = site.operator()
    hosts = [operator.attach() for _ in range(2)]
    batch = operator.submit(60)

    def live(host: GuestHost) -> None:
        held: list[int] = []
        while operator_says(site, batch) != "done":
            try:
                answer = host.turn(*[success(task, a=b"x") for task in held], want=4, held=held, wait_seconds=0.2)
            except (httpx2.TransportError, AssertionError):
                continue
            held = [task for task in held if task not in {*answer.acknowledged, *answer.cancel}]
            held += [each.task for each in answer.assignments if each.task not in held]

    with concurrent.futures.ThreadPoolExecutor() as pool:
        lives = [pool.submit(live, host) for host in hosts]
        for done in (5, 30):
            wait_for(lambda done=done: counts(site, batch).get("done", 0) >= done, f"{done} jobs")
            site.kill()
            site.start()
        for each in lives:
            each.result(60)
    wait_for(lambda: site.look(_handed_over) == 60, "the hand-over")
    audited(site)


def counts(site: RunningSite, batch: int) -> dict[str, int]:
    guest = Guest(site, site.operator_token)
    try:
        return guest.batch(batch).counts
    except httpx2.TransportError:
        return {}
    finally:
        guest.close()


def operator_says(site: RunningSite, batch: int) -> str:
    found = counts(site, batch)
    return "done" if found and found["done"] == 60 else "going on"


def _handed_over(transaction: object) -> int:
    row = transaction.one("SELECT count(*) FROM jobs WHERE hand_over = 'done'")  # type: ignore[attr-defined]
    return int(row[0])


def test_uploads_survive_a_kill(site: RunningSite) -> None:
    operator = site.operator()
    data = os.urandom(3_000_000)
    path = f"{API}/files/{digest_of(data)}"
    named = {"Upload-Length": str(len(data))}
    operator.ask("PUT", path, 202, content=data[:2_000_000], headers=named)
    site.kill()
    site.start()
    assert operator.http.head(path).headers["Upload-Offset"] == "2000000"
    operator.ask("PUT", path, 201, content=data[2_000_000:], headers={**named, "Upload-Offset": "2000000"})
    site.kill()
    site.start()
    assert operator.ask("HEAD", path).headers["Content-Length"] == "3000000"


# --- PostgreSQL -------------------------------------------------------------------------------------------------


@pytest.fixture
def postgresql_site(cluster: Cluster, tmp_path: Path) -> Iterator[RunningSite]:
    url = cluster.create_ready()
    yield from running(RunningSite(tmp_path, url))
    cluster.drop(url)


def test_a_database_outage_is_said_and_survived(postgresql_site: RunningSite, cluster: Cluster) -> None:
    site = postgresql_site
    operator = site.operator()
    host = operator.attach()
    batch = operator.submit(2)
    first, second = (each.task for each in host.turn(want=2).assignments)
    cluster.stop()
    try:
        answer = operator.http.get(f"{API}/batches")
        assert answer.status_code == 503
        assert answer.json()["code"] == "database-away"
        assert answer.headers["Retry-After"]
        body = msgspec.json.encode(BatchSubmission(spec=Spec(runner="fake")))
        assert operator.http.post(f"{API}/batches", content=body).status_code == 503
        turn = host.http.post(f"{API}/host/turn", content=b'{"reports": []}')
        assert turn.status_code == 503
        ready = operator.http.get("/readyz")
        assert ready.status_code == 503
        assert "failed database" in ready.text
        assert operator.ask("GET", "/livez").text == "ok\n"
    finally:
        cluster.start()
    wait_for(lambda: operator.http.get("/readyz").status_code == 200, "the database")
    # The daemons go on by themselves, and news are heard again.
    host.turn(success(first, a=b"x"), held=[second])
    wait_for(lambda: operator.job(f"{batch}.1").handed_over, "the hand-over")
    audited(site)
    assert site.stop() == 0


@pytest.fixture
def crew(cluster: Cluster, tmp_path: Path) -> Iterator[RunningSite]:
    """A site of two processes."""
    url = cluster.create_ready()
    yield from running(RunningSite(tmp_path, url, processes="2"))
    cluster.drop(url)


def test_several_processes_are_one_site(crew: RunningSite) -> None:
    operator = crew.operator()
    hosts = [operator.attach() for _ in range(4)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        polls = [pool.submit(host.turn, want=1, wait_seconds=25.0) for host in hosts]
        started = time.monotonic()
        batch = operator.submit(4)
        answers = [poll.result() for poll in polls]
    assert time.monotonic() - started < 15
    tasks = [each.task for answer in answers for each in answer.assignments]
    assert len(set(tasks)) == 4
    follower = crew.operator()
    with follower.http.stream("GET", f"{API}/batches/{batch}/events") as events:
        for host, answer in zip(hosts, answers, strict=True):
            host.turn(*[success(each.task, a=b"x") for each in answer.assignments])
        last = [line for line in events.iter_lines() if line.startswith("data: ")][-1]
    assert '"done":4' in last
    wait_for(lambda: operator.job(f"{batch}.4").handed_over, "the hand-over")
    audited(crew)
    started = time.monotonic()
    assert crew.stop() == 0
    assert time.monotonic() - started < STOP_SECONDS


def test_a_process_of_a_crew_that_dies_is_replaced(crew: RunningSite) -> None:
    batch = crew.operator().submit(1)
    assert crew.process is not None
    children = Path(f"/proc/{crew.process.pid}/task/{crew.process.pid}/children")
    first = wait_for(lambda: children.read_text().split()[1:2], "two processes")[0]
    os.kill(int(first), signal.SIGKILL)
    wait_for(lambda: len(set(children.read_text().split()) - {first}) == 2, "another process")
    wait_for(lambda: _answers(crew, batch), "answers")


def _answers(site: RunningSite, batch: int) -> bool:
    try:
        return site.operator().batch(batch).counts["waiting"] == 1
    except httpx2.TransportError:
        return False
