"""What every method owes its users, the project's own and one from a package of somebody's own.

A method that is added gets a line in `OPTIONS`, settings under which it does everything it can; the
rest follows from its value.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor, nn
from torch.optim import adam as optim

from sfl_flower.methods import METHODS, Method, find_method
from sfl_flower.node.node import Node
from sfl_flower.report import RunDirectory
from sfl_flower.task import SplitTask
from sfl_flower.training.device import device_of
from sfl_flower.training.meter import PeakMemory
from sfl_flower.wire import Ledger, content_bytes
from tests import tiny
from tests.local_grid import Change, Fault, changed, values
from tests.second_device import SECOND, second_device
from tests.tiny import Trial, begin, equal, start, train

OWN_METHOD = Path(__file__).resolve().parents[1] / "examples" / "own_method"
OWN = "own_method.method:METHOD"

OPTIONS: dict[str, dict[str, Any]] = {
    "ho_sfl": {"minibatches": 2, "client_optimizer": "adam", "client_lr": 0.01},
    "u_shaped": {"minibatches": 2, "client_optimizer": "adam", "client_lr": 0.01},
    "heron": {"local_steps": 3, "upload_every": 2, "probes": 2, "client_lr": 0.01},
    "splitfed_v1": {"local_steps": 2},
    "splitfed_v2": {"local_steps": 2, "client_optimizer": "adam", "server_optimizer": "adamw"},
    "cse_fsl": {"local_steps": 3, "upload_every": 2, "client_optimizer": "adam"},
    "fsl_sage": {"local_steps": 3, "upload_every": 2, "align_every": 2, "align_epochs": 3},
    "fedavg": {"local_steps": 2, "client_optimizer": "adam"},
    "mu_splitfed": {},
    "zo_sfl": {"local_steps": 2, "probes": 2},
    "decomfl": {"local_steps": 2, "probes": 2},
    "frozen": {"minibatches": 2, "server_steps": "batch", "server_passes": 2},
    OWN: {"probes": 4, "client_lr": 0.05},
}
SHARED: dict[str, Any] = {"rounds": 4, "sampled": 3, "server_momentum": 0.9}


@pytest.fixture(autouse=True)
def own_package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the example's package be found."""
    monkeypatch.syspath_prepend(str(OWN_METHOD))
    yield


@pytest.fixture(params=OPTIONS)
def method(request: pytest.FixtureRequest) -> str:
    """Each method."""
    name: str = request.param
    return name


def value(method: str) -> Method:
    if str(OWN_METHOD) not in sys.path:
        sys.path.insert(0, str(OWN_METHOD))
    return find_method(method)


def settings(method: str, **more: Any) -> dict[str, Any]:
    return {**SHARED, **OPTIONS[method], **more}


def trained(method: str, *faults: Fault, **more: Any) -> Trial:
    return train(tiny.task(), method, faults, **settings(method, **more))


@cache
def clean(method: str) -> Trial:
    """Return a run in which nothing goes wrong."""
    return trained(method)


def history(records: Any) -> list[tuple[Any, ...]]:
    """Return what of the records does not depend on the clock or on who had to download again."""
    return [
        (r.round, r.samples, r.loss, r.metrics, r.replies, r.version, r.digest, r.extra)
        for r in records
    ]


def same(a: Trial, b: Trial) -> bool:
    """Tell whether two runs came to the same model, journal and losses."""
    return (
        equal(a.model, b.model)
        and a.strategy.digest == b.strategy.digest
        and [r.loss for r in a.strategy.records] == [r.loss for r in b.strategy.records]
    )


def test_b3_every_method_is_under_this_contract() -> None:
    assert set(OPTIONS) == {*METHODS, OWN}


@pytest.mark.flower
def test_it_learns_something_or_says_that_it_does_not(method: str) -> None:
    trial = clean(method)
    initial = begin(tiny.task(), method, **settings(method)).model
    names = set(tiny.CLIENT_NAMES)
    moved = {name for name in initial if not bool((trial.model[name] == initial[name]).all())}
    assert bool(moved & names) == (value(method).facts.client != "nothing")
    assert moved - names
    assert (trial.strategy.journal is not None) == value(method).facts.journal
    assert [r.failures + r.rejected for r in trial.strategy.records] == [0] * 5


def test_the_same_seed_gives_the_same_bits_and_another_does_not(method: str) -> None:
    assert same(clean(method), trained(method))
    assert not same(clean(method), trained(method, seed=1))


