"""Users, projects, memberships, tokens and hosts: who is known here, and by which secret.

Secrets are random and kept only as hashes: a token or key has 256 bits of chance, so a plain SHA-256 is as good as any slow
hash, and cheap enough for every request. (Passwords, which people choose, are hashed with Argon2.)
"""

import hashlib
import hmac
import secrets
from typing import Any

import msgspec
from msgspec import Struct

from distributio.store.database import StoreError, Transaction
from distributio.wire.native import HostFacts

OPERATOR = "operator"
DEFAULT_PROJECT = "default"


class Caller(Struct, frozen=True, kw_only=True):
    """A person, as a token speaks for them. `roles` maps project numbers to roles."""

    token_id: int
    user_id: int
    user: str
    is_operator: bool
    project_id: int | None  # the token's own project
    projects: dict[str, int]
    roles: dict[int, str]
    expires_at: float | None


class KnownHost(Struct, frozen=True, kw_only=True):
    """A host, as its key speaks for it."""

    id: int
    public_id: str
    user_id: int
    name: str
    key_hash: str
    state: str
    facts: HostFacts


class NameTaken(StoreError):
    """This name is in use already: choose another."""


def hash_of(secret: str) -> str:
    """What is kept of a token or key."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_hash_of(secret: str, kept: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(hash_of(secret), kept)


def new_secret(prefix: str) -> str:
    """A fresh secret that says what it is."""
    return f"{prefix}_{secrets.token_urlsafe(32)}"


def site_value(transaction: Transaction, key: str) -> str | None:
    """Something the site knows of itself."""
    row = transaction.one("SELECT value FROM site WHERE key = :key", key=key)
    return row[0] if row else None


def set_site_value(transaction: Transaction, key: str, value: str) -> None:
    """Remember something about the site."""
    transaction.run(
        "INSERT INTO site (key, value) VALUES (:key, :value) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        key=key,
        value=value,
    )


def first_start(transaction: Transaction, now: float) -> str | None:
    """Make the operator and the default project, once; return the operator's token, or None if they were there."""
    transaction.run(
        "INSERT INTO users (name, is_operator, created_at) VALUES (:name, :yes, :now) ON CONFLICT (name) DO NOTHING",
        name=OPERATOR,
        yes=True,
        now=now,
    )
    if site_value(transaction, "created_at") is not None:
        return None
    set_site_value(transaction, "created_at", str(now))
    row = transaction.one("SELECT id FROM users WHERE name = :name", name=OPERATOR)
    assert row is not None
    project_id = create_project(transaction, DEFAULT_PROJECT, now)
    set_role(transaction, row[0], project_id, "manager")
    return create_token(transaction, row[0], project_id, "made at the first start", now)[1]


def create_user(transaction: Transaction, name: str, now: float, *, is_operator: bool = False) -> int:
    """Add a person. Raises NameTaken."""
    if transaction.one("SELECT 1 FROM users WHERE name = :name", name=name):
        raise NameTaken(f"there is a user {name!r} already: choose another name")
    return transaction.insert("users", name=name, is_operator=is_operator, created_at=now)


def create_project(transaction: Transaction, name: str, now: float) -> int:
    """Add a project. Raises NameTaken."""
    if transaction.one("SELECT 1 FROM projects WHERE name = :name", name=name):
        raise NameTaken(f"there is a project {name!r} already: choose another name")
    return transaction.insert("projects", name=name, enabled=True, created_at=now)


def set_role(transaction: Transaction, user_id: int, project_id: int, role: str) -> None:
    """Make someone a reader, member or manager of a project."""
    transaction.run(
        "INSERT INTO memberships (user_id, project_id, role) VALUES (:user, :project, :role) "
        "ON CONFLICT (user_id, project_id) DO UPDATE SET role = excluded.role",
        user=user_id,
        project=project_id,
        role=role,
    )


def remove_member(transaction: Transaction, user_id: int, project_id: int) -> bool:
    """Take someone out of a project; return whether they were in it."""
    return bool(
        transaction.run(
            "DELETE FROM memberships WHERE user_id = :user AND project_id = :project", user=user_id, project=project_id
        )
    )


