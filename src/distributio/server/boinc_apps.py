"""How a program becomes an app that BOINC clients run: a folder is read, its files are kept, signed and remembered.

The folder is laid out as BOINC's own server has it, APP/VERSION/PLATFORM[__PLAN_CLASS]/ with the files of that build, and
optionally a version.xml beside them. An app.toml in APP says the app's title and which files its tasks bring back.
"""

import hashlib
import os
import re
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from distributio.server import boinc_keys
from distributio.server.boinc_names import APP_NAME, CONTAINER_APP
from distributio.server.problems import Refused
from distributio.server.site import Site
from distributio.store import boinc
from distributio.store.boinc import Version, VersionFile, VersionFiles
from distributio.store.database import Transaction
from distributio.wire import signatures
from distributio.wire.boinc_accounts import PLATFORMS
from distributio.wire.boinc_files import is_safe_name
from distributio.wire.boinc_xml import BadDocument, Element, read_document
from distributio.wire.signatures import PrivateKey

DEFAULT_OUTPUTS = ["out"]
_VERSION = re.compile(r"(\d{1,6})(?:\.(\d{1,2}))?")
_NOT_PARTS = frozenset({"version.xml", "app.toml"})


class BadApp(ValueError):
    """The folder does not hold an app; the message says what is missing or odd."""


class Build(Struct, frozen=True, kw_only=True):
    """One build of an app, as its folder has it."""

    version: int
    platform: str
    plan_class: str
    files: list[Path]
    main: Path
    described: Element | None


class AppFolder(Struct, frozen=True, kw_only=True):
    """An app, as its folder has it."""

    name: str
    title: str
    outputs: list[str]
    builds: list[Build]


class Added(Struct, frozen=True, kw_only=True):
    """What was added. Builds of a number that was there already are left as they are: clients keep what they have."""

    app: str
    added: list[str]
    kept: list[str]


def read_folder(folder: Path) -> AppFolder:
    """Read an app's folder. Raises BadApp."""
    folder = folder.absolute()
    if not folder.is_dir():
        raise BadApp(f"{folder} is not a folder")
    said = _toml(folder / "app.toml")
    name = str(said.get("name", folder.name))
    if not APP_NAME.fullmatch(name) or name == CONTAINER_APP:
        raise BadApp(f"{name!r} cannot be the name of an app: letters, digits, . _ - and not {CONTAINER_APP!r}")
    outputs = said.get("outputs", DEFAULT_OUTPUTS)
    if not isinstance(outputs, list) or not all(isinstance(each, str) and is_safe_name(each) for each in outputs):
        raise BadApp("app.toml: outputs must be a list of plain file names")
    builds = [build for place in sorted(folder.iterdir()) if place.is_dir() for build in _builds(place)]
    if not builds:
        raise BadApp(f"{folder} has no builds: put files into VERSION/PLATFORM/, as in 100/x86_64-pc-linux-gnu/")
    return AppFolder(name=name, title=str(said.get("title", name)), outputs=outputs, builds=builds)


def _toml(path: Path) -> dict[str, object]:
    if not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise BadApp(f"{path} is not TOML: {error}") from error


def _builds(folder: Path) -> Iterator[Build]:
    match = _VERSION.fullmatch(folder.name)
    if match is None:
        raise BadApp(f"{folder.name!r} is not a version: name folders 100 or 1.00")
    version = int(match[1]) if match[2] is None else int(match[1]) * 100 + int(match[2])
    for place in sorted(folder.iterdir()):
        if not place.is_dir():
            continue
        platform, _, plan_class = place.name.partition("__")
        if platform not in PLATFORMS:
            raise BadApp(f"{place.name!r} is no platform that is known: {', '.join(PLATFORMS)}")
        described = _described(place / "version.xml")
        files = sorted(path for path in place.iterdir() if path.is_file() and path.name not in _NOT_PARTS)
        yield Build(
            version=version,
            platform=platform,
            plan_class=plan_class,
            files=files,
            main=_main(place, files, described),
            described=described,
        )


def _described(path: Path) -> Element | None:
    if not path.exists():
        return None
    try:
        return read_document(path.read_bytes())
    except BadDocument as error:
        raise BadApp(f"{path}: {error}") from error


