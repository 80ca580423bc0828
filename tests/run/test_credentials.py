"""A SuperNode's key and the SuperLink's certificate, looked at before Flower starts."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sfl_flower.errors import ConfigError
from sfl_flower.run.credentials import check_credentials
from sfl_flower.run.warm import main
from tests.deployment.example import certificates

MADE = ("superlink", "node")


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make what a deployment needs, and the authority of another."""
    place = tmp_path_factory.mktemp("secrets")
    for name in ("ours", "theirs"):
        assert certificates("superlink", str(place / name), "--name", "127.0.0.2") == 0
    assert certificates("node", str(place / "ours"), "node-0") == 0
    return place


@contextlib.contextmanager
def answering(folder: Path) -> Iterator[int]:
    """Answer one connection with a SuperLink's certificate; yields the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "superlink.pem", folder / "superlink.key")
    with socket.create_server(("", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                link, _ = server.accept()
                with link, context.wrap_socket(link, server_side=True):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        # Whoever did not come is not waited for.
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", server.getsockname()[1])).close()
        thread.join()


def node(secrets: Path, *more: str) -> list[str]:
    key = secrets / "ours" / "node-0"
    return ["/somewhere/flower-supernode", "--auth-supernode-private-key", str(key), *more]


def test_a_key_of_its_owner_alone_passes(secrets: Path) -> None:
    check_credentials(node(secrets))
    check_credentials(["flower-supernode", "--insecure"])
    check_credentials(["flower-superexec", "--root-certificates", "/nowhere"])
    check_credentials([])


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610])
@pytest.mark.parametrize("form", ["{} {}", "{}={}"])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int, form: str) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    key.chmod(mode)
    command = ["flower-supernode", *form.format("--auth-supernode-private-key", key).split()]
    with pytest.raises(ConfigError, match=rf"open to others \(mode {mode:04o}\); `chmod 600`"):
        check_credentials(command)
    key.chmod(0o600)
    check_credentials(command)


def test_a_key_that_is_missing_or_no_file_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(ConfigError, match=rf"{missing}.*No such file.*examples/deployment"):
        check_credentials(["flower-supernode", "--ssl-keyfile", str(missing)])
    with pytest.raises(ConfigError, match="is no file"):
        check_credentials(["flower-supernode", "--ssl-keyfile", str(tmp_path)])


@pytest.mark.parametrize(
    ("mode", "group", "readable", "passes"),
    [
        (0o440, 77, True, True),  # Kubernetes, with fsGroup
        (0o440, 0, True, True),  # systemd, with an access list
        (0o640, 77, True, True),
        (0o460, 77, True, False),
        (0o440, 100, True, False),  # users, say
        (0o400, 0, False, False),
    ],
)
def test_a_key_of_roots_passes_that_this_process_is_given_to_read(
    mode: int,
    group: int,
    readable: bool,
    passes: bool,
    secrets: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of mode 0o444 anybody could read it."""

    def found(path: Path, **how: Any) -> os.stat_result:
        return os.stat_result((stat.S_IFREG | mode, 0, 0, 1, 0, group, 0, 0, 0, 0))

    monkeypatch.setattr(os, "getuid", lambda: 4321)
    monkeypatch.setattr(os, "getegid", lambda: 4321)
    monkeypatch.setattr(os, "getgroups", lambda: [4321, 77])
    monkeypatch.setattr(os, "access", lambda path, how: readable)
    monkeypatch.setattr(Path, "stat", found)
    if passes:
        check_credentials(node(secrets))
        mode |= 0o004
    with pytest.raises(ConfigError, match="belongs to another user"):
        check_credentials(node(secrets))


def test_a_key_of_another_user_is_refused(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = os.getuid()
    if uid == 0:
        os.chown(secrets / "ours" / "node-0", 4321, -1)
        owner = 4321
    else:
        monkeypatch.setattr(os, "getuid", lambda: 4321)
        owner = uid
    try:
        with pytest.raises(ConfigError, match=rf"belongs to another user \(id {owner}\)"):
            check_credentials(node(secrets))
    finally:
        if uid == 0:
            os.chown(secrets / "ours" / "node-0", 0, -1)


@pytest.mark.parametrize(
    ("roots", "host", "says"),
    [
        ("ours", "127.0.0.1", ""),
        ("ours", "127.0.0.2", ""),
        ("ours", "localhost", ""),
        ("ours", "127.0.0.3", "certificate is not valid for '127.0.0.3'"),
        ("theirs", "127.0.0.1", "certificate signature failure|unable to get local issuer"),
    ],
)
def test_the_certificate_is_held_against_the_roots(
    secrets: Path, roots: str, host: str, says: str
) -> None:
    with answering(secrets / "ours") as port:
        given = ["--root-certificates", str(secrets / roots / "ca.pem")]
        command = node(secrets, *given, "--superlink", f"{host}:{port}")
        if says:
            with pytest.raises(ConfigError, match=f"cannot be trusted: .*({says}).*; --root-cert"):
                check_credentials(command)
        else:
            check_credentials(command)


def test_a_superlink_that_is_not_there_yet_is_waited_for_by_flower(secrets: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    roots = str(secrets / "ours" / "ca.pem")
    check_credentials(node(secrets, "--root-certificates", roots, "--superlink", f"[::1]:{port}"))
    check_credentials(node(secrets, "--root-certificates", roots, "--superlink", "nonsense"))


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_root_certificates_that_cannot_be_read_are_refused(
    content: str | None, tmp_path: Path
) -> None:
    roots = tmp_path / "ca.pem"
    if content is not None:
        roots.write_text(content)
    with pytest.raises(ConfigError, match=rf"The root certificates {roots} cannot be read"):
        check_credentials(["flower-supernode", "--root-certificates", str(roots)])


@pytest.mark.flower
def test_sfl_warm_refuses_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"
    for name in ("flower-supernode", "flwr-clientapp"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\ntouch {started}\n")
        program.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert main(["flower-supernode", "--auth-supernode-private-key", "missing"]) == 2
    assert "error: The private key missing" in capsys.readouterr().err
    assert not started.exists()
