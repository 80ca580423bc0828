"""What the server chooses, and where it takes directions from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sfl_flower.errors import ConfigError
from sfl_flower.server.energy import energy_share, sample_gradients
from sfl_flower.server.subspace import fitted, resolved
from tests import tiny
from tests.tiny import begin, train


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
