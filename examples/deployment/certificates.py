#!/usr/bin/env python3
"""Certificates and keys of a deployment, in a folder that its owner alone may enter.

python certificates.py superlink secrets --name superlink.example.org --name 192.0.2.7
python certificates.py node secrets node-0 node-1 node-2
python certificates.py check secrets --name superlink.example.org

``superlink`` makes a certificate authority (or takes the one that is there) and the SuperLink's
certificate; ``node`` makes a key pair for each SuperNode, in the form that Flower reads; ``check``
says whether what is there can be used.  What is there is never written over.  It needs the package
`cryptography`, which Flower brings.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY, SUPERLINK = "ca", "superlink"
AUTHORITY_DAYS, MOST_DAYS = 3650, 825
LOOPBACK = ("localhost", "127.0.0.1")
"""Names that the SuperLink's certificate always has: Flower starts a ServerApp on its machine."""
CLOCKS = timedelta(minutes=10)
"""How far the clock of a node may be behind."""
PEM = serialization.Encoding.PEM
PLAIN = serialization.NoEncryption()
LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)", re.IGNORECASE)
NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Refused(Exception):
    """What cannot be made or used, with the remedy."""


def make_superlink(folder: Path, names: Sequence[str], days: int) -> list[Path]:
    """Make the SuperLink's certificate and key, and an authority where there is none."""
    alternatives = [subject_name(name) for name in dict.fromkeys([*names, *LOOPBACK])]
    if not 1 <= days <= MOST_DAYS:
        raise Refused(f"--days is {days}; a certificate is valid for 1 to {MOST_DAYS} days.")
    is_new = not any((folder / f"{AUTHORITY}.{kind}").exists() for kind in ("key", "pem"))
    own_folder(folder)
    wanted = [AUTHORITY, SUPERLINK] if is_new else [SUPERLINK]
    refuse_to_overwrite(folder / f"{name}.{kind}" for name in wanted for kind in ("key", "pem"))
    now = datetime.now(UTC)
    if is_new:
        ca_key = ec.generate_private_key(ec.SECP384R1())
        ca = authority(ca_key, now)
    else:
        ca_key, ca = read_authority(folder, now)
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(now + timedelta(days=days), ca.not_valid_after_utc)
    certificate = sign(key, alternatives, (now - CLOCKS, until), ca_key, ca)
    written = []
    if is_new:
        written += write_pair(folder, AUTHORITY, ca_key, ca)
    return [*written, *write_pair(folder, SUPERLINK, key, certificate)]


def make_nodes(folder: Path, nodes: Sequence[str]) -> list[Path]:
    """Make a key pair for each SuperNode."""
    for name in nodes:
        if not NODE.fullmatch(name) or name in (AUTHORITY, SUPERLINK):
            raise Refused(
                f"A SuperNode cannot be called {name!r}; take letters, digits, - and _, such as "
                "node-0."
            )
    own_folder(folder)
    files = [folder / name for name in dict.fromkeys(nodes)]
    refuse_to_overwrite(path for file in files for path in (file, public_of(file)))
    for file in files:
        key = ec.generate_private_key(ec.SECP384R1())
        secret = key.private_bytes(PEM, serialization.PrivateFormat.OpenSSH, PLAIN)
        write(file, secret, private=True)
        write(public_of(file), public_line(key) + f" {file.name}\n".encode())
    return [path for file in files for path in (file, public_of(file))]


def check(folder: Path, names: Sequence[str], days: int) -> list[str]:
    """Say what is there; refuse what cannot be used."""
    check_private(folder, "folder", 0o700)
    keys = [path for path in sorted(folder.iterdir()) if is_private(path)]
    for path in keys:
        check_private(path, "private key", 0o600)
    said = [f"{path}: a private key that only its owner reads" for path in keys]
    for path in sorted(folder.glob("*.pub")):
        private = path.with_suffix("")
        if not private.exists():  # as on the SuperLink's machine
            continue
        line = public_line(read_key(private)).split()
        if path.read_bytes().split()[:2] != line:
            raise Refused(f"{path} does not belong to {private}; make the pair anew.")
    if (folder / f"{SUPERLINK}.pem").exists():
        said.append(check_superlink(folder, names, days))
    elif names:
        raise Refused(f"There is no {folder / SUPERLINK}.pem to have the names; make it first.")
    return said


def check_superlink(folder: Path, names: Sequence[str], days: int) -> str:
    """Hold the SuperLink's certificate against its key, its authority, its names and the date."""
    path = folder / f"{SUPERLINK}.pem"
    certificate, ca = read_certificate(folder, SUPERLINK), read_certificate(folder)
    again = f"move superlink.key and superlink.pem away and make them again: {Path(__file__).name}"
    again += f" superlink {folder}"
    if certificate.public_key() != read_key(folder / f"{SUPERLINK}.key").public_key():
        raise Refused(f"{path} does not belong to superlink.key; {again}")
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError):
        raise Refused(f"{path} was not signed by ca.pem beside it; {again}") from None
    now = datetime.now(UTC)
    for which, found in (("superlink.pem", certificate), ("ca.pem", ca)):
        refuse_out_of_time(folder / which, found, now, again)
        if (ends := found.not_valid_after_utc) < now + timedelta(days=days):
            raise Refused(f"{folder / which} ends on {ends:%Y-%m-%d}, in less than {days} days.")
    try:
        has = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise Refused(f"{path} names no host that it is for; {again} --name NAME") from None
    for name in [*names, *LOOPBACK]:
        if subject_name(name) not in has:
            raise Refused(f"{path} is not for {name!r}; {again} --name {name}")
    listed = ", ".join(str(each.value) for each in has)
    return f"{path}: for {listed}; until {certificate.not_valid_after_utc:%Y-%m-%d}"


