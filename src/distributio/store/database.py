"""How statements reach SQLite or PostgreSQL, and how many rows go in one of them.

SQLAlchemy describes the tables, pools the connections and, through Alembic, brings the tables up to date. Statements go to
the driver as they are written, `:name` for a value and `IN (:names...)` for a list, since a ledger turn is a handful of
statements over many rows and what an abstraction adds to each is most of their cost.
"""

import functools
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import sqlalchemy
import sqlalchemy.pool
from sqlalchemy import BigInteger, Boolean, Float, Integer, LargeBinary, Text

from distributio.store import schema, sqlite, steps

Row = tuple[Any, ...]

_LIST = re.compile(r"IN \(:(\w+)\.\.\.\)")
_VALUE = re.compile(r"(?<![:\w]):(\w+)")
_ARRAY_TYPES: dict[type, str] = {
    BigInteger: "bigint[]",
    Integer: "integer[]",
    Float: "double precision[]",
    Text: "text[]",
    Boolean: "boolean[]",
    LargeBinary: "bytea[]",
}
REST_SECONDS = 2.0  # a connection unused for longer is tried before it is used


class StoreError(Exception):
    """The store could not do what was asked."""


class DatabaseUnavailable(StoreError):
    """The database does not answer; what was asked has not been done and may be asked again."""


class DatabaseFull(StoreError):
    """The disk under the database is full; nothing was lost, but nothing more fits until there is room."""


class Conflict(StoreError):
    """Someone else changed the same rows first. What was asked has not been done and may be asked again."""


class BadValue(StoreError):
    """The database cannot hold such a value: a number too large, or a text with a NUL in it."""


@functools.lru_cache(maxsize=512)
def _for_sqlite(sql: str) -> str:
    return _LIST.sub(r"IN (SELECT value FROM json_each(:\1))", sql)


@functools.lru_cache(maxsize=512)
def _for_postgresql(sql: str) -> str:
    return _VALUE.sub(r"%(\1)s", _LIST.sub(r"= ANY(:\1)", sql.replace("%", "%%")))


@functools.lru_cache(maxsize=128)
def _update_statement(table: str, key: str, columns: tuple[str, ...], postgresql: bool) -> str:
    if not postgresql:
        changes = ", ".join(f"{column} = ?" for column in columns)
        return f"UPDATE {table} SET {changes} WHERE {key} = ?"
    names = (*columns, key)
    changes = ", ".join(f"{column} = v.{column}" for column in columns)
    arrays = ", ".join(f"%s::{_array_type(table, name)}" for name in names)
    return f"UPDATE {table} SET {changes} FROM unnest({arrays}) AS v({', '.join(names)}) WHERE {table}.{key} = v.{key}"


@functools.lru_cache(maxsize=128)
def _add_statement(table: str, key: str, columns: tuple[str, ...], postgresql: bool) -> str:
    if not postgresql:
        changes = ", ".join(f"{column} = {column} + ?" for column in columns)
        return f"UPDATE {table} SET {changes} WHERE {key} = ?"
    names = (*columns, key)
    changes = ", ".join(f"{column} = {table}.{column} + v.{column}" for column in columns)
    arrays = ", ".join(f"%s::{_array_type(table, name)}" for name in names)
    return f"UPDATE {table} SET {changes} FROM unnest({arrays}) AS v({', '.join(names)}) WHERE {table}.{key} = v.{key}"


@functools.lru_cache(maxsize=128)
def _insert_statement(table: str, columns: tuple[str, ...], conflict: str, postgresql: bool) -> str:
    names = ", ".join(columns)
    if not postgresql:
        marks = ", ".join("?" * len(columns))
        return f"INSERT INTO {table} ({names}) VALUES ({marks}) {conflict}"
    arrays = ", ".join(f"%s::{_array_type(table, name)}" for name in columns)
    return f"INSERT INTO {table} ({names}) SELECT * FROM unnest({arrays}) {conflict}"


def _array_type(table: str, column: str) -> str:
    kind = schema.metadata.tables[table].c[column].type
    for base, name in _ARRAY_TYPES.items():
        if type(kind) is base:
            return name
    raise StoreError(f"{table}.{column}: no array type for {kind!r}")


