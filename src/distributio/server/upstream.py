"""How an image's pieces are fetched from a registry, by the Distribution API.

Interrupted downloads go on where they stopped. Plain HTTP is spoken to registries on this machine only, and a registry
cannot send us elsewhere over it. Nothing here believes a byte: whoever asked checks digests.
"""

import ipaddress
import re
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self
from urllib.parse import urljoin, urlsplit

import httpx2
import msgspec
from msgspec import Struct

from distributio import __version__
from distributio.server.intake import ImageError, damaged
from distributio.wire import oci

_HUB_HOST = "registry-1.docker.io"
_TIMEOUT = httpx2.Timeout(30.0, connect=10.0)
_PATIENCE = 4  # attempts in a row that bring nothing
_PROGRESS = 64 << 10  # bytes that make an attempt count as one that brought something
_REDIRECTS = 5


class Login(Struct, frozen=True):
    """A name and password, or token, at a registry."""

    user: str
    password: str


class Registries(Struct, frozen=True, kw_only=True):
    """What the operator says about registries, each by its name in images' names: docker.io, localhost:5000."""

    logins: dict[str, Login] = {}
    mirrors: dict[str, str] = {}  # an address to ask instead, such as https://mirror.example
    allow_loopback: bool = True


class _Answer(Struct):
    """A token service's answer."""

    token: str = ""
    access_token: str = ""


