"""What the bare database can do: the least that a durable job's life costs, in batches of 100, without any site around it."""

import itertools
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

from bench.sites import Cluster

BATCH = 100
CONNECTIONS = 4
PAYLOAD = "x" * 600
TABLE = "CREATE TABLE bare (id BIGINT PRIMARY KEY, state INTEGER NOT NULL, payload TEXT NOT NULL, host INTEGER, answer TEXT)"
INDEX = "CREATE INDEX bare_ready ON bare (id) WHERE state = 0"


def sqlite_lives(seconds: float) -> float:
    """Jobs a second through insert, claim, report, finish; each step a durable commit for 100 jobs."""
    with tempfile.TemporaryDirectory(prefix="bench-bare-") as folder:
        connection = sqlite3.connect(Path(folder, "bare.db"), isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "cache_size = -65536", "wal_autocheckpoint = 4000"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute(TABLE.replace("BIGINT", "INTEGER"))
        connection.execute(INDEX)
        started = time.perf_counter()
        first = done = 0
        while (elapsed := time.perf_counter() - started) < seconds:
            _sqlite_life(connection, first)
            first += BATCH
            done += BATCH
        connection.close()
        return done / elapsed


def _sqlite_life(connection: sqlite3.Connection, first: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    rows = [(first + n, PAYLOAD) for n in range(BATCH)]
    connection.executemany("INSERT INTO bare (id, state, payload) VALUES (?, 0, ?)", rows)
    connection.execute("COMMIT")
    connection.execute("BEGIN IMMEDIATE")
    found = connection.execute(f"SELECT id, payload FROM bare WHERE state = 0 ORDER BY id LIMIT {BATCH}").fetchall()
    ids = [(row[0],) for row in found]
    connection.executemany("UPDATE bare SET state = 1, host = 7 WHERE id = ?", ids)
    connection.execute("COMMIT")
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("UPDATE bare SET state = 2, answer = 'ok' WHERE id = ?", ids)
    connection.execute("COMMIT")
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("UPDATE bare SET state = 3 WHERE id = ?", ids)
    connection.execute("COMMIT")


def postgresql_lives(cluster: Cluster, seconds: float) -> float:
    """The same on PostgreSQL, over four connections."""
    url = cluster.create("bare")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(TABLE)  # type: ignore[arg-type]  # a constant of ours
        connection.execute(INDEX)  # type: ignore[arg-type]
    numbers = itertools.count(0, BATCH)
    done = [0] * CONNECTIONS
    started = time.perf_counter()

    def work(index: int) -> None:
        with psycopg.connect(url) as connection:
            while time.perf_counter() - started < seconds:
                done[index] += _postgresql_life(connection, next(numbers))

    _in_threads(work)
    return sum(done) / (time.perf_counter() - started)


def _in_threads(work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(index,)) for index in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _postgresql_life(connection: "psycopg.Connection[tuple[int]]", first: int) -> int:
    ids = list(range(first, first + BATCH))
    connection.execute(
        "INSERT INTO bare (id, state, payload) SELECT n, 0, %s FROM unnest(%s::bigint[]) n", (PAYLOAD, ids)
    )
    connection.commit()
    claimed = connection.execute(
        "UPDATE bare SET state = 1, host = 7 WHERE id IN (SELECT id FROM bare WHERE state = 0 ORDER BY id "
        "LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING id, payload",
        (BATCH,),
    ).fetchall()
    connection.commit()
    mine = [row[0] for row in claimed]
    connection.execute("UPDATE bare SET state = 2, answer = 'ok' WHERE id = ANY(%s)", (mine,))
    connection.commit()
    connection.execute("UPDATE bare SET state = 3 WHERE id = ANY(%s)", (mine,))
    connection.commit()
    return len(mine)
