"""`distributio user`: who the site knows."""

from typing import Annotated

import typer

from distributio.cli import config, show
from distributio.cli.show import Column, Output, OutputOption, UrlOption
from distributio.wire.native import NewUser

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__
)

_COLUMNS = (
    Column("USER", lambda user: user.name),
    Column("OPERATOR", lambda user: "yes" if user.is_operator else ""),
    Column("PROJECTS", lambda user: ", ".join(f"{name} ({role})" for name, role in user.projects.items()) or "-"),
    Column("CREATED", lambda user: show.ago(user.created_at)),
)


@app.callback()
def users() -> None:
    """People the site knows."""


@app.command()
def ls(url: UrlOption = "", output: OutputOption = Output.TABLE) -> None:
    """List everybody."""
    with config.connect(url) as client:
        found = list(client.users())
    show.many(found, _COLUMNS, output, lambda view: view.name, "Nobody.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="USER", help="A name.")],
    project: Annotated[str, typer.Option(help="A project they become a member of.")] = "",
    role: Annotated[str, typer.Option(help="Their role in it: reader, member or manager.")] = "member",
    operator: Annotated[bool, typer.Option(help="Whether they operate the site.")] = False,
    url: UrlOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a person known and print their first token: it is shown this once."""
    with config.connect(url) as client:
        made = client.create_user(NewUser(name=name, is_operator=operator, project=project, role=role))
    show.one(made, [("", made.token)], output, lambda view: view.name)
