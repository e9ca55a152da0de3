"""How a request reaches a site that may be restarting: with patience, where asking twice is harmless."""

import random
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx2
import msgspec

from distributio import __version__
from distributio.sdk.errors import SiteError, SiteUnreachable
from distributio.wire.native import Problem

PATIENCE_SECONDS = 30.0  # how long a restart of the site is waited for
FIRST_CONTACT_SECONDS = 10.0
CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0
LONG_READ_SECONDS = 1800.0  # answers that wait for an image to be fetched

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 3.0
_COMES_BACK = frozenset({502, 503, 504})  # a proxy before a site that is starting again
_TOO_MANY_REQUESTS = 429

T = TypeVar("T")
Body = bytes | Iterable[bytes] | None


class Backoff:
    """Pauses that grow, until patience is used up. Anything heard from the site renews it."""

    def __init__(self, patience_seconds: float) -> None:
        self.patience_seconds = patience_seconds
        self.renew()

    def renew(self) -> None:
        """The site has spoken: start counting anew."""
        self._since = time.monotonic()
        self._pause = _FIRST_PAUSE_SECONDS

    @property
    def waited_seconds(self) -> float:
        """How long nothing has been heard."""
        return time.monotonic() - self._since

    def pause(self, at_least: float = 0.0) -> bool:
        """Wait a little before asking again; False, at once, when patience is used up."""
        left = self.patience_seconds - self.waited_seconds
        if left <= 0 or at_least > left:
            return False
        length = max(at_least, self._pause * random.uniform(0.5, 1.0))  # apart, so that many do not return at once
        time.sleep(min(length, left))
        self._pause = min(self._pause * 2, _LONGEST_PAUSE_SECONDS)
        return True


class Transport:
    """Requests to one site with one token; errors come back as exceptions of this package."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        project: str | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
        on_retry: Callable[[str], None] | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.patience_seconds = patience_seconds
        self._on_retry = on_retry
        self._first_contact = True
        headers = {"User-Agent": f"distributio/{__version__}", "Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._http = httpx2.Client(
            base_url=self.url,
            headers=headers,
            params={"project": project} if project else {},
            timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
        )

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def backoff(self) -> Backoff:
        """A new count of this transport's patience."""
        return Backoff(self.patience_seconds)

    def ask(self, kind: type[T], method: str, path: str, **how: Any) -> T:
        """Send a request and return the answer as a value of this type."""
        return msgspec.json.decode(self.send(method, path, **how).content, type=kind)

    def send(
        self,
        method: str,
        path: str,
        *,
        body: Body = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str | int] | None = None,
        again: bool = True,
        accept: frozenset[int] = frozenset(),
        read_seconds: float = READ_SECONDS,
    ) -> httpx2.Response:
        """Send a request; return the answer when it is a success or one of `accept`. With `again`, a lost connection is
        not the end: the request is repeated, so it must be harmless to say twice."""
        # An address that has never answered is more likely wrong than restarting.
        most = FIRST_CONTACT_SECONDS if self._first_contact else self.patience_seconds
        backoff = Backoff(min(most, self.patience_seconds))
        while True:
            try:
                response = self._http.request(
                    method,
                    path,
                    content=body,
                    headers=dict(headers or {}),
                    params=_merged(params),
                    timeout=httpx2.Timeout(read_seconds, connect=CONNECT_SECONDS),
                )
            except httpx2.TransportError as error:
                never_sent = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
                if isinstance(error, httpx2.UnsupportedProtocol) or not (again or never_sent):
                    raise self.unreachable(error, backoff) from error
                self.pause_or_raise(backoff, error)
                continue
            self._first_contact = False
            if response.status_code < 400 or response.status_code in accept:
                return response
            if not self._worth_repeating(response, again, backoff):
                raise SiteError(problem_of(response))

    @contextmanager
    def open(self, method: str, path: str, *, headers: Mapping[str, str] | None = None) -> Generator[httpx2.Response]:
        """One streamed answer, no repeats: the caller knows where to go on from, and hears of lost connections."""
        with self._http.stream(method, path, headers=dict(headers or {})) as response:
            if response.status_code >= 400:
                response.read()
                raise SiteError(problem_of(response))
            yield response

    @contextmanager
    def events(
        self, path: str, *, params: Mapping[str, str | int], headers: Mapping[str, str] | None = None
    ) -> Generator[Iterator[httpx2.ServerSentEvent]]:
        """One stream of server-sent events, no repeats."""
        with self._http.sse(path, params=_merged(params), headers=dict(headers or {})) as source:
            response = source.response
            if response.status_code >= 400:
                response.read()
                raise SiteError(problem_of(response))
            yield iter(source)

    def pause_or_raise(self, backoff: Backoff, error: Exception, at_least: float = 0.0) -> None:
        """Wait before the next attempt; when patience is used up, say that the site is not there."""
        if self._on_retry is not None:
            self._on_retry(reason_of(error))
        if not backoff.pause(at_least):
            raise self.unreachable(error, backoff) from error

    def unreachable(self, error: Exception, backoff: Backoff) -> SiteUnreachable:
        """The error that says nobody answered."""
        return SiteUnreachable(self.url, reason_of(error), backoff.waited_seconds)

    def _worth_repeating(self, response: httpx2.Response, again: bool, backoff: Backoff) -> bool:
        # Asked to slow down, a request was not carried out: it can be said again whatever it is.
        refused_for_now = response.status_code == _TOO_MANY_REQUESTS or (again and response.status_code in _COMES_BACK)
        return refused_for_now and backoff.pause(_retry_after(response))


def is_passing(error: SiteError) -> bool:
    """Whether the refusal is of the moment: a site that starts, or is busy."""
    return error.status in _COMES_BACK or error.status == _TOO_MANY_REQUESTS


def problem_of(response: httpx2.Response) -> Problem:
    """The site's own words about an error; something readable where a proxy answered instead."""
    try:
        return msgspec.json.decode(response.content, type=Problem)
    except msgspec.MsgspecError:
        return Problem(
            title=f"The site answered {response.status_code} {response.reason_phrase}".rstrip(),
            status=response.status_code,
            code="not-a-site",
            detail=f"{response.request.method} {response.request.url} was not answered as a site answers",
            advice="Check that the address is that of a Distribut.io site",
        )


def reason_of(error: Exception) -> str:
    """A transport error in a few words."""
    text = re.sub(r"^\[Errno -?\d+\] ", "", str(error).strip()).rstrip(".")
    return text[:1].lower() + text[1:] if text else type(error).__name__


def _merged(params: Mapping[str, str | int] | None) -> dict[str, str | int] | None:
    # None keeps the client's own parameters; an empty mapping would erase them.
    return dict(params) if params else None


def _retry_after(response: httpx2.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("Retry-After", "0")))
    except ValueError:
        return 0.0
