"""Keys and signatures are those that BOINC clients check."""

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from distributio.wire import signatures
from distributio.wire.signatures import PrivateKey


@pytest.fixture(scope="module")
def pair() -> tuple[PrivateKey, rsa.RSAPrivateKey]:
    made = rsa.generate_private_key(public_exponent=65_537, key_size=1024)
    numbers = made.private_numbers()
    public = numbers.public_numbers
    return PrivateKey(public.n, public.e, numbers.d, numbers.p, numbers.q), made


def test_a_signature_is_the_digits_of_the_md5_under_the_key(pair: tuple[PrivateKey, rsa.RSAPrivateKey]) -> None:
    key, made = pair
    text = signatures.sign(key, b"hello")
    assert all(len(line) <= 64 for line in text.splitlines())
    assert text.endswith("\n.\n")
    raw = bytes.fromhex("".join(text.split(".")[0].split()))
    said = made.public_key().recover_data_from_signature(raw, padding.PKCS1v15(), None)
    assert said == hashlib.md5(b"hello").hexdigest().encode()


def test_a_signature_is_of_these_bytes_and_this_key_alone(pair: tuple[PrivateKey, rsa.RSAPrivateKey]) -> None:
    key, _ = pair
    text = signatures.sign(key, b"hello")
    assert signatures.verify(key.public, b"hello", text)
    assert not signatures.verify(key.public, b"hallo", text)
    assert not signatures.verify(key.public, b"hello", text.replace("a", "b", 1).replace("1", "2", 1))
    assert not signatures.verify(key.public, b"hello", "xyz")
    assert not signatures.verify(key.public, b"hello", "00" * 128)


def test_keys_are_read_as_they_are_written(pair: tuple[PrivateKey, rsa.RSAPrivateKey]) -> None:
    key, _ = pair
    text = signatures.public_text(key.public)
    assert text.startswith("1024\n")
    assert signatures.read_public(text) == key.public
    assert signatures.read_public(text.strip().upper()) == key.public
    assert signatures.read_private(signatures.private_text(key)) == key


@pytest.mark.parametrize("text", ["", "2048\nab\n.\n", "1024\nxy\n.\n", "1024\nab\n.\n"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(signatures.BadKey):
        signatures.read_public(text)


def test_a_new_key_is_signed_without_the_white_space_around_it(pair: tuple[PrivateKey, rsa.RSAPrivateKey]) -> None:
    key, _ = pair
    signed = signatures.sign_new_key(key, key.public)
    assert signatures.verify(key.public, signatures.public_text(key.public).strip().encode(), signed)
