from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sfl_flower.errors import ConfigError, DataError
from sfl_flower.report import RoundRecord, RunDirectory, Summary, tensors
from sfl_flower.report.files import canonical_json, config_digest, write_json
from sfl_flower.report.tensors import save_tensors

CONFIG = {"method": "ho_sfl", "rounds": 4, "seed": 7, "rate": 0.1}


def record(number: int) -> RoundRecord:
    return RoundRecord(
        number, 32 * number, 2 * number, 0.5 * number, 0.25, {"accuracy": 0.5}, 10, 20
    )


def create(path: Path, config: dict[str, Any] = CONFIG) -> RunDirectory:
    return RunDirectory.create(path, config, tensorboard=False)


def reopen(path: Path, config: dict[str, Any] = CONFIG) -> RunDirectory:
    return RunDirectory.reopen(path, config, tensorboard=False)


def test_config_json_says_what_ran(tmp_path: Path) -> None:
    run = create(tmp_path / "a" / "b")
    document = json.loads((run.path / "config.json").read_text(encoding="utf-8"))
    text = '{"method":"ho_sfl","rate":0.1,"rounds":4,"seed":7}'
    assert document["config"] == CONFIG == run.config
    assert document["seed"] == 7
    assert document["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    names = {"python", "sfl_flower", "flwr", "ray", "torch", "torchvision", "numpy"}
    assert set(document["versions"]) == names
    assert document["versions"]["numpy"] == np.__version__


def test_what_was_measured_is_held_against_its_digest(tmp_path: Path) -> None:
    measured = {"micro_batch": 3}
    RunDirectory.create(tmp_path, CONFIG, tensorboard=False, measured=measured).close()
    path, run = tmp_path / "config.json", RunDirectory(tmp_path, tensorboard=False)
    document = json.loads(path.read_text(encoding="utf-8"))
    assert run.measured == measured
    seal = document["measured"].pop("sha256")
    write_json(path, document)  # of an older release
    assert run.measured == measured
    for other in ({"micro_batch": 4, "sha256": seal}, {"micro_batch": "3"}, [3], None):
        write_json(path, {**document, "measured": other})
        with pytest.raises(DataError, match=r"config.json is damaged: 'measured' is not .* delete"):
            assert run.measured
    write_json(path, {**document, "measured": {}})
    assert run.measured == {}


def test_canonical_json_does_not_depend_on_the_order_or_the_container() -> None:
    @dataclass
    class Settings:
        b: tuple[int, ...]
        a: Path

    class Kind(Enum):
        MEAN = "mean"

    value = {"z": Settings((1, 2), Path("x/y")), "k": Kind.MEAN, "n": np.int64(3), "s": {2, 1}}
    assert canonical_json(value) == '{"k":"mean","n":3,"s":[1,2],"z":{"a":"x/y","b":[1,2]}}'
    assert config_digest({"a": 1, "b": [2]}) == config_digest({"b": (2,), "a": 1})
    assert config_digest({"a": 1}) != config_digest({"a": 1.5})


@pytest.mark.parametrize("bad", [math.nan, math.inf, object(), b"bytes", torch.zeros(1)])
def test_a_value_without_json_form_is_refused_by_name(bad: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.inner\.rate"):
        create(tmp_path / "run", {"inner": {"rate": bad}})
    assert not (tmp_path / "run").exists()


def test_a_directory_with_a_run_is_refused(tmp_path: Path) -> None:
    with create(tmp_path) as run:
        run.append(record(1))
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ConfigError, match="already holds a run"):
        create(tmp_path, {"method": "frozen_client"})
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_directory_with_other_files_is_used_and_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    create(tmp_path)
    with pytest.raises(ConfigError, match="Cannot make the run directory"):
        create(tmp_path / "notes.txt")


def test_resume_goes_on_with_the_same_configuration(tmp_path: Path) -> None:
    with create(tmp_path) as run:
        run.append(record(1))
    with reopen(tmp_path, {**CONFIG, "rounds": 9}) as run:
        assert run.config["rounds"] == 4  # nothing is written before it begins
        run.begin()
        run.append(record(2))
    assert list(run.history) == [record(1), record(2)]
    assert run.config["rounds"] == 9
    with pytest.raises(ConfigError, match=r"rate: 0\.1 -> 0\.2"):
        reopen(tmp_path, {**CONFIG, "rate": 0.2})


def test_e12_a_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no run in .*new to go on with; check out="):
        reopen(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_resume_drops_a_torn_line(tmp_path: Path) -> None:
    with create(tmp_path) as run:
        run.append(record(1))
        run.save_checkpoint({}, {"round": 1})
    with open(tmp_path / "history.jsonl", "a", encoding="utf-8") as file:
        file.write('{"round": 2, "sam')
    with reopen(tmp_path) as run:
        run.keep_history(run.load_checkpoint()[2])
        run.append(record(2))
    assert list(run.history) == [record(1), record(2)]


def test_a_resume_drops_the_rounds_after_its_checkpoint(tmp_path: Path) -> None:
    with create(tmp_path) as run:
        for number in (1, 2, 3):
            run.append(record(number))
            if number < 3:
                run.save_checkpoint({}, {"round": number})
    for previous, kept in ((False, 2), (True, 1)):
        with reopen(tmp_path) as run:
            assert run.load_checkpoint(previous)[2] == kept
    assert list(run.keep_history(2)) == [record(1), record(2)] == list(run.history)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda lines: lines[:1], "holds 1 of 2 lines of the rounds up to the checkpoint"),
        (lambda lines: [lines[0], lines[1].replace(b"0.25", b"0.75")], "holds other lines"),
        (lambda lines: [b"not json\n", *lines[1:]], "holds other lines"),
    ],
)
def test_c13_a_history_that_is_not_the_checkpoints_is_noticed(
    damage: Callable[[list[bytes]], list[bytes]], says: str, tmp_path: Path
) -> None:
    with create(tmp_path) as run:
        for number in (1, 2):
            run.append(record(number))
        run.save_checkpoint({}, {"round": 2})
    path = tmp_path / "history.jsonl"
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    with reopen(tmp_path) as run, pytest.raises(DataError, match=says):
        run.load_checkpoint()
    path.unlink()  # the remedy
    with reopen(tmp_path) as run:
        assert run.load_checkpoint()[2] == 0


