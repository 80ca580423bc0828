"""Smashed data that travel as what changed: what both sides remember, and what is lost when."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfl_flower.config import RunConfig
from sfl_flower.errors import ConfigError, DataError, WireError
from sfl_flower.node.recall import SampleMemory
from sfl_flower.node.store import NodeStore
from sfl_flower.report import RoundRecord
from sfl_flower.server.recall import Recall
from sfl_flower.server.roster import Member
from sfl_flower.strategies.ho_sfl import HOSFLSettings
from sfl_flower.wire import Reader
from sfl_flower.wire.draft import Encodings
from sfl_flower.wire.ho_sfl import ForwardReply
from sfl_flower.wire.recall import (
    NEVER,
    arrived,
    changed_samples,
    memory_check,
    memory_digest,
    rows_of_round,
)
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


def remembered(trial: Trial) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return of each sample that the server remembers what it does, and what its client does."""
    pairs = []
    for client, kept in trial.strategy._recall._kept.items():
        node = trial.grid.contexts[trial.grid.nodes[client]]
        for row, z in kept.items():
            memory = SampleMemory(NodeStore(node).own_file("samples"), 12, z.size)
            pairs.append((z.reshape(-1), memory.get(np.array([row]))[1][0]))
    return pairs


def alike(trial: Trial) -> bool:
    pairs = remembered(trial)
    return bool(pairs) and all(np.array_equal(*pair) for pair in pairs)


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
def test_both_sides_remember_the_same_bits(smashed: str, options: dict[str, Any]) -> None:
    trial = train(tiny.task(), temporal=0.02, smashed=smashed, **MOVING, **options)
    assert trial.total("rejected") == trial.total("failures") == 0
    assert alike(trial)


@pytest.mark.parametrize("name", ["float32", "uniform:0.5+deflate", "randtopk:0.3+int8", "int4"])
def test_what_arrives_of_padded_texts_is_what_a_receiver_reads(name: str) -> None:
    """Padding is left out before anything is encoded, and a step or a draw is of what is left."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((6, 12, 16)).astype(np.float32)
    for text, length in zip(z, [2, 12, 5, 7, 3, 9], strict=True):
        text[length:] = 0
    encodings = Encodings(name)
    sizes = np.array([6], np.int64)
    draft = ForwardReply(1, -1, z, np.zeros((6, 12), np.int64), sizes).draft(encodings)
    read = ForwardReply.from_reader(Reader(draft.content(), "reply", encodings)).z
    assert np.array_equal(arrived(z, encodings), read)


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
    kept = trial.strategy._recall._kept[0]
    np.testing.assert_allclose(np.stack([kept[row] for row in range(12)]), z, atol=1e-6)


@pytest.mark.parametrize("kind", ["forget", "mute", "drop", "late", "rollback", "raise"])
def test_where_the_two_remember_differently_all_is_sent_again(kind: str) -> None:
    """Nothing is refused, and the two agree again."""
    where = "probe" if kind in ("forget", "rollback") else "forward"
    fault = Fault(kind, {1}, {3}, where, times=1)
    trial = train(tiny.task(), faults=[fault], temporal=0.05, **MOVING)
    assert trial.total("rejected") == 0
    assert trial.total("failures") == (kind not in ("forget", "rollback"))
    assert alike(trial)


@pytest.mark.parametrize("damage", ["lost", "one bit"])
def test_a_damaged_file_is_a_client_that_remembers_less(
    damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = itertools.count()
    own = SampleMemory.get

    def get(memory: SampleMemory, rows: np.ndarray) -> tuple[list[int], np.ndarray]:
        if next(opened) == 20:
            data = bytearray(memory._path.read_bytes())
            data[24 * int(rows[0]) + 9] ^= 1
            memory._path.unlink() if damage == "lost" else memory._path.write_bytes(bytes(data))
        return own(memory, rows)

    monkeypatch.setattr(SampleMemory, "get", get)
    trial = train(tiny.task(), temporal=0.05, **MOVING)
    monkeypatch.undo()
    assert trial.total("rejected") == trial.total("failures") == 0
    # What is not sent anew is found out when its sample is next asked for.
    assert sum(not np.array_equal(*pair) for pair in remembered(trial)) <= 12


def test_rows_that_were_damaged_are_rows_that_were_never_written(tmp_path: Path) -> None:
    path, rows = tmp_path / "samples.bin", np.arange(3)
    memory = SampleMemory(path, 3, 2)
    assert memory.get(rows)[0] == [NEVER] * 3
    memory.put(np.array([0, 2]), np.array([[1, 2], [3, 4]], np.float32))
    data = bytearray(path.read_bytes())
    assert len(data) == 3 * (4 + 2 * 4)
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    checks, found = SampleMemory(path, 3, 2).get(rows)
    assert checks == [memory_check(np.array([1, 2], np.float32)), NEVER, NEVER]
    assert found.tolist() == [[1, 2], [0, 0], [0, 0]]
    assert path.stat().st_mode & 0o777 == 0o600
    assert SampleMemory(path, 1, 2).get(rows[:1])[0] == [NEVER]  # of another share of the data
    nowhere = SampleMemory(tmp_path / "nowhere" / "samples.bin", 3, 2)
    with pytest.raises(DataError, match="set SFL_STATE_DIR to a directory on another disk, or set"):
        nowhere.put(rows, np.zeros((3, 2), np.float32))


def test_a_client_that_says_it_holds_more_than_a_million_samples_sends_all() -> None:
    recall = Recall(tiny.task(), RunConfig(clients=2), 0.1)
    reply = ForwardReply(1, -1, np.ones((4, 5), "f4"), np.zeros(4, np.int64), np.array([4]))
    many = Member(0, 7, 2**31 - 1)
    assert recall.known(many, 1, 1) is None
    assert recall.whole(many, reply) is reply
    with pytest.raises(WireError, match="which nobody asked for"):
        recall.whole(many, replace(reply, changed=b"\xf0"))


def test_differences_that_add_up_to_more_than_float32_holds_are_refused() -> None:
    recall, member = Recall(tiny.task(), RunConfig(clients=2, batch_size=4), 0.1), Member(0, 7, 4)
    z, sizes = np.full((4, 5), 3e38, np.float32), np.array([4])
    reply = ForwardReply(1, -1, z, np.zeros(4, np.int64), sizes, changed=b"\xf0")
    assert np.array_equal(recall.whole(member, reply).z, z)
    known = recall.known(member, 2, 1)
    with pytest.raises(WireError, match="with what was sent before, are not finite"):
        recall.whole(member, replace(reply, round=2))
    assert recall.known(member, 2, 1) == known  # as if it had not answered


def test_a_client_that_comes_back_with_other_samples_goes_on() -> None:
    """What is remembered is of rows; a mini-batch of other rows is new, or sent anew."""
    recall = Recall(tiny.task(), RunConfig(clients=2, batch_size=4), 0.1)
    for samples, round in ((12, 1), (40, 2), (5, 3)):
        member = Member(0, 7, samples)
        assert recall.known(member, round, 1) is not None
        count = len(recall._rows(member, round, 1))
        z = np.full((count, 5), round, np.float32)
        reply = ForwardReply(round, -1, z, np.zeros(count, np.int64), np.array([count]))
        assert np.array_equal(recall.whole(member, reply).z, z)
    recall.forget_others([Member(1, 3, 4)])
    assert not recall._kept


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


def test_the_digest_names_what_is_remembered_in_its_order() -> None:
    one, two = (memory_digest(checks) for checks in ([1, 2], [2, 1]))
    assert one != two and len(one) == 8
