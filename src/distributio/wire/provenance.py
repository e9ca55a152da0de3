"""How a result's record is signed so that people can read it and anybody can check it.

`result.json` is an in-toto statement, laid out for people, with one member more: `signatures`, its last. What is signed is the
file without that member, byte for byte, under DSSE's pre-authentication encoding; so the statement and its signatures can
be put into a standard DSSE envelope without signing again. Keys are Ed25519 and written `ed25519:` and 44 letters of base64: a
public key is so short that it is its own name.
"""

import base64
import binascii
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec import Struct

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:distributio:job-result:v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
KEY_PREFIX = "ed25519:"
_END = b"\n}\n"
_MARK = b',\n  "signatures": ['


class BadRecord(ValueError):
    """This is not a signed record; the message says why."""


class Signature(Struct, frozen=True):
    """A signature as DSSE has it."""

    keyid: str  # the public key
    sig: str  # base64


class Subject(Struct, frozen=True):
    """A file the statement is about."""

    name: str
    digest: dict[str, str]


class Statement(Struct, frozen=True, kw_only=True):
    """An in-toto statement."""

    type: str = msgspec.field(name="_type", default=STATEMENT_TYPE)
    subject: list[Subject]
    predicate_type: str = msgspec.field(name="predicateType", default=PREDICATE_TYPE)
    predicate: dict[str, Any]


class _Signatures(Struct, frozen=True):
    signatures: list[Signature]


def subject(name: str, digest: str) -> Subject:
    """A file by its name and digest, `sha256:...`."""
    algorithm, _, hexadecimal = digest.partition(":")
    return Subject(name, {algorithm: hexadecimal})


def payload_of(statement: Statement) -> bytes:
    """What is signed: the statement as it is laid out."""
    return msgspec.json.format(msgspec.json.encode(statement), indent=2) + b"\n"


def to_sign(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding of a payload."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def join(payload: bytes, signatures: list[Signature]) -> bytes:
    """The record: the payload with its signatures as the last member."""
    last = msgspec.json.format(msgspec.json.encode(_Signatures(signatures)), indent=2)
    return payload.removesuffix(_END) + b"," + last.removeprefix(b"{") + b"\n"


def split(record: bytes) -> tuple[bytes, list[Signature]]:
    """The payload and the signatures of a record. Raises BadRecord."""
    # A line break cannot stand within a JSON string, so the mark is found where it is a member, and nowhere else.
    place = record.rfind(_MARK)
    if place < 0:
        raise BadRecord("it has no signatures: an older site wrote it, or somebody has laid it out anew")
    payload = record[:place] + _END
    try:
        signatures = msgspec.json.decode(b"{" + record[place + 1 :], type=_Signatures).signatures
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRecord(f"its signatures are damaged: {error}") from None
    if join(payload, signatures) != record:
        raise BadRecord("it is not laid out as a site writes it, so its signature cannot be checked; fetch it again")
    return payload, signatures


def read(payload: bytes) -> Statement:
    """The statement in a payload. Raises BadRecord."""
    try:
        statement = msgspec.json.decode(payload, type=Statement)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRecord(f"it is not a statement: {error}") from None
    if statement.type != STATEMENT_TYPE or statement.predicate_type != PREDICATE_TYPE:
        raise BadRecord(f"it is a statement of another kind: {statement.predicate_type[:200]}")
    return statement


def key_text(raw: bytes) -> str:
    """A public key as it is written."""
    return KEY_PREFIX + base64.b64encode(raw).decode()


def key_bytes(text: str) -> bytes:
    """A public key from its text. Raises BadRecord."""
    try:
        raw = base64.b64decode(text.strip().removeprefix(KEY_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32 or not text.strip().startswith(KEY_PREFIX):
        raise BadRecord(f"{text.strip()[:80]!r} is not a key; it must read {KEY_PREFIX} and 44 letters of base64")
    return raw


def is_signed_by(payload: bytes, signature: Signature, key: str) -> bool:
    """Whether this is the signature of the holder of this key, in its one spelling. Raises BadRecord if the key is none."""
    public = Ed25519PublicKey.from_public_bytes(key_bytes(key))
    try:
        raw = base64.b64decode(signature.sig, validate=True)
        public.verify(raw, to_sign(payload))
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return signature == Signature(key, base64.b64encode(raw).decode())
