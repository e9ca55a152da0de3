"""What is written in a task's slot, and by whom: the files through which an agent and a task's supervisor speak.

The agent writes the plan and its wishes (stop, suspended); the supervisor writes how it stands and how it ended. Whoever
holds the lock is the supervisor. Only the standard library is imported: the supervisor of every task loads this.
"""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

PLAN, LOG, PIDFILE = "plan.json", "log", "pid"
STARTED, STATE, ENDED, RECORD = "started.json", "state.json", "ended.json", "record.json"
STOP, SUSPENDED = "stop", "suspended"
LOCK = "lock"
AGAIN = "again"  # one byte for each supervisor that had to be started again
FILES = (PLAN, LOG, PIDFILE, STARTED, STATE, ENDED, RECORD, STOP, SUSPENDED, LOCK, AGAIN)


def write_whole(path: Path, value: object) -> None:
    """Write JSON so that a reader sees all of it or the one before."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    partial.replace(path)


def read_whole(path: Path) -> dict[str, Any] | None:
    """JSON written by `write_whole`, or None if there is none that can be read."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def try_lock(slot: Path) -> int | None:
    """Take the lock on a slot and return its descriptor; None when a supervisor holds it."""
    lock = os.open(slot / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def has_supervisor(slot: Path) -> bool:
    """Whether somebody holds the slot's lock."""
    if not (slot / LOCK).exists():
        return False
    lock = try_lock(slot)
    if lock is None:
        return True
    os.close(lock)
    return False
