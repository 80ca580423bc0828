"""Going on from a checkpoint: the same bits and the same history as a run that never stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sfl_flower.data import model_seed
from sfl_flower.errors import ConfigError, DataError, JournalError, SflError, TrainingError
from sfl_flower.report import RoundRecord, RunDirectory
from sfl_flower.server.trainer import Trainer
from sfl_flower.task import SplitTask, cross_entropy
from sfl_flower.zo import Journal, ParameterVector, Replica
from tests import tiny
from tests.tiny import Stop, begin, equal, run

OPTIONS: dict[str, dict[str, Any]] = {
    "ho_sfl": {"client_optimizer": "adam", "client_lr": 0.01, "sampled": 3},
    "frozen": {"sampled": 2},
    "splitfed_v1": {"local_steps": 2},
    "splitfed_v2": {"client_optimizer": "adam", "server_optimizer": "adamw"},
    "cse_fsl": {"client_optimizer": "adam", "local_steps": 2, "sampled": 3},
    "heron": {"client_optimizer": "adam", "client_lr": 0.01, "local_steps": 2, "probes": 2},
    "fsl_sage": {"client_optimizer": "adam", "local_steps": 2, "sampled": 3, "align_every": 2},
}


def history(records: Any) -> list[tuple[Any, ...]]:
    """Return what of the records does not depend on the clock or on who had to download again."""
    return [
        (
            r.round,
            r.samples,
            r.exchanges,
            r.loss,
            r.metrics,
            r.replies,
            r.version,
            r.digest,
            r.extra,
        )
        for r in records
    ]


def stop_after(round: int) -> Any:
    def observer(record: RoundRecord) -> None:
        if record.round == round:
            raise Stop

    return observer


def test_c13_a_resumed_history_counts_the_exchanges_of_a_run_that_never_stopped(
    tmp_path: Path,
) -> None:
    """Four joins and four times two exchanges a round; the joins of the resume are not new ones."""
    with pytest.raises(Stop):
        run(tiny.task(), out=tmp_path, rounds=3, observer=stop_after(1))
    resumed = run(tiny.task(), out=tmp_path, rounds=3, resume=True)
    assert [record.exchanges for record in resumed.history] == [0, 12, 20, 28]
    assert resumed.summary.exchanges == 28


@pytest.mark.parametrize("method", OPTIONS)
def test_a_run_broken_off_within_a_round_goes_on_to_the_same_bits(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server half may have stepped already: the round is run again from the checkpoint."""
    options: dict[str, Any] = {"rounds": 5, **OPTIONS[method]}
    whole = run(tiny.task(), method, out=tmp_path / "whole", **options)
    own = Trainer.step
    steps = 0

    def step(half: Trainer, total: float = 1.0) -> None:
        nonlocal steps
        own(half, total)
        steps += 1
        if steps == 3:
            raise Stop

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(Stop):
        run(tiny.task(), method, out=tmp_path / "parts", **options)
    monkeypatch.setattr(Trainer, "step", own)
    resumed = run(tiny.task(), method, out=tmp_path / "parts", resume=True, **options)
    assert equal(whole.model, resumed.model)
    assert history(RunDirectory(tmp_path / "parts").history) == history(whole.history)


def test_more_rounds_may_be_asked_of_a_finished_run(tmp_path: Path) -> None:
    run(tiny.task(), out=tmp_path / "parts", rounds=2)
    longer = run(tiny.task(), out=tmp_path / "parts", rounds=5, resume=True)
    whole = run(tiny.task(), out=tmp_path / "whole", rounds=5)
    assert equal(whole.model, longer.model)
    assert history(whole.history) == history(longer.history)


@pytest.mark.parametrize(("state", "said"), [("kept", 1), ("fresh", 0)])
def test_what_a_checkpoint_does_not_hold_is_said(
    state: str, said: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"client_state": state, "out": tmp_path, "rounds": 2}
    warnings: list[str] = []
    monkeypatch.setattr(
        "sfl_flower.run.resume._log.warning", lambda text, *args: warnings.append(text % args)
    )
    with pytest.raises(Stop):
        run(tiny.task(), "splitfed_v2", observer=stop_after(1), **options)
    assert not any("begins anew" in text for text in warnings)
    for _ in range(2):  # the second time there is nothing left to train
        run(tiny.task(), "splitfed_v2", resume=True, **options)
    text = "client-state=kept are on the clients, not in the checkpoint; the state of sgd begins"
    assert sum(text in warning for warning in warnings) == said
    notes = [record.notes for record in RunDirectory(tmp_path).history]
    assert [sum(text in note for note in of_round) for of_round in notes] == [0, 0, said]


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    first = run(tiny.task(), out=tmp_path / "run", rounds=2)
    again = run(tiny.task(), out=tmp_path / "run", rounds=2, resume=True)
    assert equal(first.model, again.model)
    assert history(first.history) == history(again.history)
    assert first.summary.ledger == again.summary.ledger


