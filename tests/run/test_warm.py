"""Client processes that start warm: Flower's own program, each in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sfl_flower.cli import warm as command_line
from sfl_flower.run import forks, warm
from sfl_flower.run.forks import PROGRAM
from sfl_flower.run.warm import main

pytestmark = pytest.mark.flower

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

DRIVER = """\
import json, os, sys
import sfl_flower.run.warm as warm

def told():
    import numpy
    print(json.dumps({
        "pid": os.getpid(), "argv": sys.argv, "folder": os.getcwd(), "word": os.environ.get("WORD"),
        "torch": "torch" in sys.modules, "preloaded": "colorsys" in sys.modules,
        "ours": [n for n in sys.modules if n.startswith("sfl_flower")],
        "drawn": float(numpy.random.random()),
    }), flush=True)
    print("to stderr", file=sys.stderr)
    sys.exit(5)

warm._flower_program = lambda: lambda: told
sys.exit(warm.main(sys.argv[1:]))
"""

COMMAND = """\
cd /
for word in one two; do WORD=$word flwr-clientapp --token "a b" 2>/dev/null; echo "ended $?"; done
exit 7
"""


def environment() -> dict[str, str]:
    """Return that of the tests, with the programs of their environment first on the path."""
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def test_each_process_is_a_fork_with_what_it_was_started_with(tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    (tmp_path / "command.sh").write_text(COMMAND)
    called = [sys.executable, "driver.py", "--preload", "colorsys", "sh", "command.sh"]
    done = subprocess.run(
        called, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 7, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1::2] == ["ended 5", "ended 5"]
    first, second = (json.loads(line) for line in lines[::2])
    assert (first["word"], second["word"]) == ("one", "two")
    assert first["pid"] != second["pid"] and first["drawn"] != second["drawn"]
    for told in (first, second):
        assert told["argv"] == [PROGRAM, "--token", "a b"] and told["folder"] == "/"
        assert told["torch"] and told["preloaded"] and told["ours"] == []
    assert "to stderr" not in done.stderr


def test_it_runs_flowers_own_program_and_passes_signals_on() -> None:
    command = "flwr-clientapp --help && flwr-clientapp --nonsense; kill -TERM $PPID; exec sleep 60"
    called = [sys.executable, "-P", "-m", "sfl_flower.run.warm", "sh", "-c", command]
    done = subprocess.run(
        called, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 128 + 15
    assert "--token" in done.stdout and "usage: flwr-clientapp" in done.stderr


def test_without_who_forks_flowers_program_starts_cold(tmp_path: Path) -> None:
    folder = warm._program(tmp_path, "/bin/echo")  # nobody listens
    done = subprocess.run(
        [str(folder / PROGRAM), "--token", "x y"], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, "--token x y\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no-such-program"], "There is no program 'no-such-program' on the PATH"),
        (["--preload", "no_such_module", "sh"], "There is no module 'no_such_module' to preload"),
        (["--preload", "no.such", "sh"], "There is no module 'no.such' to preload"),
        (["--preload", "", "sh"], "There is no module '' to preload"),
    ],
)
def test_what_cannot_be_started_is_said(
    arguments: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", environment()["PATH"])
    assert main(arguments) == 2
    assert says in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["sh"]) == 2
    assert f"There is no program '{PROGRAM}' on the PATH" in capsys.readouterr().err


def test_a_command_line_without_a_command_is_refused() -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2


@pytest.mark.parametrize("raised", ["raise KeyError('gone')", "raise SystemExit('gone')"])
def test_a_module_that_raises_ends_the_command_too(raised: str, tmp_path: Path) -> None:
    waits = f"import pathlib\nwhile not pathlib.Path({str(tmp_path / 'begun')!r}).exists(): pass\n"
    (tmp_path / "raises.py").write_text(waits + raised)
    env = {**environment(), "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    driver = (
        "import sfl_flower.run.warm as w, sys; w.PRELOADED = (); sys.exit(w.main(sys.argv[1:]))"
    )
    called = [sys.executable, "-P", "-c", driver, "--preload", "raises"]
    command = f"trap 'echo told; exit' TERM; touch {tmp_path}/begun; while :; do sleep 0.1; done"
    done = subprocess.run(
        [*called, "sh", "-c", command], env=env, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (2, "told\n")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "The module 'raises' cannot be imported" in done.stderr


def test_a_command_that_cannot_be_started_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", environment()["PATH"])
    command = tmp_path / "command"
    command.write_bytes(b"\0")
    command.chmod(0o700)
    assert main([str(command)]) == 2
    assert "cannot be started" in capsys.readouterr().err
    monkeypatch.setattr(warm, "entry_points", lambda **_: ())
    assert main(["sh"]) == 2
    assert "0 packages with a program" in capsys.readouterr().err


def test_a_folder_too_long_for_a_socket_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", environment()["PATH"])
    place = tmp_path / ("long" * 30)
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    assert main(["sh"]) == 2
    assert "path too long; set TMPDIR to a folder" in capsys.readouterr().err
    assert list(place.iterdir()) == []


OPEN = """\
import atexit, sys, time
from concurrent.futures import ThreadPoolExecutor
import sfl_flower.run.forks as forks

