"""Who looks at a page: the session cookie, and the proof that a form was sent from one of our own pages.

A session is a token with an end, made when somebody signs in; the cookie holds its secret and scripts cannot read it. Every
form carries a key that only a page of ours could know: a hash of the cookie. Before anybody has signed in, a cookie made for
nothing else takes the session's place.
"""

import hashlib
import hmac
import re
import secrets
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import Request
from starlette.responses import Response

from distributio.server.problems import Refused
from distributio.server.routes import Route
from distributio.server.site import Site
from distributio.store.accounts import Caller

ACCESS = frozenset({"visitor", "session"})  # the accesses of routes that are for browsers
SESSION_NAME = "web session"  # what such tokens are called in the list of a person's tokens
# One begun with a token that expires: what it makes expires with it, so that nobody makes his access longer than it is.
BOUND_SESSION_NAME = "web session of a token that expires"
SESSION_SECONDS = 14 * 86_400.0
KEY_FIELD = "form_key"
_MOST_FORM_BYTES = 65_536
_OWN_PATH = re.compile(r"/(?![/\\])[!-\[\]-~]*")  # printable, without a backslash: browsers read those as slashes


class SignInFirst(Exception):
    """The page is for people who are signed in. `back` is where they wanted to go."""

    def __init__(self, back: str) -> None:
        super().__init__("sign in first")
        self.back = back


async def visitor(site: Site, route: Route, request: Request) -> Caller | None:
    """Whoever looks at a page, or None. Raises SignInFirst if the page is for people who are signed in, and Refused for a
    form that did not come from a page of ours."""
    caller = await known(site, request)
    if route.access == "session" and caller is None:
        raise SignInFirst(_back(request))
    if route.method == "POST":
        request.state.form = await _form(site, request)
    return caller


async def known(site: Site, request: Request) -> Caller | None:
    """Whom the session cookie speaks for, or None."""
    secret = request.cookies.get(cookie_name(site, "session"), "")
    caller = await site.caller(secret) if secret else None
    request.state.visitor = caller
    request.state.form_key = form_key(secret) if caller else ""
    return caller


def cookie_name(site: Site, purpose: str) -> str:
    """Browsers do not keep the cookies of two ports apart, so the name does."""
    port = urlsplit(site.url).port
    return f"distributio_{purpose}" + (f"_{port}" if port else "")


def set_cookie(site: Site, response: Response, purpose: str, secret: str, seconds: int) -> None:
    """Give the browser a cookie that scripts and other sites cannot use."""
    response.set_cookie(
        cookie_name(site, purpose),
        secret,
        max_age=seconds,
        path=urlsplit(site.url).path.rstrip("/") or "/",
        secure=site.url.startswith("https:"),
        httponly=True,
        samesite="strict",
    )


def forget_cookie(site: Site, response: Response, purpose: str) -> None:
    """Take a cookie back."""
    set_cookie(site, response, purpose, "", 0)


def guest(site: Site, request: Request) -> str:
    """The secret in the cookie of somebody who is not signed in yet, or a new one."""
    return request.cookies.get(cookie_name(site, "guest"), "") or secrets.token_urlsafe(24)


def form_key(secret: str) -> str:
    """What the forms of a browser with this cookie carry."""
    return hashlib.sha256(f"form {secret}".encode()).hexdigest()


def own_path(text: str) -> str:
    """A path on this site to go to, or the start page if it would lead elsewhere."""
    return text if _OWN_PATH.fullmatch(text) else "/"


def _back(request: Request) -> str:
    if request.method != "GET":
        return "/"
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


async def _form(site: Site, request: Request) -> dict[str, str]:
    """The fields of a form from one of our own pages. Raises Refused."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Refused(403, "form-expired", "the form was sent by a page of another site")
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MOST_FORM_BYTES:
            raise Refused(413, "too-large", f"a form may have {_MOST_FORM_BYTES} bytes")
    fields = dict(parse_qsl(data.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=100))
    expected = request.state.form_key
    if not expected:
        secret = request.cookies.get(cookie_name(site, "guest"), "")
        expected = form_key(secret) if secret else ""
    if not expected or not hmac.compare_digest(fields.get(KEY_FIELD, "").encode(), expected.encode()):
        raise Refused(403, "form-expired", "the form does not belong to this session")
    return fields
