"""`distributio project`: who shares the site, and how much each may have."""

from typing import Annotated

import typer

from distributio.cli import config, show
from distributio.cli.exits import Stop
from distributio.cli.show import Column, Output, OutputOption, UrlOption
from distributio.wire.native import ProjectChange, ProjectView

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__
)


def _pairs(values: dict[str, int] | dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "-"


_COLUMNS = (
    Column("PROJECT", lambda project: project.name),
    Column("STATE", lambda project: "on" if project.enabled else "off"),
    Column("WEIGHT", lambda project: f"{project.weight:g}", right=True),
    Column("MEMBERS", lambda project: show.shortened(_pairs(project.members))),
    Column("LIMITS", lambda project: _pairs(project.limits)),
    Column("USE", lambda project: _pairs(project.usage)),
)
_NAME = Annotated[str, typer.Argument(metavar="PROJECT", help="Its name.")]


@app.callback()
def projects() -> None:
    """Projects: they own batches, images and files; they have members and limits."""


def _show(project: ProjectView, output: Output) -> None:
    show.many([project], _COLUMNS, output, lambda view: view.name, "")


@app.command()
def ls(url: UrlOption = "", output: OutputOption = Output.TABLE) -> None:
    """List every project."""
    with config.connect(url) as client:
        found = list(client.projects())
    show.many(found, _COLUMNS, output, lambda view: view.name, "No projects.")


@app.command()
def create(name: _NAME, url: UrlOption = "", output: OutputOption = Output.TABLE) -> None:
    """Make a project."""
    with config.connect(url) as client:
        _show(client.create_project(name), output)


@app.command(name="set")
def change(
    name: _NAME,
    enabled: Annotated[bool | None, typer.Option("--on/--off", help="Whether its jobs are sent to hosts.")] = None,
    weight: Annotated[float | None, typer.Option(help="Its share beside other projects that wait; 1 is usual.")] = None,
    limit: Annotated[
        list[str] | None, typer.Option(metavar="RESOURCE=NUMBER", help="A limit; RESOURCE=none lifts it.")
    ] = None,
    member: Annotated[
        list[str] | None, typer.Option(metavar="USER=ROLE", help="reader, member or manager; USER=none takes one out.")
    ] = None,
    url: UrlOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Change a project's members, limits, share or switch."""
    limits = {key: None if value == "none" else _number(key, value) for key, value in map(_pair, limit or [])}
    members = {key: None if value == "none" else value for key, value in map(_pair, member or [])}
    with config.connect(url) as client:
        change = ProjectChange(enabled=enabled, weight=weight, limits=limits, members=members)
        _show(client.change_project(name, change), output)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise Stop(f"{text!r} must be NAME=VALUE, as in --limit jobs_in_flight=1000 or --member ada=manager.")
    return name, value


def _number(name: str, text: str) -> int:
    if not text.isdigit():
        raise Stop(f"--limit {name}={text}: the limit must be a whole number, or none.")
    return int(text)
