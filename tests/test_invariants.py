"""The invariants of the design; the last, equal bits for equal seeds, is in `test_contract`."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from safetensors import safe_open

from sfl_flower.clients import ho_sfl
from sfl_flower.data import memory
from sfl_flower.wire import content_bytes
from sfl_flower.zo import Journal, surrogate_scalars
from tests import tiny
from tests.local_grid import Fault, changed, serde, values
from tests.tiny import CLIENT_NAMES, CUT, begin, equal, flat, run, start, train

PACKAGE = Path(__file__).resolve().parents[1] / "sfl_flower"
ALL = ("ho_sfl", "frozen", "splitfed_v1", "splitfed_v2", "cse_fsl", "heron", "fsl_sage")
HEAD_NAMES = ("fc.bias", "fc.weight")


def held_by_clients(problem: Any) -> list[Any]:
    """Return the modules that clients keep between messages."""
    # A head is kept as it was built, too: what new ones are copied from.
    kept = [thing for key, thing in memory._MEMORY[problem.key].items() if key[0] != "head"]  # type: ignore[index]
    return [m for m in (getattr(k, "module", k) for k in kept) if isinstance(m, torch.nn.Module)]


@pytest.mark.parametrize("method", ["ho_sfl", "frozen", "heron"])
def test_1_no_graph_no_server_half_on_a_client_and_no_inputs_on_the_wire(method: str) -> None:
    problem = tiny.task()
    trial = begin(problem, method)
    deliver, saved = trial.grid.deliver, []

    def watched(message: Message) -> Message | None:
        def pack(tensor: torch.Tensor) -> torch.Tensor:
            saved.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return deliver(message)

    trial.grid.deliver = watched  # type: ignore[method-assign]
    start(trial)
    assert saved == []  # nothing was kept for a backward pass

    names = set(CLIENT_NAMES)
    if method == "heron":
        names = {f"client.{n}" for n in CLIENT_NAMES} | {f"head.{n}" for n in HEAD_NAMES}
    held = held_by_clients(problem)
    assert [set(module.state_dict()) for module in held] == [names]
    assert all(parameter.grad is None for module in held for parameter in module.parameters())

    rows = {row.tobytes() for row in problem.samples("train").x.numpy()}
    sent = [c for _, _, c in trial.grid.replies] + [c for _, _, c in trial.grid.requests]
    arrays = [array for content in sent for array in content["arrays"].values()]
    assert len(arrays) > 20
    assert not any(row in array.data for row in rows for array in arrays)
    assert {values(a).shape[1:] for c in sent for n, a in c["arrays"].items() if n == "z"} == {
        (CUT,)
    }


@pytest.mark.parametrize("method", ["splitfed_v2", "cse_fsl"])
def test_1_first_order_clients_do_build_a_graph(method: str) -> None:
    """The hook of the test above sees one where there is one."""
    saved = []
    trial = begin(tiny.task(), method, rounds=1)
    deliver = trial.grid.deliver

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    def watched(message: Message) -> Message | None:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            return deliver(message)

    trial.grid.deliver = watched  # type: ignore[method-assign]
    start(trial)
    assert saved


def test_2_probes_restore_to_the_bit_and_synced_clients_equal_the_mirror(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, compared = surrogate_scalars, []

    def watched(forward: Any, vector: Any, *rest: Any, **named: Any) -> Any:
        before = vector.anchor.clone()
        scalars = own(forward, vector, *rest, **named)
        compared.append(before.numpy().tobytes() == vector.anchor.numpy().tobytes())
        return scalars

    monkeypatch.setattr(ho_sfl, "surrogate_scalars", watched)
    faults = [
        Fault("drop", {1}, {2, 3}),
        Fault("forget", {2}, {3}),
        Fault("late", {3}, {4}, times=1),
    ]
    silent = Fault("drop", None, {6}, types="probe")  # everyone syncs, nothing changes
    trial = train(tiny.task(), "ho_sfl", [*faults, silent], rounds=6)
    assert len(compared) > 15 and all(compared)
    mirror = trial.strategy.mirror
    assert mirror.version == 5
    assert {trial.position(client) for client in range(4)} == {(5, mirror.digest)}
    assert {trial.theta(c).tobytes() for c in range(4)} == {mirror.replica.theta.numpy().tobytes()}
    assert torch.equal(flat(trial.model, CLIENT_NAMES), mirror.replica.theta.double())


def test_3_duplicates_and_the_order_of_replies_do_not_change_the_update() -> None:
    shares = [tiny.samples(1, seed) for seed in range(3)]  # one sample: one order of its batch
    options: dict[str, Any] = {"rounds": 1, "directions": "shared", "client_lr": 1.0}
    once = train(tiny.task(shares), clients=3, **options)
    twice = train(tiny.task(shares + shares), clients=6, **options)
    names = sorted(once.model)
    before = begin(tiny.task(shares), clients=3, **options).model
    step = flat(before, names) - flat(once.model, names)
    error = flat(once.model, names) - flat(twice.model, names)
    assert float(error.norm()) <= 2e-5 * float(step.norm())
    for method in ALL:
        trials = []
        for seed in range(3):
            trial = begin(tiny.task(), method)
            trial.grid._rng.seed(seed)
            trials.append(start(trial))
        assert all(equal(trials[0].model, trial.model) for trial in trials[1:])


@pytest.mark.parametrize("method", ALL)
def test_4_the_ledger_is_the_closed_form_and_reconciles_with_the_encoding(method: str) -> None:
    trial = train(tiny.task(), method, rounds=2)
    ledger = trial.strategy.ledger
    batches, z = 2 * 4, 4 * 4 * CUT
    assert ledger.up["smashed"] == batches * z
    assert ledger.up["labels"] == batches * 4
    local = method in ("frozen", "cse_fsl", "heron", "fsl_sage")  # nothing comes back
    assert ledger.down["gradients"] == (0 if local else batches * z)
    scalars = 4 * trial.strategy.settings.probes if method in ("ho_sfl", "heron") else 0
    assert ledger.up["scalars"] == batches * scalars
    messages = [c for _, _, c in trial.grid.replies] + [c for _, _, c in trial.grid.requests]
    total = ledger.bytes_up + ledger.bytes_down
    assert total == sum(content_bytes(content) for content in messages)
    if serde is not None:
        encoded = sum(serde.recorddict_to_proto(content).ByteSize() for content in messages)
        assert 0 < encoded - total <= 256 * len(messages)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9], ids=str)
def test_5_a_bad_scalar_never_reaches_the_journal(value: float) -> None:
    def spoil(content: Any) -> Any:
        scalars = values(content["arrays"]["scalars"]).copy()
        scalars[0, 1] = value
        return changed(content, arrays={"scalars": scalars})

    faults = [Fault("change", {2}, {2}, "probe", change=spoil)]
    trial = train(tiny.task(), "ho_sfl", faults, rounds=3)
    assert [record.rejected for record in trial.strategy.records] == [0, 0, 1, 0]
    assert [record.replies for record in trial.strategy.records] == [0, 4, 3, 4]
    assert "The reply of client 2 is not used" in trial.notes
    entries = trial.strategy.mirror.journal.entries
    assert [entry.streams for entry in entries] == [(1, 2, 3, 4), (1, 2, 4), (1, 2, 3, 4)]
    assert all(np.isfinite(entry.coefficients).all() for entry in entries)
    assert all(torch.isfinite(value).all() for value in trial.model.values())


def pickles(source: str) -> list[str]:
    """Return what of a source file could unpickle what it reads, tensors alone apart."""
    found = []
    nodes = list(ast.walk(ast.parse(source)))
    tensors_alone = {
        id(node.func)
        for node in nodes
        if isinstance(node, ast.Call)
        and any(ast.unparse(keyword) == "weights_only=True" for keyword in node.keywords)
    }
    for node in nodes:
        names: list[str] = []
        if id(node) in tensors_alone:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            names = [] if ast.unparse(node.value) == "False" else ["allow_pickle"]
        banned = ("pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "torch.load")
        found += [
            name
            for name in names
            if name.split(".")[0] in banned or name in (*banned, "torch.save", "allow_pickle")
        ]
    return found


def test_6_no_pickle_from_the_wire_or_from_disk(tmp_path: Path) -> None:
    assert {
        p.name: pickles(p.read_text("utf-8"))
        for p in PACKAGE.rglob("*.py")
        if pickles(p.read_text("utf-8"))
    } == {}
    assert not pickles("torch.load(f, weights_only=True)")
    for bad in (
        "import pickle",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
    ):
        assert pickles(bad)

    run(tiny.task(), out=tmp_path / "run", rounds=2)
    files = {path.name: path for path in (tmp_path / "run").iterdir() if path.is_file()}
    for name, path in files.items():
        if path.suffix == ".safetensors":
            with safe_open(path, framework="np") as opened:
                assert list(opened.keys())
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == [
                0,
                1,
                2,
            ]
        elif name == "journal.bin":
            assert Journal.load(path).version == 2
        else:
            assert name == "accuracy.png" and path.read_bytes().startswith(b"\x89PNG")
    assert {
        "model.safetensors",
        "checkpoint.safetensors",
        "journal.bin",
        "ledger.json",
        "config.json",
    } <= set(files)
