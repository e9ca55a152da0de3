"""One running site: what every request and daemon needs, built in one place."""

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import structlog

from distributio.server import settings as settings_module
from distributio.server.boinc_state import BoincState
from distributio.server.hub import Hub
from distributio.server.ledger import Ledger, Notices
from distributio.server.presence import Presence
from distributio.server.settings import Settings
from distributio.server.signing import Signer
from distributio.server.submissions import Cancel, Change, Submit, apply_cancels, apply_changes, apply_submissions
from distributio.server.turns import HostTurn, apply_turns
from distributio.store import accounts
from distributio.store.accounts import Caller, KnownHost
from distributio.store.database import Database, Transaction
from distributio.store.files import Content
from distributio.store.storage import open_files

log = structlog.get_logger("site")

P = ParamSpec("P")
R = TypeVar("R")

REMEMBER_SECONDS = 5.0  # for how long a revoked token or key may still be believed by another process
THREADS = 12
IMPORTS = 4  # images that are brought in at the same time; further ones wait


class Site:
    """The parts of a site. `start` and `close` are called on the event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.url = settings_module.site_url(settings)
        self.data = settings.data
        self.database = Database(settings_module.database_url(settings))
        self.scratch = self.data / "scratch"
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.files = open_files(settings.storage or str(self.data / "store"), self.scratch)
        self.content = Content(self.files, self.scratch)
        self.boinc = BoincState(self.url, self.data, self.database)
        self.signer = Signer(self.data / "keys")
        self.hub = Hub()
        self.threads = concurrent.futures.ThreadPoolExecutor(THREADS, thread_name_prefix="site")
        self._importing = concurrent.futures.ThreadPoolExecutor(IMPORTS, thread_name_prefix="import")
        self.ledger = Ledger(
            self.database,
            {
                HostTurn: apply_turns,
                Submit: apply_submissions,
                Cancel: apply_cancels,
                Change: apply_changes,
            },
            self._announce,
        )
        self.listeners: list[Callable[[Notices], None]] = [self.hub.notify]
        self.started_at = time.time()
        self.rejections: dict[str, int] = {}
        self.presence = Presence()
        self._callers: dict[str, tuple[float, Caller]] = {}
        self._hosts: dict[str, tuple[float, KnownHost]] = {}
        self._seen: dict[int, float] = {}
        self._seen_lock = threading.Lock()

    def prepare(self) -> str | None:
        """Bring the tables up to date and make the first account; return its token at the first start."""
        self.database.migrate()
        with self.database.begin() as transaction:
            token = accounts.first_start(transaction, time.time())
        self.boinc.prepare()
        self.signer.keys()
        return token

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to work."""
        self.hub.bind(loop)
        self.ledger.start()

    def close(self) -> None:
        """Finish what was begun."""
        self.ledger.close()
        self._importing.shutdown(wait=False, cancel_futures=True)
        self.threads.shutdown(wait=True, cancel_futures=True)
        self.flush_seen()
        self.database.close()

    def _announce(self, notices: Notices) -> None:
        for listener in self.listeners:
            listener(notices)

    # --- work in threads ----------------------------------------------------------------------------------------

    def in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        """Run something that waits for a disk or the network, off the event loop."""
        return asyncio.get_running_loop().run_in_executor(self.threads, lambda: function(*args, **kwargs))

    def importing(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> "asyncio.Future[R]":
        """Run something that may wait long for a stranger, in threads that nobody else waits for."""
        return asyncio.get_running_loop().run_in_executor(self._importing, lambda: function(*args, **kwargs))

    def read(
        self, function: Callable[Concatenate[Transaction, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[R]:
        """Run a read of the store in a thread."""

        def work() -> R:
            with self.database.read() as transaction:
                return function(transaction, *args, **kwargs)

        return asyncio.get_running_loop().run_in_executor(self.threads, work)

    def write(
        self, function: Callable[Concatenate[Transaction, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[R]:
        """Run a write of the store that the ledger does not concern itself with, in a thread."""

        def work() -> R:
            with self.database.begin() as transaction:
                return function(transaction, *args, **kwargs)

        return asyncio.get_running_loop().run_in_executor(self.threads, work)

    # --- who is asking ------------------------------------------------------------------------------------------

    async def caller(self, secret: str) -> Caller | None:
        """Whom a token speaks for, or None."""
        key = accounts.hash_of(secret)
        now = time.monotonic()
        known = self._callers.get(key)
        if known is None or known[0] < now:
            found = await self.read(accounts.caller_by_token, secret)
            if found is None:
                self._callers.pop(key, None)
                return None
            known = (now + REMEMBER_SECONDS, found)
            _remember(self._callers, key, known)
        caller = known[1]
        if caller.expires_at is not None and caller.expires_at <= time.time():
            return None
        return caller

    async def host(self, public_id: str, key: str) -> KnownHost | None:
        """The host whose key this is, or None."""
        now = time.monotonic()
        known = self._hosts.get(public_id)
        if known is None or known[0] < now:
            found = await self.read(accounts.host_by_public_id, public_id)
            if found is None:
                self._hosts.pop(public_id, None)
                return None
            known = (now + REMEMBER_SECONDS, found)
            _remember(self._hosts, public_id, known)
        host = known[1]
        if not accounts.is_hash_of(key, host.key_hash):
            return None
        self._seen[host.id] = time.time()
        return host

    def forget(self, *, public_id: str | None = None, everybody: bool = False) -> None:
        """Something about a host or a person changed: look again."""
        if public_id is not None:
            self._hosts.pop(public_id, None)
        if everybody:
            self._callers.clear()

    def seen(self, host_id: int) -> None:
        """A host has spoken."""
        self._seen[host_id] = time.time()

    def flush_seen(self) -> None:
        """Write down when hosts last spoke: once for many requests."""
        with self._seen_lock:
            seen, self._seen = self._seen, {}
            if seen:
                with self.database.begin() as transaction:
                    accounts.hosts_seen(transaction, seen)
        self.boinc.save_counts()

    def count_rejections(self, rejections: dict[str, int]) -> None:
        """For the metrics and the site's explain: why hosts got nothing."""
        for code, count in rejections.items():
            self.rejections[code] = self.rejections.get(code, 0) + count


def _remember(cache: dict[str, Any], key: str, value: Any) -> None:
    if len(cache) > 50_000:
        cache.clear()
    cache[key] = value
