"""What the site knows of stock BOINC clients: people's account keys, hosts, apps and their signed files."""

import secrets
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from distributio.store.database import Transaction
from distributio.wire.boinc_accounts import external_id
from distributio.wire.boinc_scheduler import Trickle
from distributio.wire.native import HostFacts

UNKNOWN, WORKS, MISSING = "unknown", "works", "missing"  # whether containers run on a host


class KnownAccount(Struct, frozen=True, kw_only=True):
    """A person, as their account key speaks for them."""

    user_id: int
    name: str
    email: str
    password_hash: str
    created_at: float
    authenticator: str
    cross_project_id: str
    venue: str
    project_preferences: str
    global_preferences: str
    global_preferences_at: float


class KnownClient(Struct, frozen=True, kw_only=True):
    """A BOINC client that is a host of the site."""

    host_id: int
    public_id: str
    user_id: int
    state: str
    facts: HostFacts
    created_at: float
    seqno: int
    cpid: str
    engine: str
    engine_at: float
    venue: str


class VersionFile(Struct, frozen=True, kw_only=True):
    """A file of an app version, with its signature."""

    name: str
    open_name: str
    digest: str
    md5: str
    size_bytes: int
    signature: str
    main_program: bool = False
    copy_file: bool = False
    executable: bool = True


class VersionFiles(Struct, frozen=True, kw_only=True):
    """What makes up an app version."""

    files: list[VersionFile]
    cpus: float = 1.0
    command_line: str = ""


class App(Struct, frozen=True, kw_only=True):
    """A program that BOINC clients run."""

    id: int
    name: str
    title: str
    outputs: list[str]


class Version(Struct, frozen=True, kw_only=True):
    """A build of an app."""

    app: str
    platform: str
    version: int
    plan_class: str
    document: VersionFiles


# --- accounts -----------------------------------------------------------------------------------------------------

_ACCOUNT = (
    "SELECT users.id, users.name, email, password_hash, created_at, authenticator, cross_project_id, venue, "
    "project_preferences, global_preferences, global_preferences_at FROM users "
    "JOIN boinc_accounts ON boinc_accounts.user_id = users.id "
)


def _account(row: tuple[Any, ...]) -> KnownAccount:
    return KnownAccount(
        user_id=row[0],
        name=row[1],
        email=row[2] or "",
        password_hash=row[3] or "",
        created_at=row[4],
        authenticator=row[5],
        cross_project_id=row[6],
        venue=row[7],
        project_preferences=row[8],
        global_preferences=row[9],
        global_preferences_at=row[10],
    )


def account_by_key(transaction: Transaction, authenticator: str) -> KnownAccount | None:
    """Whose account key this is."""
    row = transaction.one(_ACCOUNT + "WHERE authenticator = :key", key=authenticator)
    return _account(row) if row else None


def account_of(transaction: Transaction, user_id: int) -> KnownAccount | None:
    """A person's account, if a BOINC client ever asked for it."""
    row = transaction.one(_ACCOUNT + "WHERE users.id = :id", id=user_id)
    return _account(row) if row else None


def user_by_email(transaction: Transaction, email: str) -> tuple[int, str] | None:
    """A person's number and the slow hash of their password, by their address."""
    row = transaction.one("SELECT id, password_hash FROM users WHERE email = :email", email=email.lower())
    return (row[0], row[1] or "") if row else None


def open_account(transaction: Transaction, user_id: int) -> KnownAccount:
    """A person's account, with a key made at the first time it is asked for."""
    transaction.insert_many(
        "boinc_accounts",
        ("user_id", "authenticator", "cross_project_id"),
        [(user_id, secrets.token_hex(16), secrets.token_hex(16))],
        "ON CONFLICT (user_id) DO NOTHING",
    )
    account = account_of(transaction, user_id)
    assert account is not None
    return account


def create_user(transaction: Transaction, name: str, email: str, password_hash: str, now: float) -> int | None:
    """Add a person with an address; None if the address is taken. A name that is taken gets a number behind it."""
    if transaction.one("SELECT 1 FROM users WHERE email = :email", email=email.lower()):
        return None
    free, number = name, 1
    while transaction.one("SELECT 1 FROM users WHERE name = :name", name=free):
        number += 1
        free = f"{name} {number}"
    return transaction.insert(
        "users",
        name=free,
        email=email.lower(),
        password_hash=password_hash,
        is_operator=False,
        created_at=now,
    )


