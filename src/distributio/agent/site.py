"""How an agent speaks with its site, and what the site's silence or refusal means."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec

from distributio import __version__
from distributio.wire.native import Attach, Attached, HostFacts, LogAnswer, Problem, Turn, TurnAnswer

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 60.0
FIRST_PAUSE_SECONDS = 0.25
_PIECE_BYTES = 1 << 18


class SiteAway(Exception):
    """The site cannot be reached or is in trouble; what was said must be said again later."""

    def __init__(self, message: str, after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds


class Refused(Exception):
    """The site understood and said no; asking again changes nothing."""

    def __init__(self, status: int, problem: Problem, headers: Mapping[str, str]) -> None:
        parts = (problem.detail or problem.title, problem.advice)
        super().__init__(" ".join(part for part in parts if part))
        self.status = status
        self.code = problem.code
        self.headers = headers


class KeyUnknown(SiteAway):
    """The site does not know this host's key: it was detached there. Said once, it may be a broken proxy's word."""


def pause_seconds(failures: int, draw: random.Random, at_least: float = 0.0) -> float:
    """How long to wait after so many failures in a row: doubled each time, up to a minute, and scattered so that hosts do
    not come back all at once."""
    longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * float(2 ** min(failures - 1, 16)))
    return max(at_least, longest * draw.uniform(0.5, 1.0))


class Site:
    """Requests to one site in the name of one host. Safe to use from several threads."""

    def __init__(self, url: str, authorization: str) -> None:
        self.url = url.rstrip("/")
        self._http = httpx2.Client(
            base_url=self.url,
            headers={"Authorization": authorization, "User-Agent": f"distributio-host/{__version__}"},
            timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=64, max_keepalive_connections=8, keepalive_expiry=60.0),
        )

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def attach(self, facts: HostFacts) -> Attached:
        """Join as a new host; this site's authorization is a person's token."""
        return msgspec.json.decode(self._say("/api/v1/hosts", Attach(facts=facts)), type=Attached)

    def turn(self, turn: Turn) -> TurnAnswer:
        """Say everything at once and wait for an answer."""
        answer = self._say("/api/v1/host/turn", turn, read_seconds=turn.wait_seconds + READ_SECONDS)
        return msgspec.json.decode(answer, type=TurnAnswer)

    def detach(self) -> None:
        """Leave the site; its key is worth nothing from now on."""
        self.request("POST", "/api/v1/host/detach")

    def send_log(self, task: int, offset: int, data: bytes) -> int:
        """Append to a task's log at this offset; return how much of it the site holds now."""
        path = f"/api/v1/host/tasks/{task}/log"
        answer = self.request("POST", path, params={"offset": offset}, content=data)
        return msgspec.json.decode(answer.content, type=LogAnswer).size_bytes

    def is_alive(self) -> tuple[bool, str]:
        """Whether the site answers, and what it says the time is (an HTTP date)."""
        answer = self.request("GET", "/livez")
        return answer.is_success, answer.headers.get("Date", "")

    def request(self, method: str, path: str, **how: Any) -> httpx2.Response:
        """Send a request; return the answer if it is a success."""
        with _said_plainly(self.url):
            answer = self._http.request(method, path, **how)
        check(answer)
        return answer

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str]) -> Iterator[tuple[httpx2.Response, Iterator[bytes]]]:
        """Ask for bytes and read them as they come. They are taken as sent: a digest is over exactly those."""
        asked = {**headers, "Accept-Encoding": "identity"}
        with _said_plainly(self.url), self._http.stream("GET", path, headers=asked) as answer:
            if not answer.is_success:
                answer.read()
            check(answer)
            yield answer, answer.iter_raw(_PIECE_BYTES)

    def put_file(self, path: str, source: Path, offset: int, headers: Mapping[str, str]) -> httpx2.Response:
        """Send a file from an offset on."""
        length = source.stat().st_size - offset
        sized = {**headers, "Content-Length": str(length), "Content-Type": "application/octet-stream"}
        return self.request("PUT", path, content=_pieces(source, offset), headers=sized)

    def _say(self, path: str, message: Attach | Turn, read_seconds: float = READ_SECONDS) -> bytes:
        return self.request(
            "POST",
            path,
            content=msgspec.json.encode(message),
            headers={"Content-Type": "application/json"},
            timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS, read=read_seconds),
        ).content


def _pieces(source: Path, offset: int) -> Iterator[bytes]:
    with source.open("rb") as file:
        file.seek(offset)
        while piece := file.read(_PIECE_BYTES):
            yield piece


@contextmanager
def _said_plainly(url: str) -> Iterator[None]:
    try:
        yield
    except httpx2.ConnectError as error:
        raise SiteAway(f"{url} cannot be reached: {error or 'no connection'}") from error
    except httpx2.TimeoutException as error:
        raise SiteAway(f"{url} did not answer in time") from error
    except httpx2.TransportError as error:
        raise SiteAway(f"the connection to {url} broke: {error or type(error).__name__}") from error


def check(answer: httpx2.Response) -> None:
    """Raise what an answer that is no success means."""
    if answer.is_success:
        return
    status = answer.status_code
    problem = _problem(answer)
    if status == 401:
        raise KeyUnknown(f"{answer.url.host} does not know the key: {problem.detail or problem.title}")
    if status in (408, 429) or status >= 500:
        raise SiteAway(f"{answer.url.host} answered {status} {problem.title}".rstrip(), _retry_after(answer))
    raise Refused(status, problem, answer.headers)


def _retry_after(answer: httpx2.Response) -> float:
    value = answer.headers.get("Retry-After", "")
    return min(float(value), LONGEST_PAUSE_SECONDS) if value.isdigit() else 0.0


def _problem(answer: httpx2.Response) -> Problem:
    try:
        return msgspec.json.decode(answer.content, type=Problem)
    except msgspec.MsgspecError:
        # A proxy or another program answered: its words are the best there are.
        text = answer.text.strip().splitlines()
        title = text[0][:200] if text and not text[0].startswith("<") else answer.reason_phrase
        return Problem(title=title, status=answer.status_code, code="")
