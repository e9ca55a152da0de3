"""Whose signature counts: the keys this person's sites had when they were first met."""

import json
from typing import TYPE_CHECKING

from distributio.cli import config, show
from distributio.cli.exits import Stop

if TYPE_CHECKING:
    from distributio.sdk.client import Client

_FILE = "site-keys.json"
_UNKNOWN = 404  # a site of an older release has no key


def known() -> dict[str, list[str]]:
    """The remembered keys of each site, by its address, the newest first."""
    file = config.folder() / _FILE
    try:
        data = json.loads(file.read_text())
        return {str(url): [str(key) for key in keys] for url, keys in data.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise Stop(f"{file} cannot be read: {error}. Repair it, or remove it and log in again.") from error


def remember(client: "Client") -> None:
    """Remember a site's keys, and say so if they are not what they were."""
    from distributio.sdk.errors import SiteError

    try:
        said = client.site_key()
    except SiteError as error:
        if error.problem.status == _UNKNOWN:
            return
        raise
    before = known()
    old, new = before.get(client.url, []), [said.key, *said.earlier]
    if old and not set(old) & set(new):
        show.note(
            f"Warning: {client.url} signs with another key than before, and does not know its old one any more: it was {old[0]}, "
            f"it is {said.key}. Ask its operator whether that is right."
        )
    elif old and old[0] != said.key:
        show.note(f"{client.url} has a new key for signing results: {said.key}")
    if old != new:
        config.write(config.folder() / _FILE, json.dumps({**before, client.url: new}, indent=2) + "\n")


def remember_first(client: "Client") -> None:
    """Remember a site's keys if none are known yet."""
    if client.url not in known():
        remember(client)
