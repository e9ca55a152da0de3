"""Where the keys are that BOINC clients trust, and how one follows another.

The private half signs what clients execute, so it stands apart from everything that is served: in the data folder's `keys`,
readable by the site's user alone. It is needed when files are signed (`distributio app add`, and once for the site's own
container program); an operator may move it off the machine afterwards, and the site runs on.
"""

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from msgspec import Struct

from distributio.wire import signatures
from distributio.wire.signatures import PrivateKey

PRIVATE, PUBLIC = "code_sign_private", "code_sign_public"
RETIRED = "retired"


class NoPrivateKey(Exception):
    """The private key for signing is not here: bring it back, or make a new one with `distributio keys new`."""


class Keys(Struct, frozen=True, kw_only=True):
    """What the site tells clients: its public key, and how those that know an older one can check it."""

    public: str
    retired: dict[str, str]  # older public key to the current one's signature by it

    def answer(self, known: str) -> tuple[str, str] | None:
        """The key and signature to send to a client that knows this one, both empty if it is the current one. None: there
        is no way from its key to ours."""
        if known == self.public.strip():
            return "", ""
        if not known:
            return self.public, ""
        signature = self.retired.get(known)
        return None if signature is None else (self.public, signature)


def generate() -> PrivateKey:
    """A fresh key, as large as clients can hold."""
    made = rsa.generate_private_key(public_exponent=65_537, key_size=signatures.BITS).private_numbers()
    public = made.public_numbers
    return PrivateKey(public.n, public.e, made.d, made.p, made.q)


def load(folder: Path) -> Keys:
    """The keys in a folder; made if there are none yet. Raises BadKey."""
    if not (folder / PUBLIC).exists():
        if (folder / PRIVATE).exists():
            public = signatures.public_text(private_key(folder).public)
            _write(folder / PUBLIC, public, 0o644)
        else:
            _install(folder, generate())
    public = (folder / PUBLIC).read_text()
    signatures.read_public(public)
    retired: dict[str, str] = {}
    for one in sorted((folder / RETIRED).glob("*")):
        signature = one / "signature"
        if signature.exists():
            retired[(one / PUBLIC).read_text().strip()] = signature.read_text()
    return Keys(public=public, retired=retired)


def private_key(folder: Path) -> PrivateKey:
    """The key for signing. Raises NoPrivateKey or BadKey."""
    try:
        text = (folder / PRIVATE).read_text()
    except FileNotFoundError:
        raise NoPrivateKey(f"{folder / PRIVATE}: {NoPrivateKey.__doc__}") from None
    return signatures.read_private(text)


def replace(folder: Path) -> list[str]:
    """Make a new key, signed with every older one that is still here; return the folders of those that are not, whose
    clients will have to attach again."""
    fresh = generate()
    if (folder / PUBLIC).exists():
        number = len(list((folder / RETIRED).glob("*"))) + 1
        place = folder / RETIRED / f"{number:03d}"
        place.mkdir(parents=True, mode=0o700)
        for name in (PRIVATE, PUBLIC):
            if (folder / name).exists():
                (folder / name).rename(place / name)
    _install(folder, fresh)
    lost = []
    for one in sorted((folder / RETIRED).glob("*")):
        try:
            _write(one / "signature", signatures.sign_new_key(private_key(one), fresh.public), 0o644)
        except NoPrivateKey:
            (one / "signature").unlink(missing_ok=True)
            lost.append(one.name)
    return lost


def _install(folder: Path, key: PrivateKey) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write(folder / PRIVATE, signatures.private_text(key), 0o600)
    _write(folder / PUBLIC, signatures.public_text(key.public), 0o644)


def _write(path: Path, text: str, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.rename(path)
