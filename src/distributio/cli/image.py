"""`distributio image`: the images jobs run in."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distributio.cli import config, local_engine, progress, sending, show
from distributio.cli.exits import ExitCode, Stop
from distributio.cli.quantities import size_text
from distributio.cli.show import Column, Output, OutputOption, ProjectOption, UrlOption
from distributio.wire.native import ImageView

if TYPE_CHECKING:
    from distributio.sdk.client import Client

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)

_COLUMNS = (
    Column("ID", lambda image: str(image.id), right=True),
    Column("REFERENCE", lambda image: image.reference),
    Column("DIGEST", lambda image: image.digest.removeprefix("sha256:")[:12]),
    Column("PLATFORMS", lambda image: " ".join(sorted(image.platforms))),
    Column("SIZE", lambda image: size_text(image.size_bytes), right=True),
    Column("JOBS", lambda image: str(image.jobs_using), right=True),
    Column("CREATED", lambda image: show.ago(image.created_at)),
)


@app.callback()
def images() -> None:
    """The images jobs run in. The site keeps them and hands them to hosts, which never ask a registry."""


@app.command()
def ls(url: UrlOption = "", project: ProjectOption = "", output: OutputOption = Output.TABLE) -> None:
    """List the project's images."""
    with config.connect(url, project) as client:
        found = list(client.images())
    show.many(found, _COLUMNS, output, lambda image: image.id, "No images. `distributio image import` brings one.")


@app.command("import")
def import_image(
    source: Annotated[str, typer.Argument(metavar="IMAGE|FILE.tar|-", help="What to import; - is standard input.")],
    engine: Annotated[
        str, typer.Option("--from", metavar="podman|docker", help="Take it from this engine on your machine.")
    ] = "",
    name: Annotated[str, typer.Option("--name", metavar="IMAGE", help="What an archive is called on the site.")] = "",
    refresh: Annotated[bool, typer.Option("--refresh", help="Look again even if the site knows the tag.")] = False,
    url: UrlOption = "",
    project: ProjectOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Bring an image to the site: from its registry, an archive (docker save, podman save, OCI) or a local engine.

    A name is fetched by the site from its registry. A file that exists, or -, is sent from here.
    """
    with config.connect(url, project) as client:
        image = _import(client, source, engine, name, refresh)
    show.many([image], _COLUMNS, output, lambda view: view.id, "")


def _import(client: "Client", source: str, engine: str, name: str, refresh: bool) -> ImageView:
    if engine:
        return sending.import_local(client, local_engine.must_find(source, engine), name)
    if source == "-":
        with progress.bar("Importing", 0) as shown:
            return client.upload_image(name, iter(lambda: sys.stdin.buffer.read(1 << 20), b""), shown)
    if Path(source).is_file():
        return sending.import_file(client, Path(source), name)
    if source.endswith((".tar", ".tar.gz", ".tgz")):
        raise Stop(f"There is no file {source}. Check the name and the folder you are in.")
    if name:
        raise Stop("--name is for archives and local engines: an image from a registry keeps its name.")
    return client.import_image(source, refresh=refresh)


@app.command()
def push(
    reference: Annotated[
        str, typer.Argument(metavar="IMAGE", help="An image of the podman or docker on this machine.")
    ],
    name: Annotated[str, typer.Option("--name", metavar="IMAGE", help="What it is called on the site.")] = "",
    url: UrlOption = "",
    project: ProjectOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Send an image from this machine's podman or docker to the site."""
    local = local_engine.must_find_somewhere(reference)
    with config.connect(url, project) as client:
        image = sending.import_local(client, local, name)
    show.many([image], _COLUMNS, output, lambda view: view.id, "")


@app.command()
def rm(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Ids or references.")],
    url: UrlOption = "",
    project: ProjectOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Remove images from the project. Jobs that use one keep it until they are over."""
    with config.connect(url, project) as client:
        held = list(client.images())
        meant = [_find(held, text) for text in images]
        for image in meant:
            client.delete_image(image.id)
    show.many(meant, _COLUMNS[:2], output, lambda image: image.id, "")


def _find(held: list[ImageView], text: str) -> ImageView:
    wanted = sending.canonical(text)
    for image in held:
        if text in (str(image.id), image.digest) or sending.canonical(image.reference) == wanted:
            return image
    raise Stop(f"The project has no image {text}. `distributio image ls` lists what it has.", ExitCode.REFUSED)
