"""The routes of the pages, and the pages that everybody may see."""

import math
import time
import weakref
from collections import Counter
from typing import Any

from msgspec import Struct
from starlette.responses import PlainTextResponse, Response

from distributio.lifecycle.explain import Because, Who, in_order
from distributio.server import native_api, operations
from distributio.server.pages import machines, people, rendering, work
from distributio.server.pages.rendering import show
from distributio.server.routes import FAR, Call, Handler, Route
from distributio.server.site import Site
from distributio.store import page_views, views
from distributio.store.database import Transaction
from distributio.wire.native import SiteStatus

_FRESH_SECONDS = 2.0  # however many people look, the figures are read this often
_ACTIVITY_SHOWN = 8
_OWN_SHOWN = 6
_RINGS = ((6, 42.0), (11, 78.0), (17, 114.0))  # places and radius of each ring of the picture on the start page


class Figures(Struct, frozen=True, kw_only=True):
    """The site in numbers, as everybody may know them."""

    status: SiteStatus
    lent_cpus: int
    lent_memory_bytes: int
    platforms: dict[str, int]
    runners: dict[str, int]
    activity: list[page_views.Activity]


_remembered: weakref.WeakKeyDictionary[Site, tuple[float, Figures]] = weakref.WeakKeyDictionary()


async def _figures(call: Call) -> Figures:
    known = _remembered.get(call.site)
    if known is None or known[0] < time.monotonic():
        status = await native_api.status(call)
        since = time.time() - call.site.settings.away_seconds
        known = (time.monotonic() + _FRESH_SECONDS, await call.site.read(_read_figures, status, since))
        _remembered[call.site] = known
    return known[1]


def _read_figures(transaction: Transaction, status: SiteStatus, since: float) -> Figures:
    present = views.present_hosts(transaction, since)
    return Figures(
        status=status,
        lent_cpus=sum(facts.cpus for facts in present),
        lent_memory_bytes=sum(facts.memory_bytes for facts in present),
        platforms=dict(Counter(facts.platform for facts in present).most_common()),
        runners=dict(Counter(runner for facts in present for runner in facts.runners).most_common()),
        activity=page_views.activity(transaction, _ACTIVITY_SHOWN),
    )


class Dot(Struct, frozen=True, kw_only=True):
    """A place in the picture of hosts around their site."""

    x: float
    y: float
    is_lit: bool


def picture(active: int) -> list[Dot]:
    """Hosts around their site, from the inside out: so many are at work, the other places are free."""
    dots: list[Dot] = []
    for ring, (places, radius) in enumerate(_RINGS):
        for place in range(places):
            angle = 2 * math.pi * (place / places + 0.09 * ring) - math.pi / 3
            x, y = round(radius * math.cos(angle), 1), round(radius * math.sin(angle), 1)
            dots.append(Dot(x=x, y=y, is_lit=len(dots) < active))
    return dots


async def home(call: Call) -> Response:
    """GET /: what this is for; for those who are signed in their work and their hosts, too."""
    mine: dict[str, Any] = {"batches": [], "hosts": []}
    if call.visitor is not None:
        site = call.site
        mine["batches"] = await site.read(views.batches, call.visible_projects(), None, FAR, _OWN_SHOWN)
        mine["hosts"] = (await native_api.list_hosts(call)).items
    figures = await _figures(call)
    return show(call, "home.html", figures=figures, mine=mine, picture=picture(figures.status.hosts_active))


async def status(call: Call) -> Response:
    """GET /status: how the server is doing."""
    site = call.site
    checked = await operations.readyz(call)
    checks = [line.partition(" ") for line in bytes(checked.body).decode().splitlines()]
    return show(
        call,
        "status.html",
        figures=await _figures(call),
        checks={name.partition(":")[0]: word == "ok" for word, _, name in checks},
        ledger={"turns": site.ledger.turns, "events": site.ledger.events, "depth": site.ledger.depth()},
        waiting_hosts=site.hub.waiting_hosts(),
        started_at=site.started_at,
        rejections=_rejections(site),
    )


def _rejections(site: Site) -> list[Because]:
    return in_order(site.rejections, Who.OPERATOR)


async def robots(call: Call) -> Response:
    """GET /robots.txt: nobody needs to read through jobs by machine."""
    return PlainTextResponse("User-agent: *\nDisallow: /batches\nDisallow: /jobs\nDisallow: /hosts\nDisallow: /login\n")


def _page(method: str, path: str, access: str, handler: Handler, summary: str) -> Route:
    return Route(method=method, path=path, access=access, handler=handler, summary=summary, streams="page")


ROUTES: tuple[Route, ...] = (
    _page("GET", "/", "visitor", home, "What this site is for."),
    _page("GET", "/status", "visitor", status, "How the server is doing."),
    _page("GET", "/static/{file}", "visitor", rendering.static_file, "Styles and scripts of the pages."),
    _page("GET", "/robots.txt", "public", robots, "What search engines leave alone."),
    _page("GET", "/login", "visitor", people.login_form, "Sign in."),
    _page("POST", "/login", "visitor", people.login, "Begin a session."),
    _page("POST", "/logout", "session", people.logout, "End the session."),
    _page("GET", "/account", "session", people.account, "Tokens and projects."),
    _page("POST", "/account/tokens", "session", people.make_token, "Make a token."),
    _page("POST", "/account/tokens/{token}/revoke", "session", people.revoke_token, "Revoke a token."),
    _page("GET", "/batches", "session", work.batches, "Batches, newest first."),
    _page("GET", "/batches/{batch}", "session", work.batch, "A batch."),
    _page("GET", "/batches/{batch}/events", "session", native_api.batch_events, "News of a batch."),
    _page("POST", "/batches/{batch}/cancel", "session", work.cancel_batch, "Cancel a batch."),
    _page("POST", "/batches/{batch}/rerun", "session", work.rerun_batch, "Run failed jobs again."),
    _page("GET", "/jobs/{job}", "session", work.job, "A job."),
    _page("GET", "/jobs/{job}/log", "session", native_api.job_log, "A job's log, live with follow=1."),
    _page("GET", "/jobs/{job}/results.tar", "session", native_api.job_results, "A job's results."),
    _page("GET", "/jobs/{job}/result.json", "session", native_api.job_record, "A job's result record."),
    _page("POST", "/jobs/{job}/cancel", "session", work.cancel_job, "Cancel a job."),
    _page("GET", "/hosts", "session", machines.hosts, "Hosts."),
    _page("GET", "/hosts/{host}", "session", machines.host, "A host."),
    _page("POST", "/hosts/{host}/detach", "session", machines.detach, "Detach a host."),
)