def test_a_run_that_never_reached_a_checkpoint_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    options: dict[str, Any] = {"rounds": 4, "checkpoint_every": 3}
    with pytest.raises(Stop):
        run(tiny.task(), out=out, observer=stop_after(2), **options)
    (out / "checkpoint.safetensors").unlink()  # as if it had been killed
    warnings: list[str] = []
    monkeypatch.setattr(
        "sfl_flower.run.resume._log.warning", lambda text, *args: warnings.append(text % args)
    )
    run(tiny.task(), out=out, resume=True, **options)
    assert [record.round for record in RunDirectory(out).history] == [0, 1, 2, 3, 4]
    assert "was broken off in round 2, before its first one, so it begins anew" in warnings[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three rounds with momentum on both sides."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run(tiny.task(), out=out, rounds=3, **MOMENTUM)
    return out


MOMENTUM: dict[str, Any] = {"server_momentum": 0.9, "client_optimizer": "momentum"}


def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def test_c8_a_missing_checkpoint_never_costs_the_history(finished: Path, tmp_path: Path) -> None:
    out = copied(finished, tmp_path)
    (out / "checkpoint.safetensors").unlink()
    before = contents(out)
    says = r"has records up to round 3 and no checkpoint\.safetensors\. checkpoint\.previous\."
    with pytest.raises(DataError, match=says + r"\w+ of round 2 is whole: resume='prev"):
        run(tiny.task(), out=out, rounds=3, resume=True, **MOMENTUM)
    assert contents(out) == before
    (out / "checkpoint.previous.safetensors").unlink()
    with pytest.raises(DataError, match=r"There is no whole checkpoint\.previous\.\w+ either"):
        run(tiny.task(), out=out, rounds=3, resume=True, **MOMENTUM)
    assert len(RunDirectory(out).history) == 4 and RunDirectory(out).finished


@pytest.mark.parametrize(
    "tensor",
    ["replica.theta", "server.model.hidden.weight", "server.optimizer.0.momentum_buffer",
     "replica.slot.momentum"],
)  # fmt: skip
def test_c8_a_flipped_bit_is_named_and_the_generation_before_resumes(
    tensor: str, finished: Path, tmp_path: Path
) -> None:
    out = copied(finished, tmp_path)
    path = out / "checkpoint.safetensors"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    start = json.loads(data[8 : 8 + size])[tensor]["data_offsets"][0]
    data[8 + size + start] ^= 1
    path.write_bytes(data)
    before = contents(out)
    says = rf"tensor '{tensor}' does not fit its digest. .* of round 2 is whole: resume='previous'"
    with pytest.raises(DataError, match=says):
        run(tiny.task(), out=out, rounds=3, resume=True, **MOMENTUM)
    assert contents(out) == before
    whole = run(tiny.task(), rounds=3, **MOMENTUM)
    resumed = run(tiny.task(), out=out, rounds=3, resume="previous", **MOMENTUM)
    assert equal(whole.model, resumed.model)
    assert history(RunDirectory(out).history) == history(whole.history)
    again = run(tiny.task(), out=out, rounds=3, resume=True, **MOMENTUM)
    assert equal(whole.model, again.model)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"round": -5}, "round is -5; it must be a whole number, at least 0"),
        ({"round": "3"}, "round is '3'; it must be"),
        ({"round": None}, "round is None"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seconds": []}, "its counters: "),
        ({"ledger": {}}, "its counters: no 'bytes'"),
        ({"ledger": None}, "its counters: "),
        ({"ledger": []}, "its counters: "),
    ],
)
def test_c8_counters_that_no_run_has_are_refused(change: dict[str, Any], says: str) -> None:
    tensors, values = begin(tiny.task()).strategy.checkpoint()
    with pytest.raises(TrainingError, match=says):
        begin(tiny.task()).strategy.resume(tensors, {**values, **change})
    values.pop(next(iter(change)))
    with pytest.raises(TrainingError, match="its counters: no '"):
        begin(tiny.task()).strategy.resume(tensors, values)


