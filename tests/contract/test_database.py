"""Statements, transactions and failures are the same on SQLite and on PostgreSQL."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from databases import Cluster
from distributio.lifecycle.model import TaskState
from distributio.server.ledger import Ids
from distributio.store import accounts
from distributio.store.database import Conflict, Database, DatabaseFull, DatabaseUnavailable, StoreError, Transaction

HOSTILE = [
    "",
    "100 % done",
    "%s %(name)s %%",
    "a:b ::text :name :1",
    'it\'s "quoted" `so`',
    "back\\slash \\n",
    "line\nand\ttab",
    "ünïcödé 🧬 \u202e",
    "$1 $$ {x} IN (:x...)",
]


def values(transaction: Transaction) -> dict[str, str]:
    return dict(transaction.rows("SELECT key, value FROM site"))  # type: ignore[arg-type]


def test_what_is_raised_rolls_back(database: Database) -> None:
    def fail() -> None:
        with database.begin() as transaction:
            accounts.set_site_value(transaction, "a", "1")
            raise KeyError("halt")

    with pytest.raises(KeyError, match="halt"):
        fail()
    with database.begin() as transaction:
        assert values(transaction) == {}
        accounts.set_site_value(transaction, "a", "2")
    with database.read() as transaction:
        assert values(transaction) == {"a": "2"}


def crossing(transaction: Transaction) -> None:
    for value in ("1", "2", "3"):
        transaction.insert_many("site", ("key", "value"), [("a", value)])


def test_a_failed_statement_leaves_the_connection_usable(database_url: str) -> None:
    database = Database(database_url, connections=1)
    for _ in range(3):
        with pytest.raises((sqlite3.OperationalError, psycopg.errors.UndefinedTable)), database.begin() as transaction:
            transaction.run("INSERT INTO nowhere (a) VALUES (:a)", a=1)
    for _ in range(3):
        with pytest.raises(Conflict), database.begin() as transaction:
            crossing(transaction)
    with database.begin() as transaction:
        assert values(transaction) == {}
        accounts.set_site_value(transaction, "a", "1")
    database.close()


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_comes_back_as_it_went(database: Database, text: str) -> None:
    with database.begin() as transaction:
        transaction.run("INSERT INTO site (key, value) VALUES (:key, :value)", key=f"k{text}", value=text)
        transaction.insert_many("site", ("key", "value"), [(f"m{text}", text)])
        assert transaction.one("SELECT value FROM site WHERE key = :key", key=f"k{text}") == (text,)
        assert transaction.rows("SELECT value FROM site WHERE key IN (:keys...)", keys=[f"m{text}"]) == [(text,)]


def test_signs_in_a_statement_are_its_own(database: Database) -> None:
    with database.begin() as transaction:
        accounts.set_site_value(transaction, "a:b", "50 %")
        assert transaction.one("SELECT value FROM site WHERE value LIKE '%!%%' ESCAPE '!'") == ("50 %",)
        assert transaction.one("SELECT 7 % :by, CAST(:text AS TEXT)", by=4, text="x") == (3, "x")


def test_lists_may_be_empty_long_and_with_hostile_words(database: Database) -> None:
    with database.begin() as transaction:
        transaction.insert_many("site", ("key", "value"), [(f"k{n}", str(n)) for n in range(5000)])
        found = "SELECT count(*) FROM site WHERE key IN (:keys...)"
        assert transaction.one(found, keys=[]) == (0,)
        assert transaction.one(found, keys=[f"k{n}" for n in range(0, 10_000, 2)]) == (2500,)
        assert transaction.one(found, keys=["k1", "k1", "'); DROP TABLE site; --"]) == (1,)
        transaction.insert_many("counters", ("name", "next"), [("x", 2**62)])
        assert transaction.rows("SELECT name FROM counters WHERE next IN (:n...)", n=[1, 2**62]) == [("x",)]


def test_many_rows_go_in_and_conflicts_are_passed_over(database: Database) -> None:
    with database.begin() as transaction:
        transaction.insert_many("site", ("key", "value"), [])
        transaction.insert_many("site", ("key", "value"), [("a", "1"), ("b", "2")])
        transaction.insert_many("site", ("key", "value"), [("b", "9"), ("c", "3")], "ON CONFLICT (key) DO NOTHING")
        transaction.insert_many(
            "site", ("key", "value"), [("c", "8")], "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        )
        assert values(transaction) == {"a": "1", "b": "2", "c": "8"}


def test_many_rows_are_changed_and_nulls_stay_nulls(database: Database) -> None:
    with database.begin() as transaction:
        columns = ("id", "job_id", "attempt", "state", "outcome", "validity", "queue_id", "rank")
        user = accounts.create_user(transaction, "u", 1.0)
        project = accounts.create_project(transaction, "p", 1.0)
        queue = transaction.insert("queues", project_id=project, shape="{}")
        batch = transaction.insert(
            "batches", project_id=project, user_id=user, queue_id=queue, name="", labels="{}", spec="{}", policy="{}",
            priority=0, created_at=1.0, request_digest="",
        )  # fmt: skip
        job = ("id", "batch_id", "position", "state", "quorum", "target_tasks", "reasons", "hand_over", "files")
        transaction.insert_many("jobs", job, [(1, batch, 1, "waiting", 1, 1, "", "not_ready", "kept")])
        rows: list[Any] = [(n, 1, n, TaskState.READY, "none", "unchecked", queue, 0) for n in (1, 2, 3)]
        transaction.insert_many("tasks", columns, rows)
        changes = ("state", "host_id", "sent_at", "exit_code", "cause")
        transaction.update_many("tasks", "id", changes, [])
        transaction.update_many(
            "tasks", "id", changes, [(TaskState.OVER, None, None, None, None, 3), ("over", 7, 1.5, -9, "a:%s", 1)]
        )
        assert transaction.rows("SELECT id, state, host_id, sent_at, exit_code, cause FROM tasks ORDER BY id") == [
            (1, "over", 7, 1.5, -9, "a:%s"),
            (2, "ready", None, None, None, None),
            (3, "over", None, None, None, None),
        ]
        transaction.add_many("queues", "id", ("ready",), [(5, queue)])
        transaction.add_many("queues", "id", ("ready",), [(-2, queue)])
        assert transaction.one("SELECT ready FROM queues") == (3,)
        transaction.insert_many("outputs", ("task_id", "bytes"), [(1, b"\x00\xff"), (2, b"")])
        assert [bytes(row[0]) for row in transaction.rows("SELECT bytes FROM outputs ORDER BY task_id")] == [
            b"\x00\xff", b"",
        ]  # fmt: skip


def test_a_value_no_database_can_hold_is_the_askers_mistake(database: Database) -> None:
    with pytest.raises(StoreError), database.begin() as transaction:
        transaction.insert_many("counters", ("name", "next"), [("x", 2**70)])
    if database.is_postgresql:
        with pytest.raises(StoreError), database.begin() as transaction:
            accounts.set_site_value(transaction, "a", "nul \0 in it")
    with database.begin() as transaction:
        assert values(transaction) == {}


def test_blocks_of_numbers_never_overlap(database: Database) -> None:
    ledgers = [Ids() for _ in range(4)]
    taken: list[range] = []
    lock = threading.Lock()

    def take(ids: Ids) -> None:
        for count in (1, 1, 2500, 3, 1999, 700):
            with database.begin() as transaction:
                first = ids.take(transaction, "tasks", count)
            with lock:
                taken.append(range(first, first + count))

    threads = [threading.Thread(target=take, args=(ids,)) for ids in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = [number for block in taken for number in block]
    assert len(numbers) == len(set(numbers))
    assert min(numbers) == 1


def test_numbers_of_a_failed_transaction_are_taken_anew(database: Database) -> None:
    ids = Ids()

    def fail() -> None:
        with database.begin() as transaction:
            ids.take(transaction, "jobs", 10)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    ids.forget()
    with database.begin() as transaction:
        assert ids.take(transaction, "jobs", 10) == 1
        assert ids.take(transaction, "jobs", 0) == 0


def test_a_reader_sees_nothing_that_is_not_committed(database: Database) -> None:
    with database.begin() as writer:
        accounts.set_site_value(writer, "a", "1")
        with database.read() as reader:
            assert values(reader) == {}


def test_one_process_leads(database: Database, database_url: str) -> None:
    other = Database(database_url)
    with database.leadership("deleter") as first:
        assert first
        with other.leadership("deleter") as second:
            assert second is not database.is_postgresql
        with other.leadership("assimilator") as third:
            assert third
    with other.leadership("deleter") as fourth:
        assert fourth
    other.close()


def test_sizes_and_revisions_are_known(database: Database) -> None:
    assert database.size_bytes() > 10_000
    assert database.revision() is not None
    database.migrate()


def test_an_address_of_nothing_is_refused() -> None:
    with pytest.raises(StoreError, match="names no database"):
        Database("mysql://x/y")


# --- SQLite -----------------------------------------------------------------------------------------------------


def test_a_full_disk_is_said_and_passes(sqlite_url: str) -> None:
    database = Database(sqlite_url, connections=1)

    def limit(pages: int) -> None:
        with database.read() as transaction:
            row = transaction.one("PRAGMA page_count")
            assert row is not None
            transaction.rows(f"PRAGMA max_page_count = {row[0] + pages}")

    def fill() -> None:
        with database.begin() as transaction:
            transaction.insert_many("site", ("key", "value"), [(f"k{n}", "x" * 4000) for n in range(200)])

    limit(4)
    with pytest.raises(DatabaseFull, match="full"):
        fill()
    limit(100_000)
    with database.read() as transaction:
        assert values(transaction) == {}
    fill()
    database.close()


def test_a_file_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    (tmp_path / "site.db").mkdir()
    database = Database(f"sqlite:///{tmp_path / 'site.db'}")
    with pytest.raises(DatabaseUnavailable), database.read() as transaction:
        transaction.one("SELECT 1")
    with pytest.raises(DatabaseUnavailable):
        database.migrate()


def test_writers_take_turns(sqlite_url: str) -> None:
    database = Database(sqlite_url)

    def add() -> None:
        for _ in range(50):
            with database.begin() as transaction:
                Ids().take(transaction, "x", 1)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as transaction:
        assert transaction.one("SELECT next FROM counters") == (1 + 200 * 2000,)
    database.close()


# --- PostgreSQL -------------------------------------------------------------------------------------------------


@pytest.fixture
def postgresql(postgresql_url: str) -> Iterator[Database]:
    database = Database(postgresql_url)
    yield database
    database.close()


def test_notifications_reach_others(postgresql: Database, postgresql_url: str) -> None:
    heard: list[str] = []
    listening, over = threading.Event(), threading.Event()

    def is_over() -> bool:
        listening.set()
        return over.is_set()

    def listen() -> None:
        for text in Database(postgresql_url).notifications("distributio", 0.05, is_over):
            heard.append(text)
            if text == "last":
                over.set()

    thread = threading.Thread(target=listen)
    thread.start()
    assert listening.wait(10)

    def fail() -> None:
        with postgresql.begin() as transaction:
            transaction.run("SELECT pg_notify('distributio', :text)", text="rolled back")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    for text in ("first", "last"):
        with postgresql.begin() as transaction:
            transaction.run("SELECT pg_notify('distributio', :text)", text=text)
    thread.join(10)
    assert heard == ["first", "last"]


def test_a_database_that_went_away_is_said_and_found_again(
    postgresql: Database, postgresql_url: str, cluster: Cluster
) -> None:
    with postgresql.begin() as transaction:
        accounts.set_site_value(transaction, "a", "1")

    def while_it_stops() -> None:
        with postgresql.begin() as transaction:
            accounts.set_site_value(transaction, "b", "1")
            cluster.stop()
            accounts.set_site_value(transaction, "c", "1")

    def while_it_leads() -> None:
        with postgresql.leadership("deleter"):
            pass

    with pytest.raises(DatabaseUnavailable):
        while_it_stops()
    for attempt in (postgresql.read, postgresql.begin):
        with pytest.raises(DatabaseUnavailable), attempt():
            pass
    with pytest.raises(DatabaseUnavailable):
        while_it_leads()
    with pytest.raises(DatabaseUnavailable):
        postgresql.migrate()
    with pytest.raises(DatabaseUnavailable):
        list(postgresql.notifications("distributio", 0.05, lambda: True))
    cluster.start()
    with postgresql.begin() as transaction:
        assert values(transaction) == {"a": "1"}
    with postgresql.leadership("deleter") as leads:
        assert leads


def test_a_leader_that_loses_the_database_leads_no_more(postgresql: Database, cluster: Cluster) -> None:
    def lead() -> None:
        with postgresql.leadership("deleter") as leads:
            assert leads
            cluster.stop()

    try:
        with pytest.raises(DatabaseUnavailable):
            lead()
    finally:
        cluster.start()
    with postgresql.leadership("deleter") as leads:
        assert leads


def test_a_deadlock_is_a_conflict_to_try_again(postgresql: Database) -> None:
    with postgresql.begin() as transaction:
        for key in ("a", "b"):
            accounts.set_site_value(transaction, key, "0")
    met = threading.Barrier(2)
    ends: list[str] = []

    def cross(first: str, second: str) -> None:
        try:
            with postgresql.begin() as transaction:
                accounts.set_site_value(transaction, first, "1")
                met.wait(10)
                accounts.set_site_value(transaction, second, "1")
            ends.append("done")
        except StoreError as error:
            ends.append(type(error).__name__)

    threads = [threading.Thread(target=cross, args=pair) for pair in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(ends) == ["Conflict", "done"]


def test_much_can_be_sent_before_an_answer_is_asked_for(database: Database) -> None:
    rows = [(number, bytes(200_000)) for number in range(100)]
    with database.begin() as transaction:
        transaction.insert_many("outputs", ("task_id", "bytes"), rows)
        assert transaction.run("DELETE FROM outputs WHERE task_id < :most", most=40) == 40
        transaction.insert_many("outputs", ("task_id", "bytes"), rows[:40])
    with database.read() as transaction:
        assert transaction.one("SELECT count(*) FROM outputs") == (100,)
