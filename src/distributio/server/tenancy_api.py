"""Who may do what on the site: people, projects, members, limits. For operators; a project's managers may change its members."""

import time

from distributio.lifecycle.quota import RESOURCES
from distributio.server.problems import Refused, not_found
from distributio.server.routes import FAR, ROLES, Answer, Call, json_response
from distributio.store import accounts
from distributio.store.database import Transaction
from distributio.wire.native import NewProject, NewUser, Page, ProjectChange, ProjectView, UserView


async def list_users(call: Call) -> Page:
    """Everybody the site knows."""
    most = call.limit()
    found = await call.site.read(accounts.users, call.count("cursor", 0, FAR), most)
    items = [UserView(name=row[1], is_operator=row[2], created_at=row[3], projects=row[4]) for row in found]
    return Page(items=items, cursor=str(found[-1][0]) if len(found) == most else None)


async def create_user(call: Call) -> Answer:
    """Make a person known, with a first token."""
    body: NewUser = call.body
    if body.role not in ROLES:
        raise Refused(422, "bad-request", f"role {body.role!r}: it may be {', '.join(ROLES)}")
    view = await call.site.write(_create_user, body, time.time())
    return json_response(view, 201)


def _create_user(transaction: Transaction, body: NewUser, now: float) -> UserView:
    user_id = accounts.create_user(transaction, body.name, now, is_operator=body.is_operator)
    project_id = None
    if body.project:
        project_id = _project(transaction, body.project)
        accounts.set_role(transaction, user_id, project_id, body.role)
    _, secret = accounts.create_token(transaction, user_id, project_id, "made with the account", now)
    return UserView(
        name=body.name,
        is_operator=body.is_operator,
        created_at=now,
        projects={body.project: body.role} if body.project else {},
        token=secret,
    )


def _project(transaction: Transaction, name: str) -> int:
    found = accounts.project_by_name(transaction, name)
    if found is None:
        raise not_found(f"project {name!r}")
    return found


async def list_projects(call: Call) -> Page:
    """Every project with its members, limits and use."""
    most = call.limit()
    rows = await call.site.read(accounts.projects, call.count("cursor", 0, FAR), most)
    items = [await call.site.read(_view, row) for row in rows]
    return Page(items=items, cursor=str(rows[-1][0]) if len(rows) == most else None)


def _view(transaction: Transaction, row: tuple[int, str, bool, float, float]) -> ProjectView:
    number, name, enabled, weight, created_at = row
    return ProjectView(
        name=name,
        enabled=enabled,
        weight=weight,
        created_at=created_at,
        members=accounts.members_of(transaction, number),
        limits=accounts.limits_of(transaction, number),
        usage=accounts.usage_of(transaction, number),
    )


async def create_project(call: Call) -> Answer:
    """Make a project."""
    body: NewProject = call.body
    number = await call.site.write(accounts.create_project, body.name, time.time())
    return json_response(await _one(call, number), 201)


async def _one(call: Call, number: int) -> ProjectView:
    rows = await call.site.read(accounts.projects, number - 1, 1)
    return await call.site.read(_view, rows[0])


async def change_project(call: Call) -> ProjectView:
    """Change a project: on or off, share, limits (operators), members (its managers, too)."""
    body: ProjectChange = call.body
    number = await call.site.read(_project, call.path("project"))
    call.require(number, "manager", f"project {call.path('project')!r}")
    touches_limits = body.enabled is not None or body.weight is not None or body.limits
    if touches_limits and not call.caller.is_operator:
        raise Refused(403, "operator-only", "limits, share and switch of a project are the operator's")
    unknown = body.limits.keys() - RESOURCES.keys()
    if unknown:
        raise Refused(422, "bad-request", f"limit {min(unknown)!r} is not known; there are: {', '.join(RESOURCES)}")
    bad_roles = [role for role in body.members.values() if role is not None and role not in ROLES]
    if bad_roles:
        raise Refused(422, "bad-request", f"role {bad_roles[0]!r}: it may be {', '.join(ROLES)}")
    await call.site.write(_change, number, body)
    call.site.forget(everybody=True)
    return await _one(call, number)


def _change(transaction: Transaction, number: int, body: ProjectChange) -> None:
    accounts.change_project(transaction, number, body.enabled, body.weight)
    for resource, most in body.limits.items():
        accounts.set_limit(transaction, number, resource, most)
    for name, role in body.members.items():
        user_id = accounts.user_by_name(transaction, name)
        if user_id is None:
            raise not_found(f"user {name!r}")
        if role is None:
            accounts.remove_member(transaction, user_id, number)
        else:
            accounts.set_role(transaction, user_id, number, role)
