"""What one process of the site remembers for its BOINC clients, between looks at the database."""

import secrets
import threading
import time
from pathlib import Path

import structlog

from distributio.server import boinc_keys
from distributio.server.boinc_keys import Keys
from distributio.server.boinc_names import Marks
from distributio.store import accounts, boinc
from distributio.store.boinc import App, KnownAccount, KnownClient, Version
from distributio.store.database import Database, Transaction
from distributio.wire.boinc_accounts import weak_key

log = structlog.get_logger("boinc")

REMEMBER_SECONDS = 5.0
MOST_REMEMBERED = 100_000
SECRET = "boinc_secret"


class Catalog:
    """The apps and their newest versions at one moment."""

    def __init__(self, apps: list[App], versions: list[Version]) -> None:
        self.apps = {app.name: app for app in apps}
        self.versions = versions
        self.platforms = sorted({version.platform for version in versions})

    def apps_for(self, platforms: list[str]) -> list[str]:
        """Apps that have a build for one of these platforms."""
        return sorted({version.app for version in self.versions if version.platform in platforms})

    def best(self, app: str, platforms: list[str], plan_class: str = "") -> Version | None:
        """The build of an app for the first of these platforms that has one; the named plan class if there is one."""
        for platform in platforms:
            fitting = [each for each in self.versions if each.app == app and each.platform == platform]
            named = [each for each in fitting if each.plan_class == plan_class]
            if fitting:
                return max(named or fitting, key=lambda each: each.version)
        return None


class BoincState:
    """Keys, secrets and caches. Reads of the database are made by the caller, in a thread of its own."""

    def __init__(self, url: str, data: Path, database: Database) -> None:
        self.url = url
        self.folder = data / "keys"
        self.waiting_room = data / "scratch" / "boinc"
        self.waiting_room.mkdir(parents=True, exist_ok=True)
        self._database = database
        self._lock = threading.Lock()
        self._keys: tuple[float, Keys] | None = None
        self._marks: Marks | None = None
        self._catalog: tuple[float, Catalog] | None = None
        self._accounts: dict[str, tuple[float, KnownAccount]] = {}
        self._clients: dict[int, tuple[float, KnownClient]] = {}
        self._seqnos: dict[int, int] = {}
        self._unsaved: dict[int, int] = {}
        self.md5s: dict[str, tuple[str, int]] = {}

    def prepare(self) -> None:
        """Make what the site needs once: the secret, and the keys."""
        with self._database.begin() as transaction:
            if accounts.site_value(transaction, SECRET) is None:
                accounts.set_site_value(transaction, SECRET, secrets.token_hex(32))
        boinc_keys.load(self.folder)

    # --- addresses ----------------------------------------------------------------------------------------------

    @property
    def master_url(self) -> str:
        """What people attach their clients to."""
        return f"{self.url}/"

    @property
    def scheduler_url(self) -> str:
        """Where clients ask for work."""
        return f"{self.url}/boinc/scheduler"

    @property
    def upload_url(self) -> str:
        """Where clients bring files. Its last part tells them that it is no download."""
        return f"{self.url}/boinc/file_upload_handler"

    def download_url(self, digest: str) -> str:
        """Where clients fetch content; who was not told cannot guess it."""
        hexadecimal = digest.removeprefix("sha256:")
        return f"{self.url}/boinc/download/{self.marks.mark('download', hexadecimal)}/{hexadecimal}"

    # --- secrets ------------------------------------------------------------------------------------------------

    @property
    def marks(self) -> Marks:
        """The site's secret at work. Made by `prepare`."""
        if self._marks is None:
            with self._database.read() as transaction:
                secret = accounts.site_value(transaction, SECRET)
            if secret is None:
                raise RuntimeError("the site was not prepared for BOINC clients: start it with `distributio serve`")
            self._marks = Marks(bytes.fromhex(secret))
        return self._marks

    def keys(self) -> Keys:
        """The keys clients are told; looked at again now and then, because an operator may replace them."""
        now = time.monotonic()
        if self._keys is None or self._keys[0] < now:
            self._keys = (now + REMEMBER_SECONDS, boinc_keys.load(self.folder))
        return self._keys[1]

    # --- who is calling -----------------------------------------------------------------------------------------

    def known_account(self, authenticator: str) -> KnownAccount | None:
        """The account a key speaks for, if it was looked up a moment ago."""
        known = self._accounts.get(authenticator)
        return known[1] if known is not None and known[0] >= time.monotonic() else None

    def find_account(self, transaction: Transaction, authenticator: str) -> KnownAccount | None:
        """Look an account key up: the key itself, or a weak one made from it."""
        user, underscore, _ = authenticator.partition("_")
        if underscore:
            account = boinc.account_of(transaction, int(user)) if user.isdigit() and len(user) < 18 else None
            expected = weak_key(account.user_id, account.authenticator, account.password_hash) if account else ""
            if expected != authenticator:
                account = None
        else:
            account = boinc.account_by_key(transaction, authenticator)
        if account is not None:
            if len(self._accounts) > MOST_REMEMBERED:
                self._accounts.clear()
            self._accounts[authenticator] = (time.monotonic() + REMEMBER_SECONDS, account)
        return account

    def known_client(self, host_id: int) -> KnownClient | None:
        """The client of this number, if it was looked up a moment ago."""
        known = self._clients.get(host_id)
        return known[1] if known is not None and known[0] >= time.monotonic() else None

    def remember_client(self, client: KnownClient) -> None:
        """It was looked up, or made."""
        if len(self._clients) > MOST_REMEMBERED:
            self._clients.clear()
        self._clients[client.host_id] = (time.monotonic() + REMEMBER_SECONDS, client)

    def is_replay(self, client: KnownClient, seqno: int) -> bool:
        """Whether the client has counted further before: then its data folder was copied, or is a backup."""
        return seqno < self._seqnos.get(client.host_id, client.seqno)

    def count_call(self, host_id: int, seqno: int) -> None:
        """Remember a client's count of calls; it is written down with others."""
        with self._lock:
            self._seqnos[host_id] = self._unsaved[host_id] = seqno

    def save_counts(self) -> None:
        """Write the counts down: once for many calls. A crash forgets some, which makes nobody a replay."""
        with self._lock:
            unsaved, self._unsaved = self._unsaved, {}
            if len(self._seqnos) > MOST_REMEMBERED:
                self._seqnos.clear()
            if unsaved:
                with self._database.begin() as transaction:
                    boinc.calls_seen(transaction, unsaved)

    # --- what there is to run -----------------------------------------------------------------------------------

    def known_catalog(self) -> Catalog | None:
        """The apps, if they were read a moment ago."""
        known = self._catalog
        return known[1] if known is not None and known[0] >= time.monotonic() else None

    def read_catalog(self, transaction: Transaction) -> Catalog:
        """Read the apps, and the key they are signed with."""
        catalog = Catalog(boinc.apps(transaction), boinc.versions(transaction))
        until = time.monotonic() + REMEMBER_SECONDS
        self._keys = (until, boinc_keys.load(self.folder))
        self._catalog = (until, catalog)
        return catalog