class Upstream:
    """One repository of a registry."""

    def __init__(
        self, reference: oci.Reference, registries: Registries, wait: Callable[[float], None] = time.sleep
    ) -> None:
        self.reference = reference
        self._wait = wait
        self._login = registries.logins.get(reference.registry)
        self._base = registries.mirrors.get(reference.registry) or _address(reference.registry)
        self._is_loopback = _is_loopback(_host(self._base))
        if self._is_loopback and not registries.allow_loopback:
            raise ImageError(
                "image-denied", f"{reference}: this site does not fetch from registries on its own machine."
            )
        _check_address(self._base, self._is_loopback)
        self._authorization = ""
        self._client = httpx2.Client(
            timeout=_TIMEOUT,
            trust_env=not self._is_loopback,
            headers={"User-Agent": f"distributio/{__version__}", "Accept-Encoding": "identity"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def manifest(self, pointer: str) -> bytes:
        """The manifest or index of a tag or digest."""
        for attempt in range(_PATIENCE):
            try:
                return self._manifest(pointer)
            except _Again as problem:
                reason = problem.reason
                if problem.is_out_of_reach and attempt:
                    break
                self._wait(0.5 * 2**attempt)
        raise self._unreachable(reason)

    def blob(self, part: oci.Descriptor) -> Iterator[bytes]:
        """A blob's bytes. Goes on after interruptions for as long as something comes."""
        done = fruitless = 0
        while done < part.size:
            before, reason = done, "it sent nothing"
            try:
                for chunk in self._rest_of_blob(part, done):
                    done += len(chunk)
                    yield chunk
            except _Again as problem:
                reason = problem.reason
            fruitless = 0 if done - before >= _PROGRESS else fruitless + 1
            if done < part.size and fruitless >= _PATIENCE:
                raise self._unreachable(f"{done} of {part.size} bytes of {part.digest} came, then: {reason}")
            if done < part.size:
                self._wait(0.5 * 2**fruitless)

    def _manifest(self, pointer: str) -> bytes:
        with self._get(f"manifests/{pointer}", {"Accept": oci.ACCEPT}) as response:
            data = b""
            for chunk in _raw(response):
                data += chunk
                if len(data) > oci.DOCUMENT_BYTES:
                    raise ImageError("image-refused", f"{self.reference}: the registry's manifest is too large.")
            promised = response.headers.get("docker-content-digest", "")
            if oci.is_digest(promised) and promised != oci.digest_of(data):
                raise ImageError("image-damaged", f"{self.reference}: the manifest was damaged on the way. Try again.")
            return data

    def _rest_of_blob(self, part: oci.Descriptor, done: int) -> Iterator[bytes]:
        headers = {"Range": f"bytes={done}-"} if done else {}
        with self._get(f"blobs/{part.digest}", headers) as response:
            begin = _begin(response)
            if begin > done:
                raise damaged("Blob", part, "the registry does not go on where it was asked to")
            for chunk in _raw(response):
                # A registry that ignores ranges begins anew: what we have is skipped.
                fresh = chunk[max(0, done - begin) :]
                begin += len(chunk)
                if fresh:
                    done += len(fresh)
                    yield fresh

    def _get(self, path: str, headers: dict[str, str]) -> "_Response":
        url = f"{self._base}/v2/{self.reference.repository}/{path}"
        response = self._follow(url, headers)
        if response.status_code == 401 and (challenge := response.headers.get("www-authenticate")):
            response.close()
            self._authorization = self._authorize(challenge)
            response = self._follow(url, headers)
        if response.status_code in (200, 206):
            return _Response(response)
        with _Response(response):
            raise self._refusal(response)

    def _follow(self, url: str, headers: dict[str, str]) -> httpx2.Response:
        """Send, and follow redirections; the registry's own authorization goes to nobody else."""
        for _ in range(_REDIRECTS):
            own = {"Authorization": self._authorization} if self._authorization and self._is_ours(url) else {}
            try:
                response = self._client.send(
                    self._client.build_request("GET", url, headers={**headers, **own}), stream=True
                )
            except httpx2.TransportError as problem:
                raise _again(problem) from problem
            if response.status_code not in (301, 302, 303, 307, 308):
                return response
            response.close()
            url = urljoin(url, response.headers.get("location", ""))
            _check_address(url, self._is_loopback)
        raise ImageError("image-unreachable", f"{self.reference}: the registry sends us in circles.")

    def _is_ours(self, url: str) -> bool:
        return urlsplit(url)[:2] == urlsplit(self._base)[:2]

    def _authorize(self, challenge: str) -> str:
        scheme, _, rest = challenge.partition(" ")
        basic = httpx2.BasicAuth(self._login.user, self._login.password) if self._login else None
        if scheme.lower() == "basic" and basic:
            return str(next(basic.auth_flow(httpx2.Request("GET", self._base))).headers["Authorization"])
        if scheme.lower() != "bearer":
            return ""
        words = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        realm = words.get("realm", "")
        _check_address(realm, self._is_loopback)
        question = {"scope": words.get("scope") or f"repository:{self.reference.repository}:pull"}
        if "service" in words:
            question["service"] = words["service"]
        try:
            response = self._client.get(realm, params=question, auth=basic)
        except httpx2.TransportError as problem:
            raise _again(problem) from problem
        if response.status_code != 200:
            raise self._refusal(response)
        try:
            answer = msgspec.json.decode(response.content, type=_Answer)
        except msgspec.DecodeError as problem:
            raise self._unreachable(f"its token service answered what cannot be read ({problem})") from problem
        return f"Bearer {answer.token or answer.access_token}"

    def _refusal(self, response: httpx2.Response) -> Exception:
        status = response.status_code
        if status in (401, 403):
            advice = "Check the name; if it is private, give the site a login there, or " + self._detour()
            return ImageError(
                "image-denied", f"{self.reference.registry} does not give out {self.reference.short}. {advice}"
            )
        if status == 404:
            return ImageError(
                "image-not-found",
                f"{self.reference.registry} has no {self.reference.short}. Check the name and the tag.",
            )
        if status == 429:
            advice = "Wait, give the site a login there, or " + self._detour()
            return ImageError("image-rate-limited", f"{self.reference.registry} wants fewer requests. {advice}")
        if status >= 500:
            return _Again(f"it answered {status}")
        return self._unreachable(f"it answered {status}, which is not understood")

    def _unreachable(self, reason: str) -> ImageError:
        return ImageError(
            "image-unreachable",
            f"{self.reference.short} could not be fetched from {urlsplit(self._base).netloc}: {reason}."
            f" If the site cannot reach that registry, {self._detour()}",
        )

    def _detour(self) -> str:
        return f"bring the image yourself: docker save {self.reference.short} | distributio image import -"


class _Again(Exception):
    """It did not work this time; it may the next."""

    def __init__(self, reason: str, is_out_of_reach: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_out_of_reach = is_out_of_reach


class _Response:
    """Closes a response whatever happens."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response

    def __enter__(self) -> httpx2.Response:
        return self._response

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._response.close()


def _raw(response: httpx2.Response) -> Iterator[bytes]:
    try:
        yield from response.iter_raw()  # as it arrives: with a chunk size, what was gathered is lost when it breaks off
    except httpx2.TransportError as problem:
        raise _again(problem) from problem


def _begin(response: httpx2.Response) -> int:
    """The position of the answer's first byte."""
    if response.status_code != 206:
        return 0
    found = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
    return int(found[1]) if found else 0


def _again(problem: httpx2.TransportError) -> _Again:
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(problem).__name__).lower()
    reason = f"{kind}: {problem}" if str(problem) else kind
    return _Again(reason, isinstance(problem, httpx2.ConnectError | httpx2.ConnectTimeout))


def _address(registry: str) -> str:
    if registry == oci.DOCKER_HUB:
        return f"https://{_HUB_HOST}"
    return f"{'http' if _is_loopback(_host(f'//{registry}')) else 'https'}://{registry}"


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _ip(host)
    return address is not None and address.is_loopback


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _check_address(url: str, from_loopback: bool) -> None:
    """A registry may send us to other machines by HTTPS only, and back to our own only if it runs there."""
    scheme, host = urlsplit(url).scheme, _host(url)
    if from_loopback and _is_loopback(host) and scheme in ("http", "https"):
        return
    address = _ip(host)
    is_inside = _is_loopback(host) or (address is not None and (address.is_link_local or address.is_unspecified))
    if scheme != "https" or is_inside:
        raise ImageError(
            "image-denied", f"{url!r} is not asked: only https is spoken, plain http to registries on this machine."
        )