def program():
    atexit.register(print, "at exit")
    executor = ThreadPoolExecutor()
    executor.submit(lambda: (time.sleep(0.2), print("worked")))
    sys.exit(3)

forks.end(program)
"""


def test_an_executor_that_is_left_open_ends_with_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OPEN], env=environment(), capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (3, "worked\nat exit\n"), done.stderr


def test_a_fork_ends_with_who_asked_for_it_and_hears_interrupts(tmp_path: Path) -> None:
    driver = """\
import signal, sys, time
import sfl_flower.run.warm as warm

def program():
    signal.signal(signal.SIGTERM, lambda *_: (print("asked", flush=True), time.sleep(600)))
    print("working", flush=True)
    time.sleep(600)

warm.PRELOADED = ()
warm.GRACE_S = sys.modules["sfl_flower.run.forks"].GRACE_S = 0.3
warm._flower_program = lambda: lambda: program
sys.exit(warm.main(sys.argv[1:]))
"""
    command = """\
trap 'echo interrupted; exit 9' INT
mkfifo fifo
flwr-clientapp >fifo &
exec 3<fifo; read line <&3; echo $line
kill -9 $!; cat <&3; echo gone  # the pipe's last writer is the fork, so `cat` ends with it
kill -INT $PPID; while :; do sleep 0.1; done
"""
    (tmp_path / "driver.py").write_text(driver)
    (tmp_path / "command.sh").write_text(command)
    called = [sys.executable, "driver.py", "sh", "command.sh"]

    def hear() -> None:
        """What a shell runs in the background ignores interrupts, and so does what that starts."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    done = subprocess.run(
        called, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60,
        preexec_fn=hear,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["working", "asked", "gone", "interrupted"], done.stderr
    assert done.returncode == 9


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX)


@pytest.mark.parametrize(
    "said", [b"{", b"3", b"[1, 2]", b"", None], ids=["no JSON", "number", "two", "nothing", "late"]
)
def test_of_who_says_something_else_no_file_is_kept(
    said: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "HEAR_S", 0.1)
    here, there = pair()
    read, write = os.pipe()
    with here, there:
        length = 5 if said is None else len(said)
        socket.send_fds(there, [length.to_bytes(8, "big")], [0, 1, write])
        there.sendall(said or b"")
        os.close(write)
        with pytest.raises((OSError, TypeError, ValueError)):
            forks._hear(here)
        assert select.select([read], [], [], 5.0)[0] and os.read(read, 1) == b""  # all closed
    os.close(read)


def shim(tmp_path: Path, *arguments: str, **options: Any) -> str:
    """Return what the program says that is started cold while somebody listens."""
    folder = warm._program(tmp_path, "/bin/echo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        done = subprocess.run(
            [str(folder / PROGRAM), *arguments], capture_output=True, text=True, timeout=300,
            **options,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_what_installs_an_apps_dependencies_starts_cold(tmp_path: Path) -> None:
    told = "--allow-runtime-dependency-installation"  # Flower's name for it
    assert shim(tmp_path, "--token", "x", told) == f"--token x {told}\n"


def test_with_a_closed_standard_input_it_starts_cold(tmp_path: Path) -> None:
    assert shim(tmp_path, "x", preexec_fn=lambda: os.close(0)) == "x\n"


def test_the_current_folder_is_no_place_for_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").touch()
    called: list[str] = []
    monkeypatch.setattr(os, "execv", lambda _, arguments: called.extend(arguments))
    command_line._warm(argparse.Namespace(preload=["only_here"], command=["sh"]))
    done = subprocess.run(
        called, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2 and "no module 'only_here'" in done.stderr