@pytest.mark.parametrize("method", OPTIONS)
def test_c8_tensors_that_are_missing_are_one_sentence(method: str) -> None:
    tensors, values = begin(tiny.task(), method).strategy.checkpoint()
    refused = 0
    for name in tensors:
        less = {k: v for k, v in tensors.items() if k != name}
        try:
            begin(tiny.task(), method).strategy.resume(less, values)
        except SflError:
            refused += 1
    assert refused >= 3


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    run(tiny.task(), out=tmp_path / "run", rounds=1)
    with pytest.raises(ConfigError, match=r"Cannot resume .*another configuration.*probes: 4 -> 5"):
        run(tiny.task(), out=tmp_path / "run", rounds=2, probes=5, resume=True)
    with pytest.raises(ConfigError, match="already holds a run"):
        run(tiny.task(), out=tmp_path / "run", rounds=1)
    with pytest.raises(ConfigError, match="resume=True needs out="):
        run(tiny.task(), resume=True)


def test_a_checkpoint_of_another_run_is_refused() -> None:
    tensors, values = begin(tiny.task(), seed=1).strategy.checkpoint()
    with pytest.raises(JournalError, match=r"belongs to another run .*seed"):
        begin(tiny.task(), seed=2).strategy.resume(tensors, values)


def test_e12_a_resume_with_another_test_set_is_noticed(tmp_path: Path) -> None:
    run(tiny.task(), out=tmp_path, rounds=1)
    before = contents(tmp_path)
    other = tiny.task(test=lambda: tiny.samples(40, 2))
    with pytest.raises(TrainingError, match="made with another test set than the task has now"):
        run(other, out=tmp_path, rounds=2, resume=True)
    assert contents(tmp_path) == before


def test_c10_a_resume_with_another_secret_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFL_SECRET", "one")
    run(tiny.task(), out=tmp_path, rounds=1)
    monkeypatch.setenv("SFL_SECRET", "two")
    with pytest.raises(TrainingError, match="another SFL_SECRET"):
        run(tiny.task(), out=tmp_path, rounds=2, resume=True)
    monkeypatch.setenv("SFL_SECRET", "one")
    assert run(tiny.task(), out=tmp_path, rounds=2, resume=True).history[-1].round == 2


def test_e12_a_resume_with_another_loss_is_noticed(tmp_path: Path) -> None:
    run(tiny.task(), out=tmp_path, rounds=1)
    twice = tiny.task(loss=lambda output, y: 2.0 * cross_entropy(output, y))
    with pytest.raises(TrainingError, match=r"another loss .* it was 1\.\d+ and is 2\.\d+"):
        run(twice, out=tmp_path, rounds=2, resume=True)
    same = tiny.task(loss=lambda output, y: cross_entropy(output, y))
    assert len(run(same, out=tmp_path, rounds=2, resume=True).history) == 3


def test_e12_a_resume_with_other_training_data_is_noticed(tmp_path: Path) -> None:
    def problem(seed: int) -> SplitTask:
        test = tiny.samples(40, 1)
        return SplitTask(
            "tiny", tiny.model, "act", lambda: tiny.samples(48, seed), lambda: test, tiny.CLASSES
        )

    run(problem(0), out=tmp_path, rounds=1, partition="iid")
    with pytest.raises(DataError, match=r"has loaded another training set \(digest"):
        run(problem(5), out=tmp_path, rounds=2, resume=True, partition="iid")
    assert len(run(problem(0), out=tmp_path, rounds=2, resume=True, partition="iid").history) == 3


def test_settings_that_are_refused_leave_no_directory(tmp_path: Path) -> None:
    problem = tiny.task(build=tiny.with_batch_norm)
    with pytest.raises(Exception, match="BatchNorm"):
        run(problem, out=tmp_path / "run", micro_batch="2")
    assert not (tmp_path / "run").exists()


