"""`distributio host ...`: lend this machine to a site, look after it, take it back."""

import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distributio.cli import show
from distributio.cli.exits import ExitCode, Stop

if TYPE_CHECKING:
    from types import FrameType

    from distributio.agent.agent import Agent, Ending, Settings
    from distributio.agent.folder import Folder
    from distributio.wire.native import HostChanged, HostFacts, HostView

app = typer.Typer(no_args_is_help=True, help="Lend this machine: attach, run, status, suspend, resume, detach, doctor.")

DATA_VARIABLE = "DISTRIBUTIO_HOST_DATA"
_DEFAULT_DATA = "~/.local/share/distributio/host"
_GREY, _YELLOW, _RED, _RESET = "\x1b[2m", "\x1b[33m", "\x1b[31m", "\x1b[0m"

DataOption = Annotated[
    str, typer.Option("--data", metavar="DIR", envvar=DATA_VARIABLE, help="Where this host keeps its data.")
]
RunnerOption = Annotated[
    str, typer.Option("--runner", help="How jobs are run: container, or fake for trying things out.")
]


def _standing(host: "HostView") -> str:
    if host.state == "banned":
        return "banned"
    aside = sum(app.set_aside for app in host.apps)
    trusted = sum(app.trusted for app in host.apps)
    return "set aside" if aside else f"trusted with {trusted} of {len(host.apps)}" if host.apps else ""


_HOST_COLUMNS = (
    show.Column("ID", lambda host: host.id),
    show.Column("NAME", lambda host: show.shortened(host.name)),
    show.Column("STATE", lambda host: host.state),
    show.Column("RUNNING", lambda host: str(host.running), right=True),
    show.Column("DONE", lambda host: f"{host.done:,}", right=True),
    show.Column("FAILED", lambda host: f"{host.failed:,}", right=True),
    show.Column("CREDIT", lambda host: f"{host.credit:,.2f}", right=True),
    show.Column("A DAY", lambda host: f"{host.recent_average:,.2f}", right=True),
    show.Column("STANDING", _standing),
)


@app.command()
def attach(
    url: Annotated[str, typer.Argument(help="The site's address.")] = "",
    token: Annotated[str, typer.Option("--token", help="Your token there. Default: the one you logged in with.")] = "",
    name: Annotated[str, typer.Option("--name", help="What to call this host. Default: the machine's name.")] = "",
    cpus: Annotated[float, typer.Option("--cpus", min=0, help="Processors to lend; 0: all.")] = 0.0,
    memory: Annotated[str, typer.Option("--memory", metavar="SIZE", help="Memory to lend, such as 8g.")] = "",
    disk: Annotated[str, typer.Option("--disk", metavar="SIZE", help="Disk to lend, such as 20g.")] = "20g",
    runner: RunnerOption = "container",
    data: DataOption = _DEFAULT_DATA,
) -> None:
    """Join a site as a host. Asks nothing and starts nothing: `distributio host run` does the work."""
    from distributio.agent.folder import Membership
    from distributio.agent.site import KeyUnknown, Refused, Site, SiteAway
    from distributio.cli import config

    choice = config.choose(config.load(config.folder()), os.environ, url)
    secret = token or choice.token
    if not secret:
        raise Stop(
            f"No token is known for {choice.url}. Make one on your account page there and add --token TOKEN.",
            ExitCode.REFUSED,
        )
    folder = _folder(data)
    if folder.membership_path.exists():
        there = folder.membership()
        raise Stop(
            f"This host has joined {there.site_name} ({there.url}) already. Leave it with `distributio host detach`, or "
            "keep this membership in a folder of its own with --data DIR."
        )
    _write_policy(folder, cpus, memory, disk)
    facts = _facts(folder, runner, name or socket.gethostname())
    site = Site(choice.url, f"Bearer {secret}")
    try:
        attached = site.attach(facts)
    except KeyUnknown as error:
        raise Stop(
            f"{choice.url} does not know this token. Log in again or name another with --token.", ExitCode.REFUSED
        ) from error
    except SiteAway as error:
        raise Stop(f"{error}. Is the address right, and the site up?", ExitCode.UNREACHABLE) from error
    except Refused as error:
        raise Stop(f"{choice.url} refuses this host: {error}", ExitCode.REFUSED) from error
    finally:
        site.close()
    folder.join(
        Membership(
            url=choice.url,
            host=attached.host,
            key=attached.key,
            site_name=attached.site_name,
            name=facts.name,
            runner=runner,
        )
    )
    show.line(f"joined {attached.site_name} as host {attached.host}")
    show.line(f"lends {folder.policy().cpus:g} cpus; all limits are in {folder.policy_path}")
    show.line("start working with: distributio host run")


