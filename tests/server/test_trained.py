"""Which client parameters are trained, and that only those travel: for every method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from torch import Tensor, nn

from sfl_flower.errors import DataError, TrainingError
from sfl_flower.methods import METHODS
from sfl_flower.node.node import join
from sfl_flower.report import RunDirectory
from sfl_flower.run.client_app import make_client_app
from sfl_flower.server import summary
from sfl_flower.server.frozen_parameters import check_first_weights
from sfl_flower.server.probing import HOPELESS
from sfl_flower.split import freeze_batch_norm
from sfl_flower.wire import JoinRequest
from tests import tiny
from tests.local_grid import values
from tests.second_device import SECOND, second_device
from tests.tiny import CUT, FEATURES, SharedOut, begin, equal, run, start, train

WHOLE = ("fedavg", "decomfl")
OPTIONS: dict[str, dict[str, Any]] = {
    # So that everything that is trained moves within two rounds, and nothing diverges.
    "zo_sfl": {"client_optimizer": "sgd", "server_lr": 0.01},
    "fsl_sage": {"align_epochs": 2},
}
SERVER = CUT * 4 + 4 + 4 * 3 + 3


def few(choice: str = "bias", **options: Any) -> SharedOut:
    found = tiny.task(trained=choice, **options)
    assert isinstance(found, SharedOut)
    return found


def weight_arrays(content: RecordDict) -> dict[str, np.ndarray]:
    """Return the packed weights of a client half or a whole model in a message."""
    arrays = content.array_records["arrays"]
    return {
        name: values(array)
        for name, array in arrays.items()
        if name.startswith(("weights.", "state.weights."))
    }


def sizes(trial: tiny.Trial) -> set[int]:
    """Return how many values of weights the messages brought, of those that brought some."""
    contents = [c for _, _, c in trial.grid.requests + trial.grid.replies]
    found = [weight_arrays(content) for content in contents]
    return {sum(v.size for v in arrays.values()) for arrays in found if arrays}


@pytest.mark.parametrize("method", METHODS)
def test_frozen_parameters_keep_their_bits_and_stay_at_home(method: str) -> None:
    trial = begin(few(), method, rounds=2, **OPTIONS.get(method, {}))
    before = trial.model
    after = start(trial).model
    assert trial.total("replies") == 8 and trial.notes == ""
    assert torch.equal(before["first.weight"], after["first.weight"])
    assert torch.equal(before["first.bias"], after["first.bias"]) == (method == "frozen")
    assert sizes(trial) == {CUT + (SERVER if method in WHOLE else 0)}
    kept = trial.strategy.method_tensors()
    assert not [name for name in kept if name.endswith("first.weight")]
    assert [name for name in kept if name.endswith("first.bias")]
    for context in trial.grid.contexts.values():
        records = context.state.array_records
        held = {n for name in ("weights", "replica", "rest") if name in records
                for n in (a.numpy().size for a in records[name].values())}  # fmt: skip
        assert FEATURES * CUT not in held and tiny.CLIENT_SIZE not in held


@pytest.mark.parametrize("method", METHODS)
def test_choosing_everything_is_a_run_with_nothing_chosen(method: str) -> None:
    options = OPTIONS.get(method, {})
    ours, theirs = train(few("*"), method, **options), train(tiny.task(), method, **options)
    assert equal(ours.model, theirs.model)
    assert ours.strategy.ledger.to_dict() == theirs.strategy.ledger.to_dict()


def normed(model: nn.Module) -> nn.Module:
    freeze_batch_norm(model.get_submodule("norm"))
    return model


@pytest.mark.parametrize("method", ["ho_sfl", "splitfed_v2", "cse_fsl"])
def test_frozen_norms_stay_at_home_and_others_travel(method: str) -> None:
    trial = train(tiny.task(build=lambda: normed(tiny.with_batch_norm())), method, rounds=1)
    assert sizes(trial) == {tiny.CLIENT_SIZE}
    if method != "ho_sfl":  # whose checker refuses them
        trial = train(few("norm", build=tiny.with_batch_norm), method, rounds=1)
        assert sizes(trial) == {4 * CUT + 1}  # weight, bias, mean and variance; the counter


@pytest.mark.parametrize("method", ["ho_sfl", "fedavg", "splitfed_v1"])
def test_a_resumed_run_is_the_same_and_its_model_whole(method: str, tmp_path: Path) -> None:
    whole = run(few(), method, out=tmp_path / "whole", rounds=4)
    run(few(), method, out=tmp_path / "parts", rounds=2)
    again = run(few(), method, out=tmp_path / "parts", resume=True, rounds=4)
    assert equal(whole.model, again.model)
    kept = RunDirectory(tmp_path / "parts").load_model()
    assert equal(kept, again.model) and set(kept) == set(tiny.model().state_dict())


def test_a_checkpoint_of_other_frozen_parameters_is_refused() -> None:
    done = train(few(), "splitfed_v2", rounds=1)
    other = begin(few(), "splitfed_v2", seed=1)
    with pytest.raises(TrainingError, match=r"made with other frozen parameters .* its model\(\)"):
        other.strategy.resume(*done.strategy.checkpoint())


# First weights


def shifted(state: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {k: v + 1 if k in names else v for k, v in state.items()}


def warm(method: str, *names: str) -> tiny.Trial:
    trial = begin(few(), method, rounds=1, client_lr=0.0, **OPTIONS.get(method, {}))
    first = shifted(trial.model, *names)
    trial.strategy.model = lambda: first  # what `arrays` gives
    found = start(trial)
    del trial.strategy.model
    return found


@pytest.mark.parametrize("method", ["ho_sfl", "splitfed_v2", "fedavg", "decomfl"])
def test_first_weights_may_differ_where_they_are_trained(method: str) -> None:
    before = begin(few(), method).model
    assert torch.equal(warm(method, "first.bias").model["first.bias"], before["first.bias"] + 1)


@pytest.mark.parametrize("method", ["ho_sfl", "splitfed_v2", "fedavg", "decomfl"])
def test_first_weights_that_clients_would_not_have_are_refused(method: str) -> None:
    says = r"initial_arrays give 'first\.weight' other values than the task builds.*model\(\)"
    with pytest.raises(TrainingError, match=says):
        warm(method, "first.weight", "first.bias", "out.weight")


def test_a4_first_weights_are_held_against_a_half_on_another_device() -> None:
    half = tiny.model().requires_grad_(False)
    first = {name: value.clone() for name, value in half.state_dict().items()}
    with second_device():
        half.to(SECOND)
        check_first_weights(first, [half])
        with pytest.raises(TrainingError, match=r"'first\.bias' other values"):
            check_first_weights(shifted(first, "first.bias"), [half])


def test_frozen_parameters_of_a_server_half_may_be_given() -> None:
    def build() -> nn.Module:
        model = tiny.model()
        model.get_submodule("out").requires_grad_(False)
        return model

    trial = begin(tiny.task(build=build), "splitfed_v2", rounds=1)
    first = shifted(trial.model, "out.weight")
    trial.strategy.model = lambda: first
    start(trial)
    assert torch.equal(trial.strategy.state_dict()["out.weight"], first["out.weight"])
    with pytest.raises(TrainingError, match=r"'out\.weight' other values"):
        trial = begin(tiny.task(build=build), "fedavg", rounds=1)
        trial.strategy.model = lambda: first
        start(trial)


# Joining


@pytest.mark.parametrize("method", ["ho_sfl", "cse_fsl", "fedavg"])
def test_a_client_with_another_base_is_refused(method: str) -> None:
    trial = begin(few(), method)

    def other() -> nn.Module:
        model = tiny.model()
        with torch.no_grad():
            model.get_parameter("first.weight")[0, 0] = 7.0
        return model

    theirs = few(build=other)
    theirs.given(trial.strategy.config)
    trial.grid._app = make_client_app(lambda context: theirs)
    says = r"Client 0 builds other frozen parameters than the server \(digest \w{8} instead of \w"
    with pytest.raises(DataError, match=says):
        start(trial)
    assert not [kind for kind, _ in trial.grid.log if kind != "join"]


def test_joining_builds_no_model_where_nothing_is_frozen() -> None:
    def build() -> nn.Module:
        raise AssertionError("a model was built")

    trial = begin(tiny.task())
    idle = few("all", build=build)
    idle.given(trial.strategy.config)
    context = trial.grid.contexts[trial.grid.nodes[1]]
    reply = join(lambda _: idle, context, JoinRequest(trial.strategy.setup))
    assert (reply.partition, reply.problem) == (1, "")


# How noisy it is


NOISY: dict[str, tuple[dict[str, Any], int, int, str]] = {
    # d, P and what P is made of, by hand; the tiny task has 4 clients.
    "own": ({"probes": 3, "minibatches": 2, "sampled": 2}, 35, 12, "3 probes x 2 mini-batches x 2"),
    "shared": ({"probes": 3, "directions": "shared"}, 35, 3, "3 probes, shared by the clients"),
    "heron": ({"probes": 2, "head_trainer": "client"}, 35 + 18, 8, "2 probes x 4 clients"),
    "heron, server": ({"probes": 2}, 35, 8, "2 probes x 4 clients"),
    "decomfl": ({"probes": 5, "local_steps": 3}, 35 + SERVER, 5, "5 probes, shared"),
    "zo_sfl": ({"probes": 2}, 35 + SERVER, 8, "2 probes x 4 clients"),
}


@pytest.mark.parametrize("case", NOISY)
def test_parameters_and_directions_of_an_update(case: str) -> None:
    options, size, directions, words = NOISY[case]
    method = {"own": "ho_sfl", "shared": "ho_sfl"}.get(case, case.partition(",")[0])
    strategy = begin(tiny.task(), method, **options).strategy
    noise = strategy.noise()
    assert (noise.size, noise.directions) == (size, directions)
    assert noise.made_of.startswith(words)
    assert noise.warning(strategy.task, strategy.config) == ""
    assert noise.ratio == size / directions
    smaller = begin(few(), method, **options).strategy.noise()
    assert smaller.size == size - FEATURES * CUT


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 300), nn.Tanh(), nn.Linear(300, 3))


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(summary._log, "warning", found.append)
    return found


def test_hopeless_noise_is_warned_of_in_one_line(warnings: list[str]) -> None:
    problem = tiny.task(build=wide, cut="1")  # d = 6 x 300 + 300
    begin(problem, "ho_sfl", probes=4, directions="shared").strategy.summary()
    (found,) = warnings
    assert "\n" not in found
    assert "d = 2100 parameters over P = 4 directions" in found
    assert "d/P = 525; " in found and f"above d/P = {HOPELESS}" in found
    assert "about 23 times the gradient" in found
    # 4 of 6 directions for each of 300 outputs, and their biases.
    fewer = "fewer trained parameters (task.trained: subspace:4 leaves 1500 in the client half)"
    assert f"more probes, directions=own, {fewer}" in found


def deep() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, 300), nn.Tanh(), nn.Linear(300, 20), nn.Tanh(), nn.Linear(20, 3)
    )


def test_of_what_has_scalars_of_channels_a_row_counts(warnings: list[str]) -> None:
    """2 100 before the last layer and a row of 301 are 2 401 of 8 120."""
    problem = tiny.task(build=deep, cut="3")
    options: dict[str, Any] = {"probes": 4, "directions": "shared", "scalars": "channel"}
    noise = begin(problem, "ho_sfl", **options).strategy.noise()
    assert (noise.size, noise.ratio) == (2401, 2401 / 4)
    begin(problem, "ho_sfl", **options).strategy.summary()
    (found,) = warnings
    assert (
        "d = 2401 parameters (of 2.bias, 2.weight, which has scalars of channels, a row)" in found
    )
    assert "fewer trained parameters (task.trained: subspace:16:2)" in found
    for trained in ("last:1", "subspace:16:2"):
        begin(problem.with_trained(trained), "ho_sfl", **options).strategy.summary()
    assert len(warnings) == 1


@pytest.mark.parametrize("method", ["ho_sfl", "heron"])
def test_what_is_beside_a_guide_counts_for_what_it_weighs(method: str, warnings: list[str]) -> None:
    """A guide is measured and has no noise; what is left counts its weight squared."""
    problem = tiny.task(build=wide, cut="1")
    options: dict[str, Any] = {"probes": 1, "sampled": 1, "guide": "noise"}
    for rest in (0.0, 0.4):  # 0.16 x 2 100 are 336
        begin(problem, method, **options, guide_rest=rest).strategy.summary()
    assert warnings == []
    begin(problem, method, **options, guide_rest=0.5).strategy.summary()
    (found,) = warnings
    assert "is guide_rest^2 d/P = 525; " in found and "about 23 times the gradient" in found
    assert "Use more probes, a lower guide_rest, " in found


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ho_sfl", {"probes": 4}),  # 16 directions of their own
        ("ho_sfl", {"probes": 5, "directions": "shared"}),  # d/P = 420
        ("splitfed_v2", {"client_momentum": 0.0}),
    ],
)
def test_fair_noise_is_not(method: str, options: dict[str, Any], warnings: list[str]) -> None:
    problem = tiny.task(build=wide, cut="1")
    begin(problem, method, **options).strategy.summary()
    assert warnings == []
