"""The routes of the pages."""

from distributio.server.routes import Route

ROUTES: tuple[Route, ...] = ()