def set_preferences(
    transaction: Transaction, user_id: int, global_preferences: str, at: float, cross_project_id: str = ""
) -> None:
    """Remember the preferences a client brought, if they are newer, and the number it knows the person by elsewhere."""
    transaction.run(
        "UPDATE boinc_accounts SET global_preferences = :text, global_preferences_at = :at "
        "WHERE user_id = :user AND global_preferences_at < :at",
        text=global_preferences,
        at=at,
        user=user_id,
    )
    if cross_project_id:
        transaction.run(
            "UPDATE boinc_accounts SET cross_project_id = :id WHERE user_id = :user", id=cross_project_id, user=user_id
        )


# --- hosts --------------------------------------------------------------------------------------------------------

_CLIENT = (
    "SELECT hosts.id, public_id, user_id, state, facts, created_at, seqno, cpid, engine, engine_at, venue "
    "FROM boinc_hosts JOIN hosts ON hosts.id = boinc_hosts.host_id "
)


def _client(row: tuple[Any, ...]) -> KnownClient:
    return KnownClient(
        host_id=row[0],
        public_id=row[1],
        user_id=row[2],
        state=row[3],
        facts=msgspec.json.decode(row[4], type=HostFacts),
        created_at=row[5],
        seqno=row[6],
        cpid=row[7],
        engine=row[8],
        engine_at=row[9],
        venue=row[10],
    )


def client(transaction: Transaction, host_id: int) -> KnownClient | None:
    """A BOINC client by its host's number."""
    row = transaction.one(_CLIENT + "WHERE hosts.id = :id AND state <> 'detached'", id=host_id)
    return _client(row) if row else None


def client_by_cpid(transaction: Transaction, user_id: int, cpid: str) -> KnownClient | None:
    """A person's BOINC client by what it calls itself, the latest of several."""
    row = transaction.one(
        _CLIENT + "WHERE cpid = :cpid AND user_id = :user AND state <> 'detached' ORDER BY hosts.id DESC LIMIT 1",
        cpid=cpid,
        user=user_id,
    )
    return _client(row) if row else None


def hashed_cpid(host_cpid: str, email: str) -> str:
    """What is kept of a client's name for itself, so that nobody can claim another's host with it."""
    return external_id(host_cpid, email)


def add_client(transaction: Transaction, user_id: int, facts: HostFacts, cpid: str, now: float) -> KnownClient:
    """Add a host that is a BOINC client. It has no key of its own: its owner's account key speaks for it."""
    host_id = transaction.insert(
        "hosts",
        public_id=f"h{secrets.token_hex(5)}",
        user_id=user_id,
        name=facts.name or "BOINC client",
        key_hash="",
        facts=msgspec.json.encode(facts).decode(),
        state="active",
        created_at=now,
        last_seen_at=now,
    )
    transaction.insert_many("boinc_hosts", ("host_id", "cpid"), [(host_id, cpid)])
    found = client(transaction, host_id)
    assert found is not None
    return found


def restart_count(transaction: Transaction, host_id: int) -> None:
    """A client that was told its number again counts its calls from 0."""
    transaction.run("UPDATE boinc_hosts SET seqno = 0 WHERE host_id = :id", id=host_id)


def calls_seen(transaction: Transaction, seqnos: dict[int, int]) -> None:
    """Remember the clients' counts of calls: once for many of them."""
    transaction.update_many(
        "boinc_hosts", "host_id", ("seqno",), [(seqno, host) for host, seqno in sorted(seqnos.items())]
    )


def note_engine(transaction: Transaction, host_id: int, engine: str, now: float) -> None:
    """Whether containers ran on a host."""
    transaction.run(
        "UPDATE boinc_hosts SET engine = :engine, engine_at = :now WHERE host_id = :id",
        engine=engine,
        now=now,
        id=host_id,
    )


# --- apps ---------------------------------------------------------------------------------------------------------


def put_app(transaction: Transaction, name: str, title: str, outputs: Sequence[str], now: float) -> int:
    """Add an app, or change its words; return its number."""
    transaction.run(
        "INSERT INTO boinc_apps (name, title, outputs, created_at) VALUES (:name, :title, :outputs, :now) "
        "ON CONFLICT (name) DO UPDATE SET title = excluded.title, outputs = excluded.outputs",
        name=name,
        title=title,
        outputs=msgspec.json.encode(list(outputs)).decode(),
        now=now,
    )
    row = transaction.one("SELECT id FROM boinc_apps WHERE name = :name", name=name)
    assert row is not None
    return int(row[0])


