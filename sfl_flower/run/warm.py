"""Flower's client processes, started warm: one process imports torch, and each message forks it.

A SuperNode starts the program ``flwr-clientapp`` with every message, and most of what a small
message takes is that program's imports.  `run_warm` runs a SuperNode (or a SuperExec) with another
program of that name first on the ``PATH``: it hands its arguments, environment and files to a
process that has imported Flower, torch and what the client app needs, which forks itself and runs
Flower's own program there.  A client process is still one of its own, with the app's code loaded
anew; nothing of Flower is changed.  Where that process is gone, Flower's program is started cold.

``python -m sfl_flower.run.warm [--preload MODULE]... COMMAND...`` is ``sfl warm``.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib.util
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn

from sfl_flower.errors import ConfigError

__all__ = ["main", "run_warm"]

PROGRAM = "flwr-clientapp"
PRELOADED = ("torch", "flwr.clientapp", "sfl_flower.run.client_app")
LOOK_S = 0.1
"""How often it is looked whether a process has ended."""

# What takes the program's place on the PATH. Without site packages an interpreter starts in 10 ms.
_SHIM = """\
import json, os, socket, sys
try:
    link = socket.socket(socket.AF_UNIX)
    link.connect({socket!r})
except OSError:
    os.execv({cold!r}, [{cold!r}, *sys.argv[1:]])
told = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(link, [len(told).to_bytes(8, "big")], [0, 1, 2])
link.sendall(told)
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
        There is no such command or module, or Flower's program is not on the ``PATH``.
    """
    cold = shutil.which(PROGRAM)
    if cold is None or shutil.which(command[0]) is None:
        missing = PROGRAM if cold is None else command[0]
        raise ConfigError(
            f"There is no program {missing!r} on the PATH; put the folder with Flower's programs "
            "first on it."
        )
    for name in preload:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"There is no module {name!r} to preload; leave it out or install it."
            )
    place, owner = Path(tempfile.mkdtemp(prefix="sfl_flower-warm-")), os.getpid()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(place / "socket"))
        listener.listen(64)
        environment = {**os.environ, "PATH": f"{_program(place, cold)}{os.pathsep}{_path()}"}
        process = subprocess.Popen(command, env=environment)
        _forward_signals(process)
        # While the command starts; what comes early waits.
        for name in (*PRELOADED, *preload):
            importlib.import_module(name)
        run_program = _flower_program()
        gc.freeze()  # or the first collection of each fork would copy all of it
        child = _serve(listener, process)
    finally:
        listener.close()
        if os.getpid() == owner:
            shutil.rmtree(place, ignore_errors=True)
    if child is None:
        return process.returncode if process.returncode >= 0 else 128 - process.returncode
    child()
    _end(run_program)


def _path() -> str:
    return os.environ.get("PATH", os.defpath)


def _program(place: Path, cold: str) -> Path:
    """Write what takes the program's place; return its folder."""
    shim = place / "shim.py"
    shim.write_text(_SHIM.format(socket=str(place / "socket"), cold=cold))
    folder = place / "bin"
    folder.mkdir()
    program = folder / PROGRAM
    started = shlex.join([sys.executable, "-IS", str(shim)])
    program.write_text(f'#!/bin/sh\nexec {started} "$@"\n')
    program.chmod(0o700)
    return folder


def _flower_program() -> Callable[[], Any]:
    """Return the function that Flower's package gives the program's name."""
    (found,) = entry_points(group="console_scripts", name=PROGRAM)
    program: Callable[[], Any] = found.load()
    return program


def _forward_signals(process: subprocess.Popen[bytes]) -> None:
    """Let the command hear what this process is told; it decides when to end."""
    signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
    signal.signal(signal.SIGINT, lambda number, frame: None)  # a terminal tells the command itself


def _serve(listener: socket.socket, process: subprocess.Popen[bytes]) -> Callable[[], None] | None:
    """Fork for each client process that is asked for, until the command ends.

    Returns
    -------
    callable or None
        In a forked process what makes it the one that was asked for, None in this one.
    """
    listener.settimeout(LOOK_S)
    links: dict[int, socket.socket] = {}
    while process.poll() is None:
        _reap(links)
        try:
            link, _ = listener.accept()
        except TimeoutError:
            continue
        try:
            told, files = _hear(link)
        except (OSError, ValueError):
            link.close()
            continue
        try:
            pid = os.fork()
        except OSError as error:  # no memory, or too many processes: Flower says that it crashed
            print(f"No client process can be forked: {error}", file=sys.stderr)
            link.close()
            pid = -1
        if pid == 0:
            for other in (*links.values(), link):
                other.close()
            return lambda: _become(*told, files)
        for file in files:
            os.close(file)
        if pid > 0:
            links[pid] = link
    return None


def _hear(link: socket.socket) -> tuple[tuple[list[str], str, dict[str, str]], list[int]]:
    """Return arguments, folder and environment of a process that is asked for, and its files."""
    link.setblocking(True)
    head, files, _, _ = socket.recv_fds(link, 8, 3)
    left, parts = int.from_bytes(head, "big"), []
    while left:
        part = link.recv(left)
        if not part:
            raise ValueError("the other side is gone")
        parts.append(part)
        left -= len(part)
    arguments, folder, environment = json.loads(b"".join(parts))
    return (arguments, folder, environment), list(files)


def _reap(links: dict[int, socket.socket]) -> None:
    """Tell whoever waits for a process how it ended."""
    for pid, link in list(links.items()):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            try:
                link.sendall(bytes([code if code >= 0 else 128 - code]))
            except OSError:
                pass
            link.close()
            del links[pid]


def _become(
    arguments: list[str], folder: str, environment: dict[str, str], files: list[int]
) -> None:
    """Make of a forked process the one that was asked for, with no code of the app in it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for own, given in enumerate(files):
        os.dup2(given, own)
        os.close(given)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [PROGRAM, *arguments]
    if "numpy.random" in sys.modules:
        # Forks would draw the same; this is what a process finds when it imports numpy.
        sys.modules["numpy.random"].seed()
    # The bundle that a run brings may hold the package itself.
    for name in [n for n in sys.modules if n.partition(".")[0] == "sfl_flower"]:
        del sys.modules[name]


def _end(program: Callable[[], Any]) -> NoReturn:
    """Run a program to its end in a forked process.

    What a process does at its end is done, but for taking torch apart, which takes a second.
    """
    code: Any = 1
    try:
        code = program()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


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
