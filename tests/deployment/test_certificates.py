"""`examples/deployment/certificates.py`: what it makes, refuses, and finds wrong."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    load_ssh_private_key,
    load_ssh_public_key,
)

from tests.deployment.example import SCRIPT, certificates


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make what a deployment of two SuperNodes needs."""
    made = tmp_path / "secrets"
    names = ("--name", "superlink.example.org", "--name", "192.0.2.7")
    assert certificates("superlink", str(made), *names) == 0
    assert certificates("node", str(made), "node-0", "node-1") == 0
    return made


class Later(datetime):
    """A clock in a time when nothing is valid any more."""

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        return datetime(2999, 1, 1, tzinfo=UTC)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Return the sentence of a refusal."""
    capsys.readouterr()
    assert certificates(*map(str, arguments)) == 1
    found = capsys.readouterr()
    assert found.out == "" and found.err.startswith("error: ") and found.err.count("\n") == 1
    return found.err


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


@pytest.mark.parametrize("umask", [0o022, 0o000, 0o077])
def test_private_keys_are_their_owners_alone(tmp_path: Path, umask: int) -> None:
    folder = tmp_path / "secrets"
    before = os.umask(umask)
    try:
        assert certificates("superlink", str(folder)) == 0
        assert certificates("node", str(folder), "node-0") == 0
    finally:
        os.umask(before)
    assert mode(folder) == 0o700
    found = {path.name: mode(path) for path in folder.iterdir()}
    public = 0o644 & ~umask
    assert found == {
        **{"ca.key": 0o600, "superlink.key": 0o600, "node-0": 0o600},
        **{"ca.pem": public, "superlink.pem": public, "node-0.pub": public},
    }


def test_the_certificate_names_what_nodes_dial_and_this_machine(folder: Path) -> None:
    certificate, ca = read(folder / "superlink.pem"), read(folder / "ca.pem")
    certificate.verify_directly_issued_by(ca)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == [
        *("superlink.example.org", "192.0.2.7", "localhost", "127.0.0.1")
    ]
    basic = [
        each.extensions.get_extension_for_class(x509.BasicConstraints) for each in (ca, certificate)
    ]
    assert [each.value.ca for each in basic] == [True, False] and all(e.critical for e in basic)
    valid = certificate.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=364) < valid <= timedelta(days=365)


def test_keys_are_in_the_form_that_flower_reads(folder: Path) -> None:
    for node in ("node-0", "node-1"):
        key = load_ssh_private_key((folder / node).read_bytes(), None)
        public = load_ssh_public_key((folder / f"{node}.pub").read_bytes())
        assert isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp384r1"
        assert key.public_key() == public
    assert (folder / "node-0").read_bytes() != (folder / "node-1").read_bytes()


def test_nothing_is_written_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert "superlink.key" in refused(capsys, "superlink", folder)
    assert "node-1.pub: there already" in refused(capsys, "node", folder, "node-2", "node-1")
    (folder / "node-3.pub").symlink_to(folder / "nowhere")
    assert "node-3.pub: there already" in refused(capsys, "node", folder, "node-3")
    (folder / "node-3.pub").unlink()
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_new_certificate_is_of_the_same_authority(folder: Path) -> None:
    ca = (folder / "ca.pem").read_bytes()
    for kind in ("key", "pem"):
        (folder / f"superlink.{kind}").rename(folder.parent / f"old.{kind}")
    assert certificates("superlink", str(folder), "--days", "30") == 0
    assert (folder / "ca.pem").read_bytes() == ca
    read(folder / "superlink.pem").verify_directly_issued_by(read(folder / "ca.pem"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("superlink", "{}", "--name", "superlink:8000"), "'superlink:8000' is no host name"),
        (("superlink", "{}", "--name", "a b"), "'a b' is no host name and no address"),
        (("superlink", "{}", "--name", ""), "'' is no host name"),
        (("superlink", "{}", "--days", "0"), "--days is 0; a certificate is valid for 1 to 825"),
        (("superlink", "{}", "--days", "826"), "--days is 826"),
        (("node", "{}", "../node"), "cannot be called '../node'"),
        (("node", "{}", "ca"), "cannot be called 'ca'"),
        (("check", "{}"), "There is no folder"),
    ],
)
def test_what_cannot_be_made_leaves_nothing_behind(
    arguments: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "secrets"
    assert says in refused(capsys, *(each.format(folder) for each in arguments))
    assert not folder.exists()


def test_a_folder_that_others_may_enter_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o755)
    assert f"The folder {tmp_path} is open to others (mode 0755); chmod 700" in refused(
        capsys, "node", tmp_path, "node-0"
    )
    (tmp_path / "link").symlink_to(tmp_path)
    assert "is no folder but something else, a link" in refused(
        capsys, "superlink", tmp_path / "link"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_what_was_made_passes_the_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert certificates("check", str(folder), "--name", "192.0.2.7", "--days", "300") == 0
    said = capsys.readouterr().out
    assert said.count("a private key that only its owner reads") == 4
    assert "superlink.pem: for superlink.example.org, 192.0.2.7, localhost, 127.0.0.1" in said
    # A node's machine has no more than this.
    for path in folder.iterdir():
        if path.name not in ("ca.pem", "node-0"):
            path.unlink()
    assert certificates("check", str(folder)) == 0


def test_public_keys_alone_pass_the_check(folder: Path) -> None:
    """The SuperLink's machine has them to authorise, and the private ones are elsewhere."""
    for name in ("node-0", "node-1"):
        (folder / name).unlink()
    assert certificates("check", str(folder)) == 0


