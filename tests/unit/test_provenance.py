"""A record says who signed what; changed anywhere, it says so; and it stays a file that people and other programs read."""

import base64
import hashlib
import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from distributio.cli import sitekeys, verify
from distributio.cli.exits import Stop
from distributio.server.signing import PRIVATE, PUBLIC, BadSiteKey, Signer
from distributio.wire import provenance
from distributio.wire.provenance import BadRecord, Signature, Statement, subject

TAR = b"results" * 100
DIGEST = f"sha256:{hashlib.sha256(TAR).hexdigest()}"
PREDICATE = {
    "job": "12.1",
    "state": "done",
    "site": {"name": "Site", "url": "http://127.0.0.1:8900"},
    "command": ["echo", 'a "quoted" ü\n word', ',\n  "signatures": ['],
    "validator": {"name": "exact", "quorum": 2, "agreeing": 2, "words": []},
    "attempts": [{"host": "abc", "validity": "valid"}, {"host": "def", "validity": "valid"}],
    "decided_at": 1767225600.123456,
}


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(tmp_path / "keys")


def payload(**more: object) -> bytes:
    return provenance.payload_of(Statement(subject=[subject("results.tar", DIGEST)], predicate={**PREDICATE, **more}))


def written(folder: Path, record: bytes, tar: bytes | None = TAR) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_bytes(record)
    if tar is not None:
        (folder / "results.tar").write_bytes(tar)
    return folder


def found(folder: Path, *keys: str) -> verify.Verified:
    return verify._verified(folder / "result.json", dict.fromkeys(keys, "the key given"))


def test_a_record_is_a_statement_that_people_read_with_its_signature_inside(signer: Signer) -> None:
    record = signer.sign(payload())
    read = json.loads(record)
    assert read["_type"] == "https://in-toto.io/Statement/v1"
    assert read["subject"] == [{"name": "results.tar", "digest": {"sha256": DIGEST[7:]}}]
    assert read["predicate"] == PREDICATE
    assert list(read)[-1] == "signatures"
    assert b'\n    "state": "done",\n' in record
    assert json.dumps(read, indent=2, ensure_ascii=False).encode() + b"\n" == record


def test_what_is_signed_can_be_checked_with_nothing_of_ours(signer: Signer) -> None:
    record = signer.sign(payload())
    [signature] = json.loads(record)["signatures"]
    without = record[: record.rindex(b',\n  "signatures"')] + b"\n}\n"
    signed = b"DSSEv1 28 application/vnd.in-toto+json %d " % len(without) + without
    raw = base64.b64decode(signature["keyid"].removeprefix("ed25519:"))
    Ed25519PublicKey.from_public_bytes(raw).verify(base64.b64decode(signature["sig"]), signed)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
@settings(max_examples=60)
def test_any_predicate_survives_being_signed(value: object) -> None:
    said = provenance.payload_of(Statement(subject=[], predicate={"x": value}))
    signatures = [Signature("k", "s"), Signature('"\n', "")]
    assert provenance.split(provenance.join(said, signatures)) == (said, signatures)


def test_the_right_key_accepts_and_every_flipped_byte_is_noticed(signer: Signer, tmp_path: Path) -> None:
    record, [key] = signer.sign(payload()), signer.keys()
    assert found(written(tmp_path / "good", record), key).ok
    for place in range(0, len(record), 7):
        changed = bytearray(record)
        changed[place] ^= 1
        one = found(written(tmp_path / "bad", bytes(changed)), key)
        assert not one.ok, f"byte {place} of {record[place - 20 : place + 20]!r}"
        assert one.problems


def test_what_was_changed_is_named(signer: Signer, tmp_path: Path) -> None:
    record, [key] = signer.sign(payload()), signer.keys()
    assert (
        "results.tar: not what the site signed" in found(written(tmp_path / "1", record, TAR + b"x"), key).problems[0]
    )
    assert "results.tar: it is not there" in found(written(tmp_path / "2", record, None), key).problems[0]
    edited = record.replace(b'"done"', b'"fail"')
    assert "its signature does not fit" in found(written(tmp_path / "3", edited), key).problems[0]
    laid_out = json.dumps(json.loads(record)).encode()
    assert "laid it out anew" in found(written(tmp_path / "4", laid_out), key).problems[0]
    for number, broken in enumerate((b"", b"{}", b"\xff", record[:-5], record.replace(b'"sig"', b'"sag"'), record * 2)):
        assert not found(written(tmp_path / f"5{number}", broken), key).ok
    nothing = provenance.payload_of(Statement(subject=[], predicate=PREDICATE))
    assert "has no results" in found(written(tmp_path / "6", signer.sign(nothing)), key).problems[0]
    elsewhere = provenance.payload_of(Statement(subject=[subject("../../etc/passwd", DIGEST)], predicate=PREDICATE))
    assert "not beside it" in found(written(tmp_path / "7", signer.sign(elsewhere)), key).problems[0]
    odd = provenance.payload_of(
        Statement(subject=[], predicate={"attempts": 1, "site": [], "image": None, "validator": 3})
    )
    assert found(written(tmp_path / "8", signer.sign(odd), None), key).ok