@app.command()
def run(
    until_idle: Annotated[
        float | None, typer.Option("--until-idle", metavar="SECONDS", help="End after so long without work.")
    ] = None,
    drain: Annotated[bool, typer.Option("--drain", help="On SIGTERM, finish what runs before ending.")] = False,
    log_level: Annotated[str, typer.Option("--log-level", help="debug, info, warning or error.")] = "info",
    data: DataOption = _DEFAULT_DATA,
) -> None:
    """Work. Ctrl-C gives running tasks back to the site. SIGTERM leaves them running: they are picked up at the next
    start (with --drain it waits for them)."""
    from distributio.agent.agent import Ending, Settings

    _tell_on_terminal(log_level)
    agent = _agent(_folder(data), Settings(until_idle_seconds=until_idle))
    _listen_to_signals(agent, Ending.DRAIN if drain else Ending.LEAVE)
    ending = _run(agent)
    if ending is Ending.KEY_UNKNOWN:
        raise typer.Exit(ExitCode.REFUSED)
    if ending is Ending.GIVE_BACK:
        raise typer.Exit(ExitCode.INTERRUPTED)


@app.command()
def status(
    output: show.OutputOption = show.Output.TABLE,
    data: DataOption = _DEFAULT_DATA,
) -> None:
    """What this host is doing, or why it is not doing anything."""
    from distributio.agent.control import NotRunning, tell
    from distributio.agent.folder import NotAttached

    folder = _folder(data)
    try:
        member = folder.membership()
    except NotAttached as error:
        raise Stop(str(error)) from error
    try:
        now: dict[str, Any] = tell(folder.root, folder.socket_name, "status").status or {}
    except NotRunning:
        state = "suspended, not running" if folder.is_suspended else "not running"
        now = {"host": member.host, "site": member.site_name, "url": member.url, "state": state, "tasks": []}
    if output is show.Output.JSON:
        show.line(show.json_of(now))
        return
    if output is show.Output.ID:
        show.line(member.host)
        return
    show.line(f"host {now['host']} of {now['site']} ({now['url']}): {now['state']}")
    for reason in (now.get("site_problem"), *now.get("why_not_computing", ()), *now.get("why_no_work", ())):
        if reason:
            show.line(f"  {reason}")
    for task in now["tasks"]:
        done = "" if task["fraction"] is None else f" {task['fraction']:.0%}"
        show.line(f"  task {task['task']} (job {task['job']}) {task['phase']}{done}  {task['image']}")


@app.command()
def suspend(data: DataOption = _DEFAULT_DATA) -> None:
    """Stop computing until `resume`. Running tasks are paused and kept."""
    _say_suspended(_folder(data), True)


@app.command()
def resume(data: DataOption = _DEFAULT_DATA) -> None:
    """Go on computing."""
    _say_suspended(_folder(data), False)


@app.command()
def detach(data: DataOption = _DEFAULT_DATA) -> None:
    """Leave the site: give its tasks back, tell it, forget the key."""
    from distributio.agent.agent import Ending, Settings
    from distributio.agent.control import NotRunning, tell

    folder = _folder(data)
    try:
        reply = tell(folder.root, folder.socket_name, "detach")
    except NotRunning:
        _tell_on_terminal("info")
        agent = _agent(folder, Settings())
        agent.end(Ending.DETACH)
        _run(agent)
        return
    if not reply.ok:
        raise Stop(f"{reply.message}. Look again with `distributio host status`.", ExitCode.UNREACHABLE)
    show.line(reply.message)


@app.command()
def doctor(
    output: show.OutputOption = show.Output.TABLE,
    runner: Annotated[
        str, typer.Option("--runner", help="The runner to examine. Default: the one attached with.")
    ] = "",
    data: DataOption = _DEFAULT_DATA,
) -> None:
    """Find what keeps this machine from computing, and say what to do. The exit code is 1 if something is wrong."""
    from distributio.agent.doctor import examine

    findings = []
    for finding in examine(_folder(data), runner or None):
        findings.append(finding)
        if output is not show.Output.JSON:
            show.line(f"{'ok     ' if finding.ok else 'problem'}  {finding.name}: {finding.detail}")
            if not finding.ok and finding.advice:
                show.line(f"         {finding.advice}")
    if output is show.Output.JSON:
        show.line(show.json_of(findings))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def ls(
    everybody: Annotated[bool, typer.Option("--all", help="Everybody's, for the operator.")] = False,
    url: show.UrlOption = "",
    output: show.OutputOption = show.Output.TABLE,
) -> None:
    """List your hosts on the site, with what they have earned."""
    from distributio.cli import config

    with config.connect(url) as client:
        found = list(client.hosts(everybody=everybody))
    show.many(
        found, _HOST_COLUMNS, output, lambda host: host.id, "No hosts. Lend this machine: distributio host attach"
    )