def subject_name(name: str) -> x509.GeneralName:
    """Return a host name or an address as a certificate names it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        labels = name.split(".")
        if len(name) <= 253 and all(LABEL.fullmatch(label) for label in labels):
            return x509.DNSName(name)
    raise Refused(
        f"{name!r} is no host name and no address; give --name as the nodes dial it, without a "
        "port, such as superlink.example.org or 192.0.2.7."
    )


def authority(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """Make the certificate of an authority, signed by itself."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sfl deployment CA")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )


def sign(
    key: ec.EllipticCurvePrivateKey,
    names: Sequence[x509.GeneralName],
    valid: tuple[datetime, datetime],
    ca_key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
) -> x509.Certificate:
    """Make the certificate of a server."""
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SUPERLINK)]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(issuer, critical=False)
        .sign(ca_key, hashes.SHA384())
    )


def own_folder(folder: Path) -> None:
    """Make the folder for its owner alone; refuse one that others may enter."""
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        check_private(folder, "folder", 0o700)


def check_private(path: Path, what: str, mode: int) -> None:
    """Refuse a file or folder that is not its owner's alone."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        raise Refused(f"There is no {what} {path}; make it first.") from None
    is_kind = stat.S_ISDIR if mode == 0o700 else stat.S_ISREG
    if not is_kind(found.st_mode):
        raise Refused(f"{path} is no {what} but something else, a link perhaps; move it away.")
    if found.st_uid != os.getuid():
        raise Refused(f"The {what} {path} belongs to user {found.st_uid}; chown it to yours.")
    if found.st_mode & 0o077:
        raise Refused(
            f"The {what} {path} is open to others (mode {found.st_mode & 0o777:04o}); "
            f"chmod {mode:o} {path}, and make new keys if somebody may have read it."
        )


def is_private(path: Path) -> bool:
    """Return whether a file is a private key, or is called like one."""
    if path.suffix == ".key" or path.with_name(f"{path.name}.pub").exists():
        return True
    return path.is_file() and b"PRIVATE KEY-----" in path.read_bytes()[:200]


def refuse_to_overwrite(paths: Iterator[Path]) -> None:
    """Refuse to write where something is."""
    there = [str(path) for path in paths if os.path.lexists(path)]
    if there:
        raise Refused(f"{', '.join(there)}: there already; move it away, or name another folder.")


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key in either form."""
    check_private(path, "private key", 0o600)
    data = path.read_bytes()
    is_ssh = b"OPENSSH" in data[:100]
    load = serialization.load_ssh_private_key if is_ssh else serialization.load_pem_private_key
    try:
        key = load(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Refused(f"{path} cannot be read as a private key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Refused(f"{path} is a key of another kind; an elliptic curve is needed.")
    return key


def read_authority(
    folder: Path, now: datetime
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Read the authority's key and certificate; refuse those that cannot sign."""
    key, ca = read_key(folder / f"{AUTHORITY}.key"), read_certificate(folder)
    path = folder / f"{AUTHORITY}.pem"
    anew = "move ca.key, ca.pem, superlink.key and superlink.pem away, and make them anew."
    if ca.public_key() != key.public_key():
        raise Refused(f"{path} does not belong to ca.key beside it; {anew}")
    refuse_out_of_time(path, ca, now, anew)
    return key, ca


def refuse_out_of_time(path: Path, found: x509.Certificate, now: datetime, anew: str) -> None:
    """Refuse a certificate that is not valid yet, or no longer."""
    begins, ends = found.not_valid_before_utc, found.not_valid_after_utc
    if not begins <= now < ends:
        raise Refused(
            f"{path} is valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC, and now "
            f"it is {now:%Y-%m-%d %H:%M}; set the clock, or {anew}"
        )


def read_certificate(folder: Path, name: str = AUTHORITY) -> x509.Certificate:
    """Read a certificate."""
    path = folder / f"{name}.pem"
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        raise Refused(f"There is no {path}; put it there, or begin in an empty folder.") from None
    except ValueError as error:
        raise Refused(f"{path} cannot be read as a certificate: {error}") from error


def public_of(file: Path) -> Path:
    """Return where the public half of a SuperNode's key stands."""
    return file.with_name(f"{file.name}.pub")


def public_line(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the public half in the form of OpenSSH."""
    form = serialization.PublicFormat.OpenSSH
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, form)


def write_pair(
    folder: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> list[Path]:
    """Write a certificate and its key."""
    paths = [folder / f"{name}.key", folder / f"{name}.pem"]
    write(paths[0], key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, PLAIN), private=True)
    write(paths[1], certificate.public_bytes(PEM))
    return paths


def write(path: Path, data: bytes, private: bool = False) -> None:
    """Write a new file; a private one is never open to others, not for a moment."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(path, flags, 0o600 if private else 0o644), "wb") as file:
        file.write(data)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    about = {"superlink": "the SuperLink's certificate", "check": "say what is there"}
    for name, what in about.items():
        command = commands.add_parser(name, help=what)
        command.add_argument("folder", type=Path)
        command.add_argument("--name", action="append", default=[], help="as the nodes dial it")
        days = 365 if name == "superlink" else 0
        command.add_argument("--days", type=int, default=days, help="valid for this long")
    node = commands.add_parser("node", help="a key for each SuperNode")
    node.add_argument("folder", type=Path)
    node.add_argument("nodes", nargs="+", metavar="NODE")
    given = parser.parse_args(arguments)
    try:
        if given.command == "superlink":
            made = make_superlink(given.folder, given.name, given.days)
            said = [f"wrote {path}" for path in made]
        elif given.command == "node":
            said = [f"wrote {path}" for path in make_nodes(given.folder, given.nodes)]
        else:
            said = check(given.folder, given.name, given.days)
    except (Refused, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
