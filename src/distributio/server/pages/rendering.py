"""How a page is made: templates that escape everything, static files named by their content, and headers that allow a page
nothing but what is ours."""

import functools
import hashlib
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jinja2
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

import distributio
from distributio.server.pages import words
from distributio.server.problems import not_found
from distributio.server.routes import Call
from distributio.server.site import Site

_FOLDER = Path(__file__).parent
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class StaticFile:
    """A file for browsers: its bytes, and the name that changes with them."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        self.media_type = _TYPES[path.suffix]
        self.name = f"{path.stem}.{hashlib.sha256(self.data).hexdigest()[:12]}{path.suffix}"


@functools.cache
def _static_files() -> tuple[dict[str, StaticFile], dict[str, StaticFile]]:
    """The static files by what templates call them, and by the names browsers ask for."""
    files = {path.name: StaticFile(path) for path in sorted((_FOLDER / "static").iterdir()) if path.suffix in _TYPES}
    return files, {file.name: file for file in files.values()}


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(words.FILTERS)
    environment.globals["version"] = distributio.__version__
    return environment


def render(site: Site, request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """A page. Templates know, beside their own values, the site, the visitor, the time, and how to name addresses."""
    prefix = urlsplit(site.url).path.rstrip("/")
    files = _static_files()[0]
    text = (
        _environment()
        .get_template(template)
        .render(
            site_name=site.settings.name,
            site_url=site.url,
            now=time.time(),
            path=request.url.path,
            visitor=getattr(request.state, "visitor", None),
            form_key=getattr(request.state, "form_key", ""),
            url=lambda path: prefix + path,
            static=lambda name: f"{prefix}/static/{files[name].name}",
            **values,
        )
    )
    return Response(text, status, dict(_HEADERS), media_type="text/html; charset=utf-8")


def show(call: Call, template: str, **values: Any) -> Response:
    """A page in answer to a call."""
    return render(call.site, call.request, template, **values)


def redirect(site: Site, path: str) -> Response:
    """Send the browser to another page of ours, to be asked for with GET."""
    prefix = urlsplit(site.url).path.rstrip("/")
    return RedirectResponse(prefix + path, 303, {"Cache-Control": "no-store"})


async def static_file(call: Call) -> Response:
    """GET /static/{file}: never changes under its name, so browsers may keep it."""
    file = _static_files()[1].get(call.path("file"))
    if file is None:
        raise not_found("static file of this name")
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    return Response(file.data, headers=headers, media_type=file.media_type)
