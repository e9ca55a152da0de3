"""`distributio keys`: the keys with which a site signs what BOINC clients execute."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distributio.cli import show
from distributio.cli.exits import Stop
from distributio.cli.show import Output, OutputOption

if TYPE_CHECKING:
    from distributio.server.site import Site

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)

DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", envvar="DISTRIBUTIO_DATA", help="The site's data folder.")
]


def open_site(data: Path | None) -> "Site":
    """The site in a data folder of this machine; it may be running."""
    from distributio.server import settings as settings_module
    from distributio.server.site import Site
    from distributio.store.database import StoreError

    try:
        settings = settings_module.read(data, {})
        if not settings.data.is_dir():
            raise Stop(f"There is no site in {settings.data}. Name its folder with --data.")
        site = Site(settings)
        site.prepare()
    except (settings_module.SettingsError, StoreError) as error:
        raise Stop(str(error)) from error
    return site


@app.callback()
def keys() -> None:
    """The keys with which a site signs what BOINC clients execute."""


@app.command("show")
def show_key(data: DataOption = None, output: OutputOption = Output.TABLE) -> None:
    """Print the public key, which clients keep, and where the private one is."""
    from distributio.server import boinc_keys

    folder = open_site(data).boinc.folder
    known = boinc_keys.load(folder)
    private = folder / boinc_keys.PRIVATE
    facts = [
        ("private key", str(private) if private.exists() else "not on this machine"),
        ("older keys that can follow", str(len(known.retired))),
        ("public key", "\n" + known.public.strip()),
    ]
    thing = {"public": known.public, "private": str(private) if private.exists() else None, "older": len(known.retired)}
    show.one(thing, facts, output, lambda _: known.public.strip())


@app.command()
def new(data: DataOption = None, output: OutputOption = Output.TABLE) -> None:
    """Make a new key, and sign it with the older ones so that clients follow. Everything is signed anew."""
    from distributio.server import boinc_apps, boinc_bundle, boinc_keys

    site = open_site(data)
    lost = boinc_keys.replace(site.boinc.folder)
    count = boinc_apps.sign_again(site)
    boinc_bundle.install(site)
    for name in lost:
        show.note(f"The private key in retired/{name} is gone: clients that know that one must attach again.")
    facts = [("signed anew", f"{count} files"), ("clients that must attach again", ", ".join(lost))]
    show.one({"signed": count, "lost": lost}, facts, output, lambda _: count)
