"""Which site a command speaks to, as whom: what was stored, or what the environment or an option says."""

import json
import os
import tempfile
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from distributio.cli import show
from distributio.cli.exits import ExitCode, Stop

if TYPE_CHECKING:
    from distributio.sdk.client import Client

LOCAL_URL = "http://127.0.0.1:8900"  # where `distributio serve` listens unless told otherwise

_FOLDER_VARIABLE = "DISTRIBUTIO_CONFIG"
_SITES = "sites.toml"
_LAST = "last.json"
_GRUMBLE_SECONDS = 15.0


class Known(Struct, frozen=True, kw_only=True):
    """What is stored of one site."""

    token: str = ""
    project: str = ""


class Sites(Struct, frozen=True, kw_only=True):
    """The sites this person knows, and which is meant when none is named."""

    default: str = ""
    sites: dict[str, Known] = {}


class Choice(Struct, frozen=True, kw_only=True):
    """The site, token and project that a command uses."""

    url: str
    token: str
    project: str


def folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the command line keeps what it knows."""
    said = environment.get(_FOLDER_VARIABLE, "")
    if said:
        return Path(said).expanduser()
    base = environment.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base else Path.home() / ".config") / "distributio"


def load(where: Path) -> Sites:
    """The stored sites; none if nothing was stored."""
    file = where / _SITES
    try:
        data = tomllib.loads(file.read_text())
        return Sites(
            default=str(data.get("default", "")),
            sites={
                url: Known(token=str(entry.get("token", "")), project=str(entry.get("project", "")))
                for url, entry in data.get("sites", {}).items()
            },
        )
    except FileNotFoundError:
        return Sites()
    except (OSError, tomllib.TOMLDecodeError, AttributeError) as error:
        raise Stop(f"{file} cannot be read: {error}. Repair it, or remove it and log in again.") from error


def store(where: Path, url: str, known: Known, *, make_default: bool) -> Path:
    """Remember a site. The file is readable by its owner only."""
    now = load(where)
    url = url.rstrip("/")
    sites = {**now.sites, url: known}
    default = url if make_default or not now.default else now.default
    lines = [f"default = {_quoted(default)}"]
    for address, entry in sites.items():
        lines += ["", f"[sites.{_quoted(address)}]", f"token = {_quoted(entry.token)}"]
        if entry.project:
            lines.append(f"project = {_quoted(entry.project)}")
    file = where / _SITES
    write(file, "\n".join(lines) + "\n")
    return file


def choose(sites: Sites, environment: Mapping[str, str], url: str = "", project: str = "") -> Choice:
    """Option, then environment, then what was stored. A token goes only to the site it was stored for."""
    address = (url or environment.get("DISTRIBUTIO_URL", "") or sites.default or LOCAL_URL).rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise Stop(f"{address!r} is not a site's address. Write it with http:// or https://, such as {LOCAL_URL}.")
    known = sites.sites.get(address, Known())
    return Choice(
        url=address,
        token=environment.get("DISTRIBUTIO_TOKEN", "") or known.token,
        project=project or environment.get("DISTRIBUTIO_PROJECT", "") or known.project,
    )


def connect(url: str = "", project: str = "", *, need_token: bool = True) -> "Client":
    """A client of the site that is meant."""
    from distributio.sdk.client import Client

    choice = choose(load(folder()), os.environ, url, project)
    if need_token and not choice.token:
        raise Stop(
            f"No token is stored for {choice.url}. Log in with `distributio login {choice.url} --token TOKEN` (your "
            "account page makes tokens), or start a site here with `distributio serve`.",
            ExitCode.REFUSED,
        )
    return Client(choice.url, choice.token, choice.project or None, on_retry=_Grumble(choice.url))


class _Grumble:
    """Says that the site does not answer: once in a while, not at each attempt."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._quiet_until = 0.0

    def __call__(self, why: str) -> None:
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + _GRUMBLE_SECONDS
            show.note(f"{self._url} does not answer ({why}); trying again")


def remember_last(url: str, batch_id: int) -> None:
    """Let `last` mean this batch from now on."""
    file = folder() / _LAST
    write(file, json.dumps({**_last(file), url: batch_id}))


def last(url: str) -> int | None:
    """The batch submitted last from this machine to this site."""
    return _last(folder() / _LAST).get(url)


def _last(file: Path) -> dict[str, int]:
    try:
        data = json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}  # it only saves typing
    return {str(url): int(batch) for url, batch in data.items()} if isinstance(data, dict) else {}


def write(file: Path, text: str) -> None:
    """Put a file of this person's in place, whole, readable by nobody else."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as output:  # made with mode 0600
            output.write(text)
        os.replace(output.name, file)
    except OSError as error:
        raise Stop(f"{file} cannot be written: {error}. Set {_FOLDER_VARIABLE} to a folder of yours.") from error


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
