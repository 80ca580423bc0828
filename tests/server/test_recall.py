"""Smashed data that travel as what changed: what both sides remember, and what is lost when."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfl_flower.errors import ConfigError, DataError
from sfl_flower.node.recall import SampleMemory
from sfl_flower.report import RoundRecord
from sfl_flower.strategies.ho_sfl import HOSFLSettings
from sfl_flower.wire.recall import NEVER, changed_samples, memory_digest, rows_of_round
from tests import tiny
from tests.local_grid import Fault, changed, values
from tests.tiny import Trial, run, train

MOVING: dict[str, Any] = {"client_lr": 0.2, "rounds": 8}


def sent(trial: Trial) -> list[int]:
    """Return how many samples of smashed data each reply brought, in the order of the rounds."""
    return [
        len(values(content["arrays"]["z"]))
        for kind, _, content in trial.grid.replies
        if kind in ("forward", "pipelined")
    ]


def memories(trial: Trial, run_id: int = 1) -> dict[int, np.ndarray]:
    """Return what the server remembers, by client, zeros for what it was never sent."""
    return {at: kept[1] for at, kept in sorted(trial.strategy._recall._kept.items())}


def test_a_sample_counts_as_changed_beyond_a_share_of_its_norm() -> None:
    z = np.array([[3.0, 4.0], [0.6, 0.8], [0.0, 0.0]], np.float32)  # norms 5, 1 and 0
    old = z + np.array([[0.4, 0.0], [0.4, 0.0], [0.0, 0.0]], np.float32)
    assert changed_samples(z, old, 0.1).tolist() == [False, True, False]
    assert changed_samples(z, old, 0.05).tolist() == [True, True, False]
    assert changed_samples(z, z, 0.1).tolist() == [True, False, False]  # something travels
    assert changed_samples(z + np.float32("nan"), z, 1.0).all()


def test_a_frozen_client_sends_each_sample_once() -> None:
    """12 samples in mini-batches of 4: at the latest when all were sent, one a reply is left."""
    trial = train(tiny.task(clients=1), "frozen", clients=1, rounds=40, temporal=0.01)
    counts = sent(trial)
    fresh: list[int] = []
    seen: set[int] = set()
    for round in range(1, 41):
        rows = rows_of_round(trial.strategy.config.client_key(0), round, 1, 12, 4).tolist()
        fresh.append(max(1, len(set(rows) - seen)))
        seen |= set(rows)
    assert counts == fresh and counts[:1] == [4] and counts[-1] == 1
    plain = train(tiny.task(clients=1), "frozen", clients=1, rounds=40)
    for name, value in plain.model.items():  # a sample's sums depend on which others it runs with
        torch.testing.assert_close(trial.model[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("smashed", ["float32", "int8", "uniform:0.5+deflate"])
@pytest.mark.parametrize("options", [{}, {"pipeline": True}, {"minibatches": 4}])
def test_both_sides_remember_the_same_bits(
    smashed: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[int, np.ndarray] = {}
    own = SampleMemory.put

    def put(memory: SampleMemory, rows: Any, round: int, z: np.ndarray) -> None:
        own(memory, rows, round, z)
        client = int(Path(str(memory._rows.filename)).stem.split("-")[-1])
        kept[client] = memory.get(np.arange(12))

    monkeypatch.setattr(SampleMemory, "put", put)
    trial = train(tiny.task(), temporal=0.02, smashed=smashed, **MOVING, **options)
    assert trial.total("rejected") == trial.total("failures") == 0
    nodes = trial.grid.nodes
    for client, array in memories(trial).items():
        assert np.array_equal(array.reshape(12, -1), kept[nodes[client]])


def test_a_client_that_learns_sends_what_changed() -> None:
    whole, brief = (train(tiny.task(), temporal=share, **MOVING) for share in (0.0, 0.3))
    assert sum(sent(brief)) < sum(sent(whole)) == 8 * 16
    assert brief.strategy.ledger.up["smashed"] == 4 * 5 * sum(sent(brief))
    apart = [tiny.flat(t.model, ["out.weight"]) for t in (whole, brief)]
    assert 0 < float((apart[0] - apart[1]).norm()) < 0.1 * float(apart[0].norm())


def test_what_an_encoding_left_out_comes_with_the_next_difference() -> None:
    """A client that stands still: each visit sends what is missing, so what arrives tends to z."""
    trial = tiny.begin(tiny.task(clients=1), "frozen", clients=1, rounds=60, temporal=1e-9,
                       smashed="topk:0.2+float32")  # fmt: skip
    tiny.start(trial)
    x = tiny.samples(12).x
    with torch.no_grad():
        z = trial.strategy.client_half(x).numpy()
    np.testing.assert_allclose(memories(trial)[0], z, atol=1e-6)


@pytest.mark.parametrize("kind", ["forget", "mute", "drop", "late", "rollback", "raise"])
def test_where_the_two_remember_differently_all_is_sent_again(kind: str) -> None:
    """Nothing is refused, and the two agree again."""
    where = "probe" if kind in ("forget", "rollback") else "forward"
    fault = Fault(kind, {1}, {3}, where, times=1)
    trial = train(tiny.task(), faults=[fault], temporal=0.05, **MOVING)
    assert trial.total("rejected") == 0
    assert trial.total("failures") == (kind not in ("forget", "rollback"))


def test_a_lost_file_is_a_client_that_remembers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = itertools.count()
    own = SampleMemory.__init__

    def begin(memory: SampleMemory, path: Path, *given: int) -> None:
        if next(opened) == 20:
            path.unlink()
        own(memory, path, *given)

    monkeypatch.setattr(SampleMemory, "__init__", begin)
    trial = train(tiny.task(), temporal=0.05, **MOVING)
    assert trial.total("rejected") == trial.total("failures") == 0


def test_rows_that_were_damaged_are_rows_that_were_never_written(tmp_path: Path) -> None:
    path, rows = tmp_path / "samples.bin", np.arange(3)
    memory = SampleMemory(path, 3, 2)
    assert memory.rounds(rows).tolist() == [NEVER] * 3
    memory.put(np.array([0, 2]), 0, np.array([[1, 2], [3, 4]], np.float32))
    data = bytearray(path.read_bytes())
    assert len(data) == 3 * (8 + 4 + 2 * 4)
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    again = SampleMemory(path, 3, 2)
    assert again.rounds(rows).tolist() == [0, NEVER, NEVER]
    assert again.get(rows).tolist() == [[1, 2], [0, 0], [0, 0]]
    assert SampleMemory(path, 3, 5).rounds(rows).tolist() == [NEVER] * 3  # of another size
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(DataError, match="set SFL_STATE_DIR to a directory on another disk, or set"):
        SampleMemory(tmp_path / "nowhere" / "samples.bin", 3, 2)


def unasked(content: Any) -> Any:
    return changed(content, arrays={"changed": np.array([0xF0], np.uint8)})


def none_of_them(content: Any) -> Any:
    return changed(
        content, arrays={"changed": np.array([0x80], np.uint8), "z": np.ones((1, 5), "f4")}
    )


def too_few(content: Any) -> Any:
    return changed(content, arrays={"changed": np.array([0xE0], np.uint8)})


def too_long(content: Any) -> Any:
    return changed(content, arrays={"changed": np.array([0xF0, 0], np.uint8)})


@pytest.mark.parametrize(
    ("change", "share", "said"),
    [
        (unasked, 0.0, "it leaves out samples, which nobody asked for"),
        (none_of_them, 0.1, "it leaves out samples whose smashed data never arrived"),
        (too_few, 0.1, "has smashed data of shape"),
        (too_long, 0.1, "has 2 bytes that say which of 4 samples changed"),
    ],
)
def test_replies_that_leave_out_what_they_may_not_are_refused(
    change: Any, share: float, said: str
) -> None:
    fault = Fault("change", {2}, {1}, "forward", 1, change)
    trial = train(tiny.task(), faults=[fault], temporal=share, rounds=3)
    assert said in trial.notes
    assert trial.total("rejected") == 1
    assert trial.strategy.records[-1].replies == 4


def test_samples_that_are_never_the_same_are_refused_before_anything_starts() -> None:
    task = tiny.task(augment=lambda x: x + torch.rand(()))
    with pytest.raises(ConfigError, match="task 'tiny' augments its samples"):
        tiny.begin(task, temporal=0.1)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="temporal"):
            HOSFLSettings(temporal=share)


def test_a_resume_says_that_all_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(record: RoundRecord) -> None:
        if record.round == 2:
            raise KeyboardInterrupt

    warnings: list[str] = []
    monkeypatch.setattr("sfl_flower.run.resume._log.warning", lambda t, *a: warnings.append(t % a))
    with pytest.raises(KeyboardInterrupt):
        run(tiny.task(), out=tmp_path, observer=stop, temporal=0.1, rounds=4)
    resumed = run(tiny.task(), out=tmp_path, resume=True, temporal=0.1, rounds=4)
    assert any("temporal=0.1, is not in the checkpoint" in text for text in warnings)
    assert resumed.history[-1].replies == 4 and resumed.history[-1].rejected == 0


def test_the_control_sends_as_its_method_does() -> None:
    assert HOSFLSettings(temporal=0.2).control["temporal"] == 0.2
    assert "temporal" not in HOSFLSettings().control


def test_the_digest_names_rounds_in_their_order() -> None:
    one, two = (memory_digest(np.array(rounds)) for rounds in ([1, 2], [2, 1]))
    assert one != two and len(one) == 8