@app.command()
def ban(
    host: Annotated[str, typer.Argument(help="The host, as `host ls --all` lists it.")],
    reason: Annotated[str, typer.Option("--reason", help="Why, for its owner.")] = "",
    days: Annotated[float, typer.Option("--recheck-days", min=0, help="Do again what it did alone since.")] = 30.0,
    url: show.UrlOption = "",
    output: show.OutputOption = show.Output.TABLE,
) -> None:
    """For the operator: take all work from a host, and do again what was accepted on its word alone."""
    from distributio.cli import config
    from distributio.wire.native import HostChange

    with config.connect(url) as client:
        done = client.change_host(host, HostChange(state="banned", reason=reason, recheck_days=days))
    again = ", ".join(map(str, done.rechecks)) or "none"
    facts = [
        ("host", f"{show.clean(done.host.name)} ({done.host.id}) is banned"),
        ("batches of re-checks", again),
        *((f"not re-checked: {code}", f"{count:,} jobs") for code, count in done.not_rechecked.items()),
    ]
    show.one(done, facts, output, lambda changed: changed.host.id)


@app.command()
def unban(
    host: Annotated[str, typer.Argument(help="The host, as `host ls --all` lists it.")],
    url: show.UrlOption = "",
    output: show.OutputOption = show.Output.TABLE,
) -> None:
    """For the operator: let a banned host work again."""
    from distributio.cli import config
    from distributio.wire.native import HostChange

    with config.connect(url) as client:
        done = client.change_host(host, HostChange(state="active"))
    show.one(done, [("host", f"{show.clean(done.host.name)} ({done.host.id}) may work again")], output, _changed_id)


def _changed_id(changed: "HostChanged") -> str:
    return changed.host.id


def _folder(data: str) -> "Folder":
    from distributio.agent.folder import Folder

    folder = Folder(Path(data))
    try:
        folder.create()
    except OSError as error:
        raise Stop(f"{folder.root} cannot be used: {error.strerror}. Name another folder with --data DIR.") from error
    return folder


def _write_policy(folder: "Folder", cpus: float, memory: str, disk: str) -> None:
    from distributio.agent import hardware, policy

    try:
        most = int(hardware.memory_bytes() * 3 // 4)
        text = policy.template(cpus or hardware.cpus(), memory or f"{max(64, most >> 20)}m", disk)
        policy.parse(text)
    except policy.PolicyError as error:
        raise Stop(str(error)) from error
    folder.policy_path.write_text(text, encoding="utf-8")


def _facts(folder: "Folder", runner: str, name: str) -> "HostFacts":
    from distributio.agent import engines, facts

    try:
        seen = engines.load(runner, folder).probe()
    except engines.UnknownRunner as error:
        raise Stop(str(error)) from error
    if not seen.works:
        raise Stop(
            f"The {runner} runner does not work on this machine: {seen.problem} "
            "`distributio host doctor` examines everything it needs."
        )
    return facts.attaching(folder, name, {runner: seen})


def _agent(folder: "Folder", settings: "Settings") -> "Agent":
    from distributio.agent import engines
    from distributio.agent.agent import Agent
    from distributio.agent.folder import NotAttached
    from distributio.agent.journal import JournalError
    from distributio.agent.policy import PolicyError

    try:
        member = folder.membership()
        return Agent(folder, member, {member.runner: engines.load(member.runner, folder)}, settings)
    except (NotAttached, JournalError, PolicyError) as error:
        raise Stop(str(error)) from error


def _run(agent: "Agent") -> "Ending | None":
    from distributio.agent.journal import JournalError
    from distributio.agent.policy import PolicyError

    try:
        return agent.run()
    except (JournalError, PolicyError) as error:
        raise Stop(str(error)) from error


def _say_suspended(folder: "Folder", suspended: bool) -> None:
    from distributio.agent.control import NotRunning, tell

    verb = "suspend" if suspended else "resume"
    try:
        show.line(tell(folder.root, folder.socket_name, verb).message)
    except NotRunning:
        folder.suspend(suspended)
        show.line(
            "no agent runs here now; " + ("it will start suspended" if suspended else "it will compute when it runs")
        )


def _listen_to_signals(agent: "Agent", on_term: "Ending") -> None:
    from distributio.agent.agent import Ending

    def on_interrupt(number: int, frame: "FrameType | None") -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends at once
        show.note(f"giving {agent.held_count} task(s) back; Ctrl-C again to end at once")
        agent.end(Ending.GIVE_BACK)

    signal.signal(signal.SIGINT, on_interrupt)
    signal.signal(signal.SIGTERM, lambda number, frame: agent.end(on_term))


class _Line(logging.Formatter):
    """A calm line: the time and what happened, coloured by how much it asks for a look."""

    def __init__(self, colours: bool) -> None:
        super().__init__("%(message)s", "%H:%M:%S")
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        text = f"{self.formatTime(record, self.datefmt)} {super().format(record)}"
        if not self._colours or record.levelno == logging.INFO:
            return text
        colour = _GREY if record.levelno < logging.INFO else _YELLOW if record.levelno < logging.ERROR else _RED
        return f"{colour}{text}{_RESET}"


def _tell_on_terminal(level: str) -> None:
    if level.upper() not in logging.getLevelNamesMapping():
        raise Stop(f"--log-level: {level!r} is none of debug, info, warning, error.")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line(sys.stderr.isatty() and "NO_COLOR" not in os.environ))
    logger = logging.getLogger("distributio")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())
