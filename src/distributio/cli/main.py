"""Which commands there are, and where each one lives: a table, read before anything else is imported."""

import sys
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from msgspec import Struct
from typer.core import TyperGroup

from distributio import __version__
from distributio.cli.exits import MEANINGS, ExitCode, Stop


class Command(Struct, frozen=True):
    """A command's name, the group help lists it in, where it is, and one line about it."""

    name: str
    group: str
    place: str  # MODULE:ATTRIBUTE in distributio.cli; a Typer application or a function
    help: str


COMMANDS: tuple[Command, ...] = (
    Command("run", "Jobs", "run:app", "Run one command in a container on a lent machine."),
    Command("submit", "Jobs", "submit:app", "Submit many jobs at once, and wait for them."),
    Command("ps", "Jobs", "jobs:ps", "List jobs."),
    Command("logs", "Jobs", "jobs:logs", "Print what a job's command printed."),
    Command("inspect", "Jobs", "jobs:inspect", "Show all about a job and its copies, or about a batch."),
    Command("explain", "Jobs", "jobs:explain", "Say why a job waits, runs or failed, and what to do."),
    Command("wait", "Jobs", "jobs:wait", "Wait until jobs and batches are over."),
    Command("stop", "Jobs", "jobs:stop", "Stop jobs and batches."),
    Command("results", "Jobs", "jobs:results", "Fetch the results of jobs."),
    Command("validate", "Jobs", "validate:validate", "Say whether two outputs agree, and what would be caught."),
    Command("verify", "Jobs", "verify:verify", "Check that results are what a site signed, offline."),
    Command("rerun", "Jobs", "jobs:rerun", "Run what failed again."),
    Command("batch", "Jobs", "batch:app", "List batches."),
    Command("image", "Jobs", "image:app", "List, import and remove images."),
    Command("login", "The site", "site:login", "Store a site's address and your token."),
    Command("whoami", "The site", "site:whoami", "Show who your token speaks for."),
    Command("token", "The site", "token:app", "Make, list and revoke tokens."),
    Command("user", "The site", "user:app", "List people and make them known; for operators."),
    Command("project", "The site", "project:app", "List, make and change projects; for operators."),
    Command("status", "The site", "site:status", "Show the site in numbers."),
    Command("serve", "Machines", "serve:serve", "Be a site: the server."),
    Command("host", "Machines", "host:app", "Lend this machine: the host agent."),
    Command("app", "Machines", "app:app", "Add programs that stock BOINC clients run, and list them."),
    Command("keys", "Machines", "keys:app", "Show or replace the keys that BOINC clients trust."),
    Command("demo", "Machines", "demo:demo", "Try all of it on this machine."),
    Command("version", "This program", "site:version", "Print the version of this program."),
    Command("docs", "This program", "reference:docs", "Print the reference of all commands."),
)


def available() -> tuple[Command, ...]:
    """The commands of this installation: one without the server's part has no `serve`."""
    return tuple(command for command in COMMANDS if find_spec(f"distributio.cli.{command.place.partition(':')[0]}"))


class LazyGroup(TyperGroup):
    """Imports a command's module when that command is meant, and not for help."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the table."""
        return [command.name for command in available()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name."""
        for command in available():
            if command.name == cmd_name:
                return load(command)
        close = get_close_matches(cmd_name, self.list_commands(ctx), n=1)
        if close:
            raise Stop(f"There is no command {cmd_name}. Did you mean {close[0]}?")
        return None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The table, in groups."""
        listed = available()
        for group in dict.fromkeys(command.group for command in listed):
            with formatter.section(group):
                formatter.write_dl([(command.name, command.help) for command in listed if command.group == group])


app = typer.Typer(
    cls=LazyGroup, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"distributio {__version__}")
        raise typer.Exit


@app.callback(epilog="`distributio COMMAND --help` tells more. Start with `distributio demo`.")
def root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Send container jobs to lent computers as you would docker run them, and get checked results back."""


def load(command: Command) -> Any:
    """Import a command."""
    module, _, attribute = command.place.partition(":")
    found = getattr(import_module(f"distributio.cli.{module}"), attribute)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        alone.command(command.name)(found)
        found = alone
    loaded = typer.main.get_command(found)
    loaded.name = command.name
    for each in (loaded, *getattr(loaded, "commands", {}).values()):
        each.rich_markup_mode = None  # help is plain text, so that it is quick, and the same in a pipe
    return loaded


def main() -> None:
    """Run the command line; every error that is somebody's business ends in words and an exit code from the table."""
    from distributio.cli import show

    try:
        typer.main.get_command(app).main(prog_name="distributio")
    except Stop as error:
        show.note(f"distributio: {error}")
        sys.exit(error.code)
    except Exception as error:
        code = _code_of(error)
        if code is None:
            raise
        show.note(f"distributio: {error}")
        sys.exit(code)


def _code_of(error: Exception) -> ExitCode | None:
    from distributio.sdk.errors import ClientError, SiteUnreachable

    if isinstance(error, SiteUnreachable):
        return ExitCode.UNREACHABLE
    return ExitCode.REFUSED if isinstance(error, ClientError) else None


def exit_code_lines() -> list[tuple[str, str]]:
    """The table of exit codes, for help and reference."""
    return [(str(int(code)), meaning) for code, meaning in MEANINGS.items()]


if __name__ == "__main__":
    main()
