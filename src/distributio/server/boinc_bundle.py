"""The program with which BOINC clients run container jobs: one file, made of the agent's own modules.

It is a zip that Python runs as it is (PEP 441). The parts of the agent that run containers are put in as they are, with
a few dozen lines in place of the one package they need; nothing is installed on a volunteer's machine. Equal sources
make equal bytes, so a site adds a version only when the program has changed.
"""

import hashlib
import io
import time
import zipfile
from importlib import resources

import structlog

from distributio.server import boinc_keys
from distributio.server.boinc_names import CONTAINER_APP, CONTAINER_OUTPUTS
from distributio.server.site import Site
from distributio.store import boinc
from distributio.store.boinc import Version, VersionFile, VersionFiles
from distributio.store.database import Transaction
from distributio.wire import signatures

log = structlog.get_logger("boinc")

PLATFORMS = ("x86_64-pc-linux-gnu", "aarch64-unknown-linux-gnu")
TITLE = "Container jobs"
FIRST_VERSION = 100
_SHEBANG = b"#!/usr/bin/env python3\n"
_MODULES = (
    "__init__.py",
    "agent/__init__.py",
    "agent/boinc_task.py",
    "agent/boinc_slot.py",
    "wire/__init__.py",
    "wire/native.py",
    "wire/results_tar.py",
    "wire/tar_blocks.py",
)
_RUNNERS = "agent/runners"
_LEFT_OUT = frozenset({"fake.py"})
_STAND_INS = {"agent/plain_structs.py": "msgspec.py"}  # what is put in under another name
_MOMENT = (2020, 1, 1, 0, 0, 0)


def build() -> bytes:
    """The program."""
    sources = resources.files("distributio")
    target = io.BytesIO()
    target.write(_SHEBANG)
    with zipfile.ZipFile(target, "a", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, data: bytes) -> None:
            info = zipfile.ZipInfo(name, _MOMENT)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)

        add("__main__.py", sources.joinpath("agent/boinc_start.py").read_bytes())
        runners = sorted(
            f"{_RUNNERS}/{each.name}"
            for each in sources.joinpath(_RUNNERS).iterdir()
            if each.name.endswith((".py", ".json")) and each.name not in _LEFT_OUT
        )
        for path in (*_MODULES, *runners):
            add(f"distributio/{path}", sources.joinpath(path).read_bytes())
        for path, name in _STAND_INS.items():
            add(name, sources.joinpath(path).read_bytes())
    return target.getvalue()


def install(site: Site) -> None:
    """See to it that the site's newest container program is this release's. Needs the private key when it is not."""
    program = build()
    digest = f"sha256:{hashlib.sha256(program).hexdigest()}"
    with site.database.read() as transaction:
        known = [each for each in boinc.versions(transaction) if each.app == CONTAINER_APP]
    current = {each.platform for each in known if each.document.files[0].digest == digest}
    if current >= set(PLATFORMS) and site.content.has(digest):
        return
    try:
        key = boinc_keys.private_key(site.boinc.folder)
    except boinc_keys.NoPrivateKey as error:
        log.warning("BOINC clients go on with the container program of an earlier release", error=str(error))
        return
    with site.content.writer() as writer:
        writer.write(program)
        writer.finish(digest)
    number = max((each.version for each in known), default=FIRST_VERSION - 1) + 1
    file = VersionFile(
        name=f"{CONTAINER_APP}_{number}_{digest[7:23]}.pyz",
        open_name=f"{CONTAINER_APP}.pyz",
        digest=digest,
        md5=hashlib.md5(program, usedforsecurity=False).hexdigest(),
        size_bytes=len(program),
        signature=signatures.sign(key, program),
        main_program=True,
    )
    with site.database.begin() as transaction:
        _add(transaction, number, file)
    log.info("the container program for BOINC clients was renewed", version=number, bytes=len(program))


def _add(transaction: Transaction, number: int, file: VersionFile) -> None:
    now = time.time()
    app = boinc.put_app(transaction, CONTAINER_APP, TITLE, CONTAINER_OUTPUTS, now)
    for platform in PLATFORMS:
        version = Version(
            app=CONTAINER_APP,
            platform=platform,
            version=number,
            plan_class="",
            document=VersionFiles(files=[file]),
        )
        boinc.put_version(transaction, app, version, now)
