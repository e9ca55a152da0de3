"""How a connection to SQLite is made safe and quick."""

import sqlite3

SQLITE_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",  # NORMAL would lose answered requests with the power
    "PRAGMA foreign_keys = ON",
    "PRAGMA busy_timeout = 30000",
    "PRAGMA cache_size = -65536",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA mmap_size = 268435456",
    "PRAGMA wal_autocheckpoint = 4000",
)


def prepare(connection: sqlite3.Connection, _record: object) -> None:
    """Set up a new connection; called by the pool."""
    for pragma in SQLITE_PRAGMAS:
        connection.execute(pragma)
