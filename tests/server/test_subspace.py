"""What the server chooses, and where it takes directions from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sfl_flower.errors import ConfigError
from sfl_flower.server.energy import energy_share, sample_gradients
from sfl_flower.server.subspace import fitted, resolved
from sfl_flower.split import input_moments
from tests import tiny
from tests.local_grid import Fault
from tests.test_contract import OPTIONS, value
from tests.tiny import Trial, begin, train


def public() -> Any:
    return tiny.samples(20, 7)


def problem(trained: str, **options: Any) -> Any:
    return tiny.task(**{"trained": trained, "public": public, **options})


def shares(trained: str) -> tuple[float, int]:
    task = problem(trained)
    named = resolved(task, 0)
    found = energy_share(fitted(named, 0).client, sample_gradients(task, 0, 4, 10))
    assert found.parameters == tiny.CLIENT_SIZE
    return found.batches, found.trained


def test_all_of_a_half_holds_all_of_its_gradient() -> None:
    share, trained = shares("all")
    assert share == pytest.approx(1.0) and trained == tiny.CLIENT_SIZE
    assert shares("subspace:6")[0] == pytest.approx(1.0)
    assert shares("core:5")[0] > shares("core:2")[0] > shares("core:1")[0]


def test_what_is_chosen_holds_the_more_the_more_is_asked_for() -> None:
    little, much = shares("subspace:auto:0.3:1"), shares("subspace:auto:0.9:1")
    assert 0.3 < little[0] < much[0] and little[1] < much[1] < tiny.CLIENT_SIZE
    # As much as the share that was asked for, but for the samples.
    assert much[0] == pytest.approx(0.9, abs=0.1)


@pytest.mark.flower
def test_what_the_server_chooses_is_told_to_clients_and_recorded() -> None:
    trial = train(problem("subspace:auto:0.5:1"), rounds=2, client_lr=0.5)
    chosen = trial.strategy.task.trained
    assert chosen.startswith("subspace:first=")
    assert trial.strategy.setup.trained == chosen
    assert [r.replies for r in trial.strategy.records] == [0, 4, 4]
    # As one that names the same has, to the bit; it has nothing to tell.
    named = train(problem(chosen), rounds=2, client_lr=0.5)
    assert tiny.equal(trial.model, named.model)
    assert named.strategy.setup.trained == ""


@pytest.mark.parametrize("trained", ["core:2", "subspace:auto:0.5:1", "subspace:first=2"])
def test_gradients_need_public_samples_with_labels(trained: str) -> None:
    with pytest.raises(ConfigError, match=r"needs public samples with labels.* or use subspace:R"):
        begin(problem(trained, public=None))


def test_labels_that_are_none_are_refused() -> None:
    wrong = problem("core:2", public=lambda: type(public())(public().x, public().y + 7))
    with pytest.raises(Exception, match="label"):
        begin(wrong)


def test_directions_of_gradients_do_not_depend_on_torchs_generator() -> None:
    one = fitted(problem("core:2"), 0).client.state_dict()
    torch.rand(3)
    assert tiny.equal(one, fitted(problem("core:2"), 0).client.state_dict())


# Where directions come from


def basis(trial: Trial) -> torch.Tensor:
    found: torch.Tensor = trial.strategy.client_half.get_buffer("first.subspace_basis")
    return found


def sources(trained: str = "subspace:2", **options: Any) -> torch.Tensor:
    return basis(begin(problem(trained), **options))


def test_public_samples_noise_and_gradients_give_directions_of_their_own() -> None:
    found = [sources(subspace_from=source) for source in ("public", "noise", "gradients")]
    assert torch.equal(found[0], sources())
    assert not any(torch.allclose(found[0], other) for other in found[1:])


@pytest.mark.parametrize(
    ("trained", "source", "options", "said"),
    [
        ("subspace:2", "public", {"public": None}, r"but task 'tiny' has no public samples; give"),
        ("subspace:2", "gradients", {"public": None}, "needs public samples with labels"),
        ("core:2", "clients", {}, "whose directions are of gradients; it must be auto or gradient"),
        ("subspace:first=2", "noise", {}, "whose directions are of gradients"),
        ("bias", "noise", {}, "trained is 'bias', which has no directions; leave it at auto"),
        (
            "subspace:2", "noise", {"transform": lambda x: x.long()},
            "left aside, nor can noise stand in for .*int64; use subspace_from=public, for",
        ),
    ],
)  # fmt: skip
def test_a_source_that_cannot_be_is_refused(
    trained: str, source: str, options: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        begin(problem(trained, **options), subspace_from=source)


def from_clients(method: str = "ho_sfl", *faults: Fault, **options: Any) -> Trial:
    given = {**OPTIONS[method], "rounds": 2, "subspace_from": "clients", **options}
    return train(problem("subspace:2", public=None), method, faults, **given)


@pytest.mark.flower
@pytest.mark.parametrize("method", OPTIONS)
def test_directions_of_clients_inputs(method: str) -> None:
    value(method)  # that of the example can be found
    trial = from_clients(method)
    assert [r.failures + r.rejected for r in trial.strategy.records] == [0] * 3
    # Four clients of twelve samples each: all that there are, so the moments are those of all.
    task = problem("subspace:6", public=None)
    x = task.samples("train").x
    moments = input_moments(task.build(0).client, x)["first"]
    values, vectors = torch.linalg.eigh(moments)
    wanted = (vectors[:, [5, 4]] / values[[5, 4]].sqrt()).t().float()
    assert torch.allclose(basis(trial).abs(), wanted.abs(), atol=1e-4)
    # A sketch of 6 x 6 numbers from each of four, once; nobody is sent any.
    assert trial.strategy.ledger.up["moments"] == 4 * 6 * 6 * 4
    assert trial.strategy.ledger.down["moments"] == 0


@pytest.mark.flower
def test_clients_without_moments_do_not_decide() -> None:
    trial = from_clients("ho_sfl", Fault("drop", {1}, types="join"), clients=4, join_timeout=0.1)
    assert bool(basis(trial).any())


@pytest.mark.flower
def test_a_resume_keeps_the_directions_that_clients_gave(tmp_path: Any) -> None:
    shared: dict[str, Any] = {"subspace_from": "clients", "checkpoint_every": 1, "client_lr": 0.1}
    task = problem("subspace:2", public=None)
    whole = tiny.run(task, rounds=4, **shared)
    tiny.run(task, out=tmp_path / "run", rounds=2, **shared)
    again = tiny.run(task, out=tmp_path / "run", rounds=4, resume=True, **shared)
    assert tiny.equal(whole.model, again.model)