@functools.lru_cache(maxsize=128)
def _array_types(table: str, columns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_array_type(table, column) for column in columns)


def _array(kind: str, values: Sequence[Any]) -> Any:
    """A column of values as PostgreSQL reads an array: the driver's own way takes several times as long."""
    if kind == "bytea[]":
        return list(values)
    if kind == "text[]":
        return "{" + ",".join(["NULL" if value is None else _quoted(value) for value in values]) + "}"
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def _quoted(value: str) -> str:
    if value.isalnum() and value.isascii() and value.upper() != "NULL":
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


class Transaction:
    """Statements that happen together or not at all. On PostgreSQL they are sent as they come, and waited for only where
    an answer is asked for: an error may show at a later statement, at the end at the latest."""

    def __init__(self, connection: Any, *, postgresql: bool) -> None:
        self._connection = connection
        self._cursor = connection.cursor()
        self.is_postgresql = postgresql
        self._translate = _for_postgresql if self.is_postgresql else _for_sqlite

    def rows(self, sql: str, /, **values: Any) -> list[Row]:
        """The answer's rows, as tuples."""
        self._execute(sql, values)
        found: list[Row] = self._cursor.fetchall()
        return found

    def one(self, sql: str, /, **values: Any) -> Row | None:
        """The answer's first row, if it has one."""
        self._execute(sql, values)
        found: Row | None = self._cursor.fetchone()
        return found

    def several(self, *questions: tuple[str, dict[str, Any]]) -> list[list[Row]]:
        """The rows of several questions that do not depend on each other's answers, for one wait."""
        cursors = []
        for sql, values in questions:
            self._execute(sql, values)
            cursors.append(self._cursor)
            self._cursor = self._connection.cursor()
        return [cursor.fetchall() for cursor in cursors]

    def run(self, sql: str, /, **values: Any) -> int:
        """Carry it out; return how many rows it touched."""
        self._execute(sql, values)
        if self.is_postgresql:
            self._hear()
        return int(self._cursor.rowcount)

    def tell(self, sql: str, /, **values: Any) -> None:
        """Carry it out, whatever it touches."""
        self._execute(sql, values)

    def insert(self, table: str, /, **values: Any) -> int:
        """Insert one row into a table with an `id`; return its number."""
        names = ", ".join(values)
        marks = ", ".join(f":{name}" for name in values)
        row = self.one(f"INSERT INTO {table} ({names}) VALUES ({marks}) RETURNING id", **values)
        assert row is not None
        return int(row[0])

    def insert_many(self, table: str, columns: tuple[str, ...], rows: Sequence[Row], conflict: str = "") -> None:
        """Insert rows; `conflict` is an ON CONFLICT clause, the same in both dialects."""
        if rows:
            self._many(table, columns, _insert_statement(table, columns, conflict, self.is_postgresql), rows)

    def update_many(self, table: str, key: str, columns: tuple[str, ...], rows: Sequence[Row]) -> None:
        """Set `columns` where `key` is a row's last value. Keys must not repeat."""
        if rows:
            statement = _update_statement(table, key, columns, self.is_postgresql)
            self._many(table, (*columns, key), statement, rows)

    def add_many(self, table: str, key: str, columns: tuple[str, ...], rows: Sequence[Row]) -> None:
        """Add to `columns` where `key` is a row's last value, in the keys' order so that writers never cross."""
        if rows:
            statement = _add_statement(table, key, columns, self.is_postgresql)
            self._many(table, (*columns, key), statement, sorted(rows, key=lambda row: row[-1]))

    def lock(self) -> str:
        """What to end a SELECT with so that its rows cannot change before this transaction ends."""
        return "FOR UPDATE" if self.is_postgresql else ""

    def _hear(self) -> None:
        """Wait for the answers to everything so far. The driver's own `sync` waits for ever when what it has to send does
        not fit the socket; a fetch sends all of it first."""
        self._connection.cursor().execute("SELECT 1").fetchone()

    def _execute(self, sql: str, values: dict[str, Any]) -> None:
        if self.is_postgresql:
            # What a cursor was asked before may not have been answered yet.
            self._cursor = self._connection.cursor()
        else:
            values = {name: _json(value) if isinstance(value, list) else value for name, value in values.items()}
        self._cursor.execute(self._translate(sql), values)

    def _many(self, table: str, columns: tuple[str, ...], statement: str, rows: Sequence[Row]) -> None:
        if self.is_postgresql:
            kinds = _array_types(table, columns)
            arrays = [_array(kind, column) for kind, column in zip(kinds, zip(*rows, strict=True), strict=True)]
            self._connection.cursor().execute(statement, arrays)
        else:
            self._cursor.executemany(statement, rows)


