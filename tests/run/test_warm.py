"""Client processes that start warm: Flower's own program, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sfl_flower.run import warm
from sfl_flower.run.warm import PROGRAM, main

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

warm._flower_program = lambda: told
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
    command = "flwr-clientapp --help && flwr-clientapp --nonsense; kill -TERM $PPID; sleep 60"
    called = [sys.executable, "-m", "sfl_flower.run.warm", "sh", "-c", command]
    done = subprocess.run(
        called, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 128 + 15
    assert "--token" in done.stdout and "usage: flwr-clientapp" in done.stderr


def test_without_who_forks_flowers_program_starts_cold(tmp_path: Path) -> None:
    folder = warm._program(tmp_path, "/bin/echo")  # nobody listens
    done = subprocess.run(
        [str(folder / PROGRAM), "--token", "x y"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "--token x y\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no-such-program"], "There is no program 'no-such-program' on the PATH"),
        (["--preload", "no_such_module", "sh"], "There is no module 'no_such_module' to preload"),
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
