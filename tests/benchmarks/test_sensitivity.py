"""The benchmark of sensitivity keeps a row's rate along an axis, and loses replies by its keys."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import sensitivity
from benchmarks.figure import Figure
from benchmarks.learn_beds import Row
from benchmarks.lost_replies import LostReplies
from sfl_flower import simulate
from sfl_flower.errors import ConfigError
from sfl_flower.tasks import load_task

ROUNDS = 2


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    sensitivity.add_arguments(parser.add_argument_group("sensitivity"))
    return parser.parse_args(list(words))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave two rows and one value of one axis."""
    rows = sensitivity.ROWS
    for name in ("PROBES", "MU"):
        monkeypatch.setattr(sensitivity, name, {})
    kept = {name: rows[name] for name in ("frozen", "ho_sfl", "splitfed_v2")}
    monkeypatch.setattr(sensitivity, "ROWS", kept)
    monkeypatch.setattr(sensitivity, "_matched", lambda: (8, Figure("peak", 0.5, "ratio")))
    monkeypatch.setattr(sensitivity, "ALONG", tuple(kept))
    monkeypatch.setattr(sensitivity, "AXES", {"lost": {"30": {"lost": 0.3}}})


def written(path: Path, row: Row, rate: float, seed: int, changes: Any, **got: float) -> None:
    run = sensitivity.job(row, rate, seed, ROUNDS, changes).key()
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"run": run, "metrics": {"samples": 64.0, **got}}) + "\n")