def _main(place: Path, files: list[Path], described: Element | None) -> Path:
    """The file that is executed: the one that version.xml says, the only one, or the only one that is executable."""
    named = [file for file in described.all("file") if file.flag("main_program")] if described else []
    if named:
        wanted = named[0].value("physical_name")
        found = [path for path in files if path.name == wanted]
        if not found:
            raise BadApp(f"{place}: version.xml names {wanted!r} as the main program, and it is not there")
        return found[0]
    executable = files if len(files) == 1 else [path for path in files if os.access(path, os.X_OK)]
    if len(executable) != 1:
        raise BadApp(f"{place}: which file is the main program? Make it alone executable, or write a version.xml")
    return executable[0]


def add(site: Site, folder: Path) -> Added:
    """Keep, sign and remember the builds of an app's folder. Raises BadApp, or boinc_keys.NoPrivateKey."""
    app = read_folder(folder)
    key = boinc_keys.private_key(site.boinc.folder)
    versions = [_keep(site, key, app.name, build) for build in app.builds]

    def remember(transaction: Transaction) -> Added:
        now = time.time()
        number = boinc.put_app(transaction, app.name, app.title, app.outputs, now)
        added: list[str] = []
        kept: list[str] = []
        for version in versions:
            words = f"{version.version} {version.platform} {version.plan_class}".strip()
            (added if boinc.put_version(transaction, number, version, now) else kept).append(words)
        return Added(app=app.name, added=added, kept=kept)

    with site.database.begin() as transaction:
        return remember(transaction)


def _keep(site: Site, key: PrivateKey, app: str, build: Build) -> Version:
    described = (
        {} if build.described is None else {file.value("physical_name"): file for file in build.described.all("file")}
    )
    files = []
    for path in [build.main, *(path for path in build.files if path != build.main)]:
        data = path.read_bytes()
        with site.content.writer() as writer:
            writer.write(data)
            digest, size = writer.finish()
        said = described.get(path.name)
        files.append(
            VersionFile(
                # A name means the same bytes for ever on every client, so it has a part of their digest.
                name=f"{app}_{build.version}_{digest[7:19]}_{_plain(path.name)}",
                open_name=(said.value("logical_name") if said else "") or path.name,
                digest=digest,
                md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
                size_bytes=size,
                signature=signatures.sign(key, data),
                main_program=path == build.main,
                copy_file=bool(said and said.flag("copy_file")),
                executable=path == build.main or os.access(path, os.X_OK),
            )
        )
    document = VersionFiles(
        files=files,
        cpus=_number(build.described, "avg_ncpus", 1.0),
        command_line=build.described.value("cmdline") if build.described else "",
    )
    return Version(
        app=app, platform=build.platform, version=build.version, plan_class=build.plan_class, document=document
    )


def sign_again(site: Site) -> int:
    """Sign every file with the key that is in force now; return how many. Their names and bytes stay."""
    key = boinc_keys.private_key(site.boinc.folder)
    with site.database.begin() as transaction:
        signed: dict[str, str] = {}
        for number, document in boinc.documents(transaction):
            files = []
            for file in document.files:
                signed.setdefault(file.digest, signatures.sign_digest(key, file.md5))
                files.append(replace(file, signature=signed[file.digest]))
            boinc.put_document(transaction, number, replace(document, files=files))
    return len(signed)


def _number(described: Element | None, name: str, default: float) -> float:
    text = described.value(name) if described else ""
    try:
        return float(text) if text else default
    except ValueError as error:
        raise BadApp(f"version.xml: {name} is {text!r}, which is not a number") from error


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).replace("..", "_")[-80:]


async def check_runner(site: Site, name: str) -> None:
    """See that the site has the app a submission names. Raises Refused."""
    catalog = await site.read(site.boinc.read_catalog)
    if name not in catalog.apps or name == CONTAINER_APP:
        known = ", ".join(app for app in catalog.apps if app != CONTAINER_APP) or "none"
        raise Refused(422, "unknown-app", f"the site has no BOINC app {name!r}; it has: {known}")
