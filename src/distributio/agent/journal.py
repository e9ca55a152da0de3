"""What of an agent's work survives kill -9 and power loss.

A file of JSON lines: each says how a task stands now, or that it is done with. A line is written before the action it
announces, and forced to the disk where losing it with the power would lose work that was done. A last line that was cut
is dropped; it announced something that had not begun.
"""

import fcntl
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Struct

from distributio.agent.work import Held

_COMPACT_AFTER_LINES = 2_000  # beyond what is held: about a megabyte


class JournalError(Exception):
    """The journal cannot be kept; the message says why and what to do."""


class Line(Struct, frozen=True, omit_defaults=True):
    """One line: a task as it stands, or the number of one that is done with."""

    put: Held | None = None
    drop: int | None = None


class FolderLock:
    """One agent at a time works in a data folder. The system lets go of the lock when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self._file: IO[str] = (folder / "lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise JournalError(
                f"another agent (process {holder}) already works in {folder}. Stop it first, or give this one a folder "
                "of its own with --data."
            ) from error
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Let another agent in."""
        self._file.close()


class Journal:
    """The tasks this host holds, in memory and on the disk. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._held: dict[int, Held] = {}
        self._lines = 0
        self._encoder = msgspec.json.Encoder()
        self.damaged_lines = 0  # unreadable ones that were not the last: the disk has lost something
        whole = self._read()
        self._file = path.open("ab", buffering=0)
        if whole < path.stat().st_size:
            self._file.truncate(whole)
            os.fsync(self._file.fileno())
        self._sync_folder()

    @property
    def held(self) -> dict[int, Held]:
        """All tasks by number, as they stand."""
        with self._lock:
            return dict(self._held)

    def get(self, task: int) -> Held | None:
        """One task, if it is held."""
        with self._lock:
            return self._held.get(task)

    def put(self, held: Iterable[Held], *, durable: bool = True) -> None:
        """Note how these tasks stand. Without `durable` the line may be lost with the power, not with the process."""
        batch = list(held)
        with self._lock:
            self._append([Line(put=one) for one in batch], durable=durable)
            self._held.update({one.task: one for one in batch})
            self._compact_when_long()

    def drop(self, tasks: Iterable[int]) -> None:
        """These tasks are done with."""
        with self._lock:
            known = [task for task in tasks if task in self._held]
            self._append([Line(drop=task) for task in known], durable=bool(known))
            for task in known:
                del self._held[task]
            self._compact_when_long()

    def close(self) -> None:
        """Nothing more will be noted."""
        with self._lock:
            self._file.close()

    def _append(self, lines: list[Line], *, durable: bool) -> None:
        data = b"".join(self._encoder.encode(line) + b"\n" for line in lines)
        end = self._file.seek(0, os.SEEK_END)
        try:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) or 0 :]
            if durable:
                os.fsync(self._file.fileno())
        except OSError as error:
            self._cut_back(end)
            raise JournalError(
                f"cannot write {self._path}: {error.strerror}. Make room on the disk and start again."
            ) from error
        self._lines += len(lines)

    def _cut_back(self, end: int) -> None:
        """Half a line would spoil the next one. If even this fails, reading tolerates it as a torn last line."""
        try:
            self._file.truncate(end)
        except OSError:
            self._file.close()

    def _read(self) -> int:
        """Take in the file; return how many bytes of it are whole lines."""
        if not self._path.exists():
            return 0
        data = self._path.read_bytes()
        decoder = msgspec.json.Decoder(Line)
        position = 0
        for raw in data.splitlines(keepends=True):
            line = self._decode(decoder, raw)
            at_end = position + len(raw) == len(data)
            if line is None and at_end:
                return position
            position += len(raw)
            if line is None:
                self.damaged_lines += 1
                continue
            self._lines += 1
            if line.put is not None:
                self._held[line.put.task] = line.put
            if line.drop is not None:
                self._held.pop(line.drop, None)
        return position

    @staticmethod
    def _decode(decoder: "msgspec.json.Decoder[Line]", raw: bytes) -> Line | None:
        if not raw.endswith(b"\n"):
            return None
        try:
            return decoder.decode(raw)
        except msgspec.MsgspecError:
            return None

    def _compact_when_long(self) -> None:
        if self._lines < len(self._held) * 2 + _COMPACT_AFTER_LINES:
            return
        fresh = self._path.with_suffix(".new")
        with fresh.open("wb") as file:
            for held in self._held.values():
                file.write(self._encoder.encode(Line(put=held)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        self._sync_folder()
        self._file.close()
        self._file = self._path.open("ab", buffering=0)
        self._lines = len(self._held)

    def _sync_folder(self) -> None:
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