def _json(value: list[Any]) -> str:
    return msgspec.json.encode(value).decode()


class Database:
    """One site's database. `url` is sqlite:///PATH or postgresql://..."""

    def __init__(self, url: str, *, connections: int = 8) -> None:
        self.is_postgresql = url.startswith(("postgresql://", "postgres://"))
        self.url = url
        if self.is_postgresql:
            target = "postgresql+psycopg://" + url.split("://", 1)[1]
            self._engine = sqlalchemy.create_engine(
                target,
                pool_size=connections,
                max_overflow=8,
                pool_recycle=1800,
                pool_reset_on_return=None,
                pool_use_lifo=True,
            )
            sqlalchemy.event.listen(self._engine, "checkout", _check_after_rest)
            sqlalchemy.event.listen(self._engine, "checkin", _note_use)
        elif url.startswith("sqlite:///"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            self._engine = sqlalchemy.create_engine(
                url,
                poolclass=sqlalchemy.pool.QueuePool,  # also for a database in memory, as simulations have it
                pool_size=connections,
                max_overflow=8,
                connect_args={"check_same_thread": False, "isolation_level": None, "cached_statements": 512},
            )
            sqlalchemy.event.listen(self._engine, "connect", sqlite.prepare)
        else:
            raise StoreError(f"{url!r} names no database: use sqlite:///PATH or postgresql://USER@HOST/NAME")
        # SQLite has one writer: waiting for each other here is fairer and faster than its busy loop.
        self._writer: Any = None if self.is_postgresql else threading.RLock()

    @contextmanager
    def begin(self) -> Iterator[Transaction]:
        """A transaction that may write: committed at the end, rolled back if anything is raised."""
        if self._writer is None:
            with self._transaction("BEGIN") as transaction:
                yield transaction
            return
        with self._writer, self._transaction("BEGIN IMMEDIATE") as transaction:
            yield transaction

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A transaction that only reads, beside any writer."""
        with self._transaction("BEGIN") as transaction:
            yield transaction

    @contextmanager
    def _transaction(self, start: str) -> Iterator[Transaction]:
        connection = self._connect()
        driver: Any = connection.driver_connection
        try:
            if self.is_postgresql:
                with _pipelined(driver) as transaction:
                    yield transaction
            else:
                driver.execute(start)
                yield Transaction(driver, postgresql=False)
                driver.commit()
        except BaseException as error:
            _roll_back(driver)
            is_lost = self.is_postgresql and driver.closed
            if is_lost:
                connection.invalidate()
                self._engine.dispose()  # what else rests in the pool was lost with it
            told = _told(error, is_lost)
            if told is None:
                raise
            raise told from error
        finally:
            connection.close()

    def _connect(self) -> sqlalchemy.PoolProxiedConnection:
        try:
            return self._engine.raw_connection()
        except (sqlalchemy.exc.SQLAlchemyError, psycopg.Error, sqlite3.Error) as error:
            raise DatabaseUnavailable(f"the database does not answer: {error}") from error

    @contextmanager
    def leadership(self, name: str) -> Iterator[bool]:
        """Whether this process is the one to do `name` now: of several on PostgreSQL, one is; on SQLite, always."""
        if not self.is_postgresql:
            yield True
            return
        number = int.from_bytes(name.encode()[:7].ljust(7, b"\0"), "big")
        connection = self._connect()
        driver: Any = connection.driver_connection
        try:
            held = driver.execute("SELECT pg_try_advisory_lock(%s)", (number,)).fetchone() == (True,)
            driver.commit()
            yield held
            if held:
                driver.execute("SELECT pg_advisory_unlock(%s)", (number,))
                driver.commit()
        except BaseException as error:
            # With the connection goes the lock, whatever state it is in.
            connection.invalidate()
            told = _told(error, is_lost=bool(driver.closed))
            if told is None:
                raise
            raise told from error
        finally:
            connection.close()

    def notifications(self, channel: str, seconds: float, is_over: Callable[[], bool]) -> Iterator[str]:
        """What other processes announce, until `is_over`, which is asked every so many seconds. PostgreSQL only."""
        try:
            with psycopg.connect(self.url, autocommit=True) as connection:
                connection.execute(f"LISTEN {channel}")
                while not is_over():
                    for notice in connection.notifies(timeout=seconds):
                        yield notice.payload
        except psycopg.OperationalError as error:
            raise DatabaseUnavailable(f"the database does not answer: {error}") from error

    def migrate(self, revision: str = "head") -> None:
        """Bring the tables up to date (or to `revision`); nothing happens when they are. A step is taken whole or not at
        all."""
        try:
            steps.take(self._engine, revision)
        except steps.UnknownStep as error:
            raise StoreError(f"the tables are not of this release ({error}): run the release that made them") from error
        except (sqlalchemy.exc.OperationalError, psycopg.OperationalError, sqlite3.OperationalError) as error:
            raise DatabaseUnavailable(f"the database does not answer: {error}") from error

    def revision(self) -> str | None:
        """The migration the tables are at."""
        return steps.current(self._engine)

    @property
    def engine(self) -> sqlalchemy.Engine:
        """For the tests of the tables themselves."""
        return self._engine

    def size_bytes(self) -> int:
        """How much disk the database takes."""
        with self.read() as transaction:
            if self.is_postgresql:
                row = transaction.one("SELECT pg_database_size(current_database())")
            else:
                row = transaction.one("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()")
        return int(row[0]) if row else 0

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def _told(error: BaseException, is_lost: bool) -> StoreError | None:
    """What a driver's error means to those who asked; None where it is somebody's own, or a mistake of ours."""
    if is_lost and isinstance(error, psycopg.Error):
        return DatabaseUnavailable(f"the database went away: {error}")
    if isinstance(error, psycopg.errors.DiskFull):
        return DatabaseFull(f"the disk under the database is full: {error}")
    if isinstance(error, sqlite3.OperationalError) and ("full" in str(error) or "disk I/O" in str(error)):
        return DatabaseFull(f"the disk under the database is full: {error}")
    if isinstance(error, _CONFLICTS):
        return Conflict(f"someone else changed the same first: {error}")
    if isinstance(error, _BAD_VALUES):
        return BadValue(f"the database cannot hold such a value: {error}")
    return None


_CONFLICTS = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.IntegrityError,
    sqlite3.IntegrityError,
)
_BAD_VALUES = (psycopg.errors.DataError, sqlite3.DataError, OverflowError, UnicodeEncodeError)


@contextmanager
def _pipelined(driver: Any) -> Iterator[Transaction]:
    """A transaction whose beginning and end wait for nothing of their own."""
    driver.autocommit = True  # or the driver would wait for a BEGIN of its own
    with driver.pipeline():
        transaction = Transaction(driver, postgresql=True)
        transaction.tell("BEGIN")
        yield transaction
        end = driver.cursor()
        end.execute("COMMIT")
    if end.statusmessage != "COMMIT":
        raise StoreError("the transaction was rolled back: one of its statements had failed")
    driver.autocommit = False


def _check_after_rest(connection: Any, record: Any, _proxy: object) -> None:
    """Whether a connection nobody has used for a while still stands. Its error makes the pool open another."""
    if time.monotonic() - record.info.get("used_at", time.monotonic()) < REST_SECONDS:
        return
    try:
        connection.execute("SELECT 1")
        connection.rollback()
    except psycopg.Error as error:
        raise sqlalchemy.exc.DisconnectionError(str(error)) from error


def _note_use(_connection: object, record: Any) -> None:
    record.info["used_at"] = time.monotonic()


def _roll_back(driver: Any) -> None:
    try:
        driver.rollback()
        if isinstance(driver, psycopg.Connection):
            driver.autocommit = False
    except (sqlite3.Error, psycopg.Error):
        # The connection is lost, and with it the transaction: the first error is the one to tell.
        return