def user_by_name(transaction: Transaction, name: str) -> int | None:
    """A person's number."""
    row = transaction.one("SELECT id FROM users WHERE name = :name", name=name)
    return int(row[0]) if row else None


def project_by_name(transaction: Transaction, name: str) -> int | None:
    """A project's number."""
    row = transaction.one("SELECT id FROM projects WHERE name = :name", name=name)
    return int(row[0]) if row else None


def users(transaction: Transaction, after: int, most: int) -> list[tuple[int, str, bool, float, dict[str, str]]]:
    """People behind a number: number, name, operator or not, made, roles by project."""
    rows = transaction.rows(
        "SELECT id, name, is_operator, created_at FROM users WHERE id > :after ORDER BY id LIMIT :most",
        after=after,
        most=most,
    )
    roles: dict[int, dict[str, str]] = {row[0]: {} for row in rows}
    for user, project, role in transaction.rows(
        "SELECT user_id, projects.name, role FROM memberships JOIN projects ON projects.id = project_id "
        "WHERE user_id IN (:users...)",
        users=list(roles),
    ):
        roles[user][project] = role
    return [(row[0], row[1], bool(row[2]), row[3], roles[row[0]]) for row in rows]


def projects(transaction: Transaction, after: int, most: int) -> list[tuple[int, str, bool, float, float]]:
    """Projects behind a number: number, name, enabled or not, weight, made."""
    rows = transaction.rows(
        "SELECT id, name, enabled, weight, created_at FROM projects WHERE id > :after ORDER BY id LIMIT :most",
        after=after,
        most=most,
    )
    return [(row[0], row[1], bool(row[2]), row[3], row[4]) for row in rows]


def members_of(transaction: Transaction, project_id: int) -> dict[str, str]:
    """A project's members and their roles."""
    rows = transaction.rows(
        "SELECT users.name, role FROM memberships JOIN users ON users.id = user_id WHERE project_id = :id ORDER BY users.id",
        id=project_id,
    )
    return {name: role for name, role in rows}  # noqa: C416  # dict() would keep the rows' type


def change_project(transaction: Transaction, project_id: int, enabled: bool | None, weight: float | None) -> None:
    """Switch a project on or off, or give it another share."""
    if enabled is not None:
        transaction.run("UPDATE projects SET enabled = :on WHERE id = :id", on=enabled, id=project_id)
    if weight is not None:
        transaction.run("UPDATE projects SET weight = :weight WHERE id = :id", weight=weight, id=project_id)


def create_token(
    transaction: Transaction,
    user_id: int,
    project_id: int | None,
    name: str,
    now: float,
    expires_at: float | None = None,
) -> tuple[int, str]:
    """Make a token; return its number and the secret, which is not kept."""
    secret = new_secret("dio")
    number = transaction.insert(
        "tokens",
        user_id=user_id,
        project_id=project_id,
        name=name,
        hash=hash_of(secret),
        created_at=now,
        expires_at=expires_at,
    )
    return number, secret


def tokens_of(transaction: Transaction, user_id: int) -> list[tuple[Any, ...]]:
    """A person's tokens: number, name, made, expires."""
    return transaction.rows(
        "SELECT id, name, created_at, expires_at FROM tokens WHERE user_id = :user ORDER BY id", user=user_id
    )


def revoke_token(transaction: Transaction, user_id: int, token_id: int) -> bool:
    """Make a token worthless; return whether it was there."""
    return bool(transaction.run("DELETE FROM tokens WHERE id = :id AND user_id = :user", id=token_id, user=user_id))


