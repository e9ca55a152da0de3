"""What BOINC clients believe: keys in BOINC's text form, and signatures of files and of new keys.

A signature is raw RSA over the 32 hexadecimal digits of an MD5, with the padding of PKCS#1 v1.5 type 1 and no word about
the digest. Clients hold keys in fields of 128 bytes, so a key has 1024 bits and there is no choice. What MD5 and 1024 bits are
worth, docs/reference/boinc.md says.
"""

import hashlib
import hmac

from msgspec import Struct

BITS = 1024
_BYTES = BITS // 8
_DIGITS = 64  # on a line


class BadKey(ValueError):
    """This text is not a key in BOINC's form; the message says what is wrong."""


class PublicKey(Struct, frozen=True):
    """What signatures are checked with."""

    modulus: int
    exponent: int


class PrivateKey(Struct, frozen=True):
    """What signatures are made with."""

    modulus: int
    exponent: int
    private_exponent: int
    p: int
    q: int

    @property
    def public(self) -> PublicKey:
        """The half that everybody may have."""
        return PublicKey(self.modulus, self.exponent)


def _lines(raw: bytes) -> str:
    digits = raw.hex()
    return "\n".join(digits[i : i + _DIGITS] for i in range(0, len(digits), _DIGITS)) + "\n.\n"


def public_text(key: PublicKey) -> str:
    """A public key as clients keep it. Its line breaks matter."""
    return f"{BITS}\n" + _lines(key.modulus.to_bytes(_BYTES, "big") + key.exponent.to_bytes(_BYTES, "big"))


def private_text(key: PrivateKey) -> str:
    """A private key in the same manner."""
    half = _BYTES // 2
    fields = [
        (key.modulus, _BYTES),
        (key.exponent, _BYTES),
        (key.private_exponent, _BYTES),
        (key.p, half),
        (key.q, half),
        (key.private_exponent % (key.p - 1), half),
        (key.private_exponent % (key.q - 1), half),
        (pow(key.q, -1, key.p), half),
    ]
    return f"{BITS}\n" + _lines(b"".join(value.to_bytes(size, "big") for value, size in fields))


def _raw(text: str, size: int) -> bytes:
    bits, _, digits = text.strip().partition("\n")
    if bits.strip() != str(BITS):
        raise BadKey(f"a key of {bits.strip()[:20]!r} bits; BOINC clients know {BITS} only")
    try:
        raw = bytes.fromhex("".join(digits.split(".")[0].split()))
    except ValueError as error:
        raise BadKey(f"a key with something in it that is not a hexadecimal digit: {error}") from error
    if len(raw) < size:
        raise BadKey(f"a key of {len(raw)} bytes; {size} are needed")
    return raw


def read_public(text: str) -> PublicKey:
    """Read a public key. Raises BadKey."""
    raw = _raw(text, 2 * _BYTES)
    return PublicKey(int.from_bytes(raw[:_BYTES], "big"), int.from_bytes(raw[_BYTES : 2 * _BYTES], "big"))


def read_private(text: str) -> PrivateKey:
    """Read a private key. Raises BadKey."""
    half = _BYTES // 2
    raw = _raw(text, 3 * _BYTES + 2 * half)

    def field(start: int, size: int) -> int:
        return int.from_bytes(raw[start : start + size], "big")

    key = PrivateKey(
        field(0, _BYTES),
        field(_BYTES, _BYTES),
        field(2 * _BYTES, _BYTES),
        field(3 * _BYTES, half),
        field(3 * _BYTES + half, half),
    )
    if key.p * key.q != key.modulus:
        raise BadKey("a private key whose factors do not make its modulus; it is damaged")
    return key


def _padded(digest: bytes) -> int:
    return int.from_bytes(b"\x00\x01" + b"\xff" * (_BYTES - 3 - len(digest)) + b"\x00" + digest, "big")


def sign_digest(key: PrivateKey, md5: str) -> str:
    """The signature of a file whose MD5 is known, as text."""
    message = _padded(md5.encode())
    # By the Chinese remainder theorem: a quarter of the work.
    at_p = pow(message, key.private_exponent % (key.p - 1), key.p)
    at_q = pow(message, key.private_exponent % (key.q - 1), key.q)
    signed = at_q + key.q * ((at_p - at_q) * pow(key.q, -1, key.p) % key.p)
    return _lines(signed.to_bytes(_BYTES, "big"))


def sign(key: PrivateKey, data: bytes) -> str:
    """The signature of these bytes, as text."""
    return sign_digest(key, hashlib.md5(data, usedforsecurity=False).hexdigest())


def verify(key: PublicKey, data: bytes, signature: str) -> bool:
    """Whether the signature is this key's, of these bytes."""
    try:
        raw = bytes.fromhex("".join(signature.split(".")[0].split()))
    except ValueError:
        return False
    value = int.from_bytes(raw, "big")
    if len(raw) != _BYTES or value >= key.modulus:
        return False
    expected = _padded(hashlib.md5(data, usedforsecurity=False).hexdigest().encode())
    found = pow(value, key.exponent, key.modulus)
    return hmac.compare_digest(found.to_bytes(_BYTES, "big"), expected.to_bytes(_BYTES, "big"))


def sign_new_key(old: PrivateKey, new: PublicKey) -> str:
    """How clients that know the old key learn to trust a new one."""
    return sign(old, public_text(new).strip().encode())
