"""The pages of those who lend: their hosts, and one host with what it is and did."""

from starlette.responses import Response

from distributio.server import native_api
from distributio.server.pages.rendering import redirect, show
from distributio.server.problems import not_found
from distributio.server.routes import Call
from distributio.store import accounts, page_views
from distributio.wire.native import HostView

_TASKS_SHOWN = 30


async def hosts(call: Call) -> Response:
    """GET /hosts: one's own; for the operator with `all=1` everybody's."""
    await call.site.in_thread(call.site.flush_seen)
    page = await native_api.list_hosts(call)
    everybody = call.caller.is_operator and bool(call.query("all"))
    return show(call, "hosts.html", hosts=page.items, everybody=everybody)


async def host(call: Call) -> Response:
    """GET /hosts/{host}."""
    site = call.site
    view = await native_api.get_host(call)
    assert isinstance(view, HostView)
    known = await site.read(accounts.host_by_public_id, view.id)
    if known is None:
        raise not_found(f"host {view.id}")
    tasks = await site.read(page_views.tasks_of_host, known.id, _TASKS_SHOWN)
    readable = None if call.caller.is_operator else set(call.caller.roles)
    return show(
        call,
        "host.html",
        host=view,
        facts=known.facts,
        tasks=tasks,
        may_read={task.id for task in tasks if readable is None or task.project_id in readable},
    )


async def detach(call: Call) -> Response:
    """POST /hosts/{host}/detach."""
    await native_api.remove_host(call)
    return redirect(call.site, "/hosts")
