"""How the owner's commands reach a running agent: a socket in its data folder that only its owner may open."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

_ANSWER_SECONDS = 60.0
_LAST_WORDS_SECONDS = 2.0


class NotRunning(Exception):
    """No agent runs in this data folder."""


class Command(Struct, frozen=True):
    """What the owner wants: "status", "suspend", "resume" or "detach"."""

    verb: str


class Reply(Struct, kw_only=True, omit_defaults=True):
    """What the agent says to it."""

    ok: bool = True
    message: str = ""
    status: dict[str, Any] | None = None


@contextlib.contextmanager
def _short_path(folder: Path, name: str) -> Iterator[str]:
    """A path to the socket that is short enough for the system, however deep the folder lies."""
    if not Path("/proc/self/fd").is_dir():
        yield str(folder / name)
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


class Control:
    """Listens for commands and has them answered."""

    def __init__(self, folder: Path, name: str, answer: Callable[[Command], Reply]) -> None:
        self._path = folder / name
        self._answer = answer
        self._hearing: set[threading.Thread] = set()
        self._path.unlink(missing_ok=True)  # of an agent that was killed: the folder's lock says that none runs
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _short_path(folder, name) as path:
            self._socket.bind(path)
        self._path.chmod(0o600)
        self._socket.listen(8)
        threading.Thread(target=self._serve, daemon=True, name="control").start()

    def close(self) -> None:
        """Take no more commands, and answer those that were heard."""
        self._path.unlink(missing_ok=True)
        self._socket.close()
        for hearing in list(self._hearing):
            hearing.join(_LAST_WORDS_SECONDS)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # closed
            hearing = threading.Thread(target=self._hear, args=(connection,), daemon=True, name="command")
            self._hearing.add(hearing)
            hearing.start()

    def _hear(self, connection: socket.socket) -> None:
        try:
            self._converse(connection)
        finally:
            self._hearing.discard(threading.current_thread())

    def _converse(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as stream:
            try:
                reply = self._answer(msgspec.json.decode(stream.readline(), type=Command))
            except msgspec.MsgspecError as error:
                reply = Reply(ok=False, message=f"the command cannot be read: {error}")
            with contextlib.suppress(BrokenPipeError):  # who asked has gone away
                stream.write(msgspec.json.encode(reply) + b"\n")
                stream.flush()


def tell(folder: Path, name: str, verb: str) -> Reply:
    """Say something to the agent running in this folder."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_ANSWER_SECONDS)
        try:
            with _short_path(folder, name) as path:
                connection.connect(path)
        except OSError as error:
            raise NotRunning(f"no agent runs in {folder}. Start one: distributio host run") from error
        with connection.makefile("rwb") as stream:
            stream.write(msgspec.json.encode(Command(verb)) + b"\n")
            stream.flush()
            line = stream.readline()
    if not line:
        raise NotRunning(f"the agent in {folder} ended without an answer.")
    return msgspec.json.decode(line, type=Reply)
