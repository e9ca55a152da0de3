"""The key with which a site signs what it hands over, and those it signed with before.

The private half is in the data folder's `keys`, readable by the site's user alone, and made at the first start. To follow it
with a new one, move `site_private.pem` away and start again: results signed before can still be checked, because the old
public key stays in the list. To withdraw a key, take its line out of `site_public`.
"""

import base64
import contextlib
import os
import tempfile
import threading
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distributio.wire import provenance
from distributio.wire.provenance import Signature

PRIVATE, PUBLIC = "site_private.pem", "site_public"


class BadSiteKey(Exception):
    """The site's key cannot be read; the message says why, and what to do."""


class Signer:
    """The site's key. It is read, or made, when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._loaded: tuple[Ed25519PrivateKey, list[str]] | None = None

    def sign(self, payload: bytes) -> bytes:
        """The record that says this, signed."""
        private, keys = self._load()
        signature = base64.b64encode(private.sign(provenance.to_sign(payload))).decode()
        return provenance.join(payload, [Signature(keys[0], signature)])

    def keys(self) -> list[str]:
        """The public keys, the present one first."""
        return self._load()[1]

    def _load(self) -> tuple[Ed25519PrivateKey, list[str]]:
        with self._lock:
            if self._loaded is None:
                self._loaded = _read(self._folder)
            return self._loaded


def _read(folder: Path) -> tuple[Ed25519PrivateKey, list[str]]:
    private_file, public_file = folder / PRIVATE, folder / PUBLIC
    if not private_file.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _make(private_file)
    try:
        private = serialization.load_pem_private_key(private_file.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadSiteKey(
            f"{private_file} cannot be read: {error}. Bring it back, or move it away for a new key."
        ) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise BadSiteKey(f"{private_file} is not an Ed25519 key. Bring it back, or move it away for a new key.")
    raw = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    present = provenance.key_text(raw)
    known = public_file.read_text().split() if public_file.exists() else []
    keys = [present, *(key for key in known if key != present)]
    if keys != known:
        _put(public_file, ("\n".join(keys) + "\n").encode(), 0o600)
    return private, keys


def _make(file: Path) -> None:
    """A new key, once: of several processes that start together, one makes it and all read it."""
    text = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    temporary = _written(file, text, 0o600)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, file)
    finally:
        os.unlink(temporary)


def _put(file: Path, data: bytes, mode: int) -> None:
    os.replace(_written(file, data, mode), file)


def _written(file: Path, data: bytes, mode: int) -> str:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    with open(descriptor, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fchmod(handle.fileno(), mode)
        os.fsync(handle.fileno())
    return temporary
