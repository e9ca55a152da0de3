"""A site as a real server process, for tests: start it, ask it, kill it, start it again."""

import contextlib
import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from databases import Cluster
from distributio.store import accounts
from distributio.store.database import Database, Transaction
from distributio.wire.native import (
    Attach,
    Attached,
    BatchSubmission,
    BatchView,
    HostFacts,
    JobView,
    PolicyChoice,
    Spec,
    TaskProgress,
    TaskReport,
    Turn,
    TurnAnswer,
    WorkRequest,
)
from distributio.wire.results_tar import Bounds, normalise

DISTRIBUTIO = [sys.executable, "-m", "distributio.cli.main"]
DEADLINE_SECONDS = 30.0
API = "/api/v1"


def wait_for(condition: Callable[[], object], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
    """What the condition gives once it gives something."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s"
        time.sleep(0.02)
    return found


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def results_tar(**files: bytes) -> bytes:
    """A results tar in its one form, as agents make it."""
    import tarfile

    made, canonical = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"results/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    made.seek(0)
    normalise(made, canonical, Bounds())
    return canonical.getvalue()


def digest_of(data: bytes) -> str:
    """The digest that names these bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def success(task: int, **files: bytes) -> TaskReport:
    """A task that ended well and left these files."""
    if not files:
        return TaskReport(task=task, outcome="success", exit_code=0)
    tar = results_tar(**files)
    return TaskReport(
        task=task, outcome="success", exit_code=0, output=tar, output_bytes=len(tar), output_digest=digest_of(tar)
    )


class Guest:
    """Somebody with a token, or with none."""

    def __init__(self, site: "RunningSite", token: str = "") -> None:
        self.site = site
        self.token = token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.http = httpx2.Client(base_url=site.url, headers=headers, timeout=30)

    def ask(self, method: str, path: str, status: int = 200, **more: Any) -> httpx2.Response:
        """A request whose answer must have this status."""
        answer = self.http.request(method, path, **more)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer

    def get(self, path: str, status: int = 200, **more: Any) -> Any:
        """What a GET below the API's root answers, decoded."""
        return self.ask("GET", f"{API}{path}", status, **more).json()

    def submit(self, count: int = 1, *, runner: str = "fake", policy: PolicyChoice | None = None, **more: Any) -> int:
        """Submit a batch of jobs for the fake runner; return its number."""
        spec = more.pop("spec", None) or Spec(runner=runner, command=["true"])
        submission = BatchSubmission(spec=spec, count=count, policy=policy or PolicyChoice(), **more)
        answer = self.ask("POST", f"{API}/batches", 201, content=msgspec.json.encode(submission))
        return int(answer.json()["id"])

    def batch(self, number: int) -> BatchView:
        """A batch as it is now."""
        return msgspec.json.decode(self.ask("GET", f"{API}/batches/{number}").content, type=BatchView)

    def job(self, job: str) -> JobView:
        """A job as it is now."""
        return msgspec.json.decode(self.ask("GET", f"{API}/jobs/{job}").content, type=JobView)

    def attach(self, **facts: Any) -> "GuestHost":
        """Join as a host that runs the fake runner."""
        said = HostFacts(**{"cpus": 64, "memory_bytes": 1 << 40, "disk_bytes": 1 << 45, "runners": ["fake"], **facts})
        answer = self.ask("POST", f"{API}/hosts", 201, content=msgspec.json.encode(Attach(facts=said)))
        return GuestHost(self.site, msgspec.json.decode(answer.content, type=Attached), said)

    def close(self) -> None:
        """Hang up."""
        self.http.close()


class GuestHost:
    """A host whose every word a test chooses."""

    def __init__(self, site: "RunningSite", attached: Attached, facts: HostFacts) -> None:
        self.id, self.key = attached.host, attached.key
        self.facts = facts
        self.http = httpx2.Client(
            base_url=site.url, headers={"Authorization": f"Host {attached.host}:{attached.key}"}, timeout=60
        )
        site.guests.append(self)

    def say(self, turn: Turn) -> TurnAnswer:
        """One turn."""
        answer = self.http.post(f"{API}/host/turn", content=msgspec.json.encode(turn))
        assert answer.status_code == 200, f"{answer.status_code} {answer.text[:500]}"
        return msgspec.json.decode(answer.content, type=TurnAnswer)

    def turn(self, *reports: TaskReport, want: int = 0, held: list[int] | None = None, **more: Any) -> TurnAnswer:
        """A turn with these reports that wants so many tasks and holds these."""
        room = WorkRequest(cpus=64, memory_bytes=1 << 40, disk_bytes=1 << 45, tasks=want) if want else None
        progress = [TaskProgress(task=task) for task in held or []]
        return self.say(Turn(reports=list(reports), want=room, held=progress, **more))

    def close(self) -> None:
        """Hang up."""
        self.http.close()


class RunningSite:
    """A server process and its data folder. It may be killed and started again."""

    def __init__(self, folder: Path, database: str = "", **settings: str) -> None:
        self.folder = folder
        self.data = folder / "site"
        self.database_url = database or f"sqlite:///{self.data / 'site.db'}"
        self._database = database
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.guests: list[Guest | GuestHost] = []
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DISTRIBUTIO_")},
            "DISTRIBUTIO_CONFIG": str(folder / "config"),
            **{f"DISTRIBUTIO_{name.upper()}": value for name, value in settings.items()},
        }

    def command(self, *words: str) -> list[str]:
        """The command that starts it."""
        database = ["--database", self._database] if self._database else []
        return [
            *DISTRIBUTIO, "serve", "--data", str(self.data), "--listen", f"127.0.0.1:{self.port}", *database, *words,
        ]  # fmt: skip

    def start(self) -> "RunningSite":
        """Start it and wait until it is ready."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), env=self.environment, stdout=log, stderr=log, process_group=0
            )
        wait_for(self._is_ready, f"the site at {self.url}")
        return self

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.log()}"
        with contextlib.suppress(httpx2.TransportError):
            return httpx2.get(f"{self.url}/readyz", timeout=5).status_code == 200
        return False

    def try_start(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Start a server that is expected to refuse."""
        return subprocess.run(
            self.command(*words), env=self.environment, capture_output=True, text=True, timeout=30, check=False
        )

    def kill(self) -> None:
        """As a power cut would: the server with all of its processes."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self, seconds: float = 15.0) -> int:
        """Ask it to stop; return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def log(self) -> str:
        """All the server has said."""
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    @property
    def operator_token(self) -> str:
        """The operator's token, as the first start wrote it."""
        return (self.data / "operator-token").read_text().strip()

    def operator(self) -> Guest:
        """The operator."""
        return self.guest(self.operator_token)

    def guest(self, token: str = "") -> Guest:
        """Somebody with this token, or a stranger."""
        guest = Guest(self, token)
        self.guests.append(guest)
        return guest

    def member(self, user: str, project: str, role: str = "member") -> Guest:
        """A new person with a role in a project, which is made if it is new."""
        return self.guest(self.look(_member, user, project, role))

    def look(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the store's in a transaction of its own, beside the server."""
        database = Database(self.database_url)
        try:
            with database.begin() as transaction:
                return function(transaction, *args)
        finally:
            database.close()

    def close(self) -> None:
        """Leave nothing running."""
        for guest in self.guests:
            guest.close()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()


def _member(transaction: Transaction, user: str, project: str, role: str) -> str:
    now = time.time()
    row = transaction.one("SELECT id FROM projects WHERE name = :name", name=project)
    project_id = int(row[0]) if row else accounts.create_project(transaction, project, now)
    user_id = accounts.create_user(transaction, user, now)
    accounts.set_role(transaction, user_id, project_id, role)
    return accounts.create_token(transaction, user_id, project_id, "test", now)[1]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[RunningSite]:
    """A site on SQLite."""
    yield from running(RunningSite(tmp_path))


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSite]:
    """A site on SQLite that the tests of a module share."""
    yield from running(RunningSite(tmp_path_factory.mktemp("shared")))


@pytest.fixture(params=("sqlite", "postgresql"))
def either_site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningSite]:
    """A site, once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        yield from running(RunningSite(tmp_path))
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    url = cluster.create_ready()
    yield from running(RunningSite(tmp_path, url))
    cluster.drop(url)


def running(site: RunningSite) -> Iterator[RunningSite]:
    """Start a site, and show what it said if the test fails; close it whatever happens."""
    try:
        yield site.start()
    except BaseException:
        print(site.log())
        raise
    finally:
        site.close()
