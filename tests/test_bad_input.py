"""Bad input: a clear error before training, or a reply that is skipped, counted and reported."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, RecordDict

from sfl_flower import simulate
from sfl_flower.errors import ConfigError, CutError, DataError, SflError, TrainingError
from sfl_flower.methods import METHODS, read_options
from sfl_flower.report import RunDirectory
from sfl_flower.task import Samples, SplitTask
from sfl_flower.zo import Journal
from tests import tiny
from tests.local_grid import Fault, changed, kind_of, values
from tests.tiny import begin, equal, run, start, train

ALL = ("ho_sfl", "frozen", "splitfed_v1", "splitfed_v2", "cse_fsl", "heron", "fsl_sage")


# Before anything starts: what is asked for

OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"method": 5}, "method is 5; it must be a text, one of ho_sfl, heron,"),
    ({"method": ["ho_sfl"]}, r"method is \['ho_sfl'\]; it must be a text"),
    ({"method": "ho_slf"}, r"Unknown method 'ho_slf'; legal are .*Did you mean 'ho_sfl'\?"),
    ({"probs": 3}, r"Unknown option of method 'ho_sfl' 'probs'; legal .*mean 'probes'\?"),
    ({"scale": "spread", "probes": 1}, "one scalar has no spread; set probes to at least 2"),
    ({"stack": 4}, "use direction=rank_one with estimator=forward or central, or stack=1"),
    (
        {"stack": 4, "direction": "rank_one", "cone": 0.5},
        "the momentum has no factors, so its probes cannot run in one forward",
    ),
    (
        {"stack": 4, "direction": "rank_one", "micro_batch": "2"},
        "stack=4 with micro_batch=2: one runs several mini-batches",
    ),
    (
        {"method": "heron", "stack": 4, "direction": "rank_one", "micro_batch": "2"},
        "leave stack at 1 or micro_batch at all",
    ),
    ({"stack": 0, "direction": "rank_one"}, r"stack is 0; it must be in \[1, 4096\]"),
    ({"cone": 1.0}, r"cone is 1\.0; it must be in \[0, 0\.999\]"),
    (
        {"method": "heron", "cone": 0.5, "client_state": "kept"},
        "use client_state=fresh.*and cone=0",
    ),
    ({"method": "heron", "scale": "std"}, "scale is 'std'; it must be one of none, spread"),
    ({"guide": "server"}, "guide is 'server'; it must be one of none, public, noise"),
    ({"guide": "public", "guide_rest": 1.5}, r"guide_rest is 1.5; it must be in \[0, 1\]"),
    ({"guide_samples": 8}, "guide_samples is 8 without a guide; .* set guide to public or noise"),
    ({"guide_form": "orthogonal"}, "guide_form is orthogonal without a guide; "),
    ({"guide": "public", "guide_form": "muon"}, "must be one of gradient, orthogonal"),
    (
        {"guide": "public", "guide_momentum": 1.0},
        r"guide_momentum is 1.0; it must be in \[0, 0.9999\]",
    ),
    ({"guide_momentum": 0.5}, "guide_momentum is 0.5 without a guide; "),
    ({"guide_rest": 0.5}, "guide_rest is 0.5 without a guide; .* set guide to public or noise"),
    (
        {"guide": "noise", "cone": 0.5, "client_optimizer": "momentum"},
        "guide is 'noise' with cone 0.5: .*set cone to 0 or guide to none",
    ),
    ({"scalars": "row"}, "scalars is 'row'; it must be one of batch, channel"),
    (
        {"scalars": "channel", "guide": "public"},
        "scalars=channel with guide=public: .*use guide=none, or scalars=batch",
    ),
    ({"scalars": "channel", "probes": 2, "scale": "spread"}, "use scale=none, or scalars=batch"),
    ({"method": "heron", "scalars": "channel"}, "Unknown option of method 'heron' 'scalars'"),
    ({"walk": "maybe"}, "walk is 'maybe'"),
    (
        {"method": "heron", "guide": "public", "head_trainer": "client"},
        "guide is 'public' with head_trainer=client: .*set head_trainer to server or guide to none",
    ),
    ({"method": "heron", "guide_rest": 0.5}, "guide_rest is 0.5 without a guide"),
    ({"method": "heron", "guide": "noise", "cone": 0.5}, "guide is 'noise' with cone 0.5"),
    ({"method": "decomfl", "guide": "noise"}, "Unknown option of method 'decomfl' 'guide'"),
    ({"method": "frozen", "probes": 3}, "Unknown option of method 'frozen' 'probes'; legal are"),
    ({"rounds": 0}, "rounds is 0; it must be at least 1"),
    ({"clients": 0}, "clients is 0; it must be at least 1"),
    ({"clients": -3}, "clients is -3; it must be at least 1"),
    (
        {"clients": 3, "sampled": 4},
        r"sampled is 4 but there are only 3 clients; it must be in \[1, 3\], or 0 for all",
    ),
    ({"sampled": -1}, "sampled is -1; it must be at least 0"),
    ({"micro_batch": 0}, "micro_batch is '0'; it must be all, a number of samples from 1, or mem"),
    ({"micro_batch": -4}, "micro_batch is '-4'; it must be all, a number of samples from 1, or me"),
    ({"micro_batch": "64MB?"}, "micro_batch is '64MB\\?'; .* in KiB, MiB, GiB such as 64MiB"),
    ({"micro_batch": "0MiB"}, "micro_batch is '0MiB'; it must be all"),
    ({"micro_batch": 1.5}, "micro_batch is 1.5; it must be a text"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"rounds": "many"}, "rounds is 'many'; it must be a whole number"),
    ({"rounds": 1.5}, "rounds is 1.5; it must be a whole number"),
    ({"rounds": float("inf")}, "rounds is inf; it must be a whole number"),
    ({"server_lr": float("nan")}, "server_lr is nan; it must be finite"),
    ({"server_lr": float("inf")}, "server_lr is inf; it must be finite"),
    ({"server_lr": "fast"}, "server_lr is 'fast'; it must be a number"),
    ({"server_momentum": 1.0}, r"server_momentum is 1\.0; it must be in \[0, 0\.9999\]"),
    ({"server_optimizer": "lion"}, "server_optimizer is 'lion'; it must be one of sgd, adam"),
    ({"mean": "median"}, "mean is 'median'; it must be one of uniform, samples"),
    ({"partition": "halves"}, "partition is 'halves'; it must be one of iid, dirichlet"),
    ({"alpha": 0.0}, "alpha is 0.0; it must be a finite number above 0"),
    ({"seed": -1}, "seed is -1"),
    ({"timeout": 0.0}, "timeout is 0.0"),
    ({"patience": 0}, "patience is 0"),
]


OPTION: dict[str, Any] = {"task.colour": "red"}


@pytest.mark.parametrize(("options", "says"), OPTIONS)
def test_what_cannot_be_run_is_refused_with_what_can(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_options(options)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: simulate("digit"),
            "Unknown task 'digit' .*did you mean 'digits'.*Tasks: .*digits",
        ),
        (lambda: simulate("digits", "sfl"), "Unknown method 'sfl'; legal are"),
        (lambda: simulate("digits", backend="spark"), "backend is 'spark'; .*ray, inline"),
        (lambda: simulate("digits", **OPTION), "'digits' has no option 'colour'"),
        (lambda: simulate("digits", sede=3), "'sede'.*Did you mean 'seed'"),
    ],
)
def test_simulate_refuses_the_same(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        call()


@pytest.mark.parametrize("method", ALL)
def test_an_unknown_layer_lists_the_legal_ones(method: str) -> None:
    with pytest.raises(CutError, match=r"'acct'.*act"):
        begin(tiny.task(cut="acct"), method)


# Data


def plain(whole: Samples) -> SplitTask:
    """Return a task whose data goes through the real partitioners."""
    return SplitTask("plain", tiny.model, "act", lambda: whole, lambda: tiny.samples(4), 3)


@pytest.mark.parametrize("partition", ["iid", "local"])
@pytest.mark.parametrize("method", ALL)
def test_labels_outside_the_classes_are_refused_before_training(
    method: str, partition: str
) -> None:
    good = tiny.samples(12)
    bad = Samples(good.x, torch.where(torch.arange(12) == 7, 3, good.y))
    says = r"1 of 12 labels are outside the task's 3 classes \(0 to 2\); the first is 3 at row 7"
    trial = begin(plain(bad), method, clients=2, partition=partition)
    with pytest.raises(DataError, match=says):
        start(trial)
    assert not [kind for kind, _ in trial.grid.log if kind != "join"]


@pytest.mark.parametrize("method", ALL)
def test_c3_an_empty_partition_is_left_out_by_name(method: str) -> None:
    shares = [tiny.samples(4), tiny.samples(4), tiny.samples(1).take(slice(0, 0)), tiny.samples(4)]
    trial = train(tiny.task(shares), method, rounds=2)
    assert [r.replies for r in trial.strategy.records[1:]] == [3, 3]
    assert "is left out: Client 2 holds no samples." in trial.notes


def test_fewer_samples_than_clients_is_an_error_with_a_remedy() -> None:
    with pytest.raises(
        DataError, match="3 training samples cannot give each of 4 clients at least"
    ):
        train(plain(tiny.samples(3)), "ho_sfl")


def test_a_partition_that_leaves_a_client_empty_is_an_error_with_a_remedy() -> None:
    with pytest.raises(DataError, match="Use fewer clients, a larger alpha, another seed or more"):
        train(plain(tiny.samples(8)), "ho_sfl", clients=8, partition="dirichlet", alpha=0.01)


# A loss that is not finite


def test_a_loss_that_is_never_finite_ends_the_run_with_a_reason() -> None:
    problem = tiny.task(loss=lambda output, y: (output * float("nan")).mean())
    with pytest.raises(SflError, match="not finite"):
        train(problem, "ho_sfl", rounds=9, patience=2)


# For FSL-SAGE this loss is one of an alignment, which costs no reply: its own tests have that.
@pytest.mark.parametrize("method", [method for method in ALL if method != "fsl_sage"])
def test_one_loss_that_is_not_finite_costs_one_reply(method: str) -> None:
    calls = 0

    def loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        value = torch.nn.functional.cross_entropy(output, y)
        if not output.requires_grad:  # an evaluation
            return value
        calls += 1
        return value * (float("inf") if calls == 6 else 1.0)

    options = {"head_trainer": "client"} if method == "heron" else {}  # one loss at the server
    trial = train(tiny.task(loss=loss), method, rounds=3, **options)  # type: ignore[arg-type]
    # Clients of CSE-FSL have a loss with a graph, too.
    rejected = [0, 1, 0, 0] if method == "cse_fsl" else [0, 0, 1, 0]
    assert [record.rejected for record in trial.strategy.records] == rejected
    assert "its loss or a gradient is not finite" in trial.notes
    assert all(torch.isfinite(value).all() for value in trial.model.values())


def all_linear() -> torch.nn.Module:
    first, act, hidden, _, out = tiny.model().children()
    return torch.nn.Sequential(OrderedDict(first=first, act=act, hidden=hidden, out=out))


def test_a_diverging_run_stops_with_a_reason_and_keeps_what_it_has(tmp_path: Path) -> None:
    options: dict[str, Any] = {"rounds": 30, "patience": 2, "server_lr": 1e30, "client_lr": 0.0}
    with pytest.raises(TrainingError, match="not finite; lower the learning rates"):
        run(tiny.task(build=all_linear), "ho_sfl", out=tmp_path, **options)
    assert len(RunDirectory(tmp_path).history) >= 2
    RunDirectory(tmp_path).load_model()


def test_a_client_rate_that_could_overflow_is_refused() -> None:
    trial = train(tiny.task(), "ho_sfl", rounds=3, client_lr=1e6, scalar_limit=1e30, mu=1e-12)
    assert all(torch.isfinite(value).all() for value in trial.model.values())
    with pytest.raises(ConfigError, match=r"client_lr is 10000000.0; it must be in \[0, 1e\+06\]"):
        train(tiny.task(), "ho_sfl", rounds=2, client_lr=1e7)


# Replies of one client that must not be used


def setting(**config: Any) -> Callable[[RecordDict], RecordDict]:
    return lambda content: changed(content, config=config)


def array(name: str, make: Callable[[np.ndarray], Any]) -> Callable[[RecordDict], RecordDict]:
    def change(content: RecordDict) -> RecordDict:
        old = content.array_records["arrays"].get(name)
        return content if old is None else changed(content, arrays={name: make(values(old))})

    return change


def without(record: str) -> Callable[[RecordDict], RecordDict]:
    return lambda content: RecordDict({k: v for k, v in content.items() if k != record})


def spoiled(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def make(old: np.ndarray) -> np.ndarray:
        new = old.astype(np.int64) if old.dtype.kind in "iu" else old.copy()
        new.reshape(-1)[1] = value
        return new

    return make


def bomb(old: np.ndarray) -> Array:
    good = Array(old)
    return Array(dtype="float32", shape=(10**6, 10**6), stype=good.stype, data=good.data)


def too_many(content: RecordDict) -> RecordDict:
    arrays = {
        name: np.concatenate([values(array)] * 2)
        for name, array in content.array_records["arrays"].items()
        if name in ("z", "y")
    }
    sizes = {"sizes": np.array([8], np.int64)} if "sizes" in content["arrays"] else {}
    return changed(content, arrays={**arrays, **sizes})


@cache
def without_a_reply(method: str, kind: str) -> tuple[dict[str, torch.Tensor], str]:
    """Return the model and the digest of a run in which client 1 does not answer in round 2."""
    trial = train(tiny.task(), method, [Fault("raise", {1}, {2}, kind, 1)], rounds=3)
    return trial.model, trial.strategy.digest


BATCH: dict[str, tuple[Callable[[RecordDict], RecordDict], str]] = {
    "round": (setting(round=99), "it answers .*round 99"),
    "z shape": (array("z", lambda z: z[:, :-1].copy()), r"shape \(4, 4\), expected \[n, 5\]"),
    "z dimensions": (array("z", lambda z: z[None]), "smashed data of shape|mini-batches"),
    "z dtype": (array("z", lambda z: z.astype(np.float64)), "'z' as float64"),
    "z nan": (array("z", spoiled(np.nan)), "a value in 'z' that is not finite"),
    "z inf": (array("z", spoiled(np.inf)), "a value in 'z' that is not finite"),
    "z bomb": (array("z", bomb), "bytes do not match float32"),
    "z missing": (lambda content: changed(content, arrays={"z": None}), "lacks the array 'z'"),
    "y dtype": (array("y", lambda y: y.astype(np.float32)), "'y' as float32"),
    "y length": (array("y", lambda y: y[:-1].copy()), "labels of shape"),
    "y empty": (array("y", lambda y: np.zeros((len(y), 0), np.int64)), "labels of shape"),
    "y shape": (array("y", lambda y: np.zeros((4, 2), np.int64)), "cannot use its batch"),
    "label": (array("y", spoiled(3)), "a label is 3, the task has classes 0 to 2"),
    "negative label": (array("y", spoiled(-1)), "a label is -1"),
    "too many samples": (too_many, "a mini-batch of 8 samples, asked were at most 4"),
    "unknown array": (
        lambda content: changed(content, arrays={"x": np.zeros(3, np.float32)}),
        "unknown entries: x",
    ),
    "unknown setting": (setting(extra=1), "unknown entries: extra"),
    "protocol": (setting(protocol=2), "protocol version 2, this side speaks 4; install the same"),
    "no arrays": (without("arrays"), "lacks the record 'arrays'"),
    "no metrics": (without("metrics"), "lacks the record 'metrics'"),
    "status": (setting(status=""), "status"),
}


@pytest.mark.parametrize("name", BATCH)
@pytest.mark.parametrize("method", ["ho_sfl", "frozen", "splitfed_v2"])
def test_a_bad_batch_is_skipped_counted_and_reported(method: str, name: str) -> None:
    change, says = BATCH[name]
    kind = {"ho_sfl": "forward", "frozen": "forward"}.get(method, "step")
    # As if the client had not answered at all.
    bad = train(tiny.task(), method, [Fault("change", {1}, {2}, kind, 1, change)], rounds=3)
    model, digest = without_a_reply(method, kind)
    assert [record.rejected for record in bad.strategy.records] == [0, 0, 1, 0]
    assert [record.replies for record in bad.strategy.records] == [0, 4, 3, 4]
    assert "The reply of client 1 is not used: " in bad.notes
    assert re.search(says, bad.notes), bad.notes
    assert equal(bad.model, model)
    assert bad.strategy.digest == digest


SCALARS: dict[str, tuple[Callable[[RecordDict], RecordDict], str]] = {
    "round": (setting(round=99), "it answers round 99, asked was round 2"),
    "shape": (array("scalars", lambda v: v[:, :-1].copy()), r"shape \(1, 3\), asked was \(1, 4\)"),
    "more": (array("scalars", lambda v: np.tile(v, (2, 1))), r"shape \(2, 4\), asked was \(1, 4\)"),
    "dimensions": (array("scalars", lambda v: v[0].copy()), r"shape \(4,\), expected 2 dimensions"),
    "dtype": (array("scalars", lambda v: v.astype(np.float64)), "'scalars' as float64"),
    "nan": (array("scalars", spoiled(np.nan)), "'scalars' that is not finite"),
    "inf": (array("scalars", spoiled(-np.inf)), "'scalars' that is not finite"),
    "large": (
        array("scalars", spoiled(1e5)),
        r"\|v\| / mu = 1e\+08, more than scalar-limit = 1e\+06",
    ),
    "missing": (lambda content: changed(content, arrays={"scalars": None}), "lacks the array"),
    "protocol": (setting(protocol=2), "protocol version 2"),
}


@pytest.mark.parametrize("name", SCALARS)
def test_bad_scalars_are_skipped_and_never_journalled(name: str) -> None:
    change, says = SCALARS[name]
    fault = Fault("change", {1}, {2}, "probe", 1, change)
    bad = train(tiny.task(), "ho_sfl", [fault], rounds=3)
    model, digest = without_a_reply("ho_sfl", "probe")
    assert [record.rejected for record in bad.strategy.records] == [0, 0, 1, 0]
    assert re.search(says, bad.notes), bad.notes
    assert equal(bad.model, model)
    assert bad.strategy.digest == digest


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (array("weights.float32", spoiled(np.nan)), "not finite"),
        (
            array("weights.float32", lambda w: w[:-1].copy()),
            "34 values of float32, this model has 35",
        ),
        (array("weights.float32", lambda w: w.astype(np.float16)), "float16"),
        (setting(step=1), "it answers step 1"),
    ],
)
def test_bad_weights_are_left_out_of_the_mean(change: Any, says: str) -> None:
    final = Fault("change", {1}, {2}, "step", change=change)
    bad = train(tiny.task(), "splitfed_v1", [final], rounds=3)
    assert [record.replies for record in bad.strategy.records] == [0, 4, 3, 4]
    assert says in bad.notes
    assert all(torch.isfinite(value).all() for value in bad.model.values())


def test_smashed_data_that_would_poison_the_server_half_is_refused() -> None:
    """Finite numbers whose statistics or gradients are not: BatchNorm would remember them."""
    for method in ("frozen", "splitfed_v2"):
        problem = tiny.task(build=tiny.with_batch_norm)
        fault = Fault("change", {1}, {2}, change=array("z", lambda z: z * np.float32(3e38)))
        trial = train(problem, method, [fault], rounds=3)
        assert all(torch.isfinite(value).all() for value in trial.model.values())
        assert trial.total("rejected") == 1


def not_utf8(content: RecordDict) -> RecordDict:
    """Return the content with a header that is not UTF-8 in every array."""
    arrays = dict(content.array_records["arrays"])
    for name, array in arrays.items():
        headed = Array(values(array))
        data = re.sub(rb"'[<|][fiu].'", b"'\xff\xff\xff'", headed.data, count=1)
        arrays[name] = Array(dtype=array.dtype, shape=array.shape, stype=headed.stype, data=data)
    return changed(content, arrays=dict(arrays))


@pytest.mark.parametrize("method", METHODS)
def test_c1_a_byte_that_is_not_utf8_refuses_the_reply_alone(method: str) -> None:
    fault = Fault("change", {1}, {1}, "", 1, not_utf8)
    trial = train(tiny.task(), method, [fault], rounds=2)
    assert [record.rejected for record in trial.strategy.records] == [0, 1, 0]
    assert [record.replies for record in trial.strategy.records] == [0, 3, 4]
    assert "The reply of client 1 is not used: " in trial.notes
    assert "whose bytes do not match" in trial.notes


@pytest.mark.parametrize("method", METHODS)
def test_c1_whatever_reading_a_reply_raises_refuses_that_reply_alone(method: str) -> None:
    def explode(content: RecordDict) -> RecordDict:
        content.config_records["config"]["round"] = Exploding()
        return content

    fault = Fault("change", {1}, {1}, "", 1, explode)
    trial = train(tiny.task(), method, [fault], rounds=2)
    assert [record.rejected for record in trial.strategy.records] == [0, 1, 0]
    assert "cannot be read (ArithmeticError: a comparison fails)." in trial.notes


class Exploding(int):
    """A number that cannot be compared, for a fault nobody has thought of."""

    def __ge__(self, other: object) -> bool:
        raise ArithmeticError("a comparison fails")


def test_every_client_bad_at_once_ends_the_run_but_not_the_model(tmp_path: Path) -> None:
    fault = Fault("change", None, range(3, 99), "forward", change=setting(round=0))
    with pytest.raises(TrainingError, match="No usable reply in 5 rounds in a row"):
        run(tiny.task(), "ho_sfl", [fault], out=tmp_path, rounds=20)
    expected = train(tiny.task(), "ho_sfl", rounds=2).model
    assert equal(RunDirectory(tmp_path).load_model(), expected)


UNUSED: dict[str, tuple[str, dict[str, Any], list[Fault], str]] = {
    "scalars above their limit": ("ho_sfl", {"scalar_limit": 0}, [], "more than scalar-limit = 0"),
    "scalars that never come": (
        "ho_sfl", {}, [Fault("raise", types="probe")], "a test says so",
    ),
    "weights that cannot be used": (
        "splitfed_v2", {},
        [Fault("change", change=array("weights.float32", spoiled(np.nan)))],
        "not finite",
    ),
    "local steps that fail": ("cse_fsl", {}, [Fault("raise")], "a test says so"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSED)
def test_e3_a_run_in_which_no_reply_was_used_is_no_success(case: str, tmp_path: Path) -> None:
    """Smashed data that trained the server half are no client that learned."""
    method, options, faults, reason = UNUSED[case]
    with pytest.raises(TrainingError, match=rf"No usable reply in any of the 3 rounds.*{reason}"):
        run(tiny.task(), method, faults, out=tmp_path / "a", rounds=3, **options)
    assert not RunDirectory(tmp_path / "a").finished
    with pytest.raises(TrainingError, match=rf"No usable reply in 2 rounds in a row.*{reason}"):
        run(tiny.task(), method, faults, out=tmp_path / "b", rounds=9, patience=2, **options)
    with pytest.raises(TrainingError, match="No usable reply in any of the 2 rounds"):
        run(tiny.task(), method, faults, out=tmp_path / "c", rounds=2, **options)


def test_e3_one_reply_that_was_used_is_enough_also_after_a_resume(tmp_path: Path) -> None:
    faults = [Fault("raise", None, range(2, 9))]
    run(tiny.task(), "splitfed_v2", faults, out=tmp_path, rounds=2)
    result = run(tiny.task(), "splitfed_v2", faults, out=tmp_path, rounds=3, resume=True)
    assert [record.replies for record in result.history] == [0, 4, 0, 0]


# What was trained stays on disk


@pytest.mark.parametrize("method", ALL)
def test_a_run_that_fails_leaves_what_it_trained(method: str, tmp_path: Path) -> None:
    fault, steady = Fault("raise", None, range(4, 99)), tiny.STEADY.get(method, {})
    with pytest.raises(TrainingError, match=r"round 5; the last reason: .*a test says so"):
        run(tiny.task(), method, [fault], out=tmp_path, rounds=20, patience=2, **steady)
    directory = RunDirectory(tmp_path)
    expected = train(tiny.task(), method, rounds=3, **steady)
    assert equal(directory.load_model(), expected.model)
    assert [record.round for record in directory.history] == [0, 1, 2, 3, 4]
    assert directory.history[3].metrics == expected.strategy.records[3].metrics
    ledger = json.loads((tmp_path / "ledger.json").read_text(encoding="utf-8"))
    assert ledger["samples"] == expected.strategy.ledger.samples
    assert ledger["bytes_up"] == expected.strategy.ledger.bytes_up
    tensors, values, _ = directory.load_checkpoint()
    assert tensors and values["round"] == 4
    if method == "ho_sfl":
        assert Journal.load(tmp_path / "journal.bin").version == 3
    assert (tmp_path / "accuracy.png").exists()


def test_an_error_of_the_users_own_code_keeps_its_name(tmp_path: Path) -> None:
    calls = 0

    def loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise KeyError("a bug of the user")
        return torch.nn.functional.cross_entropy(output, y)

    with pytest.raises(KeyError, match="a bug of the user"):
        run(tiny.task(loss=loss), "ho_sfl", out=tmp_path, rounds=9)
    assert RunDirectory(tmp_path).load_model()


def test_a_client_that_raises_is_reported_in_one_line() -> None:
    trial = begin(tiny.task(), "ho_sfl", rounds=1)
    app = trial.grid._app

    def broken(message: Any, context: Any) -> Any:
        if context.node_config["partition-id"] == 1 and kind_of(message) != "join":
            raise ValueError("first line\nlast line of a traceback")
        return app(message, context)

    trial.grid._app = broken  # type: ignore[assignment]
    start(trial)
    assert trial.strategy.records[1].notes == (
        "Client 1 is left out of this round: last line of a traceback (Flower error 2)",
    )
