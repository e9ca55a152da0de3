"""Where an agent keeps what on its machine, and which site it has joined."""

import os
import shutil
from pathlib import Path

import msgspec
from msgspec import Struct

from distributio.agent.policy import OwnerPolicy, parse


class NotAttached(Exception):
    """This host has joined no site yet; the message says how to."""


class Membership(Struct, kw_only=True):
    """The site this host has joined, and its own key there. The owner's token is not kept."""

    url: str
    host: str
    key: str
    site_name: str
    name: str
    runner: str = "container"


class Folder:
    """The agent's data folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.membership_path = self.root / "site.json"
        self.policy_path = self.root / "policy.toml"
        self.suspended_path = self.root / "suspended"
        self.journal_path = self.root / "journal.jsonl"
        self.blobs = self.root / "blobs" / "sha256"
        self.layouts = self.root / "layouts"
        self.socket_name = "agent.sock"

    def create(self) -> None:
        """Make the folder, for its owner's eyes only."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in (self.blobs, self.layouts, self.root / "slots", self.root / "output"):
            path.mkdir(parents=True, exist_ok=True)

    def slot(self, task: int) -> Path:
        """The runner's private folder for a task."""
        return self.root / "slots" / str(task)

    def output(self, task: int) -> Path:
        """The task's results tar, once collected."""
        return self.root / "output" / str(task) / "results.tar"

    def log(self, task: int) -> Path:
        """What of the task's log had not been sent when it was collected; its name says from which offset on."""
        return self.root / "output" / str(task) / "log"

    def remove_task(self, task: int) -> None:
        """Nothing of the task remains."""
        for path in (self.slot(task), self.output(task).parent):
            shutil.rmtree(path, ignore_errors=True)

    def membership(self) -> Membership:
        """The site this host has joined."""
        try:
            return msgspec.json.decode(self.membership_path.read_bytes(), type=Membership)
        except FileNotFoundError as error:
            raise NotAttached(
                f"this host has joined no site ({self.membership_path} is missing). "
                "Join one: distributio host attach URL --token TOKEN"
            ) from error
        except msgspec.MsgspecError as error:
            raise NotAttached(
                f"{self.membership_path} is damaged ({error}). Remove it and join again: distributio host attach URL"
            ) from error

    def join(self, membership: Membership) -> None:
        """Keep the key, readable by its owner alone."""
        write_private(self.membership_path, msgspec.json.format(msgspec.json.encode(membership)))

    def leave(self) -> None:
        """Forget the key."""
        self.membership_path.unlink(missing_ok=True)

    def policy(self) -> OwnerPolicy:
        """The owner's policy; the default one if there is no file. Raises PolicyError."""
        try:
            return parse(self.policy_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return OwnerPolicy()

    @property
    def is_suspended(self) -> bool:
        """Whether its owner has suspended the host; this outlives the agent."""
        return self.suspended_path.exists()

    def suspend(self, suspended: bool) -> None:
        """Remember what the owner said."""
        if suspended:
            self.suspended_path.touch()
        else:
            self.suspended_path.unlink(missing_ok=True)


def write_private(path: Path, data: bytes) -> None:
    """Write a file that no one else may read, whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