@pytest.mark.usefixtures("small")
def test_a_part_that_is_asked_for_needs_no_run_of_another(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    for row in sensitivity.PACES.values():
        for rate in row.rates or (0.0,):
            written(path, row, rate, 0, {}, accuracy=0.5, validation_accuracy=0.5)
    words = f"--sensitivity-rounds {ROUNDS} --sensitivity-seeds 1 --sensitivity-out {path}".split()
    found = sensitivity.run(parsed(*words, "--sensitivity-axes", "pace"))
    assert [figure.name for figure in found] == ["accuracy_frozen_round", "accuracy_ho_sfl_round"]


def test_an_unknown_axis_is_refused() -> None:
    with pytest.raises(ConfigError, match="--sensitivity-axes"):
        next(sensitivity.run(parsed("--sensitivity-axes", "base,weather")))


@pytest.mark.usefixtures("small")
def test_a_row_that_is_asked_for_needs_no_run_of_another(tmp_path: Path) -> None:
    path, row = tmp_path / "runs.jsonl", sensitivity.ROWS["ho_sfl"]
    for rate in row.rates:
        written(path, row, rate, 0, {}, accuracy=0.5, validation_accuracy=rate)
    written(path, row, row.rates[-1], 0, {"lost": 0.3}, accuracy=0.25)
    words = f"--sensitivity-rounds {ROUNDS} --sensitivity-seeds 1 --sensitivity-out {path}".split()
    asked = ["--sensitivity-axes", "base,lost", "--sensitivity-rows", "ho_sfl"]
    found = {figure.name: figure.value for figure in sensitivity.run(parsed(*words, *asked))}
    assert found == {"accuracy_ho_sfl_base": 0.5, "accuracy_ho_sfl_lost_30": 0.25}
    with pytest.raises(ConfigError, match="--sensitivity-rows"):
        next(sensitivity.run(parsed("--sensitivity-rows", "ho_sfl,weather")))


@pytest.mark.usefixtures("small")
def test_a_row_keeps_along_an_axis_the_rate_that_is_best_on_held_back_images(
    tmp_path: Path,
) -> None:
    """The middle rate is best on held back images and is the one that runs with lost replies."""
    path = tmp_path / "runs.jsonl"
    rows = {**sensitivity.ROWS, **sensitivity.PACES}
    for label, row in rows.items():
        for number, rate in enumerate(row.rates or (0.0,)):
            held = 0.5 - abs(number - 1) / 10 + 0.01 * label.endswith("_0.2")
            written(path, row, rate, 0, {}, accuracy=0.6 + number / 100, validation_accuracy=held)
    for row in sensitivity.ROWS.values():
        rate = row.rates[1] if row.rates else 0.0
        written(path, row, rate, 0, {"lost": 0.3}, accuracy=0.3, validation_accuracy=0.9)
    first = sensitivity.ROWS["splitfed_v2"]
    written(path, first, first.rates[1], 0, {"micro_batch": "8"}, accuracy=0.62)
    for draw in range(sensitivity.MOVES):
        changes = {"moved": sensitivity.MOVED, "draw": draw}
        written(path, first, first.rates[1], 0, changes, accuracy=0.64 + 0.02 * (draw % 2))
    words = f"--sensitivity-rounds {ROUNDS} --sensitivity-seeds 1 --sensitivity-out {path}".split()
    found = {figure.name: figure for figure in sensitivity.run(parsed(*words))}
    assert found["accuracy_ho_sfl_base"].value == 0.61
    assert found["accuracy_ho_sfl_lost_30"].value == 0.3
    assert "server_lr=0.2" in found["accuracy_frozen_round"].setting
    assert found["accuracy_change_of_micro_batches"].value == pytest.approx(0.62 - 0.61)
    assert found["accuracy_splitfed_v2_memory"].value == 0.62
    assert found["accuracy_change_of_moved_weights"].value == pytest.approx(0.65 - 0.61)


@pytest.mark.usefixtures("small")
def test_changes_of_first_order_are_taken_seed_by_seed(tmp_path: Path) -> None:
    """And first order in as little memory needs no run of another row."""
    path, row = tmp_path / "runs.jsonl", sensitivity.ROWS[sensitivity.MATCHED]
    for rate in row.rates:
        written(path, row, rate, 0, {}, accuracy=0.5, validation_accuracy=1 - rate)
    written(path, row, row.rates[0], 1, {}, accuracy=0.7)
    for seed, change in enumerate((0.1, -0.3)):
        whole = 0.5 + 0.2 * seed
        apart: dict[str, Any] = {"micro_batch": "8"}
        written(path, row, row.rates[0], seed, apart, accuracy=whole + change)
        for draw in range(sensitivity.MOVES):
            changes = {"moved": sensitivity.MOVED, "draw": draw}
            written(path, row, row.rates[0], seed, changes, accuracy=whole - 0.1)
    words = f"--sensitivity-rounds {ROUNDS} --sensitivity-seeds 2 --sensitivity-out {path}".split()
    found = sensitivity.run(parsed(*words, "--sensitivity-axes", "memory"))
    figures = {figure.name: figure for figure in found}
    of_parts = figures["accuracy_change_of_micro_batches"]
    assert of_parts.value == pytest.approx(-0.1)
    assert "0.5000: 0.1000; 0.7000: -0.3000; standard deviation 0.2828" in of_parts.setting
    assert figures["accuracy_change_of_moved_weights"].value == pytest.approx(-0.1)


def test_first_weights_are_moved_by_a_small_share() -> None:
    """Each by about as much of itself as rounding would, otherwise by each draw."""
    built = load_task("digits").model()

    def weights(share: float, draw: int) -> torch.Tensor:
        module = sensitivity._moved(lambda: deepcopy(built), share, draw)
        return torch.cat([weight.detach().flatten() for weight in module.parameters()])

    whole, one, other = weights(0.0, 0), weights(1e-7, 0), weights(1e-7, 1)
    assert torch.equal(one, weights(1e-7, 0))
    assert not torch.equal(one, other)
    for moved in (one, other):
        assert 0.5e-7 < (moved - whole).norm() / whole.norm() < 2e-7
        assert torch.allclose(moved, whole, rtol=1e-6, atol=0.0)


def test_a_moved_run_is_the_same_run_but_for_its_first_weights() -> None:
    row = sensitivity.ROWS["splitfed_v2"]
    whole, near, far = (
        sensitivity.train(sensitivity.job(row, 0.2, 3, 2, {"clients": 4, **changes}))["loss"]
        for changes in ({}, {"moved": 1e-7, "draw": 0}, {"moved": 0.1, "draw": 0})
    )
    assert near == pytest.approx(whole, rel=1e-6)
    assert far != pytest.approx(whole, rel=1e-5)


def test_first_order_in_micro_batches_has_the_peak_of_forwards() -> None:
    micro, matched = sensitivity._matched()
    assert matched.met
    assert 1 <= micro < sensitivity.SHARED["batch_size"]  # backprop at once takes more


def test_a_walk_differs_from_its_row_in_rates_and_signs_alone() -> None:
    pairs = {
        "walk": "ho_sfl",
        "walk_probes_1": "ho_sfl_probes_1",
    }
    rows = {**sensitivity.ROWS, **sensitivity.PROBES}
    for walk, twin in pairs.items():
        assert rows[walk].settings == {**rows[twin].settings, "walk": True}


def test_as_many_mini_batches_reach_the_server_whoever_takes_part() -> None:
    row = sensitivity.ROWS["frozen"]
    for values in sensitivity.AXES.values():
        for changes in values.values():
            options = sensitivity.job(row, 0.0, 0, 100, changes).options
            assert options["rounds"] * (options.get("sampled") or options["clients"]) == 800


@pytest.mark.parametrize(("method", "replies"), [("frozen", 1), ("ho_sfl", 2), ("heron", 1),
                                                 ("splitfed_v2", 2)])  # fmt: skip
def test_replies_are_lost_as_their_keys_say(method: str, replies: int) -> None:
    """A client counts in a round if none of its replies is lost; batches need the first alone."""
    mod = LostReplies(0.4, 7)
    result = simulate("digits", method, backend="inline", rounds=3, clients=4, batch_size=8, seed=7,
                      mods=[mod], **own(method))  # fmt: skip
    records = [record for record in result.history if record.round]
    assert sum(record.failures for record in records) > 0
    for record in records:
        came = [
            sum(
                not any(mod.loses(record.round, client, n) for n in range(upto))
                for client in range(4)
            )
            for upto in (1, replies)
        ]
        assert record.replies == came[1]
        assert record.failures == 4 - came[1]
    first = sum(not mod.loses(r.round, client, 0) for r in records for client in range(4))
    assert result.summary.samples == 8 * first


def own(method: str) -> Mapping[str, Any]:
    """Return what makes a run of a method short."""
    return {"probes": 1} if method in ("ho_sfl", "heron") else {}


def test_a_run_with_lost_replies_is_repeated_to_the_bit() -> None:
    row = sensitivity.ROWS["ho_sfl"]
    job = sensitivity.job(row, 0.1, 3, 2, {"lost": 0.3, "clients": 4})
    first = sensitivity.train(job)
    assert first == sensitivity.train(job)
    assert (
        first["samples"]
        < sensitivity.train(sensitivity.job(row, 0.1, 3, 2, {"clients": 4}))["samples"]
    )
