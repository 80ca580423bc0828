"""Callbacks are told of a run in order, may end it and change nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sfl_flower
from sfl_flower.callbacks import (
    BestCheckpoint,
    Callback,
    CSVLogger,
    EarlyStopping,
    Ended,
    Run,
    Written,
)
from sfl_flower.callbacks.hooks import Hooks, check_callbacks
from sfl_flower.errors import ConfigError
from sfl_flower.report import RoundRecord, RunDirectory
from tests import tiny
from tests.callbacks.scripted import record, run, says, view
from tests.tiny import Stop, equal

pytestmark = pytest.mark.flower


class Heard(Callback):
    """Writes down what it is told."""

    def __init__(self, end_at: int = -1) -> None:
        self.heard: list[Any] = []
        self.end_at = end_at

    def check(self, run: Run) -> None:
        self.heard.append(("check", len(run.history)))

    def on_begin(self, run: Run) -> None:
        self.heard.append(("begin", len(run.history)))

    def stop(self, record: RoundRecord) -> str | None:
        self.heard.append(("stop", record.round, bool(record.metrics)))
        return "it was asked to" if record.round == self.end_at else None

    def on_evaluation(self, record: RoundRecord) -> None:
        self.heard.append(("evaluation", record.round))

    def on_round(self, record: RoundRecord) -> None:
        self.heard.append(("round", record.round))

    def on_checkpoint(self, written: Written) -> None:
        self.heard.append(("checkpoint", written.round, written.path.name))

    def on_end(self, ended: Ended) -> None:
        self.heard.append(("end", ended.why, ended.failed, ended.summary is not None))


def test_hooks_are_called_in_order(tmp_path: Path) -> None:
    heard = Heard()
    run([heard], out=tmp_path / "run", rounds=2, eval_every=2)
    name = "checkpoint.safetensors"
    assert heard.heard == [
        ("check", 0),
        ("begin", 0),
        *(("stop", 0, True), ("evaluation", 0), ("round", 0)),
        *(("stop", 1, False), ("round", 1)),
        *(("stop", 2, True), ("evaluation", 2), ("round", 2), ("checkpoint", 2, name)),
        ("end", "", False, True),
    ]


@pytest.mark.parametrize("method", ["ho_sfl", "splitfed_v2", "decomfl"])
def test_a_callback_that_says_stop_ends_the_run_with_that_round(
    method: str, tmp_path: Path
) -> None:
    """As if the run had been asked for three rounds; the last one is evaluated and saved."""
    heard, ended = Heard(end_at=3), tmp_path / "ended"
    short = tiny.run(tiny.task(), method, rounds=3, eval_every=100)
    long = tiny.run(tiny.task(), method, callbacks=[heard], out=ended, rounds=9, eval_every=100)
    assert equal(short.model, long.model)
    assert [r.round for r in long.history] == [0, 1, 2, 3]
    assert long.history[3].metrics == short.history[3].metrics != {}
    assert long.summary.metrics == short.summary.metrics
    assert long.history[3].notes == ("Heard: it was asked to, so this round is the last.",)
    assert RunDirectory(ended).finished
    assert RunDirectory(ended).load_checkpoint()[1]["round"] == 3
    assert heard.heard[-1] == ("end", "The run is over. Heard: it was asked to.", False, True)


def test_a_run_that_ended_before_training_has_its_first_weights(tmp_path: Path) -> None:
    result = run([Heard(end_at=0)], out=tmp_path / "run", rounds=4)
    assert [r.round for r in result.history] == [0]
    again = run(out=tmp_path / "run", rounds=4, resume=True)
    assert [r.round for r in again.history] == [0, 1, 2, 3, 4]


def test_what_is_said_of_the_last_round_of_all_ends_nothing() -> None:
    heard = Heard(end_at=2)
    result = run([heard], rounds=2)
    assert result.history[2].notes == ()
    assert heard.heard[-1] == ("end", "", False, True)


def test_a_run_that_an_observer_breaks_off_is_told_to_have_failed() -> None:
    def observer(record: RoundRecord) -> None:
        if record.round == 1:
            raise Stop("enough")

    heard = Heard()
    with pytest.raises(Stop):
        run([heard], observer=observer)
    assert heard.heard[-2:] == [("round", 1), ("end", "Stop: enough", True, False)]


class Meddling(Callback):
    """Tries to change what it is given."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def on_begin(self, run: Run) -> None:
        self.run = run

    def _try(self, *changes: Any) -> None:
        for change in changes:
            with pytest.raises((TypeError, AttributeError)) as error:
                change()
            self.failed.append(type(error.value).__name__)

    def stop(self, record: RoundRecord) -> str | None:
        run: Any = self.run
        raw: Any = record
        self._try(
            lambda: raw.metrics.update(accuracy=2.0),
            lambda: raw.extra.__setitem__("x", 1.0),
            lambda: setattr(raw, "loss", 0.0),
            lambda: run.config.__setitem__("rounds", 1),
            lambda: setattr(run, "out", None),
        )
        for weights in run.model().values():
            weights.zero_()  # a copy
        return None


