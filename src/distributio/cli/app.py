"""`distributio app`: programs that stock BOINC clients run."""

from pathlib import Path
from typing import Annotated

import typer

from distributio.cli import show
from distributio.cli.exits import Stop
from distributio.cli.keys import DataOption, open_site
from distributio.cli.show import Column, Output, OutputOption

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)

_COLUMNS = (
    Column("APP", lambda version: version.app),
    Column("VERSION", lambda version: str(version.version), right=True),
    Column("PLATFORM", lambda version: version.platform),
    Column("PLAN CLASS", lambda version: version.plan_class),
    Column("FILES", lambda version: str(len(version.document.files)), right=True),
)


@app.callback()
def apps() -> None:
    """Programs that stock BOINC clients run."""


@app.command()
def add(
    folder: Annotated[Path, typer.Argument(help="APP, holding VERSION/PLATFORM/ with the files of each build.")],
    data: DataOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Keep, sign and offer an app's builds. Done on the site's machine, because it needs the private key."""
    from distributio.server import boinc_apps, boinc_keys

    site = open_site(data)
    try:
        added = boinc_apps.add(site, folder)
    except (boinc_apps.BadApp, boinc_keys.NoPrivateKey) as error:
        raise Stop(str(error)) from error
    facts = [("app", added.app), ("added", ", ".join(added.added) or "nothing"), ("kept", ", ".join(added.kept))]
    show.one(added, facts, output, lambda thing: thing.app)


@app.command()
def ls(data: DataOption = None, output: OutputOption = Output.TABLE) -> None:
    """List apps with their newest builds."""
    from distributio.store import boinc

    with open_site(data).database.read() as transaction:
        found = boinc.versions(transaction)
    show.many(found, _COLUMNS, output, lambda version: version.app, "No apps.")
