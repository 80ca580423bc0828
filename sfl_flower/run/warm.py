"""Flower's client processes, started warm: one process imports torch, and each message forks it.

A SuperNode starts the program ``flwr-clientapp`` with every message, and most of what a small
message takes is that program's imports.  `run_warm` runs a SuperNode (or a SuperExec) with another
program of that name first on the ``PATH``: it hands its arguments, environment and files to a
process that has imported Flower, torch and what the client app needs, which forks itself and runs
Flower's own program there.  A client process is still one of its own, with the app's code loaded
anew; nothing of Flower is changed.  Where that process is gone, or the app's dependencies are to be
installed, Flower's program is started cold.

``python -P -m sfl_flower.run.warm [--preload MODULE]... COMMAND...`` is ``sfl warm``.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from sfl_flower.errors import ConfigError
from sfl_flower.run.credentials import check_credentials
from sfl_flower.run.forks import GRACE_S, PROGRAM, end, serve

__all__ = ["main", "run_warm"]

PRELOADED = ("torch", "flwr.clientapp", "sfl_flower.run.client_app")
INSTALLS = "--allow-runtime-dependency-installation"
"""With this Flower's program installs what an app names; modules in memory would win over it."""

# What takes the program's place on the PATH. Without site packages an interpreter starts in 10 ms.
_SHIM = """\
import json, os, socket, sys
try:
    if {installs!r} in sys.argv:
        raise OSError
    for file in range(3):
        os.fstat(file)
    told = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    link = socket.socket(socket.AF_UNIX)
    link.connect({socket!r})
    socket.send_fds(link, [len(told).to_bytes(8, "big")], [0, 1, 2])
    link.sendall(told)
except OSError:
    os.execv({cold!r}, [{cold!r}, *sys.argv[1:]])
sys.exit(int.from_bytes(link.recv(1) or b"\\1", "big"))
"""


def run_warm(command: Sequence[str], preload: Sequence[str] = ()) -> int:
    """Run a command whose client processes start warm, until it ends.

    Parameters
    ----------
    command : sequence of str
        A SuperNode's, or that of a SuperExec, as it would be called without this.
    preload : sequence of str
        Modules to import besides, such as ``torchvision``, which every client process then has.

    Returns
    -------
    int
        The command's exit status, as a shell tells it. A forked client process does not return.

    Raises
    ------
    ConfigError
        There is no such command or module, Flower's program is not there, a module cannot be
        imported, or there can be no socket in the folder for temporary files; or a SuperNode's key
        or certificates cannot be used.
    """
    cold = shutil.which(PROGRAM)
    if cold is None or shutil.which(command[0]) is None:
        missing = PROGRAM if cold is None else command[0]
        raise ConfigError(
            f"There is no program {missing!r} on the PATH; put the folder with Flower's programs "
            "first on it."
        )
    for name in preload:
        if not _is_there(name):
            raise ConfigError(
                f"There is no module {name!r} to preload; leave it out or install it."
            )
    load_program = _flower_program()
    check_credentials(command)
    place, owner = Path(tempfile.mkdtemp(prefix="sfl_flower-warm-")), os.getpid()
    listener = socket.socket(socket.AF_UNIX)
    process: subprocess.Popen[bytes] | None = None
    try:
        _listen(listener, place / "socket")
        environment = {**os.environ, "PATH": f"{_program(place, cold)}{os.pathsep}{_path()}"}
        try:
            process = subprocess.Popen(command, env=environment)
        except OSError as error:
            raise ConfigError(
                f"The program {command[0]!r} cannot be started: {error}; name one that can."
            ) from error
        _forward_signals(process)
        # While the command starts; what comes early waits.
        for name in (*PRELOADED, *preload):
            _import(name)
        run_program = load_program()
        gc.freeze()  # or the first collection of each fork would copy all of it
        child = serve(listener, process)
    finally:
        listener.close()
        if os.getpid() == owner:
            if process is not None:
                _stop(process)  # it has ended, but after an error
            shutil.rmtree(place, ignore_errors=True)
    if child is None:
        return process.returncode if process.returncode >= 0 else 128 - process.returncode
    child()
    end(run_program)


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except Exception:  # no such package, no name of a module, or its package cannot be imported
        return False


def _import(name: str) -> None:
    """Import a module ahead of the first message.

    Raises
    ------
    ConfigError
        Whatever the module raises.
    """
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"The module {name!r} cannot be imported ahead of the first message: "
            f"{type(error).__name__}: {error}; leave it out, or run the command without `sfl warm`."
        ) from error


def _listen(listener: socket.socket, path: Path) -> None:
    try:
        listener.bind(str(path))
        listener.listen(64)
    except OSError as error:
        raise ConfigError(
            f"There can be no socket {path}: {error}; set TMPDIR to a folder that can be written "
            "and has a short name, such as /tmp."
        ) from error


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let a command end, killed after a grace."""
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _path() -> str:
    return os.environ.get("PATH", os.defpath)


def _program(place: Path, cold: str) -> Path:
    """Write what takes the program's place; return its folder."""
    shim = place / "shim.py"
    shim.write_text(_SHIM.format(socket=str(place / "socket"), cold=cold, installs=INSTALLS))
    folder = place / "bin"
    folder.mkdir()
    program = folder / PROGRAM
    started = shlex.join([sys.executable, "-IS", str(shim)])
    program.write_text(f'#!/bin/sh\nexec {started} "$@"\n')
    program.chmod(0o700)
    return folder


def _flower_program() -> Callable[[], Callable[[], Any]]:
    """Return what loads the function that Flower's package gives the program's name.

    Raises
    ------
    ConfigError
        None of the packages here gives it, or several do.
    """
    found = {point.value: point for point in entry_points(group="console_scripts", name=PROGRAM)}
    if len(found) != 1:
        raise ConfigError(
            f"{sys.executable} has {len(found)} packages with a program {PROGRAM!r}, not one; "
            "install sfl-flower beside the Flower that the command runs."
        )
    load: Callable[[], Callable[[], Any]] = next(iter(found.values())).load
    return load


def _forward_signals(process: subprocess.Popen[bytes]) -> None:
    """Let the command hear what this process is told; it decides when to end."""
    signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # `serve` takes them


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the command's exit status."""
    parser = argparse.ArgumentParser(prog="sfl warm", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preload", action="append", default=[], metavar="MODULE")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    parsed = parser.parse_args(arguments)
    if not parsed.command:
        parser.error("name the command to run, such as flower-supernode with its options")
    try:
        return run_warm(parsed.command, parsed.preload)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
