"""How commands whose line is read docker's way fit among the others: help from the option table, words untouched."""

from typing import Any

import typer
from typer.core import TyperCommand

from distributio.cli import docker_options
from distributio.cli.docker_options import Given


class DockerLike(TyperCommand):
    """A command that takes its words as they are."""

    sections: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("Options of docker run", ("docker",)),
        ("Options of ours", ("ours",)),
        ("Accepted, because they hold for every job anyway", ("nothing",)),
    )
    usage = "[OPTIONS] IMAGE [COMMAND...]"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Leave every word to the option table."""
        ctx.args = list(args)
        return args

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """How the command is written."""
        return [self.usage]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The option table."""
        for title, sections in self.sections:
            with formatter.section(title):
                formatter.write_dl(docker_options.help_rows(*sections))


class DockerLikeMany(DockerLike):
    """The same with the options that make many jobs of one."""

    sections = (("Many jobs", ("many",)), *DockerLike.sections)
    usage = "FILE.toml | [OPTIONS] IMAGE [COMMAND...]"


def parsed(ctx: typer.Context, *, many: bool = False) -> Given:
    """The command line; help is printed and ends the command."""
    given = docker_options.parse(ctx.args, many=many)
    if given.help or not ctx.args:
        typer.echo(ctx.get_help())
        raise typer.Exit
    return given
