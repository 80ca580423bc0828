"""Clients that keep large state in files, and clients whose files are lost or damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from safetensors.numpy import load_file, save_file

from sfl_flower.data import PartitionSpec
from sfl_flower.node.directory import state_root
from sfl_flower.node.node import join, node_partition
from sfl_flower.node.sync import forget_recent
from sfl_flower.wire import JoinRequest, Setup
from tests import tiny
from tests.local_grid import Fault, kind_of
from tests.tiny import Trial, begin, equal, start, train

pytestmark = pytest.mark.flower


@pytest.fixture
def in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every group of arrays in files."""
    monkeypatch.setenv("SFL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("SFL_STATE_LIMIT", "0")


METHODS = ("ho_sfl", "frozen", "splitfed_v2")


@pytest.mark.parametrize("method", METHODS)
def test_files_or_context_give_the_same_bits(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = train(tiny.task(build=tiny.model), method, rounds=4)
    monkeypatch.setenv("SFL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("SFL_STATE_LIMIT", "0")
    outside = train(tiny.task(), method, rounds=4)
    assert list(state_root().rglob("*.safetensors"))
    assert equal(inside.model, outside.model)
    assert inside.strategy.ledger == outside.strategy.ledger


def between_rounds(trial: Trial, act: Callable[[int], None]) -> Trial:
    trial.strategy.account._on_round = lambda record: act(record.round)
    return start(trial)


def alter(path: Path) -> None:
    """Change one bit of every array in a file, and nothing of the file's form."""
    arrays = {name: array.copy() for name, array in load_file(path).items()}
    for array in arrays.values():
        array.reshape(-1).view(np.uint8)[:1] ^= 1
    save_file(arrays, path)


def test_c9_a_client_whose_parameters_were_altered_on_disk_is_sent_them_anew(
    in_files: None,
) -> None:
    """The file is whole and reads well; what it holds is not what the client computed."""
    options: dict[str, Any] = {"rounds": 5, "sync": "replay"}

    def act(round: int) -> None:
        forget_recent()
        if round == 2:
            for path in state_root().rglob("replica-*.safetensors"):
                arrays = load_file(path)
                save_file({**arrays, "theta": arrays["theta"] + 1}, path)

    trial = between_rounds(begin(tiny.task(), "ho_sfl", **options), act)
    assert [record.replies for record in trial.strategy.records[1:]] == [4] * 5
    plain = train(tiny.task(), "ho_sfl", **options)
    assert equal(trial.model, plain.model)
    assert trial.strategy.digest == plain.strategy.digest


def again(trial: Trial, client: int) -> None:
    """Start a SuperNode again with its key: Flower's context is gone, its id and files are not."""
    forget_recent()
    trial.grid.contexts[trial.grid.nodes[client]].state = RecordDict()


@pytest.mark.parametrize("kept", ["files", "older files", "damaged files", "another run's"])
def test_a_node_that_is_started_again_replays_from_its_files(kept: str, in_files: None) -> None:
    options: dict[str, Any] = {"rounds": 6, "sync": "replay"}
    plain = train(tiny.task(), "ho_sfl", **options)
    rmtree(state_root())  # runs of this process have one id
    saved: dict[Path, bytes] = {}
    if kept == "another run's":
        other = train(tiny.task(), "ho_sfl", **options, seed=1)
        saved = {path: path.read_bytes() for path in own_files(other, 1)}
        rmtree(state_root())

    def act(round: int) -> None:
        files = own_files(trial, 1)
        if round == 1 and kept == "older files":
            saved.update({path: path.read_bytes() for path in files})
        if round == 3:
            again(trial, 1)
            if kept == "damaged files":
                saved.update(dict.fromkeys(files, b"\xff" * 300))
            if saved:
                for path in files:
                    path.unlink()
            for path, content in saved.items():
                path.write_bytes(content)

    trial = begin(tiny.task(), "ho_sfl", **options)
    between_rounds(trial, act)
    assert [record.replies for record in trial.strategy.records[1:]] == [4] * 6
    assert equal(trial.model, plain.model)
    assert trial.strategy.digest == plain.strategy.digest
    down = [each.strategy.ledger.to_dict()["bytes"]["weights"]["down"] for each in (trial, plain)]
    # The scalars that it missed, which are few; weights only where nothing else is left.
    assert (down[0] == down[1]) == (kept in ("files", "older files"))
    assert len(own_files(trial, 1)) == 2


def own_files(trial: Trial, client: int) -> list[Path]:
    """Return the files of a client's replica and of what goes with it."""
    node = trial.grid.nodes[client]
    return [p for n in ("rest", "replica") for p in state_root().rglob(f"{n}-*-{node}.safetensors")]


@pytest.mark.parametrize("damage", ["gone", "noise", "altered"])
@pytest.mark.parametrize("name", ["rest", "replica", "*"])
@pytest.mark.parametrize("recent", [True, False], ids=["one process", "a process a message"])
@pytest.mark.parametrize("method", ["ho_sfl", "frozen"])
def test_lost_and_damaged_files_are_downloaded_again(
    method: str, recent: bool, name: str, damage: str, in_files: None
) -> None:
    """The state still says where the client stands; the files behind it are not what they were."""
    problem = tiny.task(build=tiny.with_batch_norm)
    options: dict[str, Any] = {"rounds": 5, "client_mode": "eval", "sync": "replay"}
    if method == "frozen":
        del options["sync"]

    def act(round: int) -> None:
        if not recent:
            forget_recent()
        if round == 2:
            for path in state_root().rglob(f"{name}-*.safetensors"):
                if damage == "gone":
                    path.unlink()
                elif damage == "altered":
                    alter(path)
                else:
                    path.write_bytes(b"\xff" * 300)

    trial = between_rounds(begin(problem, method, **options), act)
    assert [record.replies for record in trial.strategy.records[1:]] == [4] * 5
    plain = train(tiny.task(build=tiny.with_batch_norm), method, **options)
    assert equal(trial.model, plain.model)


def test_anchor_smashed_data_that_is_lost_is_computed_again(in_files: None) -> None:
    trial = begin(tiny.task(), "ho_sfl")
    deliver = trial.grid.deliver

    def losing(message: Message) -> Message | None:
        if kind_of(message) == "probe":
            for path in state_root().rglob("anchor-*.safetensors"):
                path.unlink()
        return deliver(message)

    trial.grid.deliver = losing  # type: ignore[method-assign]
    start(trial)
    assert equal(trial.model, train(tiny.task(), "ho_sfl").model)


def test_what_other_clients_replayed_is_shared_without_changing_a_bit() -> None:
    """Virtual clients of one process replay each update once; apart they replay it each."""
    together = train(tiny.task(), "ho_sfl", rounds=4)
    apart = begin(tiny.task(), "ho_sfl", rounds=4)
    deliver = apart.grid.deliver

    def alone(message: Message) -> Message | None:
        forget_recent()
        return deliver(message)

    apart.grid.deliver = alone  # type: ignore[method-assign]
    start(apart)
    assert equal(together.model, apart.model)
    assert together.strategy.digest == apart.strategy.digest


def test_methods_that_take_turns_on_one_task_do_not_disturb_each_other() -> None:
    problem = tiny.task()
    first = train(problem, "ho_sfl").model
    train(problem, "splitfed_v2")
    train(problem, "frozen")
    assert equal(train(problem, "ho_sfl").model, first)


def test_probes_leave_nothing_in_the_state_but_position_parameters_and_terms() -> None:
    trial = train(tiny.task(), "ho_sfl", rounds=2)
    state = trial.grid.contexts[trial.grid.nodes[0]].state
    assert set(state) == {"position", "replica", "rest", "anchor round", "terms"}


def test_a_probe_request_without_its_anchor_is_refused_by_a_client_elsewhere() -> None:
    faults = [Fault("rollback", {1}, {2}, types="forward")]
    trial = train(tiny.task(), "ho_sfl", faults, rounds=3)
    # Its parameters are those of another version than λ belongs to.
    assert [record.replies for record in trial.strategy.records[1:]] == [4, 3, 4]


# Joining


def joined(context: Any, problem: Any, spec: PartitionSpec | None) -> tuple[int, int, str]:
    text = "local" if spec is None else json.dumps(spec.__dict__)
    reply = join(lambda _: problem, context, JoinRequest(Setup(0, text)))
    return reply.partition, reply.samples, reply.problem


def test_a_node_says_who_it_is() -> None:
    trial = begin(tiny.task(), clients=4)
    context = trial.grid.contexts[trial.grid.nodes[2]]
    spec = trial.strategy.config.partition_spec()
    problem = trial.strategy.task
    assert joined(context, problem, spec) == (2, 12, "")
    assert joined(context, problem, None) == (2, 48, "")
    context.node_config["partition-id"] = 9
    partition, count, says = joined(context, problem, spec)
    assert (partition, count) == (9, 0)
    assert "partition-id 9" in says and "0 to 3" in says
    del context.node_config["partition-id"]
    assert node_partition(context) == context.node_id % 2**31


def test_clients_with_data_of_their_own() -> None:
    trial = train(tiny.task(own=True), "ho_sfl", partition="local", rounds=2)
    assert [record.replies for record in trial.strategy.records[1:]] == [4, 4]
