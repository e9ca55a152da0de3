"""`distributio token`: what programs and other machines log in with."""

from typing import Annotated

import typer

from distributio.cli import config, show
from distributio.cli.show import Column, Output, OutputOption, UrlOption

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)

_COLUMNS = (
    Column("ID", lambda token: str(token.id), right=True),
    Column("NAME", lambda token: show.shortened(token.name)),
    Column("CREATED", lambda token: show.ago(token.created_at)),
)


@app.callback()
def tokens() -> None:
    """Tokens: what programs and other machines log in with."""


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for, such as the machine it will be on.")],
    url: UrlOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a token and print its secret: it is shown this once."""
    with config.connect(url) as client:
        made = client.create_token(name)
    show.one(made, [("", made.secret)], output, lambda token: token.id)


@app.command()
def ls(url: UrlOption = "", output: OutputOption = Output.TABLE) -> None:
    """List your tokens."""
    with config.connect(url) as client:
        found = client.tokens()
    show.many(found, _COLUMNS, output, lambda token: token.id, "No tokens.")


@app.command()
def rm(
    tokens: Annotated[list[int], typer.Argument(metavar="ID...", help="Ids, as `token ls` lists them.")],
    url: UrlOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Revoke tokens, at once."""
    with config.connect(url) as client:
        for token_id in tokens:
            client.delete_token(token_id)
    show.many(tokens, (Column("ID", str),), output, lambda token: token, "")
