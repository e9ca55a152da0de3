"""Many clients in one thread, each with a new connection for every request, as hosts that come and go have them.

Plain sockets and one epoll: the generator shares the cores with what it measures, so it has to be cheap.
"""

import select
import socket
import time
from collections.abc import Callable
from typing import Any

from msgspec import Struct

Address = tuple[str, int]
WAIT_SECONDS = 60.0


class Refused(RuntimeError):
    """The server did not answer as it should; the message holds what it said."""


class Question(Struct):
    """A request as it goes over the wire, and what its asker wants to know when the answer comes."""

    data: bytes
    about: Any = None


class Timed(Struct, kw_only=True):
    """How a load went."""

    seconds: float
    latencies: list[float]


class _Client(Struct):
    sock: socket.socket
    question: Question
    started: float
    left: memoryview
    parts: list[bytes]
    awaited: int = -1  # bytes still to come; -1 before the headers are there


Ask = Callable[[], Question | None]
Tell = Callable[[Any, int, bytes], None]


def drive(address: Address, clients: int, ask: Ask, tell: Tell, until: Callable[[], bool]) -> Timed:
    """Keep so many clients busy until `until` holds or `ask` has nothing more; then let those that wait finish."""
    poll = select.epoll()
    busy: dict[int, _Client] = {}
    latencies: list[float] = []
    started = time.perf_counter()

    def fill() -> None:
        while len(busy) < clients and not until():
            question = ask()
            if question is None:
                return
            client = _connect(address, question)
            busy[client.sock.fileno()] = client
            poll.register(client.sock.fileno(), select.EPOLLIN | (select.EPOLLOUT if client.left else 0))

    fill()
    while busy:
        ready = poll.poll(WAIT_SECONDS)
        if not ready:
            raise Refused(f"no answer within {WAIT_SECONDS:.0f} seconds; {len(busy)} clients wait")
        for number, events in ready:
            client = busy[number]
            if client.left and events & select.EPOLLOUT:
                client.left = client.left[client.sock.send(client.left) :]
                if not client.left:
                    poll.modify(number, select.EPOLLIN)
            if events & ~select.EPOLLOUT and _receive(client):
                latencies.append(time.perf_counter() - client.started)
                poll.unregister(number)
                del busy[number]
                client.sock.close()
                status, body = _answer(b"".join(client.parts))
                tell(client.question.about, status, body)
        fill()
    poll.close()
    return Timed(seconds=time.perf_counter() - started, latencies=latencies)


def _connect(address: Address, question: Question) -> _Client:
    started = time.perf_counter()
    sock = socket.socket()
    sock.connect(address)  # at once: the server's kernel accepts for it
    sock.setblocking(False)
    data = memoryview(question.data)
    try:
        sent = sock.send(data)
    except BlockingIOError:
        sent = 0
    return _Client(sock, question, started, data[sent:], [])


def _receive(client: _Client) -> bool:
    """Take what came; return whether the answer is whole."""
    try:
        data = client.sock.recv(262_144)
    except BlockingIOError:
        return False
    if not data:
        if client.awaited < 0:
            raise Refused(f"the connection was cut after {b''.join(client.parts)[:300]!r}")
        return True
    client.parts.append(data)
    if client.awaited < 0:
        whole = b"".join(client.parts)
        end = whole.find(b"\r\n\r\n")
        if end < 0:
            return False
        client.awaited = _length(whole[:end]) + end + 4 - len(whole)
    else:
        client.awaited -= len(data)
    return client.awaited <= 0


def _length(headers: bytes) -> int:
    lowered = headers.lower()
    at = lowered.find(b"\r\ncontent-length:")
    if at < 0:
        return 0
    return int(lowered[at + 17 :].split(b"\r\n", 1)[0])


def _answer(data: bytes) -> tuple[int, bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head[9:12]), body


def request(method: str, path: str, authorization: str, body: bytes = b"", more: str = "") -> bytes:
    """An HTTP request on a connection of its own."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: site\r\nConnection: close\r\nAuthorization: {authorization}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    )
    return head.encode() + body


def call(address: Address, data: bytes, expected: int = 200) -> bytes:
    """One request and its answer's body."""
    bodies: list[bytes] = []
    questions = [Question(data)]

    def tell(_about: Any, status: int, body: bytes) -> None:
        if status != expected:
            raise Refused(f"{data[:80]!r}: {status} {body[:600]!r}")
        bodies.append(body)

    drive(address, 1, lambda: questions.pop() if questions else None, tell, lambda: False)
    return bodies[0]
