"""Commands about the site itself: log in, see how it is, and which version this is."""

import sys
from typing import Annotated

import typer

from distributio import __version__
from distributio.cli import config, show, sitekeys
from distributio.cli.config import Known
from distributio.cli.exits import Stop
from distributio.cli.show import Output, OutputOption, ProjectOption, UrlOption


def login(
    url: Annotated[str, typer.Argument(metavar="URL", help="The site's address.")],
    token: Annotated[str, typer.Option("--token", metavar="TOKEN", help="Your token; - reads it from standard input.")],
    project: ProjectOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Store a site's address and your token, and speak to this site from now on."""
    from distributio.sdk.client import Client

    choice = config.choose(config.Sites(), {}, url, project)
    secret = sys.stdin.readline().strip() if token == "-" else token
    if not secret:
        raise Stop("The token is empty. Your account page, or `distributio token create`, makes one.")
    with Client(choice.url, secret, project or None) as client:
        who = client.whoami()
        sitekeys.remember(client)
    file = config.store(config.folder(), choice.url, Known(token=secret, project=project), make_default=True)
    facts = [("site", choice.url), ("user", who.user), ("project", project or who.project), ("stored in", str(file))]
    show.one(who, facts, output, lambda view: view.user)


def status(url: UrlOption = "", output: OutputOption = Output.TABLE) -> None:
    """Show the site in numbers."""
    with config.connect(url, need_token=False) as client:
        now = client.status()
    facts = [
        ("site", f"{show.clean(now.name)} ({now.url or client.url})"),
        ("version", now.version),
        ("jobs", ", ".join(f"{count:,} {state}" for state, count in now.jobs.items() if count) or "none"),
        ("tasks", f"{now.tasks_in_progress:,} on hosts, {now.tasks_ready:,} ready to be sent"),
        ("hosts", f"{now.hosts_active:,} active of {now.hosts_total:,}"),
    ]
    show.one(now, facts, output, lambda view: view.url)


def whoami(url: UrlOption = "", project: ProjectOption = "", output: OutputOption = Output.TABLE) -> None:
    """Show who your token speaks for, and what the project may use."""
    with config.connect(url, project) as client:
        who = client.whoami()
        quota = client.quota()
    facts = [
        ("site", client.url),
        ("user", show.clean(who.user) + (" (operator)" if who.is_operator else "")),
        ("project", who.project),
        ("projects", ", ".join(f"{name} ({role})" for name, role in who.projects.items())),
        ("credit", f"{who.credit:,.2f} cobblestones, {who.recent_average:,.2f} a day of late"),
        *((name.replace("_", " "), f"{quota.usage.get(name, 0):,} of {most:,}") for name, most in quota.limits.items()),
    ]
    show.one(who, facts, output, lambda view: view.user)


def version(output: OutputOption = Output.TABLE) -> None:
    """Print the version of this program."""
    text = f"distributio {__version__}" if output is Output.TABLE else __version__
    show.line(show.json_of({"version": __version__}) if output is Output.JSON else text)
