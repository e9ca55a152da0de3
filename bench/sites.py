"""The site that is measured: a server process of its own, on SQLite or on a PostgreSQL started for the occasion."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
from msgspec import Struct

START_SECONDS = 60.0
# Durable as delivered; only the sizes are those of a machine that has some memory to spare.
TUNING = (
    "fsync=on",
    "synchronous_commit=on",
    "full_page_writes=on",
    "shared_buffers=512MB",
    "max_wal_size=4GB",
    "listen_addresses=",
    "max_connections=60",
)


class CannotMeasure(RuntimeError):
    """Something the measurement needs is missing; the message says what and how to get it."""


class Cluster(Struct, frozen=True, kw_only=True):
    """A PostgreSQL that runs for us."""

    process: int
    folder: Path
    version: str

    def url(self, name: str) -> str:
        """The address of one of its databases."""
        return f"postgresql://postgres@/{name}?host={self.folder}"

    def create(self, name: str) -> str:
        """Make an empty database; return its address."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]  # a name of ours
        return self.url(name)


@contextlib.contextmanager
def postgresql() -> Iterator[Cluster]:
    """A throw-away cluster on a Unix socket. Raises CannotMeasure if PostgreSQL is not installed."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if installed:
        binaries = installed[-1].parent
    else:
        found = shutil.which("postgres")
        if found is None:
            raise CannotMeasure(
                "PostgreSQL is not installed: apt install postgresql, or measure SQLite alone with --database sqlite"
            )
        binaries = Path(found).parent
    user = None
    if os.geteuid() == 0:
        try:
            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            raise CannotMeasure(
                "PostgreSQL does not run as root and there is no user postgres: apt install postgresql"
            ) from None
    with tempfile.TemporaryDirectory(prefix="bench-pg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if user is not None:
            shutil.chown(folder, user)
        as_user = {"user": user, "cwd": folder} if user is not None else {"cwd": folder}
        command = [
            binaries / "initdb",
            "-D",
            folder / "data",
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **as_user)  # type: ignore[call-overload]
        options = [part for each in (*TUNING, f"unix_socket_directories={folder}") for part in ("-c", each)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(  # type: ignore[call-overload]
                [binaries / "postgres", "-D", folder / "data", *options], stdout=log, stderr=log, **as_user
            )
        cluster = Cluster(process=process.pid, folder=folder, version=_version(binaries))
        try:
            _wait_for_database(cluster, process)
            yield cluster
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Stop it, in its own way if it does so in time."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(START_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _version(binaries: Path) -> str:
    output = subprocess.run([binaries / "postgres", "--version"], check=True, capture_output=True, text=True).stdout
    return output.split()[2]


def _wait_for_database(cluster: Cluster, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            psycopg.connect(cluster.url("postgres")).close()
            return
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > until:
                raise CannotMeasure(f"PostgreSQL did not start: {(cluster.folder / 'log').read_text()}") from error
        time.sleep(0.1)


class Site(Struct, kw_only=True):
    """A server that runs for us."""

    kind: str  # "SQLite" or "PostgreSQL"
    data: Path
    address: tuple[str, int]
    process: int
    database_process: int | None
    database_url: str
    token: str

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        """Look into the database beside the server."""
        if self.database_url:
            with psycopg.connect(self.database_url) as connection:
                return connection.execute(sql).fetchall()  # type: ignore[call-overload,no-any-return]
        with contextlib.closing(sqlite3.connect(f"file:{self.data / 'site.db'}?mode=ro", uri=True)) as connection:
            return connection.execute(sql).fetchall()

    def number(self, sql: str) -> int:
        """The one number a statement gives."""
        return int(self.rows(sql)[0][0])  # type: ignore[call-overload,no-any-return]

    def database_bytes(self) -> int:
        """How much disk the tables and their indexes take."""
        if self.database_url:
            return self.number("SELECT pg_database_size(current_database())")
        return self.number("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()")


@contextlib.contextmanager
def site(cluster: Cluster | None, name: str, environment: dict[str, str] | None = None) -> Iterator[Site]:
    """A site with nothing in it, on SQLite or on a new database of the cluster."""
    with tempfile.TemporaryDirectory(prefix="bench-site-", ignore_cleanup_errors=True) as folder:
        data = Path(folder, "data")
        address = ("127.0.0.1", _free_port())
        command = [Path(sys.executable).with_name("distributio"), "serve", "--data", data]
        command += ["--listen", f"{address[0]}:{address[1]}"]
        database_url = cluster.create(name) if cluster is not None else ""
        if database_url:
            command += ["--database", database_url]
        settings = {"DISTRIBUTIO_CONFIG": str(Path(folder, "config")), "DISTRIBUTIO_LOG_LEVEL": "warning"}
        log_path = Path(folder, "log")
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **settings, **(environment or {})}
            )
        try:
            _wait_for_site(address, process, log_path)
            yield Site(
                kind="PostgreSQL" if cluster is not None else "SQLite",
                data=data,
                address=address,
                process=process.pid,
                database_process=cluster.process if cluster is not None else None,
                database_url=database_url,
                token=(data / "operator-token").read_text().strip(),
            )
        finally:
            _end(process)
            said = [line for line in log_path.read_text().splitlines() if "[error" in line or "[warning" in line]
            for line in said[:20]:
                print(f"    the server said: {line}", file=sys.stderr)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_site(address: tuple[str, int], process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(address, 1.0).close()
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > until:
                raise CannotMeasure(f"the server did not start:\n{log.read_text()}") from error
        time.sleep(0.05)
