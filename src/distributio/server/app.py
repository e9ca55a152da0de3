"""Every route of the site, in one table, and the application that serves them.

The table is what the API is: access is checked from it, the OpenAPI document is made from it, and a test walks it.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute

from distributio.server import (
    boinc_routes,
    files_api,
    host_api,
    hosting,
    images_api,
    native_api,
    openapi,
    operations,
    problems,
    submitting,
    tenancy_api,
    trust_api,
)
from distributio.server.boinc_api import SchedulerEndpoint
from distributio.server.boinc_attach import MasterPage
from distributio.server.boinc_uploads import UploadEndpoint
from distributio.server.pages import errors, pages, sessions
from distributio.server.problems import Refused
from distributio.server.registry import Registry
from distributio.server.routes import Call, Route, body_of, json_response
from distributio.server.site import Site
from distributio.server.small_uploads import SmallUploads
from distributio.wire.native import (
    Attach,
    Attached,
    BatchSubmission,
    BatchView,
    Explanation,
    HostChange,
    HostChanged,
    HostView,
    ImageImport,
    ImageView,
    JobView,
    LogAnswer,
    NewProject,
    NewUser,
    Page,
    PersonChange,
    ProjectChange,
    ProjectView,
    QuotaView,
    SiteKey,
    SiteStatus,
    TokenView,
    Turn,
    TurnAnswer,
    UserView,
    WhoAmI,
)

log = structlog.get_logger("http")

API = "/api/v1"
PAGE = ("limit", "cursor")


async def _turn(call: Call) -> Response:
    """Stands for the turn in the table; the application answers it before the router sees it."""
    raise Refused(405, "method-not-allowed", "POST a turn")


async def _openapi(call: Call) -> Response:
    """The description of the native API."""
    return Response(openapi.document(ROUTES, call.site.url), media_type="application/json")


def _row(
    method: str,
    path: str,
    access: str,
    handler: Any,
    summary: str,
    **more: Any,
) -> Route:
    return Route(method=method, path=path, access=access, handler=handler, summary=summary, **more)


ROUTES: tuple[Route, ...] = (
    _row("GET", "/livez", "public", operations.livez, "Whether the process runs.", streams="text"),
    _row(
        "GET",
        "/readyz",
        "public",
        operations.readyz,
        "Whether the site can serve: database, store, ledger.",
        streams="text",
    ),
    _row("GET", "/metrics", "public", operations.metrics, "Figures for Prometheus.", streams="text"),
    _row("GET", f"{API}/openapi.json", "public", _openapi, "This description.", streams="OpenAPI document"),
    _row("GET", f"{API}/status", "public", native_api.status, "The site in numbers.", gives=SiteStatus),
    _row(
        "GET",
        f"{API}/site-key",
        "public",
        native_api.site_key,
        "The keys that sign the records of results.",
        gives=SiteKey,
    ),
    _row("GET", f"{API}/whoami", "person", native_api.whoami, "Who the token speaks for.", gives=WhoAmI),
    _row(
        "PATCH",
        f"{API}/whoami",
        "person",
        trust_api.change_me,
        "Whether the leaderboard names you.",
        takes=PersonChange,
        gives=WhoAmI,
    ),
    _row("GET", f"{API}/leaderboard", "public", trust_api.leaderboard, "Who gives most of late.", gives=Page),
    _row(
        "GET",
        f"{API}/quota",
        "person",
        native_api.quota,
        "A project's limits and use.",
        gives=QuotaView,
        query=("project",),
    ),
    _row(
        "POST",
        f"{API}/tokens",
        "person",
        native_api.create_token,
        "Make a token.",
        gives=TokenView,
        status=201,
        query=("name", "project"),
    ),
    _row("GET", f"{API}/tokens", "person", native_api.list_tokens, "The caller's tokens.", gives=Page),
    _row("DELETE", f"{API}/tokens/{{token}}", "person", native_api.delete_token, "Revoke a token.", status=204),
    _row(
        "POST",
        f"{API}/batches",
        "person",
        submitting.submit,
        "Submit jobs.",
        takes=BatchSubmission,
        gives=BatchView,
        status=201,
        query=("project",),
    ),
    _row(
        "GET",
        f"{API}/batches",
        "person",
        native_api.list_batches,
        "Batches, newest first.",
        gives=Page,
        query=("state", "project", "all", *PAGE),
    ),
    _row("GET", f"{API}/batches/{{batch}}", "person", native_api.get_batch, "One batch.", gives=BatchView),
    _row(
        "POST",
        f"{API}/batches/{{batch}}/cancel",
        "person",
        native_api.cancel_batch,
        "Cancel what is not decided.",
        gives=BatchView,
    ),
    _row(
        "POST",
        f"{API}/batches/{{batch}}/rerun",
        "person",
        submitting.rerun_batch,
        "Submit failed jobs again.",
        gives=BatchView,
        status=201,
        query=("only",),
    ),
    _row(
        "GET",
        f"{API}/batches/{{batch}}/jobs",
        "person",
        native_api.list_batch_jobs,
        "A batch's jobs in order.",
        gives=Page,
        query=("state", *PAGE),
    ),
    _row(
        "GET",
        f"{API}/batches/{{batch}}/events",
        "person",
        native_api.batch_events,
        "News of a batch until it has ended.",
        streams="server-sent events",
    ),
    _row(
        "GET",
        f"{API}/batches/{{batch}}/rechecks",
        "person",
        trust_api.batch_rechecks,
        "Jobs that are done again because their host was banned.",
        gives=Page,
        query=PAGE,
    ),
    _row(
        "GET",
        f"{API}/jobs",
        "person",
        native_api.list_jobs,
        "Jobs, newest first.",
        gives=Page,
        query=("state", "project", "all", *PAGE),
    ),
    _row("GET", f"{API}/jobs/{{job}}", "person", native_api.get_job, "One job with its tasks.", gives=JobView),
    _row("POST", f"{API}/jobs/{{job}}/cancel", "person", native_api.cancel_job, "Cancel a job.", gives=JobView),
    _row(
        "GET",
        f"{API}/jobs/{{job}}/explain",
        "person",
        native_api.explain_job,
        "Why a job is where it is.",
        gives=Explanation,
    ),
    _row(
        "GET",
        f"{API}/jobs/{{job}}/log",
        "person",
        native_api.job_log,
        "What the command wrote.",
        streams="text, or server-sent events with follow=1",
        query=("attempt", "follow", "offset", "task"),
    ),
    _row("GET", f"{API}/jobs/{{job}}/results.tar", "person", native_api.job_results, "The results.", streams="tar"),
    _row(
        "GET",
        f"{API}/jobs/{{job}}/result.json",
        "person",
        native_api.job_record,
        "What ran where, and the verdict.",
        streams="result record",
    ),
    _row(
        "HEAD",
        f"{API}/files/{{digest}}",
        "person",
        files_api.head_file,
        "Whether a file is here, or how much of it.",
        query=("project",),
    ),
    _row(
        "PUT",
        f"{API}/files/{{digest}}",
        "person",
        files_api.put_file,
        "Send a file or the rest of it.",
        streams="bytes",
        status=201,
        query=("project",),
    ),
    _row(
        "GET", f"{API}/users", "operator", tenancy_api.list_users, "Everybody the site knows.", gives=Page, query=PAGE
    ),
    _row(
        "POST",
        f"{API}/users",
        "operator",
        tenancy_api.create_user,
        "Make a person known.",
        takes=NewUser,
        gives=UserView,
        status=201,
    ),
    _row("GET", f"{API}/projects", "operator", tenancy_api.list_projects, "Every project.", gives=Page, query=PAGE),
    _row(
        "POST",
        f"{API}/projects",
        "operator",
        tenancy_api.create_project,
        "Make a project.",
        takes=NewProject,
        gives=ProjectView,
        status=201,
    ),
    _row(
        "PATCH",
        f"{API}/projects/{{project}}",
        "person",
        tenancy_api.change_project,
        "Change a project: members, limits, share.",
        takes=ProjectChange,
        gives=ProjectView,
    ),
    _row(
        "GET",
        f"{API}/images",
        "person",
        images_api.list_images,
        "Images of the project.",
        gives=Page,
        query=("project", *PAGE),
    ),
    _row(
        "POST",
        f"{API}/images",
        "person",
        images_api.import_image,
        "Fetch an image from its registry.",
        takes=ImageImport,
        gives=ImageView,
        status=201,
        query=("project",),
    ),
    _row(
        "POST",
        f"{API}/images/archive",
        "person",
        images_api.import_archive_of,
        "Import an image from an archive.",
        gives=ImageView,
        streams="docker save or OCI archive",
        status=201,
        query=("reference", "project"),
    ),
    _row("DELETE", f"{API}/images/{{image}}", "person", images_api.remove_image, "Forget an image.", status=204),
    _row("GET", f"{API}/hosts", "person", native_api.list_hosts, "The caller's hosts.", gives=Page, query=("all",)),
    _row(
        "POST",
        f"{API}/hosts",
        "person",
        native_api.attach_host,
        "Join as a host.",
        takes=Attach,
        gives=Attached,
        status=201,
    ),
    _row("GET", f"{API}/hosts/{{host}}", "person", native_api.get_host, "One host.", gives=HostView),
    _row(
        "PATCH",
        f"{API}/hosts/{{host}}",
        "operator",
        trust_api.change_host,
        "Ban a host, or let it work again.",
        takes=HostChange,
        gives=HostChanged,
    ),
    _row("DELETE", f"{API}/hosts/{{host}}", "person", native_api.remove_host, "Detach a host.", status=204),
    _row(
        "POST",
        f"{API}/host/turn",
        "host",
        _turn,
        "All a host says at once, and its answer.",
        takes=Turn,
        gives=TurnAnswer,
    ),
    _row("POST", f"{API}/host/detach", "host", hosting.leave, "Say goodbye.", status=204),
    _row(
        "POST",
        f"{API}/host/tasks/{{task}}/log",
        "host",
        files_api.host_log,
        "Append to a task's log.",
        gives=LogAnswer,
        streams="bytes",
        query=("offset",),
    ),
    _row(
        "HEAD", f"{API}/host/tasks/{{task}}/output", "host", files_api.head_output, "How much of the results is here."
    ),
    _row(
        "PUT",
        f"{API}/host/tasks/{{task}}/output",
        "host",
        files_api.put_output,
        "Bring a task's results.",
        streams="tar",
        status=201,
    ),
    _row("GET", f"{API}/host/files/{{digest}}", "host", files_api.host_file, "An input of a task.", streams="bytes"),
    *boinc_routes.ROUTES,
    *pages.ROUTES,
)


async def authorize(site: Site, route: Route, request: Request) -> tuple[Any, Any]:
    """The caller or the host a request comes from, if the route asks for one. Raises Refused."""
    if route.access == "public":
        return None, None
    if route.access in sessions.ACCESS:
        return await sessions.visitor(site, route, request), None
    authorization = request.headers.get("authorization", "")
    if route.access == "host":
        return None, await host_api.authenticate(site, authorization)
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer" or not secret:
        refused = Refused(401, "bad-token", "send Authorization: Bearer TOKEN")
        refused.headers["WWW-Authenticate"] = "Bearer"
        raise refused
    caller = await site.caller(secret.strip())
    if caller is None:
        refused = Refused(401, "bad-token")
        refused.headers["WWW-Authenticate"] = "Bearer"
        raise refused
    if route.access == "operator" and not caller.is_operator:
        raise Refused(403, "operator-only")
    return caller, None


def endpoint(site: Site, route: Route) -> Callable[[Request], Awaitable[Response]]:
    """The route as Starlette calls it: who asks, what is said, what is answered, and every error as a problem."""
    decoder = msgspec.json.Decoder(route.takes) if route.takes is not None else None

    async def serve(request: Request) -> Response:
        try:
            caller, host = await authorize(site, route, request)
            body = decoder.decode(await body_of(request, site.settings.max_body_bytes)) if decoder else None
            answer = await route.handler(Call(site, request, caller, host, body))
        except Exception as error:
            return errors.page(site, request, error) if route.access in sessions.ACCESS else problems.response(error)
        return answer if isinstance(answer, Response) else json_response(answer, route.status)

    return serve


class Application:
    """The ASGI application: the hottest paths first, then the table."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._prefix = urlsplit(site.url).path.rstrip("/")
        self._turn = host_api.TurnEndpoint(site)
        uploads = UploadEndpoint(site)
        self._hot: dict[str, Callable[[host_api.Scope, host_api.Receive, host_api.Send], Awaitable[None]]] = {
            f"{API}/host/turn": self._turn,
            "/boinc/scheduler": SchedulerEndpoint(site, uploads.room),
            "/boinc/file_upload_handler": uploads,
        }
        self._small_uploads = SmallUploads(site)
        self._master = MasterPage(site)
        routes = [StarletteRoute(route.path, endpoint(site, route), methods=[route.method]) for route in ROUTES]
        access = images_api.RegistryAccess(site)
        registry = Registry(site.content, access.find_manifest, access.may_read)
        self._rest = Starlette(
            routes=[*routes, *registry.routes()],
            exception_handlers={404: self._unknown_page, 405: self._wrong_method},
        )

    async def __call__(self, scope: host_api.Scope, receive: host_api.Receive, send: host_api.Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        path = scope["path"]
        if self._prefix and (path == self._prefix or path.startswith(f"{self._prefix}/")):
            path = scope["path"] = path[len(self._prefix) :] or "/"
        hot = self._hot.get(path)
        if hot is not None and scope["method"] == "POST":
            await hot(scope, receive, send)
            return
        if self._small_uploads.is_for(scope):
            await self._small_uploads(scope, receive, send)
            return
        if path == "/" and self._master.is_for(scope):
            await self._master(scope, receive, send)
            return
        started = time.monotonic()
        await self._rest(scope, receive, send)
        log.debug("served", method=scope["method"], path=path, seconds=round(time.monotonic() - started, 4))

    async def _unknown_page(self, request: Request, error: Exception) -> Response:
        return await self._refuse(request, problems.not_found(f"page {request.url.path[:200]}"))

    async def _wrong_method(self, request: Request, error: Exception) -> Response:
        what = f"{request.method} is not for {request.url.path[:200]}"
        return await self._refuse(request, Refused(405, "method-not-allowed", what))

    async def _refuse(self, request: Request, refused: Refused) -> Response:
        """Programs get a problem, people a page."""
        if request.url.path.startswith(("/api/", "/v2")):
            return problems.response(refused)
        return await errors.outside(self.site, request, refused)
