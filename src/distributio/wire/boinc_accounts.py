"""What BOINC's managers and clients ask before they attach: the site's terms, and a person's account key."""

import hashlib
import re
from collections.abc import Mapping, Sequence

from distributio.wire.boinc_xml import element, escape

SERVER_VERSION = 715
NOT_FOUND, NOT_UNIQUE, BAD_NAME, BAD_EMAIL, BAD_PASSWORD, DISABLED, DOWN, OTHER = (
    -136,
    -137,
    -188,
    -205,
    -206,
    -208,
    -183,
    -1,
)
MIN_PASSWORD = 6

# What BOINC calls a platform, and how images name the same.
PLATFORMS: dict[str, str] = {
    "x86_64-pc-linux-gnu": "linux/amd64",
    "aarch64-unknown-linux-gnu": "linux/arm64",
    "windows_x86_64": "windows/amd64",
    "x86_64-apple-darwin": "darwin/amd64",
    "arm64-apple-darwin": "darwin/arm64",
}
PLATFORM_NAMES: dict[str, str] = {
    "x86_64-pc-linux-gnu": "Linux on 64-bit Intel and AMD",
    "aarch64-unknown-linux-gnu": "Linux on 64-bit ARM",
    "windows_x86_64": "Windows on 64-bit Intel and AMD",
    "x86_64-apple-darwin": "macOS on Intel",
    "arm64-apple-darwin": "macOS on Apple silicon",
}
_EMAIL = re.compile(r"[^@\s<>\"'&]{1,120}@[^@\s<>\"'&]{1,120}\.[^@\s<>\"'&]{1,60}")
_HEX32 = re.compile(r"[0-9a-f]{32}")
_HEADER = '<?xml version="1.0" encoding="UTF-8" ?>\n'


def password_digest(email: str, password: str) -> str:
    """What BOINC's managers send for a password. It is as good as the password itself, so only a slow hash of it is kept."""
    return hashlib.md5((password + email.lower()).encode(), usedforsecurity=False).hexdigest()


def email_digest(email: str) -> str:
    """By what clients know that accounts on several sites are one person's."""
    return hashlib.md5(email.lower().encode(), usedforsecurity=False).hexdigest()


def external_id(cross_project_id: str, email: str) -> str:
    """The number under which statistics sites know a person; the inner one is told to nobody else."""
    return hashlib.md5((cross_project_id + email).encode(), usedforsecurity=False).hexdigest()


def weak_key(user_id: int, authenticator: str, password_hash: str) -> str:
    """An account key that may compute and nothing else, and that dies with the password."""
    mixed = hashlib.md5((authenticator + password_hash).encode(), usedforsecurity=False).hexdigest()
    return f"{user_id}_{mixed}"


def is_email(text: str) -> bool:
    """Whether it could be an address."""
    return bool(_EMAIL.fullmatch(text)) and len(text) <= 254


def is_password_digest(text: str) -> bool:
    """32 hexadecimal digits."""
    return bool(_HEX32.fullmatch(text))


def name_fault(name: str) -> str:
    """What is wrong with a person's name, or nothing."""
    if not name or name != name.strip():
        return "a name may not be empty, nor begin or end with a blank"
    if name.isdigit():
        return "a name may not be a number"
    if any(c in "<>&\"'" or ord(c) < 0x20 for c in name) or len(name) > 120:
        return "a name may not have markup or control characters in it, and at most 120 characters"
    return ""


def error(code: int, message: str) -> bytes:
    """A refusal, which comes with HTTP's 200."""
    return (
        f"<error>\n    <error_num>{code}</error_num>\n    <error_msg>{escape(message)}</error_msg>\n</error>\n".encode()
    )


def account_key(authenticator: str) -> bytes:
    """The answer to a look-up and to a creation."""
    return f"<account_out>\n<authenticator>{authenticator}</authenticator>\n</account_out>\n".encode()


def account_exists() -> bytes:
    """The answer to a look-up without a password."""
    return b"<account_out>\n<success/>\n</account_out>\n"


def project_config(name: str, url: str, platforms: Sequence[str], *, accounts_are_open: bool, terms: str = "") -> bytes:
    """What a manager wants to know of a site before it attaches."""
    parts = [
        _HEADER,
        "<project_config>\n",
        element("name", name),
        element("master_url", url),
        element("web_rpc_url_base", url),
        element("server_version", SERVER_VERSION),
        "<web_stopped>0</web_stopped>\n<sched_stopped>0</sched_stopped>\n",
        element("min_passwd_length", MIN_PASSWORD),
    ]
    if not accounts_are_open:
        parts.append("<account_creation_disabled/>\n<client_account_creation_disabled/>\n")
    parts.append("<platforms>\n")
    for platform in platforms:
        parts.append(
            f"<platform>\n{element('platform_name', platform)}"
            f"{element('user_friendly_name', PLATFORM_NAMES.get(platform, platform))}</platform>\n"
        )
    parts.append("</platforms>\n")
    if terms:
        parts.append(f"<terms_of_use>\n{escape(terms)}\n</terms_of_use>\n")
    parts.append("</project_config>\n")
    return "".join(parts).encode()


def server_status(host: str, running: Mapping[str, bool], numbers: Mapping[str, float]) -> bytes:
    """The state of the daemons and of the queue."""
    parts = [_HEADER, "<server_status>\n<daemon_status>\n"]
    for command, runs in running.items():
        status = "running" if runs else "not running"
        parts.append(
            f"<daemon>\n{element('host', host)}{element('command', command)}<status>{status}</status>\n</daemon>\n"
        )
    parts.append("</daemon_status>\n<database_file_states>\n")
    parts += [
        element(name, int(value) if float(value).is_integer() else float(value)) for name, value in numbers.items()
    ]
    parts.append("</database_file_states>\n</server_status>\n")
    return "".join(parts).encode()


def master_page(name: str, scheduler_url: str) -> bytes:
    """The page a client reads to find the scheduler: the link stands alone on a short line, near the top."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n'
        f'<link rel="boinc_scheduler" href="{escape(scheduler_url)}">\n'
        f"<title>{escape(name)}</title>\n</head>\n<body>\n"
        f"<!-- <scheduler>{escape(scheduler_url)}</scheduler> -->\n"
        f"<p>{escape(name)} gives work to BOINC clients.</p>\n</body>\n</html>\n"
    ).encode()
