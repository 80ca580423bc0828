"""Reading a run that goes on elsewhere."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sfl_flower.errors import ConfigError, DataError, TrainingError
from sfl_flower.report import RoundRecord, RunDirectory, Summary
from sfl_flower.report.follow import Following
from sfl_flower.report.lock import LOCK, is_held

CONFIG = {"task": "digits", "method": "frozen", "rounds": 4}


def record(number: int) -> RoundRecord:
    return RoundRecord(number, 10 * number, 4 * number, 0.5 * number)


def rounds(following: Following) -> list[int]:
    return [each.round for each in following.news()]


def test_records_come_as_they_are_written(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, CONFIG, tensorboard=False) as run:
        following = Following(tmp_path)
        assert (following.label, following.rounds) == ("digits · frozen", 4)
        assert rounds(following) == [] and following.goes_on()
        run.append(record(0))
        run.append(record(1))
        assert rounds(following) == [0, 1]
        with open(tmp_path / "history.jsonl", "ab") as file:  # half a line
            file.write(record(2).to_json()[:20].encode())
        assert rounds(following) == []
        with open(tmp_path / "history.jsonl", "ab") as file:
            file.write((record(2).to_json()[20:] + "\n").encode())
        assert rounds(following) == [2]
    assert not following.goes_on()
    with pytest.raises(TrainingError, match="broken off; the same command with --resume goes on"):
        following.check_whole()


def test_a_resumed_run_is_read_anew(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, CONFIG, tensorboard=False)
    for number in range(4):
        run.append(record(number))
    following = Following(tmp_path)
    assert rounds(following) == [0, 1, 2, 3]
    run.keep_history(2)
    for number in (2, 3, 4):
        run.append(record(number))
    assert rounds(following) == [0, 1, 2, 3, 4]
    run.write_summary(Summary("frozen", {}, 40), {})
    run.close()
    following.check_whole()


def test_what_is_no_run_directory(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ConfigError, match="is no run directory, for it holds no config"):
            Following(path)


def test_a_damaged_line_is_an_error(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, CONFIG, tensorboard=False):
        (tmp_path / "history.jsonl").write_text("{}\n")
        with pytest.raises(DataError, match="not a round record"):
            rounds(Following(tmp_path))


def test_who_holds_a_lock_is_seen_without_taking_it(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    died = subprocess.Popen([sys.executable, "-c", ""])
    died.wait()
    here = socket.gethostname()
    for text, held in (
        ("", True),  # not yet written
        (f"process {died.pid} on {here}\n", False),
        (f"process {died.pid} on another{here}\n", True),
        (f"process 1 on {here}\n", True),
        ("something else", True),
    ):
        (tmp_path / LOCK).write_text(text)
        assert is_held(tmp_path) == held, text


def test_a_file_system_without_locks_leaves_no_sign_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(file: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("sfl_flower.report.lock.fcntl.flock", none)
    with RunDirectory.create(tmp_path, CONFIG, tensorboard=False):
        assert not (tmp_path / LOCK).exists()
    assert not is_held(tmp_path)


def test_a_folder_with_a_configuration_of_something_else_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Bert"]}')
    with pytest.raises(ConfigError, match=r"its config\.json is of something else"):
        Following(tmp_path)
