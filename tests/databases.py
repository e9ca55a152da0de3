"""Databases for tests: SQLite files and a real PostgreSQL, each test with one of its own whose tables are up to date.

The PostgreSQL cluster is thrown away with the test process: no network, no durability, a socket in a short folder. It starts
with the first test that asks for it.
"""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from distributio.store.database import Database

BOTH = ("sqlite", "postgresql")
_USER = "tests"
_OPTIONS = {
    "listen_addresses": "",
    "max_connections": "200",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "deadlock_timeout": "200ms",
}


class Cluster:
    """A PostgreSQL server of its own."""

    def __init__(self) -> None:
        self.programs = _programs()
        self.folder = Path(tempfile.mkdtemp(prefix="dio", dir="/tmp"))
        # PostgreSQL refuses to run as root; the package brings a user for it.
        self._account = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        if self._account is not None:
            os.chown(self.folder, self._account.pw_uid, self._account.pw_gid)
            self.folder.chmod(0o755)
        self._data = self.folder / "data"
        self._databases = 0
        self._run("initdb", "-D", str(self._data), "-A", "trust", "-U", _USER, "--no-sync", "-E", "UTF8", "--locale=C")
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in _OPTIONS.items())
            file.write(f"unix_socket_directories = '{self.folder}'\n")
        self.start()
        self.template = self.create()
        database = Database(self.template)
        database.migrate()
        database.close()

    def start(self) -> None:
        """Let it run."""
        self._run("pg_ctl", "-D", str(self._data), "-l", str(self.folder / "log"), "-w", "start")

    def stop(self) -> None:
        """Let it stop, and cut its connections."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", "fast", "stop")

    def create(self, template: str = "template0") -> str:
        """A new database; return its address."""
        self._databases += 1
        name = f"t{self._databases}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def create_ready(self) -> str:
        """A new database with all tables; return its address."""
        return self.create(psycopg.conninfo.conninfo_to_dict(self.template)["dbname"])  # type: ignore[arg-type]

    def drop(self, url: str) -> None:
        """Remove a database, whoever is connected."""
        name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def url(self, name: str) -> str:
        """The address of a database."""
        return f"postgresql://{_USER}@/{name}?host={self.folder}"

    def close(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(subprocess.CalledProcessError):  # it may be stopped already
            self.stop()
        shutil.rmtree(self.folder)

    def _run(self, program: str, *words: str) -> None:
        account = self._account
        who = {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        # A server that outlives pg_ctl would keep a pipe open, so what is said goes to a file.
        with tempfile.TemporaryFile("w+") as said:
            done = subprocess.run(
                [self.programs / program, *words], stdout=said, stderr=said, cwd=self.folder, check=False, **who
            )  # type: ignore[call-overload]
            if done.returncode != 0:
                said.seek(0)
                raise subprocess.CalledProcessError(done.returncode, [program, *words], said.read())


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    assert initdb, "PostgreSQL's programs are not here: run tools/parts.sh, or install the package postgresql"
    return Path(initdb).resolve().parent


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The process's PostgreSQL."""
    running = Cluster()
    yield running
    running.close()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with all tables and nothing in them."""
    path = tmp_path_factory.mktemp("template") / "site.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    return path


@pytest.fixture(params=BOTH)
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a fresh database with all tables; the test runs once for each kind."""
    if request.param == "postgresql":
        yield from _postgresql(request)
    else:
        yield _sqlite(request)


@pytest.fixture
def sqlite_url(request: pytest.FixtureRequest) -> str:
    """The address of a fresh SQLite database with all tables."""
    return _sqlite(request)


@pytest.fixture
def postgresql_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a fresh PostgreSQL database with all tables."""
    yield from _postgresql(request)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A fresh database with all tables; the test runs once for each kind."""
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture(params=BOTH)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a database without tables; the test runs once for each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    running: Cluster = request.getfixturevalue("cluster")
    url = running.create()
    yield url
    running.drop(url)


def _sqlite(request: pytest.FixtureRequest) -> str:
    template: Path = request.getfixturevalue("sqlite_template")
    folder: Path = request.getfixturevalue("tmp_path")
    path = folder / f"{uuid.uuid4().hex}.db"
    shutil.copy(template, path)
    return f"sqlite:///{path}"


def _postgresql(request: pytest.FixtureRequest) -> Iterator[str]:
    running: Cluster = request.getfixturevalue("cluster")
    url = running.create_ready()
    yield url
    running.drop(url)
