"""What a browser shows when something went wrong: the same reasons the API gives, as a page."""

from urllib.parse import quote

import structlog
from starlette.requests import Request
from starlette.responses import Response

from distributio.server import problems
from distributio.server.pages import rendering, sessions
from distributio.server.problems import Refused
from distributio.server.site import Site

log = structlog.get_logger("http")

_TITLES = {
    403: "Not allowed",
    404: "Nothing here",
    405: "Not that way",
    409: "Not now",
    500: "Something broke",
    503: "Back in a moment",
}


def page(site: Site, request: Request, error: Exception) -> Response:
    """The page for an error; whoever must sign in first is sent there."""
    if isinstance(error, sessions.SignInFirst):
        return rendering.redirect(site, f"/login?next={quote(error.back, safe='/')}")
    refused = problems.refusal(error)
    if refused is None:
        log.error("page failed", exc_info=error, path=request.url.path)
        refused = Refused(500, "internal-error", "the site's operator finds it in the log")
    response = rendering.render(
        site,
        request,
        "error.html",
        refused.status,
        title=_TITLES.get(refused.status, "That did not work"),
        refused=refused,
        reason=problems.because(refused.code),
    )
    response.headers.update(refused.headers)
    return response


async def outside(site: Site, request: Request, refused: Refused) -> Response:
    """The page for a request that no route is for."""
    try:
        await sessions.known(site, request)
    except Exception as error:
        return page(site, request, error)
    return page(site, request, refused)
