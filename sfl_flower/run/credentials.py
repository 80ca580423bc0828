"""A SuperNode's credentials, looked at before it starts: its key, and the SuperLink's certificate.

Flower takes a private key whoever may read it, and ends with a trace where there is none.  It holds
the SuperLink's certificate against ``--root-certificates`` itself; the same is done here first, so
that what does not match is said in a sentence with the remedy.
"""

from __future__ import annotations

import os
import socket
import ssl
import stat
from collections.abc import Sequence
from pathlib import Path

from sfl_flower.errors import ConfigError

__all__ = ["check_credentials", "check_private_key"]

SUPERNODE = "flower-supernode"
KEYS = ("--auth-supernode-private-key", "--ssl-keyfile")
HANDSHAKE_S = 10.0


def check_credentials(command: Sequence[str]) -> None:
    """Refuse a SuperNode's command whose key or certificates cannot be used.

    Parameters
    ----------
    command : sequence of str
        A program and its options; nothing of one that is no SuperNode is looked at.

    Raises
    ------
    ConfigError
        A private key is missing or is not its owner's alone; the root certificates are missing or
        cannot be read; or the SuperLink answers with a certificate that they do not vouch for. A
        SuperLink that does not answer is left to Flower, which keeps trying.
    """
    if not command or Path(command[0]).name != SUPERNODE:
        return
    for option in KEYS:
        if key := _option(command, option):
            check_private_key(Path(key).expanduser(), option)
    roots, address = _option(command, "--root-certificates"), _option(command, "--superlink")
    if roots and "--insecure" not in command:
        context = _context(Path(roots).expanduser())
        if address:
            _check_certificate(context, address)


def check_private_key(path: Path, option: str) -> None:
    """Refuse a private key that is not there or that others than its owner may read.

    One of root's that this process may read passes where its group is one of this process, as
    Kubernetes mounts a secret, or root's, as systemd hands over a credential, whose mode says what
    an access list allows. Others of that group may read it too; nobody but root can change it.

    Parameters
    ----------
    path : Path
        The file.
    option : str
        The option that names it.

    Raises
    ------
    ConfigError
        If it is missing, no file, of another user, or open to others.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError(
            f"The private key {path} of {option} cannot be read ({error.strerror}); make one as "
            "examples/deployment does, and register its public half with the SuperLink."
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path} of {option} is no file; name the private key itself.")
    handed = found.st_uid == 0 != os.getuid() and os.access(path, os.R_OK)
    known = found.st_gid in {0, os.getegid(), *os.getgroups()}
    if handed and known and not found.st_mode & 0o037:
        return
    if found.st_uid != os.getuid():
        raise ConfigError(
            f"The private key {path} of {option} belongs to another user (id {found.st_uid}); "
            "chown it to the user that runs the SuperNode."
        )
    if found.st_mode & 0o077:
        raise ConfigError(
            f"The private key {path} of {option} is open to others (mode "
            f"{found.st_mode & 0o777:04o}); `chmod 600` it, and if somebody may have read it make "
            "another, and unregister this one."
        )


def _option(command: Sequence[str], name: str) -> str:
    """Return the last value of an option, empty where it is not given."""
    found = ""
    for at, part in enumerate(command):
        if part == name and at + 1 < len(command):
            found = command[at + 1]
        elif part.startswith(f"{name}="):
            found = part.partition("=")[2]
    return found


def _context(roots: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=roots)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The root certificates {roots} cannot be read ({error}); --root-certificates takes "
            "the ca.pem whose authority signed the SuperLink's certificate."
        ) from error


def _check_certificate(context: ssl.SSLContext, address: str) -> None:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        with (
            socket.create_connection((host, int(port)), HANDSHAKE_S) as link,
            context.wrap_socket(link, server_hostname=host),
        ):
            pass
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"The SuperLink at {address} has a certificate that cannot be trusted: "
            f"{error.verify_message.rstrip('.')}; --root-certificates takes the ca.pem that it was "
            "signed with, and --superlink a name or an address that stands in it."
        ) from error
    except (OSError, ValueError):
        return