def test_nothing_of_a_run_can_be_changed() -> None:
    meddling = Meddling()
    found, plain = run([meddling], rounds=2), run(rounds=2)
    assert len(meddling.failed) == 3 * 5
    assert equal(found.model, plain.model)
    assert [r.metrics for r in found.history] == [r.metrics for r in plain.history]
    assert record(1, 0.5).frozen().to_json() == record(1, 0.5).to_json()


class Broken(Callback):
    """Raises in one hook."""

    def __init__(self, hook: str, error: Exception, at: int = 2) -> None:
        self.calls = 0

        def broken(what: Any) -> Any:
            self.calls += 1
            if getattr(what, "round", at) == at:
                raise error

        setattr(self, hook, broken)


@pytest.mark.parametrize("hook", ["stop", "on_evaluation", "on_round", "on_checkpoint", "on_end"])
def test_a_callback_that_raises_costs_its_place_and_not_the_run(
    hook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        "sfl_flower.callbacks.hooks._log.warning", lambda text, *given: said.append(text % given)
    )
    broken, heard = Broken(hook, OSError("disk full")), Heard()
    found = run([broken, heard], out=tmp_path / "run", rounds=4)
    assert equal(found.model, run(rounds=4).model)
    when = "" if hook == "on_end" else " of round 2"
    text = (
        f"Callback Broken failed in {hook}{when} (OSError: disk full); it is not called again, and "
        "the run goes on without it."
    )
    assert said == [text]
    assert broken.calls == {"on_end": 1, "on_checkpoint": 2}.get(hook, 3)
    notes = [r.notes for r in RunDirectory(tmp_path / "run").history]
    at = {"stop": 2, "on_end": None}.get(hook, 3)
    assert [text in each for each in notes] == [number == at for number in range(5)]
    assert heard.heard[-1] == ("end", "", False, True)


@pytest.mark.parametrize("hook", ["check", "on_begin"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConfigError("No such project."), "No such project."),
        (OSError("no route"), r"Callback Broken cannot begin \(OSError: no route\); nothing was"),
    ],
)
def test_a_callback_that_cannot_begin_refuses_the_run(
    hook: str, error: Exception, said: str, tmp_path: Path
) -> None:
    heard, after, out = Heard(), Heard(), tmp_path / "run"
    with pytest.raises(ConfigError, match=said):
        run([heard, Broken(hook, error), after], out=out)
    assert not RunDirectory(out).occupied
    assert [each[0] for each in after.heard] == ["check"] * (hook == "on_begin")
    if hook == "on_begin":
        assert heard.heard[-1][0] == "end" and heard.heard[-1][2]
    run(out=out, rounds=1)  # the directory is free


def test_a_run_that_is_refused_has_no_end(tmp_path: Path) -> None:
    run(out=tmp_path / "run", rounds=1)
    heard = Heard()
    with pytest.raises(ConfigError, match="already holds a run"):
        run([heard], out=tmp_path / "run")
    assert heard.heard == [("check", 0)]


def test_what_is_no_callback_is_refused() -> None:
    stop = EarlyStopping()
    for given, text in (
        ([EarlyStopping], "write it with brackets behind"),
        (["early_stopping"], "is no sfl_flower.Callback, such as"),
        (stop, "must be a list of callbacks"),
        (None, "callbacks is None; it must be a list"),
        ([stop, stop], "holds one EarlyStopping twice"),
    ):
        with pytest.raises(ConfigError, match=text):
            check_callbacks(given)
    with pytest.raises(ConfigError, match="holds 3, which is no"):
        sfl_flower.simulate("digits", backend="inline", callbacks=[3])  # type: ignore[list-item]


