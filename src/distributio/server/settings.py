"""What an operator may choose: each setting with its default and a sentence; the reference page is made from this table.

Read from `distributio.toml` in the data folder, then the environment (`DISTRIBUTIO_` and the name in capitals), then the
command line; the later wins.
"""

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct


class SettingsError(ValueError):
    """A setting is not understood; the message names it and says what it may be."""


class Settings(Struct, frozen=True, kw_only=True):
    """One site's settings."""

    data: Path = Path("~/.local/share/distributio/site")
    listen: str = "127.0.0.1:8900"
    url: str = ""
    database: str = ""
    storage: str = ""
    name: str = "Distribut.io"
    processes: Annotated[int, Meta(ge=1, le=64)] = 1
    import_platforms: list[str] = msgspec.field(default_factory=lambda: ["linux/amd64", "linux/arm64"])
    registry_mirror: str = ""
    max_jobs_per_batch: Annotated[int, Meta(ge=1)] = 100_000
    max_body_bytes: Annotated[int, Meta(ge=1 << 20)] = 64 << 20
    max_file_bytes: Annotated[int, Meta(ge=1 << 20)] = 100 << 30
    max_output_bytes: Annotated[int, Meta(ge=1 << 16)] = 10 << 30
    poll_seconds: Annotated[float, Meta(gt=0, le=60)] = 25.0
    away_seconds: Annotated[float, Meta(gt=0)] = 120.0
    keep_logs_days: Annotated[float, Meta(gt=0)] = 90.0
    keep_unused_files_days: Annotated[float, Meta(gt=0)] = 1.0
    validator_seconds: Annotated[float, Meta(gt=0, le=3600)] = 60.0
    validator_memory_bytes: Annotated[int, Meta(ge=128 << 20)] = 1 << 30
    validator_engine: str = ""
    log_level: str = "info"
    log_format: str = "text"


DESCRIPTIONS: dict[str, str] = {
    "data": "The folder that holds everything the site keeps on this machine.",
    "listen": "Address and port to listen on.",
    "url": "The address people and hosts reach the site under, with a path if it is behind a proxy; empty: made from `listen`.",
    "database": "Where jobs are kept: empty for SQLite in the data folder, or postgresql://USER@HOST/NAME.",
    "storage": "Where bytes are kept: empty for the data folder, or s3://BUCKET/PREFIX?endpoint=URL&region=NAME.",
    "name": "What the site is called on its pages.",
    "processes": "Server processes; more than one needs PostgreSQL.",
    "import_platforms": "Platforms of a multi-platform image that are fetched when it is imported.",
    "registry_mirror": "A registry to ask instead of the one an image's name means, for sites without a way to it.",
    "max_jobs_per_batch": "Jobs in one submission.",
    "max_body_bytes": "Size of one JSON request.",
    "max_file_bytes": "Size of one input file or image layer.",
    "max_output_bytes": "Size of one task's results.",
    "poll_seconds": "How long a host's question waits for work before it is answered with none.",
    "away_seconds": "After how long without a word a host counts as away.",
    "keep_logs_days": "How long the logs of decided jobs are kept.",
    "keep_unused_files_days": "How long content that nothing refers to is kept, so that a broken upload can go on.",
    "validator_seconds": "How long a validator may look at one output, or at two.",
    "validator_memory_bytes": "How much memory a validator may use.",
    "validator_engine": "podman or docker on this machine, for validators that are programs in a container; empty: none.",
    "log_level": "debug, info, warning or error.",
    "log_format": "text or json.",
}


def read(data: Path | None, overrides: dict[str, Any]) -> Settings:
    """Read the settings. Raises SettingsError."""
    folder = (data or Path(os.environ.get("DISTRIBUTIO_DATA", str(Settings().data)))).expanduser().absolute()
    values: dict[str, Any] = {}
    file = folder / "distributio.toml"
    if file.exists():
        try:
            values.update(tomllib.loads(file.read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{file} is not TOML: {error}") from error
        except OSError as error:
            raise SettingsError(f"{file} cannot be read: {error.strerror}") from error
    for name in DESCRIPTIONS:
        variable = f"DISTRIBUTIO_{name.upper()}"
        if variable in os.environ and name not in {"data", "url"}:
            values[name] = _from_text(name, os.environ[variable])
    if "DISTRIBUTIO_SITE_URL" in os.environ:  # DISTRIBUTIO_URL is the command line's
        values["url"] = os.environ["DISTRIBUTIO_SITE_URL"]
    values.update({name: value for name, value in overrides.items() if value is not None})
    values["data"] = folder
    unknown = values.keys() - DESCRIPTIONS.keys()
    if unknown:
        raise SettingsError(f"{file}: unknown setting {', '.join(sorted(unknown))}; see docs/reference/settings.md")
    try:
        return msgspec.convert(values, Settings, strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{error}; see docs/reference/settings.md") from error


def _path(kind: type, value: Any) -> Any:
    """msgspec knows no paths."""
    return kind(value) if kind is Path else value


def _from_text(name: str, text: str) -> Any:
    return [part.strip() for part in text.split(",")] if isinstance(getattr(Settings(), name), list) else text


def address(settings: Settings) -> tuple[str, int]:
    """Host and port to listen on. Raises SettingsError."""
    host, _, port = settings.listen.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise SettingsError(f"listen is {settings.listen!r}: it must be ADDRESS:PORT, as in 127.0.0.1:8900")
    return host.strip("[]"), int(port)


def site_url(settings: Settings) -> str:
    """The address of the site, without a slash at the end."""
    return (settings.url or f"http://{settings.listen}").rstrip("/")


def database_url(settings: Settings) -> str:
    """The database's address."""
    return settings.database or f"sqlite:///{settings.data / 'site.db'}"
