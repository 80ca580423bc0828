"""Going on from a checkpoint: the same bits and the same history as a run that never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sfl_flower.errors import ConfigError, JournalError
from sfl_flower.report import RoundRecord, RunDirectory
from sfl_flower.server.trainer import Trainer
from sfl_flower.zo import Journal, ParameterVector, Replica
from tests import tiny
from tests.tiny import begin, equal, run

pytestmark = pytest.mark.flower

OPTIONS: dict[str, dict[str, Any]] = {
    "ho_sfl": {"client_optimizer": "adam", "client_lr": 0.01, "sampled": 3},
    "frozen": {"sampled": 2},
    "splitfed_v1": {"local_steps": 2},
    "splitfed_v2": {"client_optimizer": "adam", "server_optimizer": "adamw"},
    "cse_fsl": {"client_optimizer": "adam", "local_steps": 2, "sampled": 3},
    "heron": {"client_optimizer": "adam", "client_lr": 0.01, "local_steps": 2, "probes": 2},
    "fsl_sage": {"client_optimizer": "adam", "local_steps": 2, "sampled": 3, "align_every": 2},
}


class Stop(Exception):
    """Ends a run from outside."""


def history(records: Any) -> list[tuple[Any, ...]]:
    """Return what of the records does not depend on the clock or on who had to download again."""
    return [
        (r.round, r.samples, r.loss, r.metrics, r.replies, r.version, r.digest, r.extra)
        for r in records
    ]


def stop_after(round: int) -> Any:
    def observer(record: RoundRecord) -> None:
        if record.round == round:
            raise Stop

    return observer


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("stop", [1, 4])
def test_a_stopped_run_goes_on_to_the_same_bits(method: str, stop: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"rounds": 6, "server_momentum": 0.9, **OPTIONS[method]}
    whole = run(tiny.task(), method, out=tmp_path / "whole", **options)
    parts = tmp_path / "parts"
    with pytest.raises(Stop):
        run(tiny.task(), method, out=parts, observer=stop_after(stop), **options)
    resumed = run(tiny.task(), method, out=parts, resume=True, **options)
    assert equal(whole.model, resumed.model)
    assert history(whole.history) == history(resumed.history)
    assert history(RunDirectory(parts).history) == history(whole.history)
    if method == "ho_sfl":
        journals = [(tmp_path / name / "journal.bin").read_bytes() for name in ("whole", "parts")]
        assert journals[0] == journals[1]


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
    monkeypatch.setattr("sfl_flower.run.run._log.warning", warnings.append)
    with pytest.raises(Stop):
        run(tiny.task(), "splitfed_v2", observer=stop_after(1), **options)
    assert not any("begin anew" in text for text in warnings)
    for _ in range(2):  # the second time there is nothing left to train
        run(tiny.task(), "splitfed_v2", resume=True, **options)
    assert sum("client-state=kept" in text and "begin anew" in text for text in warnings) == said


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    first = run(tiny.task(), out=tmp_path / "run", rounds=2)
    again = run(tiny.task(), out=tmp_path / "run", rounds=2, resume=True)
    assert equal(first.model, again.model)
    assert history(first.history) == history(again.history)
    assert first.summary.ledger == again.summary.ledger


def test_a_run_that_never_reached_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options: dict[str, Any] = {"rounds": 4, "checkpoint_every": 3}
    with pytest.raises(Stop):
        run(tiny.task(), out=out, observer=stop_after(0), **options)
    (out / "checkpoint.safetensors").unlink(missing_ok=True)
    run(tiny.task(), out=out, resume=True, **options)
    assert [record.round for record in RunDirectory(out).history] == [0, 1, 2, 3, 4]


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


def test_settings_that_are_refused_leave_no_directory(tmp_path: Path) -> None:
    problem = tiny.task(build=tiny.with_batch_norm)
    with pytest.raises(Exception, match="BatchNorm"):
        run(problem, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_journal_on_disk_rebuilds_the_client_half(tmp_path: Path) -> None:
    problem = tiny.task()
    result = run(problem, out=tmp_path / "run", rounds=4, client_optimizer="momentum")
    journal = Journal.load(tmp_path / "run" / "journal.bin")
    vector = ParameterVector(problem.build(0).client)
    replica = Replica.initial(vector.anchor, journal.header)
    replica.replay(journal.entries)
    vector.load(replica.theta)
    expected = tiny.flat(result.model, tiny.CLIENT_NAMES)
    assert torch.equal(vector.anchor.double(), expected)