def put_version(transaction: Transaction, app_id: int, version: Version, now: float) -> bool:
    """Add a version; False if there is one of that number already."""
    added = transaction.run(
        "INSERT INTO boinc_versions (app_id, platform, version, plan_class, document, created_at) "
        "VALUES (:app, :platform, :version, :plan_class, :document, :now) "
        "ON CONFLICT (app_id, platform, version, plan_class) DO NOTHING",
        app=app_id,
        platform=version.platform,
        version=version.version,
        plan_class=version.plan_class,
        document=msgspec.json.encode(version.document).decode(),
        now=now,
    )
    if added <= 0:
        return False
    row = transaction.one(
        "SELECT id FROM boinc_versions WHERE app_id = :app AND platform = :platform AND version = :version "
        "AND plan_class = :plan_class",
        app=app_id,
        platform=version.platform,
        version=version.version,
        plan_class=version.plan_class,
    )
    assert row is not None
    transaction.insert_many(
        "boinc_version_files",
        ("version_id", "digest"),
        [(row[0], digest) for digest in dict.fromkeys(file.digest for file in version.document.files)],
    )
    return True


def apps(transaction: Transaction) -> list[App]:
    """Every app."""
    return [
        App(id=row[0], name=row[1], title=row[2], outputs=msgspec.json.decode(row[3]))
        for row in transaction.rows("SELECT id, name, title, outputs FROM boinc_apps ORDER BY name")
    ]


def versions(transaction: Transaction) -> list[Version]:
    """The newest version of every app for each platform and plan class."""
    found: dict[tuple[str, str, str], Version] = {}
    for name, platform, number, plan_class, document in transaction.rows(
        "SELECT name, platform, version, plan_class, document FROM boinc_versions "
        "JOIN boinc_apps ON boinc_apps.id = app_id ORDER BY version"
    ):
        found[name, platform, plan_class] = Version(
            app=name,
            platform=platform,
            version=number,
            plan_class=plan_class,
            document=msgspec.json.decode(document, type=VersionFiles),
        )
    return list(found.values())


def documents(transaction: Transaction) -> list[tuple[int, VersionFiles]]:
    """What makes up every version, by its number."""
    return [
        (row[0], msgspec.json.decode(row[1], type=VersionFiles))
        for row in transaction.rows("SELECT id, document FROM boinc_versions ORDER BY id")
    ]


def put_document(transaction: Transaction, version_id: int, document: VersionFiles) -> None:
    """Say anew what makes up a version: its signatures have changed."""
    transaction.run(
        "UPDATE boinc_versions SET document = :document WHERE id = :id",
        document=msgspec.json.encode(document).decode(),
        id=version_id,
    )


# --- files --------------------------------------------------------------------------------------------------------


def md5s(transaction: Transaction, digests: Iterable[str]) -> dict[str, tuple[str, int]]:
    """MD5 and size of content that was asked for before."""
    return {
        row[0]: (row[1], row[2])
        for row in transaction.rows(
            "SELECT digest, md5, size_bytes FROM content_md5s WHERE digest IN (:digests...)", digests=list(digests)
        )
    }


def keep_md5s(transaction: Transaction, found: dict[str, tuple[str, int]]) -> None:
    """Remember MD5 and size of content."""
    transaction.insert_many(
        "content_md5s",
        ("digest", "md5", "size_bytes"),
        [(digest, md5, size) for digest, (md5, size) in found.items()],
        "ON CONFLICT (digest) DO NOTHING",
    )


def tasks_going_on(transaction: Transaction, task_ids: list[int]) -> set[int]:
    """Which of these tasks are in progress: what was uploaded for the others is not awaited."""
    rows = transaction.rows("SELECT id FROM tasks WHERE id IN (:ids...) AND state = 'in_progress'", ids=task_ids)
    return {row[0] for row in rows}


# --- trickles -----------------------------------------------------------------------------------------------------


def keep_trickles(transaction: Transaction, host_id: int, messages: list[tuple[int, Trickle]], now: float) -> None:
    """Keep messages of running tasks. One that came before is not kept twice."""
    transaction.insert_many(
        "trickles",
        ("task_id", "sent_at", "host_id", "variety", "text", "received_at"),
        [(task, trickle.sent_at, host_id, trickle.variety, trickle.text, now) for task, trickle in messages],
        "ON CONFLICT (task_id, sent_at) DO NOTHING",
    )
