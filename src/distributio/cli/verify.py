"""`distributio verify`: whether results are what a site signed, without asking anybody."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import Struct

from distributio.cli import show, sitekeys
from distributio.cli.exits import ExitCode, Stop
from distributio.cli.show import Column, Output, OutputOption

if TYPE_CHECKING:
    from distributio.wire.provenance import Signature, Statement

RECORD, RESULTS = "result.json", "results.tar"
_CHUNK = 1 << 20


class Verified(Struct, kw_only=True):
    """What was found of one result."""

    folder: str
    ok: bool = False
    job: str = ""
    state: str = ""
    site: str = ""
    signed_by: str = ""  # the key
    whose: str = ""  # how that key is known
    image: str = ""
    command: list[str] = []
    hosts: list[str] = []
    validator: str = ""
    agreeing: int = 0
    quorum: int = 0
    files: dict[str, str] = {}  # name to what was found of it
    problems: list[str] = []


_COLUMNS = (
    Column("JOB", lambda found: found.job),
    Column("VERDICT", lambda found: "good" if found.ok else "BAD"),
    Column("STATE", lambda found: found.state),
    Column("RESULTS", lambda found: found.files.get(RESULTS, "none")),
    Column("SIGNED BY", lambda found: found.whose or found.signed_by),
    Column("FOLDER", lambda found: found.folder),
)


def verify(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER", help="Folders with result.json and results.tar in them or below.")
    ],
    key: Annotated[
        str, typer.Option("--key", metavar="KEY", help="The site's public key, or a file with its keys.")
    ] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Check that results are what a site signed: digest and signature, offline. Ends with 0 if all are, 5 if not."""
    trusted = _trusted(key)
    records = [record for folder in folders for record in _records(folder)]
    found = [_verified(record, trusted) for record in records]
    if output is Output.TABLE and len(found) == 1:
        show.one(found[0], _facts(found[0]), output, lambda one: one.job)
    else:
        show.many(found, _COLUMNS, output, lambda one: one.job, "")
    for one in found:
        for problem in one.problems:
            show.note(f"{one.folder}: {show.clean(problem)}")
    raise typer.Exit(ExitCode.OK if all(one.ok for one in found) else ExitCode.JOB_FAILED)


def _trusted(key: str) -> dict[str, str]:
    """The keys that count, each with how it is known."""
    from distributio.wire import provenance

    if not key:
        return {each: f"{url} (remembered)" for url, keys in sitekeys.known().items() for each in keys}
    try:
        texts = [key] if key.startswith(provenance.KEY_PREFIX) else Path(key).expanduser().read_text().split()
        for text in texts:
            provenance.key_bytes(text)
    except OSError as error:
        raise Stop(f"--key {key}: neither a key, such as ed25519:..., nor a file that can be read.") from error
    except (provenance.BadRecord, UnicodeDecodeError) as error:
        raise Stop(f"--key {key}: {error}.") from error
    return dict.fromkeys(texts, "the key given")


def _records(folder: Path) -> list[Path]:
    if (folder / RECORD).is_file():
        return [folder / RECORD]
    found = sorted(folder.rglob(RECORD))
    if not found:
        raise Stop(f"There is no {RECORD} in {folder}. `distributio results JOB` fetches it.")
    return found


def _verified(record: Path, trusted: dict[str, str]) -> Verified:
    from distributio.wire import provenance

    found = Verified(folder=str(record.parent))
    try:
        payload, signatures = provenance.split(record.read_bytes())
        statement = provenance.read(payload)
    except OSError as error:
        raise Stop(f"{record} cannot be read: {error.strerror}.") from error
    except provenance.BadRecord as error:
        found.problems.append(f"{RECORD}: {error}")
        return found
    _tell(found, statement)
    _check_signatures(found, payload, signatures, trusted)
    _check_files(found, record.parent, statement)
    found.ok = not found.problems
    return found


def _tell(found: Verified, statement: "Statement") -> None:
    """What the statement says, as far as it can be understood: it may be anybody's."""
    said = statement.predicate
    found.job, found.state = _text(said.get("job")), _text(said.get("state"))
    site = said.get("site")
    found.site = _text(site.get("url")) if isinstance(site, dict) else ""
    image = said.get("image")
    found.image = (
        " ".join(filter(None, map(_text, (image.get("reference"), image.get("digest")))))
        if isinstance(image, dict)
        else ""
    )
    found.command = [_text(word) for word in _list(said.get("command"))]
    attempts = [each for each in _list(said.get("attempts")) if isinstance(each, dict)]
    found.hosts = [_text(each.get("host")) for each in attempts if each.get("validity") == "valid"]
    rule = said.get("validator")
    if isinstance(rule, dict):
        found.validator = _text(rule.get("name"))
        found.agreeing, found.quorum = _number(rule.get("agreeing")), _number(rule.get("quorum"))


def _text(value: Any) -> str:
    return show.clean(value)[:500] if isinstance(value, str) else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _check_signatures(found: Verified, payload: bytes, signatures: list["Signature"], trusted: dict[str, str]) -> None:
    from distributio.wire import provenance

    for signature in signatures:
        for key, whose in trusted.items():
            if provenance.is_signed_by(payload, signature, key):
                found.signed_by, found.whose = key, whose
                return
    for signature in signatures:
        try:
            if provenance.is_signed_by(payload, signature, signature.keyid):
                found.signed_by = signature.keyid
                found.problems.append(
                    f"{RECORD}: signed by {signature.keyid}, which is not known here. Ask the site's operator whether it is "
                    f"theirs, and give it with --key; or log in to the site first"
                )
                return
        except provenance.BadRecord:
            continue
    found.problems.append(f"{RECORD}: its signature does not fit: it was changed after it was signed, or damaged")


def _check_files(found: Verified, folder: Path, statement: "Statement") -> None:
    for subject in statement.subject:
        name, expected = subject.name, subject.digest.get("sha256", "")
        if name != Path(name).name:
            found.problems.append(f"{RECORD}: it speaks of {name[:80]!r}, which is not beside it")
        elif (folder / name).is_file():
            is_same = _digest(folder / name) == expected
            found.files[name] = f"sha256:{expected}" if is_same else "changed"
            if not is_same:
                found.problems.append(f"{name}: not what the site signed; it was changed or damaged. Fetch it again")
        elif name == RESULTS:
            found.files[name] = "missing"
            found.problems.append(f"{name}: it is not there. `distributio results {found.job}` fetches it")
        else:
            found.files[name] = "not here"
    if RESULTS not in found.files and (folder / RESULTS).exists():
        found.problems.append(f"{RESULTS}: the site signed that this job has no results")


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while part := stream.read(_CHUNK):
            digest.update(part)
    return digest.hexdigest()


def _facts(found: Verified) -> list[tuple[str, str]]:
    return [
        ("job", found.job),
        ("verdict", "good: it is what the site signed" if found.ok else "BAD"),
        ("signed by", found.signed_by + (f", {found.whose}" if found.whose else "")),
        ("site", found.site),
        ("state", found.state),
        *((name, what) for name, what in found.files.items()),
        ("image", found.image),
        ("command", show.shortened(" ".join(found.command), 200)),
        ("believed because", _why(found)),
    ]


def _why(found: Verified) -> str:
    if not found.hosts:
        return ""
    hosts = ", ".join(found.hosts)
    return f"{found.agreeing} agreeing, of a quorum of {found.quorum}, by {found.validator}; computed on {hosts}"