def test_the_journal_on_disk_rebuilds_the_client_half(tmp_path: Path) -> None:
    problem = tiny.task()
    result = run(problem, out=tmp_path / "run", rounds=4, client_optimizer="momentum")
    journal = Journal.load(tmp_path / "run" / "journal.bin")
    vector = ParameterVector(problem.build(model_seed(0)).client)
    replica = Replica.initial(vector.anchor, journal.header, vector.shapes)
    replica.replay(journal.entries)
    vector.load(replica.theta)
    expected = tiny.flat(result.model, tiny.CLIENT_NAMES)
    assert torch.equal(vector.anchor.double(), expected)


def test_a_resume_says_that_what_clients_sent_of_their_samples_begins_anew(tmp_path: Path) -> None:
    options: dict[str, Any] = {"temporal": 0.1, "out": tmp_path, "rounds": 3}
    with pytest.raises(Stop):
        run(tiny.task(), "frozen", observer=stop_after(1), **options)
    resumed = run(tiny.task(), "frozen", resume=True, **options)
    says = "What clients sent of their samples, temporal=0.1, is not in the checkpoint; it is sent"
    assert [any(says in n for n in r.notes) for r in resumed.history] == [False, False, True, False]


def test_a_resumed_run_that_diverges_says_so_as_one_that_never_stopped(tmp_path: Path) -> None:
    """The note compares with the loss before the first round, not with that of the resume."""
    options: dict[str, Any] = {"rounds": 4, "server_lr": 30.0, "server_steps": "batch"}
    whole = run(tiny.task(), "frozen", **options)
    noted = [record.round for record in whole.history if "diverged" in "".join(record.notes)]
    assert noted, [record.metrics for record in whole.history]
    with pytest.raises(Stop):
        run(tiny.task(), "frozen", out=tmp_path, observer=stop_after(2), **options)
    resumed = run(tiny.task(), "frozen", out=tmp_path, resume=True, **options)
    assert [r.notes for r in resumed.history] == [r.notes for r in whole.history]


def test_a_resume_removes_what_a_killed_process_left_half_written(tmp_path: Path) -> None:
    run(tiny.task(), out=tmp_path, rounds=1)
    torn = [tmp_path / f".{name}.77.tmp" for name in ("model.safetensors", "history.jsonl")]
    own = tmp_path / ".notes.txt.77.tmp"
    for path in (*torn, own):
        path.write_bytes(b"half")
    run(tiny.task(), out=tmp_path, rounds=2, resume=True)
    assert own.exists() and not any(path.exists() for path in torn)


def test_c13_where_the_history_is_damaged_the_checkpoint_before_is_offered(
    finished: Path, tmp_path: Path
) -> None:
    out = copied(finished, tmp_path)
    path = out / "history.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:-1], lines[-1].replace(b'"round": 3', b'"round": 4')]))
    says = r"history\.jsonl holds other lines .* Up to round 2 they are whole, and so is checkpoint"
    with pytest.raises(DataError, match=says + r".*resume='previous' goes on from there"):
        run(tiny.task(), out=out, rounds=3, resume=True, **MOMENTUM)
    resumed = run(tiny.task(), out=out, rounds=3, resume="previous", **MOMENTUM)
    assert [record.round for record in resumed.history] == [0, 1, 2, 3]
    path.write_bytes(b"".join([lines[0].replace(b'"round": 0', b'"round": 9'), *lines[1:]]))
    with pytest.raises(DataError, match=r"put it back as it was, or move it away [^.]*\.$"):
        run(tiny.task(), out=out, rounds=4, resume=True, **MOMENTUM)


def test_a_run_that_was_killed_before_its_first_record_begins_anew(tmp_path: Path) -> None:
    """It left config.json alone."""
    out = tmp_path / "run"
    options: dict[str, Any] = {"rounds": 2, "checkpoint_every": 1}
    whole = run(tiny.task(), out=out, **options)
    for left in out.iterdir():
        if left.is_file() and left.name != "config.json":
            left.unlink()
    again = run(tiny.task(), out=out, resume=True, **options)
    assert equal(whole.model, again.model) and history(whole.history) == history(again.history)


def test_a_history_that_was_moved_away_is_gone_on_without(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(tiny.task(), out=out, rounds=2)
    path = out / "history.jsonl"
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(DataError, match="or move it away to go on without the records"):
        run(tiny.task(), out=out, rounds=4, resume=True)
    path.rename(tmp_path / "away")
    result = run(tiny.task(), out=out, rounds=4, resume=True)
    assert [record.round for record in result.history] == [3, 4]
    assert equal(result.model, run(tiny.task(), rounds=4).model)
