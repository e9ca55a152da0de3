"""How a program and the BOINC client that runs it speak: files in a slot, and eight mailboxes in shared memory.

Only the standard library is imported; this is part of the program for BOINC clients (boinc_task.py).
"""

import fcntl
import mmap
import os
import re
import sys
import threading
import time
from pathlib import Path

_MAILBOXES = (
    "control", "control_reply", "graphics_request", "graphics_reply", "heartbeat", "status", "trickle_up", "trickle_down",
)  # fmt: skip
_SIZE = 1024
_POLL_SECONDS = 0.1
_SOFT_LINK = re.compile(rb"<soft_link>(.*?)</soft_link>", re.DOTALL)

ABORTED = 194
CHILD_FAILED = 195
INIT_FAILURE = 206


class SlotTaken(Exception):
    """Another process works in this slot."""


class Slot:
    """The slot this program was started in. `quit`, `abort` and `suspended` are what the client wants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = os.open(folder / "boinc_lockfile", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise SlotTaken(f"{folder}: {SlotTaken.__doc__}") from error
        self._init = (folder / "init_data.xml").read_text(errors="replace")
        self._memory: mmap.mmap | None = None
        if (folder / "boinc_mmap_file").exists():
            with open(folder / "boinc_mmap_file", "r+b") as file:
                self._memory = mmap.mmap(file.fileno(), len(_MAILBOXES) * _SIZE)
        self.earlier_cpu_seconds = float(self.value("wu_cpu_time") or 0)
        self.client_pid = int(self.value("client_pid") or 0)
        self.quit = threading.Event()
        self.abort = threading.Event()
        self.suspended = threading.Event()
        self.may_end_at_once = True  # nothing runs that would have to be told first

    def close(self) -> None:
        """Let go of the slot."""
        if self._memory is not None:
            self._memory.close()
        os.close(self._lock)

    def value(self, tag: str) -> str:
        """What the client says under a name in init_data.xml."""
        match = re.search(f"<{tag}>(.*?)</{tag}>", self._init, re.DOTALL)
        return match[1].strip() if match else ""

    @property
    def project_folder(self) -> Path:
        """The folder in which the client keeps this site's files."""
        return Path(self.value("project_dir") or self.folder)

    def resolve(self, name: str) -> Path:
        """Where a file really is: the client puts a line of text with the place in its stead."""
        path = self.folder / name
        if path.is_symlink() or not path.is_file():
            return path
        with open(path, "rb") as file:
            match = _SOFT_LINK.match(file.read(4096))
        return (self.folder / os.fsdecode(match[1])).resolve() if match else path

    # --- mailboxes ----------------------------------------------------------------------------------------------

    def take(self, mailbox: str) -> str:
        """A message from the client, if there is one."""
        if self._memory is None:
            return ""
        at = _MAILBOXES.index(mailbox) * _SIZE
        if not self._memory[at]:
            return ""
        message = self._memory[at + 1 : at + _SIZE].split(b"\0")[0].decode("latin-1")
        self._memory[at] = 0
        return message

    def put(self, mailbox: str, message: str) -> bool:
        """Leave a message; False while the client has not read the last one."""
        if self._memory is None:
            return False
        at = _MAILBOXES.index(mailbox) * _SIZE
        if self._memory[at]:
            return False
        data = message.encode()[: _SIZE - 2] + b"\0"
        self._memory[at + 1 : at + 1 + len(data)] = data
        self._memory[at] = 1
        return True

    def report(self, cpu_seconds: float, checkpoint_cpu_seconds: float, fraction: float) -> None:
        """Tell the client how far it is. A fraction of 0 is not believed, and the client guesses."""
        self.put(
            "status",
            f"<current_cpu_time>{self.earlier_cpu_seconds + cpu_seconds:e}</current_cpu_time>\n"
            f"<checkpoint_cpu_time>{self.earlier_cpu_seconds + checkpoint_cpu_seconds:e}</checkpoint_cpu_time>\n"
            f"<fraction_done>{fraction:e}</fraction_done>\n",
        )

    def listen(self) -> None:
        """Hear what the client wants, in a thread, from now on."""
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            time.sleep(_POLL_SECONDS)
            self.take("heartbeat")
            message = self.take("control")
            if "<suspend/>" in message:
                self.suspended.set()
            if "<resume/>" in message:
                self.suspended.clear()
            if "<quit/>" in message or not self._client_lives():
                self.quit.set()
            if "<abort/>" in message:
                self.abort.set()
            if self.may_end_at_once and self.abort.is_set():
                self.finish(ABORTED)
            if self.may_end_at_once and self.quit.is_set():
                os._exit(0)

    def _client_lives(self) -> bool:
        if not self.client_pid:
            return True
        try:
            os.kill(self.client_pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    # --- the end ------------------------------------------------------------------------------------------------

    def finish(self, status: int) -> None:
        """End for good. Without this mark the client would start the program again."""
        with open(self.folder / "boinc_finish_called", "w") as mark:
            mark.write(f"{status}\n")
            mark.flush()
            os.fsync(mark.fileno())
        sys.stderr.flush()
        os._exit(status)