@pytest.mark.parametrize("name", ["ca.key", "superlink.key", "node-0"])
@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620])
def test_a_key_that_others_may_read_is_found(
    name: str, bits: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / name).chmod(bits)
    assert f"{folder / name} is open to others (mode {bits:04o}); chmod 600" in refused(
        capsys, "check", folder
    )


def test_an_authority_that_cannot_sign_is_refused(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = tmp_path / "other"
    assert certificates("superlink", str(other)) == 0
    for kind in ("key", "pem"):
        (folder / f"superlink.{kind}").unlink()
    monkeypatch.setattr(SCRIPT, "datetime", Later)
    assert "UTC, and now it is 2999-01-01 00:00; set the clock, or move ca.key" in refused(
        capsys, "superlink", folder
    )
    monkeypatch.undo()
    (folder / "ca.key").write_bytes((other / "ca.key").read_bytes())
    assert "ca.pem does not belong to ca.key beside it" in refused(capsys, "superlink", folder)
    assert not (folder / "superlink.pem").exists()


def test_a_certificate_for_no_host_is_found(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `openssl x509 -req` makes it without an extension file."""
    key, ca = SCRIPT.read_key(folder / "superlink.key"), read(folder / "ca.pem")
    builder = x509.CertificateBuilder().subject_name(ca.subject).issuer_name(ca.subject)
    builder = builder.public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(ca.not_valid_before_utc)
    builder = builder.not_valid_after(ca.not_valid_after_utc)
    made = builder.sign(SCRIPT.read_key(folder / "ca.key"), hashes.SHA384())
    (folder / "superlink.pem").write_bytes(made.public_bytes(Encoding.PEM))
    assert "superlink.pem names no host that it is for; move superlink.key" in refused(
        capsys, "check", folder
    )


def test_what_does_not_match_is_found(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = tmp_path / "other"
    assert certificates("superlink", str(other)) == 0

    def with_file(name: str, source: Path) -> str:
        path = folder / name
        before = path.read_bytes()
        path.write_bytes(source.read_bytes())
        said = refused(capsys, "check", folder)
        path.write_bytes(before)
        return said

    assert "does not belong to superlink.key" in with_file("superlink.key", other / "superlink.key")
    assert "was not signed by ca.pem" in with_file("ca.pem", other / "ca.pem")
    assert "node-0.pub does not belong to" in with_file("node-0.pub", folder / "node-1.pub")
    assert "cannot be read as a certificate" in with_file("superlink.pem", folder / "node-0.pub")
    assert "cannot be read as a private key" in with_file("superlink.key", folder / "ca.pem")
    assert "is not for 'elsewhere.example.org'" in refused(
        capsys, "check", folder, "--name", "elsewhere.example.org"
    )
    assert "in less than 400 days" in refused(capsys, "check", folder, "--days", "400")

    monkeypatch.setattr(SCRIPT, "datetime", Later)
    assert "now it is 2999-01-01 00:00; set the clock, or move" in refused(capsys, "check", folder)
