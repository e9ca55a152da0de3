"""`distributio serve`: run a site."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def serve(
    data: Annotated[Path | None, typer.Option(help="Folder that holds everything the site keeps.")] = None,
    listen: Annotated[str | None, typer.Option(help="ADDRESS:PORT to listen on.")] = None,
    url: Annotated[str | None, typer.Option(help="Address people and hosts reach the site under.")] = None,
    database: Annotated[
        str | None, typer.Option(help="postgresql://USER@HOST/NAME; default: SQLite in the folder.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="A folder or s3://BUCKET/PREFIX; default: in the data folder.")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="Server processes; more than one needs PostgreSQL.")] = None,
    worker: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Run a site on this machine."""
    from distributio.server import main as server
    from distributio.server import settings as settings_module
    from distributio.store.database import StoreError

    try:
        settings = settings_module.read(
            data, {"listen": listen, "url": url, "database": database, "storage": storage, "processes": processes}
        )
        server.configure_logging(settings)
        if worker:
            server.end_with_parent()
            site, _ = server.start_up(settings)
            server.run(settings, site, [server.bind(settings, shared=True)], lambda: None)
            return
        if settings.processes > 1 and not settings.database.startswith("postgres"):
            raise settings_module.SettingsError("several processes need PostgreSQL: add --database postgresql://...")
        with server.only_one(settings.data):
            sock = server.bind(settings, shared=settings.processes > 1)
            site, token = server.start_up(settings)
            if token is not None:
                _remember_site(site.url, token)
            if settings.processes > 1:
                sock.close()
                site.database.close()
                crew = server.Crew(
                    [*_self(), *sys.argv[1:], "--worker"],
                    settings.processes,
                    settings_module.address(settings),
                    lambda: _announce(site.url, settings.data, token),
                )
                raise typer.Exit(crew.run())
            server.run(settings, site, [sock], lambda: _announce(site.url, settings.data, token))
    except (settings_module.SettingsError, StoreError) as error:
        typer.echo(f"distributio: {error}", err=True)
        raise typer.Exit(2) from error


def _self() -> list[str]:
    return [sys.executable, "-m", "distributio.cli.main"]


def _announce(url: str, data: Path, token: str | None) -> None:
    typer.echo(f"Site ready at {url}/ (data in {data})", err=True)
    if token is not None:
        typer.echo(
            f"The operator's token is in {data / 'operator-token'}; `distributio` on this machine uses it.", err=True
        )
    typer.echo(f"Lend this machine: distributio host attach {url} && distributio host run", err=True)
    typer.echo("Run a job:         distributio run python:alpine python -c \"print('Hello BOINC')\"", err=True)


def _remember_site(url: str, token: str) -> None:
    """So that the command line of the same user finds the site by itself."""
    from distributio.cli import config

    if os.environ.get("DISTRIBUTIO_NO_CONFIG") is None:
        config.store(config.folder(), url, config.Known(token=token), make_default=True)