def test_a_signature_of_a_stranger_does_not_count(signer: Signer, tmp_path: Path) -> None:
    folder = written(tmp_path / "x", signer.sign(payload()))
    [stranger] = Signer(tmp_path / "other").keys()
    one = found(folder, stranger)
    assert not one.ok
    assert f"signed by {signer.keys()[0]}, which is not known here" in one.problems[0]


def test_several_signatures_need_only_one_that_counts(signer: Signer, tmp_path: Path) -> None:
    said = payload()
    _, mine = provenance.split(signer.sign(said))
    _, others = provenance.split(Signer(tmp_path / "other").sign(said))
    assert found(written(tmp_path / "x", provenance.join(said, [*others, *mine])), signer.keys()[0]).ok


# --- the site's key ---


def test_the_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    with ThreadPoolExecutor(8) as pool:
        made = {tuple(keys) for keys in pool.map(lambda _: Signer(folder).keys(), range(16))}
    assert len(made) == 1
    assert stat.S_IMODE((folder / PRIVATE).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(each.name for each in folder.iterdir()) == [PRIVATE, PUBLIC]


def test_a_new_key_leaves_the_old_ones_results_verifiable(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    old = Signer(folder)
    record = old.sign(payload())
    (folder / PRIVATE).rename(tmp_path / "away.pem")
    new = Signer(folder)
    assert new.keys() == [new.keys()[0], *old.keys()]
    assert new.keys()[0] != old.keys()[0]
    assert found(written(tmp_path / "x", record), *new.keys()).ok
    (folder / PUBLIC).write_text(new.keys()[0] + "\n")
    assert Signer(folder).keys() == new.keys()[:1]


def test_a_damaged_key_is_said_and_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    Signer(folder).keys()
    (folder / PRIVATE).write_text("nonsense")
    with pytest.raises(BadSiteKey, match="Bring it back"):
        Signer(folder).keys()
    assert (folder / PRIVATE).read_text() == "nonsense"


@pytest.mark.parametrize(
    "text", ["", "ed25519:", "ed25519:AAAA", "rsa:" + "A" * 44, "ed25519:" + "!" * 44, "A" * 43 + "="]
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(BadRecord, match="is not a key"):
        provenance.key_bytes(text)


# --- the command ---


def run(*words: str, folder: Path, status: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DISTRIBUTIO_CONFIG": str(folder / "config")}
    done = subprocess.run(
        [sys.executable, "-m", "distributio.cli.main", "verify", *words],
        capture_output=True, text=True, check=False, cwd=folder, env=environment, timeout=60,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done


def test_the_command_checks_a_folder_or_all_below_it(signer: Signer, tmp_path: Path) -> None:
    for position in (1, 2):
        written(tmp_path / "results" / "12" / f"12.{position}", signer.sign(payload(job=f"12.{position}")))
    [key] = signer.keys()
    one = run("results/12/12.1", "--key", key, folder=tmp_path, status=0)
    assert "good: it is what the site signed" in one.stdout
    assert "2 agreeing, of a quorum of 2, by exact; computed on abc, def" in one.stdout
    (tmp_path / "results" / "12" / "12.2" / "results.tar").write_bytes(b"other")
    both = run("results", "--key", str(tmp_path / "keys" / PUBLIC), folder=tmp_path, status=5)
    assert "12.1  good" in both.stdout
    assert "12.2  BAD" in both.stdout
    assert "not what the site signed" in both.stderr
    said = json.loads(run("results", "--key", key, "-o", "json", folder=tmp_path, status=5).stdout)
    assert [each["ok"] for each in said] == [True, False]
    assert "not known here" in run("results/12/12.1", folder=tmp_path, status=5).stderr
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "site-keys.json").write_text(json.dumps({"http://site": [key]}))
    assert "http://site (remembered)" in run("results/12/12.1", folder=tmp_path, status=0).stdout
    assert "neither a key" in run("results", "--key", "none", folder=tmp_path, status=2).stderr
    assert "There is no result.json" in run(".", "--key", key, folder=tmp_path / "config", status=2).stderr


def test_a_damaged_memory_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DISTRIBUTIO_CONFIG", str(tmp_path))
    assert sitekeys.known() == {}
    (tmp_path / "site-keys.json").write_text("[1")
    with pytest.raises(Stop, match="Repair it"):
        sitekeys.known()
