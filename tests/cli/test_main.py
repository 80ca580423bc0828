"""The `sfl` command: exit codes, messages, what it leaves on disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sfl_flower import simulate
from sfl_flower.cli.demo import DEMO_METHODS, SHARED, run_demo
from sfl_flower.cli.main import main
from sfl_flower.errors import ConfigError
from sfl_flower.methods import METHODS
from sfl_flower.report import RunDirectory
from sfl_flower.strategies.ho_sfl import HOSFLSettings

INLINE = ["run", "--backend", "inline", "--clients", "3", "--set", "partition=iid"]


def test_a_run_leaves_everything_on_disk(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main([*INLINE, "--rounds", "2", "--set", "probes=2", "--out", str(out)]) == 0
    names = {path.name for path in out.iterdir()}
    assert {
        "config.json",
        "history.jsonl",
        "ledger.json",
        "model.safetensors",
        "journal.bin",
        "accuracy.png",
    } <= names
    assert any(name.startswith("events") or (out / name).is_dir() for name in names)
    assert json.loads((out / "config.json").read_text())["config"]["probes"] == 2
    assert [record.round for record in RunDirectory(out).history] == [0, 1, 2]


def test_e12_a_home_directory_is_found_behind_an_equals_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main([*INLINE, "--rounds", "1", "--out=~/x"]) == 0
    assert (tmp_path / "x" / "config.json").exists() and not (tmp_path / "~").exists()
    result = simulate(
        "digits", "frozen", backend="inline", out="~/y", clients=3, rounds=1, partition="iid"
    )
    assert result.out == tmp_path / "y"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "ho_slf"], ["ho_slf", "ho_sfl", "frozen"]),
        (["--task", "digit"], ["digit", "digits"]),
        (["--set", "probs=2"], ["probs", "probes"]),
        (["--set", "probes=0"], ["probes", "[1, 4096]"]),
        (["--set", "probes"], ["KEY=VALUE"]),
        (["--clients", "0"], ["clients", "at least 1"]),
        (["--sampled", "9"], ["sampled", "[1, 3]"]),
        (["--set", "task.size=3"], ["size", "digits"]),
        (["--method", "frozen", "--set", "mu=0.1"], ["mu", "frozen"]),
        (["--set", "client-lr=fast"], ["client_lr", "fast"]),
        (["--method", "heron", "--set", "head=pooled"], ["pooled"]),
        (["--set", "[/x]"], ["--set got '[/x]'"]),
        (["--set", "task.trained=[a]*"], ["[a]*"]),
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    out = tmp_path / "run"
    assert main([*INLINE, *arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert "Traceback" not in error
    assert not out.exists()


def test_a_failed_run_exits_1_and_keeps_what_was_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    # With this rate the first step makes the server half overflow.
    arguments = ["--rounds", "20", "--set", "server-lr=1e30", "--out", str(out)]
    assert main([*INLINE, *arguments]) == 1
    assert "not finite" in capsys.readouterr().err
    history = RunDirectory(out).history
    assert 1 < len(history) < 20
    assert RunDirectory(out).load_model()


def test_resume_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    shared = [*INLINE, "--set", "eval-every=1"]
    assert main([*shared, "--rounds", "4", "--out", str(whole)]) == 0
    assert main([*shared, "--rounds", "2", "--out", str(parts)]) == 0
    assert main([*shared, "--rounds", "4", "--out", str(parts), "--resume"]) == 0
    expected = (whole / "model.safetensors").read_bytes()
    assert (parts / "model.safetensors").read_bytes() == expected
    assert (parts / "journal.bin").read_bytes() == (whole / "journal.bin").read_bytes()


COMPARE = ["compare", "--task", "digits", "--samples", "64", "--seeds", "1", "--clients", "2"]


def test_compare_prints_and_writes_a_table_and_can_be_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--methods", "ho_sfl", "--set", "partition=iid", "--set", "ho_sfl:probes=2"]
    arguments += ["--server-lrs", "0.05,0.1", "--walk-rates", "1,0.5"]
    arguments += ["--out", str(out)]
    assert main([*COMPARE, *arguments]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("frozen", "ho_sfl", "splitfed_v2", "walk", "margin"))
    assert "ho_sfl lr 0.1 seed 0: round 1/1" in shown
    config = RunDirectory(out / "ho_sfl" / "lr0.1-seed0").config
    assert (config["probes"], config["server_lr"], config["clients"]) == (2, 0.1, 2)
    assert main(["compare", "--from", str(out), "--out", str(tmp_path / "again")]) == 0
    again = tmp_path / "again" / "table.md"
    assert again.read_text(encoding="utf-8") == (out / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "ho_slf"], ["ho_slf", "ho_sfl"]),
        (["--methods", "ho_sfl,ho_sfl"], ["ho_sfl", "twice"]),
        ([], ["--methods is missing"]),
        (["--methods", "ho_sfl", "--set", "probes"], ["METHOD:KEY=VALUE"]),
        (["--methods", "ho_sfl", "--set", "probes=2"], ["frozen", "METHOD:KEY=VALUE"]),
        (["--methods", "ho_sfl", "--set", "heron:probes=2"], ["heron:probes=2", "ho_sfl, frozen"]),
        (["--methods", "ho_sfl", "--seeds", "0"], ["seeds is 0", "at least 1"]),
        (["--methods", "ho_sfl", "--seeds", "a"], ["--seeds", "'a'"]),
        (["--methods", "ho_sfl", "--server-lrs", "0.1;0.2"], ["--server-lrs", "0.1;0.2"]),
        (["--methods", "ho_sfl", "--walk-rates", "0"], ["walk_rates is [0.0]", "above 0"]),
        (["--methods", "ho_sfl", "--samples", "9"], ["samples is 9", "at least 64"]),
        (["--from", "here"], ["--task", "--from"]),
    ],
)
def test_a_wrong_comparison_is_named_and_nothing_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    out = tmp_path / "out"
    assert main([*COMPARE, *arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert not out.exists()


def test_options_of_a_name_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options", "heronn"]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in ("'heronn'", "mean 'heron'", "digits", "fsl_sage"))


@pytest.mark.parametrize(
    ("option", "value"), [("--workers", "2"), ("--sampled", "1"), ("--set", "probes=2")]
)
def test_what_reading_runs_does_not_take_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    given = ["compare", "--from", str(tmp_path), "--out", str(tmp_path / "out"), option, value]
    assert main(given) == 2
    assert f"{option} has no place beside --from" in capsys.readouterr().err


@pytest.mark.parametrize("name", [None, *METHODS, "fashion_mnist"])
def test_every_option_has_a_meaning(name: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options", *([name] if name else [])]) == 0
    shown = capsys.readouterr().out
    assert "option" in shown
    if name == "ho_sfl":
        assert "client-lr" in shown and "probe length" in shown
        assert "E[u" in shown  # brackets are text, not markup


def test_a_method_says_itself_what_its_bases_say_in_general(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["options", "ho_sfl"]) == 0
    shown = capsys.readouterr().out
    assert "Replayable optimiser of the client half." in shown
    assert "Optimiser of what clients train." not in shown


def test_the_demo_compares_at_equal_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sfl_flower.cli.demo.SHARED", {"task": "digits", "rounds": 2, "clients": 3})
    run_demo(tmp_path / "demo", backend="inline")
    samples = {RunDirectory(tmp_path / "demo" / m).history[-1].samples for m in DEMO_METHODS}
    assert len(samples) == 1
    assert (tmp_path / "demo" / "accuracy.png").stat().st_size > 10_000
    shown = capsys.readouterr().out
    assert all(method in shown for method in DEMO_METHODS)
    run_demo(tmp_path / "demo", backend="inline")
    assert (tmp_path / "demo-2" / "accuracy.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--probes", "8"], "write --set probes=8."),
        (["--client-lr=0.1"], "write --set client-lr=0.1."),
        (["--set", "probes", "8"], "write --set probes=8."),
        (["probes=8"], "write --set probes=8."),
        (["--prbes", "8"], "did you mean --set probes=8?"),
        (["--nothing-like-it", "8"], "see sfl run --help"),
        (["--method", "HO-SFL"], "Did you mean 'ho_sfl'?"),
        (["--method", "SplitFed_V2"], "Did you mean 'splitfed_v2'?"),
        (["--clients", "0"], "clients is 0; it must be at least 1."),
        (["--seed", "-1"], "it must be in [0, 9223372036854775807]."),
        (["--set", "server-lr=-1"], "server_lr is -1.0; it must be finite, at least 0."),
        (["--clients", "2000"], "samples cannot give each of 2000 clients"),
    ],
)
def test_a19_a_wrong_word_is_told_how_it_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    out = tmp_path / "run"
    assert main(["run", "--backend", "inline", *arguments, "--out", str(out)]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the command in an empty directory, with a module of a user's own in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_own_nets.py").write_text(
        "from dataclasses import replace\n"
        "from sfl_flower.tasks import load_task\n"
        "task = replace(load_task('digits'), name='my own', token='mine')\n"
        "def build():\n    return task\n"
        "def broken():\n    raise KeyError('x')\n"
        "number = 3\n"
    )
    return tmp_path


def test_a15_a_second_run_without_out_gets_a_directory_of_its_own(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = elsewhere / "runs"
    short = [*INLINE, "--rounds", "1"]
    assert main(short) == 0
    assert main([*short, "--set", "probes=2"]) == 0
    assert f"Run directory: {Path('runs/digits-ho_sfl-seed0-2')}" in capsys.readouterr().out
    assert RunDirectory(runs / "digits-ho_sfl-seed0-2").config["probes"] == 2
    assert RunDirectory(runs / "digits-ho_sfl-seed0").config["probes"] == HOSFLSettings().probes
    # Without a name a resume goes on with the last of them.
    assert main([*INLINE, "--rounds", "2", "--set", "probes=2", "--resume"]) == 0
    assert len(RunDirectory(runs / "digits-ho_sfl-seed0-2").history) == 3
    capsys.readouterr()
    assert main([*short, "--seed", "9", "--resume"]) == 2
    assert "--resume finds no run" in capsys.readouterr().err


def test_a15_errors_speak_the_words_of_where_they_are_read(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [*INLINE, "--rounds", "1", "--out", "here"]
    assert main(short) == 0
    for arguments in ([], ["--resume", "--set", "probes=2"]):
        capsys.readouterr()
        assert main([*short, *arguments]) == 2
        error = capsys.readouterr().err
        assert "--out" in error and "out=" not in error and "True" not in error
    with pytest.raises(ConfigError, match=r"with out=, or go on with that run with resume=True"):
        simulate("digits", backend="inline", rounds=1, clients=3, out="here")


@pytest.mark.parametrize("attribute", ["task", "build"])
def test_a9_run_takes_a_task_of_ones_own(elsewhere: Path, attribute: str) -> None:
    assert main([*INLINE, "--rounds", "1", "--task", f"my_own_nets:{attribute}"]) == 0
    assert RunDirectory(elsewhere / "runs" / "my_own-ho_sfl-seed0").config["task"] == "my own"


def test_a9_compare_and_profile_take_a_task_of_ones_own(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--task", "my_own_nets:task"]
    few = ["--samples", "64", "--seeds", "1", "--clients", "2", "--set", "partition=iid"]
    assert main(["compare", *own, "--methods", "ho_sfl", *few, "--out", "compared"]) == 0
    assert "ho_sfl" in capsys.readouterr().out
    assert main(["profile", *own, "--cuts", "tanh1", "--seconds", "0"]) == 0
    assert "tanh1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("my_own_nets:other", ["cannot be imported", "other"]),
        ("no_such_nets:task", ["cannot be imported", "no_such_nets"]),
        ("my_own_nets:", ["MODULE:ATTRIBUTE"]),
        ("my_own_nets:number", ["int", "SplitTask"]),
        ("my_own_nets:broken", ["cannot be built", "KeyError"]),
    ],
)
@pytest.mark.usefixtures("elsewhere")
def test_a9_what_is_no_task_is_said(
    capsys: pytest.CaptureFixture[str], task: str, words: list[str]
) -> None:
    assert main([*INLINE, "--task", task]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error


@pytest.mark.usefixtures("elsewhere")
def test_a9_options_of_a_ready_made_task_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*INLINE, "--task", "my_own_nets:task", "--set", "task.trained=bias"]) == 2
    assert "task.trained" in capsys.readouterr().err


def test_a3_the_demo_shows_that_forward_only_clients_need_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The net and the methods of the demo, fewer rounds: the ledger's peaks and bytes."""
    monkeypatch.setattr("sfl_flower.cli.demo.SHARED", {**SHARED, "rounds": 2, "clients": 3})
    run_demo(tmp_path / "demo")
    shown = capsys.readouterr().out
    ledgers = {m: RunDirectory(tmp_path / "demo" / m).load_summary()[0] for m in DEMO_METHODS}
    own, first = ledgers["ho_sfl"], ledgers["splitfed_v2"]
    assert own.client_peak_bytes is not None and first.client_peak_bytes is not None
    assert own.client_peak_bytes < 0.75 * first.client_peak_bytes
    assert own.total("up") + own.total("down") < 0.5 * (first.total("up") + first.total("down"))
    assert "a forward-only client peaks at" in shown and "times its operations" in shown
    configs = {m: RunDirectory(tmp_path / "demo" / m).config for m in DEMO_METHODS}
    # The control steps as HO-SFL does, at the same rate.
    assert configs["frozen"]["server_steps"] == configs["ho_sfl"]["server_steps"] == "batch"
    assert configs["frozen"]["server_lr"] == configs["ho_sfl"]["server_lr"]


def test_a_run_has_callbacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, wait = tmp_path / "run", "early_stopping:accuracy,patience=1,min-delta=0.9"
    arguments = ["--rounds", "4", "--set", "eval-every=1", "--callback", wait, "--callback", "csv"]
    assert main([*INLINE, *arguments, "--out", str(out)]) == 0
    assert "EarlyStopping: no better accuracy in 1 evaluations" in capsys.readouterr().out
    assert [record.round for record in RunDirectory(out).history] == [0, 1]
    assert len((out / "history.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        ("early_stoping", "Did you mean 'early_stopping'"),
        ("early_stopping:acuracy", "Did you mean 'accuracy'"),
        ("budget:bytes=much", "it must be a number of bytes"),
        ("hooks:Mine", "--callback hooks:Mine cannot be imported"),
    ],
)
def test_a_wrong_callback_is_named_and_nothing_is_started(
    callback: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main([*INLINE, "--callback", callback, "--out", str(out)]) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()
