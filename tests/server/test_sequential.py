"""A refused reply leaves the server as if that client had not answered, to the bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from torch import Tensor, nn

from sfl_flower.errors import TrainingError
from tests import tiny
from tests.local_grid import Fault, changed, values
from tests.tiny import Trial, begin, equal, start, train


@dataclass(frozen=True)
class AtStep(Fault):
    """A fault of one step of a round, for methods with a message a step."""

    step: int = 1

    def hits(self, message: Message, client: int) -> bool:
        """Tell whether this message is struck."""
        step = message.content.config_records["config"].get("step")
        return super().hits(message, client) and step == self.step


class Steps(Fault):
    """A fault of FSL-SAGE's local steps, where their first smashed data came ahead."""

    def hits(self, message: Message, client: int) -> bool:
        """Tell whether this message is struck."""
        config = message.content.config_records["config"]
        return super().hits(message, client) and bool(config.get("ahead"))


def last_rows_huge(content: Any) -> RecordDict:
    """Make the last mini-batch, four samples, one whose loss is not finite."""
    z = np.array(values(content["arrays"]["z"]))
    z[-4:] = 3e38
    return changed(content, arrays={"z": z})


def server_of(trial: Trial) -> dict[str, Tensor]:
    """Return all that the server keeps: halves, heads, optimisers, buffers, banks, journal."""
    tensors, _ = trial.strategy.checkpoint()
    # What the screening has seen is of the replies, refused ones too.
    return {name: value for name, value in tensors.items() if not name.startswith("screening.")}


TWO: dict[str, Any] = {"local_steps": 2, "upload_every": 1}
CASES: dict[str, tuple[str, type[Fault], dict[str, Any]]] = {
    "heron": ("heron", Fault, {**TWO, "probes": 2}),
    "heron, client's head": ("heron", Fault, {**TWO, "probes": 2, "head_trainer": "client"}),
    "heron, weights": ("heron", Fault, {**TWO, "probes": 2, "uplink": "weights"}),
    "heron, one batch": ("heron", Fault, {**TWO, "local_steps": 1, "probes": 2}),
    "cse_fsl": ("cse_fsl", Fault, TWO),
    "fsl_sage": ("fsl_sage", Fault, {**TWO, "align_epochs": 2}),
    "fsl_sage, warm": ("fsl_sage", Fault, {**TWO, "align_epochs": 2, "warm_start": True}),
    "fsl_sage, aligned": (
        "fsl_sage",
        Steps,
        {**TWO, "local_steps": 3, "align_epochs": 2, "align_every": 1},
    ),
    "frozen, batch": ("frozen", Fault, {"minibatches": 2, "server_steps": "batch"}),
    "frozen, round": ("frozen", Fault, {"minibatches": 2}),
    "ho_sfl": ("ho_sfl", Fault, {"minibatches": 2}),
    "ho_sfl, batch": ("ho_sfl", Fault, {"minibatches": 2, "server_steps": "batch"}),
    "splitfed_v1": ("splitfed_v1", AtStep, {"local_steps": 2}),
    "splitfed_v2": ("splitfed_v2", AtStep, {"local_steps": 2}),
}


@pytest.mark.parametrize("server", ["sgd", "adam"])
@pytest.mark.parametrize("name", CASES)
def test_c7_a_reply_with_a_bad_second_batch_moves_nothing(name: str, server: str) -> None:
    method, kind, own = CASES[name]
    round = 1 if name == "fsl_sage, warm" else 2
    options: dict[str, Any] = {**own, "server_optimizer": server, "server_momentum": 0.9}
    options["outlier_factor"] = 0  # or it would be refused before it is tried

    def run(fault: str) -> Trial:
        problem = tiny.task(build=tiny.with_batch_norm, cut="first")
        change = last_rows_huge if fault == "change" else None
        return train(problem, method, [kind(fault, {1}, {round}, change=change)], **options)

    bad, silent = run("change"), run("raise")
    record, other = bad.strategy.records[round], silent.strategy.records[round]
    assert (record.rejected, record.failures) == (1, 0) and "not finite" in bad.notes
    assert (other.rejected, other.failures) == (0, 1)
    assert equal(server_of(bad), server_of(silent))
    assert record.samples == other.samples and record.loss == other.loss


E2: dict[str, dict[str, Any]] = {
    "heron": {"local_steps": 0, "probes": 2},
    "cse_fsl": {"local_steps": 0},
    "fsl_sage": {"local_steps": 0, "align_epochs": 2},
    "frozen": {"minibatches": 2, "server_steps": "batch"},
    "ho_sfl": {"minibatches": 2},
}


class Even(nn.Module):
    """Refuses to train on an odd number of samples."""

    def forward(self, z: Tensor) -> Tensor:
        if self.training and len(z) % 2:
            raise RuntimeError("an odd batch")
        return z


def even() -> nn.Module:
    model = tiny.with_batch_norm()
    model.add_module("even", Even())
    return model


@pytest.mark.parametrize("method", E2)
def test_e2_a_last_batch_leaves_no_trace_where_it_is_refused(method: str) -> None:
    """Seven samples at batch 4: the server half takes the first batch and not the second."""
    shares = [tiny.samples(7, seed) for seed in range(2)]
    problem = tiny.task(shares, build=even, cut="first")
    trial = begin(problem, method, clients=2, rounds=2, patience=3, **E2[method])
    before = server_of(trial)
    with pytest.raises(TrainingError, match=r"No usable reply in any of the 2 rounds"):
        start(trial)
    assert trial.total("rejected") == 2 and trial.total("replies") == 0  # round 2 left no record
    assert "the server half cannot use its batch: an odd batch." in trial.notes
    if method == "fsl_sage":  # in round 1 the first batches came ahead: they are used, and counted
        assert [record.samples for record in trial.strategy.records] == [0, 8]
        return
    assert trial.strategy.ledger.samples == 0
    assert equal(server_of(trial), before)


EPOCH: dict[str, dict[str, Any]] = {
    **E2,
    "splitfed_v1": {"local_steps": 0},
    "splitfed_v2": {"local_steps": 0},
    "fedavg": {},
}


@pytest.mark.parametrize("cut", ["first", "act"])
@pytest.mark.parametrize("method", EPOCH)
def test_e2_a_sample_that_would_be_a_batch_of_its_own_is_trained_on(method: str, cut: str) -> None:
    """Five samples at batch 4, with BatchNorm in train mode behind the cut, or on both sides."""
    shares = [tiny.samples(5, seed) for seed in range(2)]
    problem = tiny.task(shares, build=tiny.with_batch_norm, cut=cut)
    options: dict[str, Any] = {}
    if cut == "act" and method == "ho_sfl":
        options = {"client_mode": "eval"}
    passes = 2 if "minibatches" in EPOCH[method] else 1
    trial = train(problem, method, clients=2, rounds=2, **EPOCH[method], **options)
    assert trial.total("rejected") == trial.total("failures") == 0
    assert [record.samples for record in trial.strategy.records] == [0, 10 * passes, 20 * passes]