class Counting(Callback):
    """Ends a run after so many records in all: what it counts is nowhere on disk."""

    def __init__(self, most: int) -> None:
        self.most = most

    def on_begin(self, run: Run) -> None:
        self.seen = 0

    def stop(self, record: RoundRecord) -> str | None:
        self.seen += 1
        return "that many" if self.seen >= self.most else None


def test_a_resumed_run_counts_what_was_before(tmp_path: Path) -> None:
    def observer(record: RoundRecord) -> None:
        if record.round == 2:
            raise Stop

    out = tmp_path / "run"
    with pytest.raises(Stop):
        run([Counting(5)], out=out, rounds=9, observer=observer)
    found = run([Counting(5)], out=out, rounds=9, resume=True)
    whole = run([Counting(5)], rounds=9)
    assert [r.round for r in found.history] == [r.round for r in whole.history] == [0, 1, 2, 3, 4]
    assert equal(found.model, whole.model)


def test_a_run_that_was_ended_goes_on_where_its_callback_lets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        "sfl_flower.run.run._log.warning", lambda text, *given: said.append(text % given)
    )
    out = tmp_path / "run"
    first = run([Counting(3)], out=out, rounds=6)
    again = run([Counting(3)], out=out, rounds=6, resume=True)
    assert equal(first.model, again.model)
    assert len(again.history) == 3
    assert said[0] == "The run is over. Counting: that many."
    assert said[1:] == ["Nothing is left to train: Counting: that many."]
    assert RunDirectory(out).finished
    more = run([Counting(4)], out=out, rounds=6, resume=True)
    assert len(more.history) == 4
    rest = run(out=out, rounds=6, resume=True)
    assert equal(rest.model, run(rounds=6).model)


def test_a_pipelined_run_that_was_ended_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """It ends with scalars under way, which the checkpoint knows of."""
    options: dict[str, Any] = {"rounds": 5, "pipeline": True, "server_steps": "batch"}
    ended = run([Counting(4)], out=tmp_path / "run", **options)
    assert len(ended.history) == 4
    rest = run(out=tmp_path / "run", resume=True, **options)
    assert equal(rest.model, run(**options).model)


def test_every_callback_is_asked_and_all_reasons_are_told() -> None:
    hooks = Hooks([Heard(1), Counting(1)], view())
    assert hooks.begin([]) == ""
    assert hooks.stop(record(1)) == "Heard: it was asked to; Counting: that many"


def test_early_stopping_in_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    says(monkeypatch, [0.1, 0.2, 0.4, 0.3, 0.4, 0.9, 0.9])
    result = run([EarlyStopping("accuracy", patience=2)], rounds=6)
    assert [r.round for r in result.history] == [0, 1, 2, 3, 4]
    why = "no better accuracy in 2 evaluations, the best is 0.4 in round 2"
    assert result.history[4].notes == (f"EarlyStopping: {why}, so this round is the last.",)
    with pytest.raises(ConfigError, match="evaluations of this run have accuracy, loss"):
        run([EarlyStopping("acuracy")], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Refuses(Callback):
    """Cannot begin."""

    def on_begin(self, run: Run) -> None:
        raise OSError(f"the server is down after {len(run.history)} records")


@pytest.mark.parametrize("resume", [True, "previous"])
def test_a_resume_that_a_callback_refuses_leaves_the_run_as_it_was(
    resume: bool | str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run(out=out, rounds=3, checkpoint_every=1)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    known = 4 if resume is True else 3
    with pytest.raises(ConfigError, match=f"the server is down after {known} records"):
        run([Refuses()], out=out, rounds=3, checkpoint_every=1, resume=resume)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert RunDirectory(out).finished


def test_a_run_that_is_interrupted_before_it_begins_leaves_its_directory_free(
    tmp_path: Path,
) -> None:
    class Asks(Callback):
        def on_begin(self, run: Run) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([Asks()], out=tmp_path / "run")
    assert not RunDirectory(tmp_path / "run").occupied


def test_two_that_write_to_one_place_are_refused(tmp_path: Path) -> None:
    for pair in (
        [BestCheckpoint("accuracy"), BestCheckpoint("loss")],
        [CSVLogger(), CSVLogger()],
        [CSVLogger(tmp_path / "a.csv"), CSVLogger(str(tmp_path / "a.csv"))],
    ):
        with pytest.raises(ConfigError, match="both write to"):
            check_callbacks(pair)
    assert len(check_callbacks([CSVLogger(), CSVLogger(tmp_path / "a.csv"), EarlyStopping()])) == 3
