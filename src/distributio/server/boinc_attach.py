"""What BOINC's managers and clients ask of a site outside of the scheduler: its terms, account keys, status, files.

The addresses end in .php because clients ask for them so. Errors come with HTTP's 200, as they expect them.
"""

import asyncio
import re
import time
from urllib.parse import urlsplit

import argon2
from starlette.responses import Response

from distributio.server.boinc_http import answer
from distributio.server.host_api import Receive, Scope, Send, header
from distributio.server.operations import _database, _ledger, _store
from distributio.server.problems import not_found
from distributio.server.routes import Answer, Call
from distributio.server.serving import file_response
from distributio.server.site import Site
from distributio.store import boinc, views
from distributio.store.database import Transaction
from distributio.store.files import content_key
from distributio.wire import boinc_accounts as wire

FAILED_SECONDS = 1.0  # a wrong password is answered after this
_MOST_HASHING = 2  # passwords hashed at once: each takes memory and a processor
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")

_hasher = argon2.PasswordHasher()
_hashing = asyncio.Semaphore(_MOST_HASHING)


def _xml(body: bytes) -> Response:
    return Response(body, media_type="text/xml", headers={"Cache-Control": "no-store"})


async def project_config(call: Call) -> Answer:
    """GET /get_project_config.php: what a manager shows before a person attaches."""
    state, settings = call.site.boinc, call.site.settings
    catalog = state.known_catalog()
    if catalog is None:
        catalog = await call.site.read(state.read_catalog)
    body = wire.project_config(settings.name, state.master_url, catalog.platforms, accounts_are_open=True)
    return _xml(body)


async def lookup_account(call: Call) -> Answer:
    """GET /lookup_account.php: a person's account key for their password, or whether an address is known."""
    email, digest = call.query("email_addr").strip().lower(), call.query("passwd_hash")
    found = await call.site.read(boinc.user_by_email, email)
    if found is None:
        await asyncio.sleep(FAILED_SECONDS)
        return _xml(wire.error(wire.NOT_FOUND, "no account has this address"))
    if not digest:
        return _xml(wire.account_exists())
    user_id, kept = found
    if not await is_password(call.site, digest, kept):
        await asyncio.sleep(FAILED_SECONDS)
        return _xml(wire.error(wire.BAD_PASSWORD, "the password is wrong"))
    return await _key_of(call.site, user_id)


async def create_account(call: Call) -> Answer:
    """GET /create_account.php: a new account; for one that exists with this password its key, so that it can be repeated."""
    email, digest = call.query("email_addr").strip().lower(), call.query("passwd_hash")
    name = call.query("user_name").strip() or email.partition("@")[0]
    if not wire.is_email(email):
        return _xml(wire.error(wire.BAD_EMAIL, "this is not an e-mail address"))
    if not wire.is_password_digest(digest):
        return _xml(wire.error(wire.OTHER, "passwd_hash must be an MD5 in 32 hexadecimal digits"))
    fault = wire.name_fault(name)
    if fault:
        return _xml(wire.error(wire.BAD_NAME, fault))
    found = await call.site.read(boinc.user_by_email, email)
    if found is None:
        hashed = await hash_password(call.site, digest)
        user_id = await call.site.write(boinc.create_user, name, email, hashed, time.time())
        if user_id is not None:
            return await _key_of(call.site, user_id)
        found = await call.site.read(boinc.user_by_email, email)
    if found is None or not await is_password(call.site, digest, found[1]):
        await asyncio.sleep(FAILED_SECONDS)
        return _xml(wire.error(wire.NOT_UNIQUE, "an account has this address already, with another password"))
    return await _key_of(call.site, found[0])


async def _key_of(site: Site, user_id: int) -> Response:
    account = await site.write(boinc.open_account, user_id)
    return _xml(wire.account_key(account.authenticator))


async def hash_password(site: Site, digest: str) -> str:
    """What is kept of a password's digest (wire.boinc_accounts.password_digest): a slow, salted hash."""
    async with _hashing:
        return await site.in_thread(_hasher.hash, digest)


async def is_password(site: Site, digest: str, kept: str) -> bool:
    """Whether this is the digest of the password that was kept."""
    if not kept:
        return False

    def check() -> bool:
        try:
            return _hasher.verify(kept, digest)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False

    async with _hashing:
        return await site.in_thread(check)


async def server_status(call: Call) -> Answer:
    """GET /server_status.php?xml=1: the parts of the site, and its numbers."""
    site = call.site
    running: dict[str, bool] = {}
    for name, check in (("scheduler", _ledger), ("file_upload_handler", _store), ("download server", _store)):
        running[name] = await _holds(site, check)
    running["transitioner"] = await _holds(site, _database)
    numbers = await site.read(_numbers, time.time() - site.settings.away_seconds)
    return _xml(wire.server_status(urlsplit(site.url).hostname or "", running, numbers))


async def _holds(site: Site, check: "object") -> bool:
    try:
        await site.in_thread(check, site)  # type: ignore[arg-type]  # one of the checks of operations.py
    except Exception:
        return False
    return True


def _numbers(transaction: Transaction, since: float) -> dict[str, float]:
    totals = views.totals(transaction, since)
    return {
        "results_ready_to_send": totals["tasks_ready"],
        "results_in_progress": totals["tasks_in_progress"],
        "workunits_waiting_for_validation": totals["jobs"].get("checking", 0),
        "workunits_waiting_for_assimilation": 0,
        "hosts_with_recent_credit": totals["hosts_active"],
        "hosts_with_credit": totals["hosts_total"],
    }


async def download(call: Call) -> Response:
    """GET /boinc/download/MARK/HEX: content for whoever was told its address."""
    hexadecimal = call.path("hexadecimal")
    if not call.site.boinc.marks.is_download(call.path("mark"), hexadecimal):
        raise not_found("file")
    key = content_key(f"sha256:{hexadecimal}")
    try:
        size = await call.site.in_thread(call.site.files.size_of, key)
    except FileNotFoundError:
        raise not_found("file") from None
    _forgive_range(call, size)
    headers = {"Cache-Control": "private, max-age=31536000, immutable"}
    return await file_response(call, key, "application/octet-stream", headers)


def _forgive_range(call: Call, size: int) -> None:
    """Take a range away that lies outside of the file: clients give a task up where others begin from the start."""
    scope = call.request.scope
    for name, value in scope["headers"]:
        if name == b"range":
            match = _RANGE.fullmatch(value.decode("latin-1"))
            if match is None or int(match[1]) >= size:
                scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"range"]
                return


class MasterPage:
    """GET / of a BOINC client, which looks for the scheduler's address in it and reads lines of 255 bytes at most. People
    get the site's own first page, which has the same link."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def is_for(self, scope: Scope) -> bool:
        """Whether a BOINC client asks."""
        return header(scope, b"user-agent").startswith("BOINC client")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        page = wire.master_page(self._site.settings.name, self._site.boinc.scheduler_url)
        await answer(send, page, b"text/html; charset=utf-8")