@pytest.mark.parametrize("damage", ["{", "[]", '{"config": 3}', "changed"])
def test_c13_a_damaged_configuration_is_named_with_a_remedy(damage: str, tmp_path: Path) -> None:
    with create(tmp_path) as run:
        run.save_checkpoint({}, {"round": 1})
    path = tmp_path / "config.json"
    text = path.read_text(encoding="utf-8").replace('"rate": 0.1', '"rate": 0.2')
    path.write_text(text if damage == "changed" else damage, encoding="utf-8")
    with pytest.raises(DataError, match=r"config\.json .*; put the file back .*or delete it and"):
        reopen(tmp_path)
    path.unlink()  # the remedy
    with reopen(tmp_path, {**CONFIG, "rounds": 7}) as run:
        assert run.load_checkpoint()[1] == {"round": 1}
    with reopen(tmp_path, {**CONFIG, "rate": 0.2}) as run:
        with pytest.raises(ConfigError, match="belongs to a run with other options"):
            run.load_checkpoint()


def test_e12_one_run_at_a_time_has_a_directory(tmp_path: Path) -> None:
    with create(tmp_path) as run:
        run.append(record(1))
        says = rf"A run is going in .* \(process {os.getpid()} on .*\); wait until it ends"
        for opened in (create, reopen):
            with pytest.raises(ConfigError, match=says):
                opened(tmp_path)
    with reopen(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()


def test_e12_a_home_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with create(Path("~/x")) as run:
        assert run.path == tmp_path / "x"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_e11_a_file_system_that_syncs_no_directory_is_no_error(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        own(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with create(tmp_path) as run:
        run.save_model({"a": torch.ones(2)})
    assert torch.equal(run.load_model()["a"], torch.ones(2))


def test_each_record_is_on_disk_at_once(tmp_path: Path) -> None:
    run = create(tmp_path)
    for number in (1, 2):
        run.append(record(number))
        lines = (tmp_path / "history.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == number


def test_a_note_that_is_not_valid_text_does_not_stop_the_run(tmp_path: Path) -> None:
    run = create(tmp_path)
    odd = RoundRecord(1, 2, 3, 4.0, notes=("client 3: \udc80", "λ"))
    run.append(odd)
    assert list(run.keep_history(1)) == [odd] == list(run.history)


def test_the_model_comes_back_with_tied_weights_and_views(tmp_path: Path) -> None:
    run = create(tmp_path)
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"a": weight, "b": weight, "c": weight.t(), "d": weight[:, 1], "e": torch.tensor(4)}
    run.save_model(state)
    back = run.load_model()
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert back["e"].dtype == torch.int64


def test_a_saved_model_loads_into_a_module(tmp_path: Path) -> None:
    run = create(tmp_path)
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    run.save_model(net.state_dict())
    other = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    other.load_state_dict(run.load_model())
    x = torch.linspace(-1, 1, 12).reshape(4, 3)
    assert torch.equal(net(x), other(x))


@pytest.mark.parametrize("damage", [b"", b"not safetensors", None])
def test_a_missing_or_damaged_file_is_a_clear_error(tmp_path: Path, damage: bytes | None) -> None:
    run = create(tmp_path)
    if damage is not None:
        run.write_bytes("model.safetensors", damage)
        run.write_bytes("checkpoint.safetensors", damage)
    with pytest.raises(DataError, match=r"Cannot read the model .*model\.safetensors"):
        run.load_model()
    with pytest.raises(DataError, match="Cannot read the checkpoint"):
        run.load_checkpoint()


def test_a_checkpoint_holds_tensors_and_meta_together(tmp_path: Path) -> None:
    run = create(tmp_path)
    before = run.checkpoints.last.exists()
    tensors = {
        "client.weight": torch.linspace(0, 1, 7),
        "half": torch.ones(2, 2, dtype=torch.bfloat16),
        "steps": torch.tensor(12345678901),
        "empty": torch.zeros(0, 3),
    }
    meta = {"round": 3, "digest": "ab", "counters": {"up": 2**53 + 1}, "loss": 0.1, "who": "λ"}
    run.save_checkpoint(tensors, meta)
    assert (before, run.checkpoints.last.exists()) == (False, True)
    back, back_meta, lines = run.load_checkpoint()
    assert lines == 0
    assert back_meta == meta
    assert {name: t.dtype for name, t in back.items()} == {n: t.dtype for n, t in tensors.items()}
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create(tmp_path)
    run.save_checkpoint({"a": torch.ones(2)}, {"round": 1})

    def half(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half of a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, "save_file", half)
    with pytest.raises(DataError, match=r"Cannot write .*checkpoint.*: No space left on device"):
        run.save_checkpoint({"a": torch.zeros(2)}, {"round": 2})
    for previous in (False, True):
        found, meta, _ = run.load_checkpoint(previous)
        assert torch.equal(found["a"], torch.ones(2))
        assert meta == {"round": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".lock", "checkpoint.previous.safetensors", "checkpoint.safetensors", "config.json",
    ]  # fmt: skip


def test_c8_every_changed_byte_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    run = create(tmp_path)
    state = {"theta": torch.linspace(0, 1, 5), "step": torch.tensor(3), "none": torch.zeros(0)}
    run.save_checkpoint(state, {"round": 3, "ledger": {"up": 1}})
    path = tmp_path / "checkpoint.safetensors"
    whole = path.read_bytes()
    assert len(whole) < 2500
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DataError, match=r"Cannot read the checkpoint .*\.safetensors"):
            run.load_checkpoint()
    path.write_bytes(whole[:-20] + bytes([whole[-20] ^ 16]) + whole[-19:])
    with pytest.raises(DataError, match=r"it is damaged; tensor 'theta' does not fit its digest"):
        run.load_checkpoint()


def test_c8_the_last_good_generation_is_offered_by_name(tmp_path: Path) -> None:
    run = create(tmp_path)
    for number in (1, 2):
        run.save_checkpoint({"a": torch.full((3,), number)}, {"round": number})
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    says = r"tensor 'a' .*\. checkpoint\.previous\.\w+ of round 1 is whole: resume='previous'"
    with pytest.raises(DataError, match=says):
        run.load_checkpoint()
    assert run.load_checkpoint(previous=True)[0]["a"].tolist() == [1, 1, 1]
    run.checkpoints.previous.write_bytes(b"")
    with pytest.raises(DataError, match=r"There is no whole checkpoint\.previous.*start anew"):
        run.load_checkpoint()


def test_c8_a_changed_model_is_found(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.save_model({"a": torch.ones(2)})
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x3e")
    with pytest.raises(DataError, match=r"Cannot read the model .* tensor 'a' does not fit"):
        run.load_model()


def test_bytes_and_the_ledger_are_exact(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.write_bytes("journal.bin", b"\x00\xff" * 5)
    assert (tmp_path / "journal.bin").read_bytes() == b"\x00\xff" * 5
    ledger = {"smashed": {"up": 2**53 + 1, "down": 0}, "keys": {"up": 0, "down": np.int64(3)}}
    run.write_ledger(ledger)
    assert json.loads((tmp_path / "ledger.json").read_text(encoding="utf-8")) == ledger
    assert (tmp_path / "ledger.json").read_text(encoding="utf-8").startswith('{\n  "keys"')
    for name in ("", "..", "../x", "a/b"):
        with pytest.raises(ConfigError, match="not a file name"):
            run.write_bytes(name, b"")


def test_the_summary_says_that_the_run_is_complete(tmp_path: Path) -> None:
    run = create(tmp_path)
    with pytest.raises(DataError, match=r"cannot read .*summary\.json"):
        run.load_summary()
    ledger = {"smashed": {"up": 5, "down": 0}}
    summary = Summary("x", {"accuracy": 0.5, "f1": math.nan}, 9, ledger, 4, None, 1.5, tmp_path, 7)
    run.write_summary(summary, {"classes": 3})
    back, facts = run.load_summary()
    assert run.finished and facts == {"classes": 3}
    assert math.isnan(back.metrics["f1"])
    assert back.to_dict() == summary.to_dict() and back.out == tmp_path
    run.write_bytes("summary.json", b'{"method": "x"}')
    with pytest.raises(DataError, match="is not a summary"):
        run.load_summary()
    run.close()
    with reopen(tmp_path) as run:
        assert run.finished
        run.begin()  # goes on, so it is not complete
    assert not run.finished


def test_the_plot_waits_for_an_evaluation(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.append(RoundRecord(1, 2, 3, 4.0, loss=1.0))
    assert run.plot() is None
    run.append(record(2))
    assert run.plot() == tmp_path / "accuracy.png"
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_events(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunDirectory.create(tmp_path, CONFIG) as run:
        run.append(record(1))
        run.append(RoundRecord(2, 64, 4, 1.0, math.nan, bytes_up=30))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    up = [(e.step, e.value) for e in events.Scalars("bytes/up")]
    assert up == [(1, 10.0), (2, 30.0)]
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 0.25)]
    assert [(e.step, e.value) for e in events.Scalars("eval/accuracy")] == [(1, 0.5)]


def test_a_resume_replaces_the_events_of_repeated_rounds(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunDirectory.create(tmp_path, CONFIG) as run:
        for number in (1, 2, 3):
            run.append(record(number))
        run.keep_history(1)
        run.append(RoundRecord(2, 64, 4, 1.0, bytes_up=77))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("bytes/up")] == [(1, 10.0), (2, 77.0)]


def test_a19_every_file_of_a_run_may_be_read_by_whom_the_directory_is(tmp_path: Path) -> None:
    """safetensors' own files are their owner's alone."""
    save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, {"format": "pt"})
    write_json(tmp_path / "b.json", {})
    (tmp_path / "c").touch()
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_what_a_summary_says_is_held_against_its_digest(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.write_summary(Summary("ho_sfl", {"accuracy": 0.5}, 320), {"cut": "act"})
    path = tmp_path / "summary.json"
    text = path.read_text(encoding="utf-8")
    assert run.load_summary()[0].metrics == {"accuracy": 0.5}
    path.write_text(text.replace('"accuracy": 0.5', '"accuracy": 0.9'), encoding="utf-8")
    with pytest.raises(DataError, match=r"summary\.json is damaged: .* which writes it anew"):
        run.load_summary()
    document = json.loads(text)
    del document["sha256"]  # as releases before wrote it
    path.write_text(json.dumps(document), encoding="utf-8")
    assert run.load_summary()[1] == {"cut": "act"}
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="holds no JSON object"):
        run.load_summary()


def test_text_that_is_no_utf_8_is_written_and_read_as_any_other(tmp_path: Path) -> None:
    """The name of a file may hold any bytes; what is damaged may, too."""
    config = {**CONFIG, "task.path": "caf\udce9"}
    run = create(tmp_path, config)
    assert run.config == config
    run.write_summary(Summary("ho_sfl", {}, 320), {"cut": "\udce9"})
    assert run.load_summary()[1] == {"cut": "\udce9"}
    path = tmp_path / "summary.json"
    path.write_text(path.read_text(encoding="utf-8").replace("ho_sfl", "\\udc80"))
    with pytest.raises(DataError, match=r"summary\.json is damaged"):
        run.load_summary()


def test_a_record_is_written_through_before_a_checkpoint_counts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create(tmp_path)
    own, synced = os.fsync, list[str]()

    def fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        own(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    run.append(record(1))
    assert synced == ["history.jsonl", tmp_path.name]  # the new name, too
    run.append(record(2))
    assert synced[2:] == ["history.jsonl"]


def test_a_record_that_finds_no_room_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with create(tmp_path) as run:
        run.append(record(1))
        run.save_checkpoint({}, {"round": 1})
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(
            DataError, match=r"Cannot write .*history\.jsonl: No space .*and resume"
        ):
            run.append(record(2))
    monkeypatch.undo()
    with reopen(tmp_path) as run:
        assert list(run.keep_history(run.load_checkpoint()[2])) == [record(1)]


def test_a_plot_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create(tmp_path)
    run.append(record(1))
    path = run.plot()
    assert path is not None
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(DataError, match=r"Cannot write .*accuracy\.png: full"):
        run.plot()
    assert path.read_bytes() == before
