"""Whose directory the nodes of a machine write to, and what is removed from it."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import numpy as np
import pytest

from sfl_flower.data import PartitionSpec
from sfl_flower.errors import ConfigError, DataError
from sfl_flower.node.directory import (
    KEEP_SECONDS,
    MARK,
    arrays_digest,
    own_directory,
    read_arrays,
    state_root,
    write_arrays,
)
from sfl_flower.node.shares import divide
from tests import tiny

ARRAYS: dict[str, np.ndarray] = {"a": np.arange(5, dtype=np.float32), "n": np.array(7, np.int64)}


@pytest.fixture(autouse=True)
def own_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "state"
    monkeypatch.setenv("SFL_STATE_DIR", str(root))
    return root


def make_old(directory: Path) -> None:
    os.utime(directory, (0, 0))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_c2_only_marked_directories_are_removed_and_only_our_files_in_them(
    own_root: Path, tmp_path: Path
) -> None:
    documents, numbered, forged = own_root / "Documents", own_root / "1", own_root / "run-8"
    for directory in (documents, numbered, forged):
        directory.mkdir(parents=True)
        (directory / "thesis.txt").write_text("years of work")
        (directory / "replica-own-0-1.safetensors").write_bytes(b"a file of somebody else's")
    (forged / MARK).write_text("not our text")
    linked, elsewhere = own_root / "run-9", own_directory(tmp_path / "elsewhere" / "run-2")
    linked.symlink_to(elsewhere)
    old, mixed = own_directory(own_root / "run-3"), own_directory(own_root / "run-4")
    recent = own_directory(own_root / "run-5")
    for directory in (old, mixed, elsewhere):
        write_arrays(directory / "replica-own-0-1.safetensors", ARRAYS)
    (mixed / "thesis.txt").write_text("years of work")
    for directory in (documents, numbered, forged, old, mixed, elsewhere):
        make_old(directory)
    own_directory(own_root / "run-6")
    assert not old.exists() and recent.exists()
    for directory in (documents, numbered, forged, mixed):
        assert (directory / "thesis.txt").read_text() == "years of work"
    for directory in (documents, numbered, forged, elsewhere):
        assert (directory / "replica-own-0-1.safetensors").exists()
    assert linked.is_symlink()


def test_a_directory_that_was_there_before_is_never_marked(own_root: Path) -> None:
    (own_root / "run-3").mkdir(parents=True)
    own_directory(own_root / "run-3")
    assert list((own_root / "run-3").iterdir()) == []


def test_c11_directories_and_files_are_their_owners_alone(own_root: Path) -> None:
    before = os.umask(0)
    try:
        directory = own_directory(own_root / "run-1")
        write_arrays(directory / "a.safetensors", ARRAYS)
    finally:
        os.umask(before)
    assert mode(own_root) == mode(directory) == 0o700
    assert mode(directory / "a.safetensors") == 0o600
    assert sorted(path.name for path in directory.iterdir()) == [MARK, "a.safetensors"]


@pytest.mark.parametrize("planted", ["link", "file", "open"])
def test_c11_a_planted_default_directory_is_refused(
    planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SFL_STATE_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = state_root()
    assert root.parent == tmp_path
    other = tmp_path / "other"
    other.mkdir(mode=0o777)
    if planted == "link":
        root.symlink_to(other)
    elif planted == "file":
        root.touch()
    else:
        root.mkdir()
        root.chmod(0o777)
    says = {"link": "a link", "file": "no directory", "open": r"others may write to \(mode 0777\)"}
    with pytest.raises(ConfigError, match=f"is .*{says[planted]}.*set SFL_STATE_DIR"):
        state_root()
    assert list(other.iterdir()) == []


def test_a_default_directory_that_is_planted_after_it_was_looked_at_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SFL_STATE_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = state_root()  # nothing is there yet
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(ConfigError, match=f"{root} is a directory that others may write to"):
        own_directory(root / "run-1")
    assert list(root.iterdir()) == []


def test_c11_the_default_directory_is_made_and_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SFL_STATE_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own_directory(state_root() / "run-1")
    assert mode(state_root()) == 0o700
    assert own_directory(state_root() / "run-1").is_dir()


@pytest.mark.parametrize("planted", ["link", "open"])
def test_c11_a_planted_directory_of_a_run_is_refused(planted: str, own_root: Path) -> None:
    own_root.mkdir()
    (own_root / "other").mkdir()
    if planted == "link":
        (own_root / "run-1").symlink_to(own_root / "other")
    else:
        (own_root / "run-1").mkdir()
        (own_root / "run-1").chmod(0o777)
    with pytest.raises(ConfigError, match="needs a directory of this user that nobody else"):
        own_directory(own_root / "run-1")


def test_a_root_that_cannot_be_made_says_what_to_do(own_root: Path) -> None:
    own_root.write_text("in the way")
    with pytest.raises(ConfigError, match=r"cannot be made \(.*\); set SFL_STATE_DIR"):
        own_directory(own_root / "run-1")


def test_c12_a_file_that_cannot_be_written_is_named(own_root: Path) -> None:
    directory = own_directory(own_root / "run-1")
    path = directory / "a.safetensors"
    path.mkdir()  # nothing can be put in its place, whoever tries
    (path / "full").touch()
    with pytest.raises(DataError, match=rf"cannot be written to {path} \(.*free space"):
        write_arrays(path, ARRAYS)
    assert sorted(file.name for file in directory.iterdir()) == [MARK, "a.safetensors"]
    gone = own_root / "run-2" / "a.safetensors"  # safetensors has an error of its own for it
    with pytest.raises(DataError, match=rf"cannot be written to {gone} \(.*set SFL_STATE_DIR"):
        write_arrays(gone, ARRAYS)


def test_what_is_read_back_is_what_was_written(own_root: Path) -> None:
    path = own_directory(own_root / "run-1") / "a.safetensors"
    write_arrays(path, ARRAYS)
    back = read_arrays(path, arrays_digest(ARRAYS))
    assert back is not None and back["n"].shape == ()
    assert arrays_digest(back) == arrays_digest(ARRAYS)
    assert read_arrays(path, arrays_digest({"a": ARRAYS["a"]})) is None
    assert read_arrays(path.with_name("other"), "") is None


def test_the_digest_knows_names_dtypes_and_shapes() -> None:
    zeros = np.zeros((2, 3), np.float32)
    others: list[dict[str, np.ndarray]] = [
        {"b": zeros},
        {"a": zeros.T},
        {"a": zeros.view(np.int32)},
        {"a": zeros, "b": zeros},
    ]
    assert len({arrays_digest(arrays) for arrays in [{"a": zeros}, *others]}) == 5


def test_c9_an_altered_division_of_the_data_is_made_anew(own_root: Path) -> None:
    spec = PartitionSpec("iid", clients=3)
    problem = tiny.task()
    divide(problem, spec)
    right = problem.client_rows(spec)
    (path,) = own_root.rglob("*.safetensors")
    kept = read_arrays(path)
    assert kept is not None
    kept["rows"] = kept["rows"][::-1].copy()
    write_arrays(path, kept)
    again = tiny.task()
    divide(again, spec)
    assert [rows.tolist() for rows in again.client_rows(spec)] == [rows.tolist() for rows in right]


def test_directories_are_kept_for_a_week() -> None:
    assert KEEP_SECONDS == 7 * 24 * 60 * 60