def caller_by_token(transaction: Transaction, secret: str) -> Caller | None:
    """Whom a token speaks for."""
    row = transaction.one(
        "SELECT tokens.id, users.id, users.name, is_operator, project_id, expires_at FROM tokens "
        "JOIN users ON users.id = tokens.user_id WHERE hash = :hash",
        hash=hash_of(secret),
    )
    if row is None:
        return None
    memberships = transaction.rows(
        "SELECT projects.id, projects.name, role FROM memberships JOIN projects ON projects.id = project_id "
        "WHERE user_id = :user",
        user=row[1],
    )
    return Caller(
        token_id=row[0],
        user_id=row[1],
        user=row[2],
        is_operator=bool(row[3]),
        project_id=row[4],
        projects={name: number for number, name, _ in memberships},
        roles={number: role for number, _, role in memberships},
        expires_at=row[5],
    )


def attach_host(transaction: Transaction, user_id: int, facts: HostFacts, now: float) -> tuple[str, str]:
    """Add a host; return its public id and its key, which is not kept."""
    key = new_secret("diohost")
    public_id = f"h{secrets.token_hex(5)}"
    transaction.insert(
        "hosts",
        public_id=public_id,
        user_id=user_id,
        name=facts.name or public_id,
        key_hash=hash_of(key),
        facts=msgspec.json.encode(facts).decode(),
        state="active",
        created_at=now,
        last_seen_at=now,
        gflops=facts.gflops,
    )
    return public_id, key


def host_by_public_id(transaction: Transaction, public_id: str) -> KnownHost | None:
    """A host that is attached."""
    row = transaction.one(
        "SELECT id, public_id, user_id, name, key_hash, state, facts FROM hosts "
        "WHERE public_id = :public_id AND state <> 'detached'",
        public_id=public_id,
    )
    if row is None:
        return None
    return KnownHost(
        id=row[0],
        public_id=row[1],
        user_id=row[2],
        name=row[3],
        key_hash=row[4],
        state=row[5],
        facts=msgspec.json.decode(row[6], type=HostFacts),
    )


def detach_host(transaction: Transaction, host_id: int) -> None:
    """Forget a host's key. Its past stays; what it holds is given back by the caller."""
    transaction.run("UPDATE hosts SET state = 'detached', key_hash = '' WHERE id = :id", id=host_id)


def set_host_state(transaction: Transaction, host_id: int, state: str, ban_reason: str = "") -> None:
    """Ban a host for a reason, or let it work again."""
    transaction.run(
        "UPDATE hosts SET state = :state, ban_reason = :reason WHERE id = :id",
        state=state,
        reason=ban_reason,
        id=host_id,
    )


def hosts_seen(transaction: Transaction, seen: dict[int, float]) -> None:
    """Remember when hosts last spoke."""
    transaction.update_many("hosts", "id", ("last_seen_at",), [(at, host) for host, at in sorted(seen.items())])


def set_limit(transaction: Transaction, project_id: int, resource: str, most: int | None) -> None:
    """Set a project's limit for a resource, or lift it with None."""
    transaction.run(
        "DELETE FROM quotas WHERE project_id = :project AND resource = :resource", project=project_id, resource=resource
    )
    if most is not None:
        transaction.insert_many("quotas", ("project_id", "resource", "most"), [(project_id, resource, most)])


def limits_of(transaction: Transaction, project_id: int) -> dict[str, int]:
    """A project's limits by resource; what is not in it has none."""
    return dict(transaction.rows("SELECT resource, most FROM quotas WHERE project_id = :id", id=project_id))


def counted_usage_of(transaction: Transaction, project_id: int) -> dict[str, int]:
    """What is counted as it is used, by resource."""
    return dict(transaction.rows("SELECT resource, used FROM usages WHERE project_id = :id", id=project_id))


def usage_of(transaction: Transaction, project_id: int) -> dict[str, int]:
    """What a project uses now, by resource."""
    row = transaction.one(
        "SELECT coalesce(sum(size_bytes), 0) FROM project_files WHERE project_id = :id", id=project_id
    )
    images = transaction.one("SELECT coalesce(sum(size_bytes), 0) FROM images WHERE project_id = :id", id=project_id)
    stored = int(row[0] if row else 0) + int(images[0] if images else 0)
    return {**counted_usage_of(transaction, project_id), "storage_bytes": stored}