@pytest.mark.parametrize("on_it", ["client_device", "server_device", "both"])
def test_a4_on_another_device_it_trains_to_the_same_bits(
    method: str, on_it: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left on the CPU that must be moved, nothing leaves but what belongs there."""
    names = ("client_device", "server_device") if on_it == "both" else (on_it,)
    options, build = settings(method, rounds=2), tiny.with_batch_norm
    if method in METHODS:
        options["client_mode"] = "eval"  # forwards alone cannot train with BatchNorm otherwise
    else:
        build = tiny.model
    here = train(tiny.task(build=build), method, **options)
    with second_device() as find:
        for module in ("node.node", "server.strategy"):
            monkeypatch.setattr(f"sfl_flower.{module}.find_device", find)
        monkeypatch.setattr("sfl_flower.node.node.PeakMemory", lambda device: PeakMemory("cpu"))
        monkeypatch.setattr(optim, "_device_dtype_check_for_fused", lambda *_: None)
        options |= dict.fromkeys(names, "cuda")
        there = train(tiny.task(build=build), method, **options)
        tensors, _ = there.strategy.checkpoint()
        on_second = device_of(there.strategy.server.module)
    assert [r.failures + r.rejected for r in there.strategy.records] == [0] * 3
    assert same(here, there)
    assert (on_second == SECOND) == (on_it != "client_device")
    assert {value.device.type for value in (*tensors.values(), *there.model.values())} == {"cpu"}


@pytest.mark.parametrize(
    ("trained", "size"),
    [("all", "all"), ("subspace:2", "3"), ("core:2", "all"), ("subspace:auto:0.9:1", "all")],
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    method: str, trained: str, size: str, tmp_path: Path
) -> None:
    def problem() -> SplitTask:
        return tiny.task(trained=trained, public=lambda: tiny.samples(20, 7))

    options = settings(method, micro_batch=size)
    whole, resumed = tiny.stopped(problem, tmp_path, 2, method, **options)
    assert equal(whole.model, resumed.model)
    assert set(whole.model) == set(tiny.model().state_dict())
    assert history(RunDirectory(tmp_path / "parts").history) == history(whole.history)
    if value(method).facts.journal:
        one, two = ((tmp_path / n / "journal.bin").read_bytes() for n in ("whole", "parts"))
        assert one == two


def test_the_order_of_replies_changes_nothing(method: str) -> None:
    for seed in (1, 2):
        trial = begin(tiny.task(), method, **settings(method))
        trial.grid._rng.seed(seed)
        assert same(clean(method), start(trial))


@pytest.mark.parametrize("method", ["ho_sfl", "heron"])
def test_with_nopeek_neither_order_nor_duplicates_nor_a_stop_change_anything(
    method: str, tmp_path: Path
) -> None:
    options = settings(method, nopeek=0.5)
    plain = train(tiny.task(), method, **options)
    assert not same(clean(method), plain)
    shuffled = begin(tiny.task(), method, **options)
    shuffled.grid._rng.seed(1)
    _, resumed = tiny.stopped(tiny.task, tmp_path, 2, method, **options)
    for other in (start(shuffled), train(tiny.task(), method, [Fault("twice")], **options)):
        assert same(plain, other)
        assert history(other.strategy.records) == history(plain.strategy.records)
    assert equal(plain.model, resumed.model)
    assert history(RunDirectory(tmp_path / "parts").history) == history(plain.strategy.records)


IN_PARTS: dict[str, dict[str, Any]] = {
    name: {"client_optimizer": "sgd"} for name in ("ho_sfl", "splitfed_v2", "cse_fsl", "fedavg")
}
"""By method: a step that is continuous in its gradient, as Adam's first is not."""


@pytest.mark.parametrize("size", [1, 3])
def test_in_micro_batches_it_trains_as_in_whole_mini_batches(
    method: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mini-batches of four, run one by one, or three and one; again, and larger than they are."""
    ready, seen = Node.ready, set[int]()

    def watched(node: Node, module: nn.Module) -> nn.Module:
        module.register_forward_pre_hook(lambda module, given: seen.add(len(given[0])))
        return ready(node, module)

    options = IN_PARTS.get(method, {})
    whole = trained(method, **options)
    monkeypatch.setattr(Node, "ready", watched)
    parts = trained(method, micro_batch=size, **options)
    assert seen == ({1} if size == 1 else {1, 3})
    assert [r.failures + r.rejected for r in parts.strategy.records] == [0] * 5
    for name, value in whole.model.items():
        assert torch.allclose(value, parts.model[name], rtol=1e-3, atol=2e-4), name
    assert same(parts, trained(method, micro_batch=size, **options))
    if size == 1:
        assert same(whole, trained(method, micro_batch=5, **options))


@pytest.mark.flower
def test_replies_that_come_twice_count_once(method: str) -> None:
    trial = trained(method, Fault("twice"))
    assert same(clean(method), trial)
    assert trial.total("replies") == clean(method).total("replies")


@pytest.mark.flower
def test_b4_the_ledger_is_what_the_messages_hold(method: str) -> None:
    trial = clean(method)
    ledger: Ledger = trial.strategy.ledger
    down = sum(content_bytes(content) for _, _, content in trial.grid.requests)
    up = sum(content_bytes(content) for _, _, content in trial.grid.replies)
    assert (ledger.bytes_down, ledger.bytes_up) == (down, up)
    assert ledger.messages_down == len(trial.grid.requests)
    assert ledger.up["labels"] > 0 or not value(method).facts.labels


def arrays_of(content: RecordDict) -> ArrayRecord:
    return content.array_records["arrays"]


def spoil(content: RecordDict) -> RecordDict:
    """Put a NaN into the first float array, or numbers out of range into another."""
    arrays = {name: values(array) for name, array in arrays_of(content).items()}
    for name, array in arrays.items():
        if array.size and array.dtype.kind == "f":
            new = array.copy()
            new.reshape(-1)[0] = np.nan
            return changed(content, arrays={name: new})
    name, array = next(iter(arrays.items()))
    return changed(content, arrays={name: np.full_like(array, 77)})


BAD: dict[str, Change] = {
    "not finite": spoil,
    "another round": lambda content: changed(content, config={"round": 99}),
    "an array too many": lambda content: changed(content, arrays={"no": np.zeros(2, np.float32)}),
    "no arrays": lambda content: RecordDict({k: v for k, v in content.items() if k != "arrays"}),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_reply_is_as_one_that_never_came(method: str, bad: str) -> None:
    for action in value(method).handlers:
        if not any(kind == action for kind, _ in clean(method).grid.log):
            continue  # under these settings it is never asked for
        struck = [Fault("change", {1}, {2, 3}, action, 1, BAD[bad])]
        trial = trained(method, *struck, sampled=0)
        lost = trained(method, Fault("mute", {1}, {2, 3}, action, 1), sampled=0)
        assert trial.total("rejected") == 1, (action, trial.notes)
        assert "The reply of client 1 is not used: " in trial.notes
        assert equal(trial.model, lost.model), action
        assert trial.strategy.digest == lost.strategy.digest


def test_labels_out_of_range_in_the_last_batch_leave_no_trace(method: str) -> None:
    def mislabel(content: RecordDict) -> RecordDict:
        y = values(arrays_of(content)["y"]).copy()
        y[-1] = tiny.CLASSES
        return changed(content, arrays={"y": y})

    actions = {kind for kind, _, content in clean(method).grid.replies if "y" in arrays_of(content)}
    assert bool(actions) == value(method).facts.labels
    for action in sorted(actions):
        trial = trained(method, Fault("change", {1}, {2, 3}, action, 1, mislabel), sampled=0)
        lost = trained(method, Fault("mute", {1}, {2, 3}, action, 1), sampled=0)
        assert trial.total("rejected") == 1, (action, trial.notes)
        assert "a label is 3, the task has classes 0 to 2" in trial.notes
        assert equal(trial.model, lost.model), action


@pytest.mark.parametrize(
    "claim",
    [
        {"config": {"partition-id": 2**40}},
        {"config": {"partition-id": 99}},
        {"metrics": {"num-examples": 0}},
        {"metrics": {"num-examples": 2**62}},
        {"config": {"problem": "\x1b[31mno\x1b[0m"}},
    ],
    ids=lambda claim: str(next(iter(next(iter(claim.values())).items()))).replace("\x1b", ""),
)
def test_a_joiner_who_lies_is_left_out_by_name(method: str, claim: dict[str, Any]) -> None:
    lie = Fault("change", {3}, types="join", change=lambda content: changed(content, **claim))
    trial = trained(method, lie, sampled=0, rounds=2)
    assert [record.replies for record in trial.strategy.records] == [0, 3, 3]
    assert "\x1b" not in trial.notes
    assert not [client for kind, client in trial.grid.log if kind != "join" and client == 3]


def test_clients_of_few_samples_and_few_rounds_of_them(method: str) -> None:
    """A last mini-batch of one sample, and a cohort of one."""
    shares = [tiny.samples(n, seed) for seed, n in enumerate((5, 9, 1, 12))]
    trial = train(tiny.task(shares), method, (), **settings(method, sampled=1, rounds=3))
    assert all(bool(_finite(tensor)) for tensor in trial.model.values())


def _finite(tensor: Tensor) -> Tensor:
    return tensor.isfinite().all()
