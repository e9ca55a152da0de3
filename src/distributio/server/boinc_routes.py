"""The addresses that BOINC clients and managers know, as rows of the table of routes."""

from distributio.server import boinc_attach
from distributio.server.routes import Route

_PHP = "BOINC: "

ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/get_project_config.php",
        access="public",
        handler=boinc_attach.project_config,
        summary=_PHP + "what a manager shows before one attaches.",
        streams="XML",
    ),
    Route(
        method="GET",
        path="/lookup_account.php",
        access="public",
        handler=boinc_attach.lookup_account,
        summary=_PHP + "an account key for an address and password.",
        query=("email_addr", "passwd_hash"),
        streams="XML",
    ),
    Route(
        method="GET",
        path="/create_account.php",
        access="public",
        handler=boinc_attach.create_account,
        summary=_PHP + "a new account.",
        query=("email_addr", "passwd_hash", "user_name"),
        streams="XML",
    ),
    Route(
        method="GET",
        path="/server_status.php",
        access="public",
        handler=boinc_attach.server_status,
        summary=_PHP + "the site's parts and numbers.",
        query=("xml",),
        streams="XML",
    ),
    Route(
        method="GET",
        path="/boinc/download/{mark}/{hexadecimal}",
        access="public",
        handler=boinc_attach.download,
        summary=_PHP + "a file, for whoever was told its address.",
        streams="bytes",
    ),
)
