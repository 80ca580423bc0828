"""Forks of this process, each of which becomes a client process of Flower's.

`serve` forks for whoever asks on a socket, tells them how the fork ended, and ends forks that
nobody waits for; in the fork `end` runs Flower's program.  `sfl_flower.run.warm` starts all of it.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

__all__ = ["GRACE_S", "PROGRAM", "end", "serve"]

PROGRAM = "flwr-clientapp"
LOOK_S = 0.1
"""How often it is looked whether a process has ended."""
HEAR_S = 5.0
"""So long whoever asks for a process has to say what it is."""
GRACE_S = 5.0
"""So long a process has to end once it is asked to."""


def _forward_interrupt(process: subprocess.Popen[bytes]) -> None:
    """Pass on an interrupt that another process sent; a terminal tells the command itself."""
    told = signal.sigtimedwait({signal.SIGINT}, 0)
    if told is not None and told.si_code <= 0:  # the kernel's are positive
        process.send_signal(signal.SIGINT)


@dataclass
class _Fork:
    """A process that was asked for: who waits for it, and when it was told to end."""

    link: socket.socket
    told: float | None = None


def serve(listener: socket.socket, process: subprocess.Popen[bytes]) -> Callable[[], None] | None:
    """Fork for each client process that is asked for, until the command ends.

    Returns
    -------
    callable or None
        In a forked process what makes it the one that was asked for, None in this one.
    """
    listener.settimeout(LOOK_S)
    forks: dict[int, _Fork] = {}
    while process.poll() is None:
        _forward_interrupt(process)
        _reap(forks)
        try:
            link, _ = listener.accept()
        except TimeoutError:
            continue
        try:
            told, files = _hear(link)
        except (OSError, TypeError, ValueError):
            link.close()
            continue
        try:
            pid = os.fork()
        except OSError as error:  # no memory, or too many processes: Flower says that it crashed
            print(f"No client process can be forked: {error}", file=sys.stderr)
            link.close()
            pid = -1
        if pid == 0:
            for other in (*(fork.link for fork in forks.values()), link):
                other.close()
            return lambda: _become(*told, files)
        for file in files:
            os.close(file)
        if pid > 0:
            forks[pid] = _Fork(link)
    for pid in forks:  # who asked for them is gone
        os.kill(pid, signal.SIGTERM)
    return None


def _hear(link: socket.socket) -> tuple[tuple[list[str], str, dict[str, str]], list[int]]:
    """Return arguments, folder and environment of a process that is asked for, and its files.

    Raises
    ------
    OSError, TypeError, ValueError
        The other side says nothing for `HEAR_S`, is gone or says something else; its files are
        closed.
    """
    link.settimeout(HEAR_S)
    head, files, _, _ = socket.recv_fds(link, 8, 3)
    try:
        left, parts = int.from_bytes(head, "big"), []
        while left:
            part = link.recv(min(left, 1 << 20))
            if not part:
                raise ValueError("the other side is gone")
            parts.append(part)
            left -= len(part)
        arguments, folder, environment = json.loads(b"".join(parts))
        if len(files) != 3:
            raise ValueError("standard input, output and error are not there")
    except BaseException:
        for file in files:
            os.close(file)
        raise
    link.setblocking(False)
    return (arguments, folder, environment), list(files)


def _reap(forks: dict[int, _Fork]) -> None:
    """Tell whoever waits for a process how it ended; end one that nobody waits for."""
    for pid, fork in list(forks.items()):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            try:
                fork.link.sendall(bytes([code if code >= 0 else 128 - code]))
            except OSError:
                pass
            fork.link.close()
            del forks[pid]
        elif fork.told is None and _gone(fork.link):
            fork.told = time.monotonic()
            os.kill(pid, signal.SIGTERM)
        elif fork.told is not None and time.monotonic() > fork.told + GRACE_S:
            os.kill(pid, signal.SIGKILL)


def _gone(link: socket.socket) -> bool:
    try:
        return not link.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _become(
    arguments: list[str], folder: str, environment: dict[str, str], files: list[int]
) -> None:
    """Make of a forked process the one that was asked for, with no code of the app in it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
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


def end(program: Callable[[], Any]) -> NoReturn:
    """Run a program to its end in a forked process.

    What an interpreter does at its end is done in its order, executors' threads before the others',
    but for taking torch apart, which takes a second.
    """
    code: Any = 1
    try:
        code = program()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
