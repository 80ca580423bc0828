"""`sfl watch`: a run that goes on elsewhere, seen from another process."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from sfl_flower.cli import watch as command
from sfl_flower.cli.main import main
from sfl_flower.report import RoundRecord, RunDirectory, Summary
from tests.processes import end

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {"task": "digits", "method": "frozen", "rounds": 3}
PATIENCE_S = 300.0


def record(number: int) -> RoundRecord:
    metrics = {"accuracy": 0.25 * number}
    return RoundRecord(number, 10 * number, 4 * number, 2.0 * number, 0.5, metrics, 512, 512, 4)


def begun(out: Path, rounds: int = 1) -> RunDirectory:
    run = RunDirectory.create(out, CONFIG, tensorboard=False)
    for number in range(rounds):
        run.append(record(number))
    return run


def complete(run: RunDirectory) -> None:
    run.write_summary(Summary("frozen", {"accuracy": 0.75}, 30, exchanges=12), {})
    run.close()


def test_a_run_that_proceeds_is_followed_to_its_end(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    watching = subprocess.Popen(
        [sys.executable, "-m", "sfl_flower.cli.main", "watch", str(run.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    stuck = threading.Timer(PATIENCE_S, lambda: end(watching))
    stuck.start()
    try:
        assert watching.stdout is not None
        seen = []
        for number in (1, 2, 3):
            run.append(record(number))
            seen.append(watching.stdout.readline())  # before the next round is there
        assert seen[0].startswith("digits · frozen: round 1/3  accuracy 0.250  loss 0.500")
        assert [line.split()[4] for line in seen] == ["1/3", "2/3", "3/3"]
        assert watching.poll() is None
        complete(run)
        rest, error = watching.communicate()
    finally:
        stuck.cancel()
        end(watching)
    assert watching.returncode == 0, error
    assert "0.750" in rest and "frozen" in rest
    assert not (run.path / ".lock").exists()


def test_a_finished_run_shows_what_it_came_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    complete(begun(tmp_path / "run", 4))
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir())
    assert main(["watch", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "round 3/3" in shown and "0.750" in shown
    after = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir())
    assert before == after


def test_a_run_that_ended_early_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(tmp_path / "run", 2)
    run.append(replace(record(2), notes=("It is enough, so this round is the last.",)))
    complete(run)
    assert main(["watch", str(run.path)]) == 0
    assert capsys.readouterr().out.endswith("\nIt is enough, so this round is the last.\n")


def test_a_panel_on_a_terminal(tmp_path: Path) -> None:
    complete(begun(tmp_path / "run", 4))
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, color_system=None)
    command.watch(tmp_path / "run", console)
    shown = out.getvalue()
    assert "─ digits · frozen ─" in shown and "clients 4 in, 0 out" in shown
    assert "0:00:00 left" in shown


def test_a_run_that_was_broken_off_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(tmp_path / "run", 2).close()
    assert main(["watch", str(tmp_path / "run")]) == 1
    shown = capsys.readouterr()
    assert "round 1/3" in shown.out
    assert "broken off; the same command with --resume goes on" in shown.err


def test_what_is_no_run_directory_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "is no run directory" in error and "Traceback" not in error


def test_whoever_stops_watching_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(tmp_path / "run")

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["watch", str(run.path)])
    assert stopped.value.code == 130
    assert "the run goes on" in capsys.readouterr().err
    run.append(record(1))
    run.close()
