"""NoPeek's term in what forward-only clients measure: its derivative, its reports, its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfl_flower.clients import heron
from sfl_flower.data import batch_indices, client_key
from sfl_flower.errors import ConfigError, TrainingError
from sfl_flower.methods import read_options
from sfl_flower.privacy.dependence import Dependence
from sfl_flower.report import RunDirectory
from sfl_flower.task import Samples
from sfl_flower.wire.probing import NO_DCOR
from sfl_flower.zo import ParameterVector, client_stream, loss_scalars, run_key
from tests import tiny
from tests.local_grid import Fault, changed, values
from tests.tiny import Trial, begin, equal, train

METHODS = ("ho_sfl", "heron")
EACH, BATCH, PROBES, MU, ALPHA = 12, 8, 3, 1e-2, 20.0
OPTIONS: dict[str, Any] = {
    "clients": 1,
    "rounds": 1,
    "batch_size": BATCH,
    "probes": PROBES,
    "mu": MU,
    "client_lr": 0.0,
}


def trained(method: str, problem: Any = None, **options: Any) -> Trial:
    problem = problem or tiny.task(clients=1, each=EACH)
    return train(problem, method, **{**OPTIONS, **options})


def sent(trial: Trial, name: str = "scalars") -> np.ndarray:
    return np.concatenate(
        [
            values(content["arrays"][name]).astype(np.float64)
            for _, _, content in trial.grid.replies
            if name in content.array_records.get("arrays", {})
        ]
    )


def told(trial: Trial) -> list[float]:
    configs = [c.config_records.get("config", {}) for _, _, c in trial.grid.replies]
    return [float(config["dcor"]) for config in configs if "dcor" in config]


def inputs(step: int = 0) -> Tensor:
    """Return the client's mini-batch of the first round."""
    rows = batch_indices(client_key(0, 0), 1, step, EACH, BATCH).copy()
    return tiny.samples(EACH).x[rows]


def half() -> nn.Module:
    """Return the client half before the first round."""
    module: nn.Module = begin(tiny.task(), "frozen").strategy.client_half
    return module


def slopes(method: str, estimator: str) -> np.ndarray:
    """Return by how much each probe moves the distance correlation, by hand."""
    module, own = half(), Dependence(inputs())
    vector = ParameterVector(module)
    seed = 0 if method == "ho_sfl" else client_key(0, 0)
    directions = vector.directions(run_key(method, seed), "rademacher")
    found = []
    for u in directions.of_step(1, 0, client_stream(0), PROBES):

        def at(scale: float, u: Any = u) -> float:
            with torch.no_grad(), vector.probe(u, scale):
                return float(own.dcor(module(inputs())))

        if estimator == "forward":
            found.append(at(MU) - at(0.0))
        else:
            step = MU if estimator == "central" else 1e-3
            found.append((at(step) - at(-step)) / 2 / (1 if estimator == "central" else step))
    return np.array(found)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("estimator", "more"),
    [
        ("forward", {}),
        ("central", {}),
        ("jvp", {}),
        ("forward", {"micro_batch": 3}),
        ("central", {"micro_batch": 3}),
    ],
)
def test_scalars_have_the_terms_difference_besides(
    method: str, estimator: str, more: dict[str, Any]
) -> None:
    plain, with_term = (
        sent(trained(method, nopeek=alpha, estimator=estimator, **more)) for alpha in (0.0, ALPHA)
    )
    wanted = ALPHA * slopes(method, estimator)
    found = (with_term - plain).reshape(-1)
    assert np.abs(wanted).min() > 5e-4
    # The derivative by hand is a difference of float32 smashed data.
    assert np.allclose(found, wanted, rtol=2e-3, atol=1e-3 if estimator == "jvp" else 2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_probes_in_one_forward_and_a_part_that_no_probe_moves_change_nothing(method: str) -> None:
    stacked, apart = (
        sent(trained(method, nopeek=ALPHA, direction="rank_one", stack=stack)) for stack in (3, 1)
    )
    assert np.allclose(stacked, apart, rtol=1e-3, atol=1e-5)

    def deep(trained: str) -> Any:
        return tiny.task(clients=1, each=EACH, cut="act2", trained=trained)

    parted = sent(trained(method, deep("hidden.*"), nopeek=ALPHA))
    in_parts = sent(trained(method, deep("hidden.*"), nopeek=ALPHA, micro_batch=3))
    assert np.allclose(parted, in_parts, rtol=1e-3, atol=1e-5) and np.abs(parted).min() > 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_the_history_says_the_mean_distance_correlation(method: str) -> None:
    trial = trained(method, nopeek=ALPHA)
    with torch.no_grad():
        wanted = float(Dependence(inputs()).dcor(half()(inputs())))
    assert told(trial) == [pytest.approx(wanted, rel=1e-6)]
    assert trial.strategy.records[-1].extra["dcor"] == told(trial)[0]
    off = trained(method)
    assert not told(off) and "dcor" not in off.strategy.records[-1].extra
    asked = [c["config"] for _, _, c in off.grid.asked if "mu" in c.config_records["config"]]
    assert asked and not any("nopeek" in config for config in asked)


@pytest.mark.parametrize("method", METHODS)
def test_mini_batches_too_small_to_tell_anything_are_not_in_the_mean(method: str) -> None:
    """Of two samples the correlation is 1 whatever they are, and the first client has no others."""
    shares = [tiny.samples(2, 5), tiny.samples(EACH)]
    trial = trained(method, tiny.task(shares), nopeek=ALPHA, clients=2)
    assert sorted(told(trial))[0] == NO_DCOR and 0 < max(told(trial)) < 0.999
    assert trial.strategy.records[-1].extra["dcor"] == max(told(trial))
    assert trial.total("rejected") == 0
    alone = trained(method, tiny.task(shares[:1]), nopeek=ALPHA)
    assert told(alone) == [NO_DCOR] and "dcor" not in alone.strategy.records[-1].extra


def test_a_step_that_is_not_taken_is_not_in_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def spoiled(*given: Any, **named: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return loss_scalars(*given, **named) * (float("nan") if calls == 2 else 1.0)

    monkeypatch.setattr(heron, "loss_scalars", spoiled)
    trial = trained("heron", nopeek=ALPHA, local_steps=2, batch_size=6)
    rows = batch_indices(client_key(0, 0), 1, 0, EACH, 6).copy()
    x = tiny.samples(EACH).x[rows]
    with torch.no_grad():
        first = float(Dependence(x).dcor(half()(x)))
    assert "1 local steps were skipped" in trial.notes
    assert told(trial) == [pytest.approx(first, rel=1e-6)]


def test_a_pipelined_round_says_what_arrived_in_it_and_the_last_one_both() -> None:
    """Clients that do not move have the same correlations, one round later."""
    plain, late = (trained("ho_sfl", nopeek=ALPHA, rounds=4, pipeline=on) for on in (False, True))
    own, later = (
        [record.extra.get("dcor") for record in trial.strategy.records] for trial in (plain, late)
    )
    assert len(set(own)) == 5 and later == [None, *own[:-1]]
    closing = [record.extra.get("dcor_closing") for record in late.strategy.records]
    assert closing == [None] * 4 + own[-1:]


@pytest.mark.parametrize("method", METHODS)
def test_scalars_beyond_the_limit_name_the_term(method: str) -> None:
    limit = {"scalar_limit": 0.1, **({"uplink": "scalars"} if method == "heron" else {})}
    for alpha, says in ((1e3, r"; the term of nopeek = 1000 is in it: lower that"), (0.0, r"\.$")):
        with pytest.raises(TrainingError, match=f"more than scalar-limit = 0.1{says}"):
            trained(method, nopeek=alpha, **limit)


def test_it_means_the_same_whatever_the_size_of_the_mini_batch() -> None:
    """Twice the same samples: λ halves and there are two of each, the distances are the same."""
    share = tiny.samples(4)
    twice = Samples(torch.cat([share.x, share.x]), torch.cat([share.y, share.y]))
    one, two = (
        sent(trained("ho_sfl", tiny.task([data]), nopeek=ALPHA, batch_size=len(data.y), probes=2))
        for data in (share, twice)
    )
    assert np.allclose(one, two, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_it_falls_where_it_is_asked_to(method: str) -> None:
    """Clients move by the term alone, nearly: what is said of it falls, round by round."""
    options = {"nopeek": 1e3, "client_lr": 0.1, "clip_norm": 1.0, "rounds": 12, "probes": 16}
    options |= {"batch_size": EACH, **tiny.STEADY.get(method, {})}
    trial = trained(method, **options)
    found = [r.extra["dcor"] for r in trial.strategy.records if r.round]
    assert found[-1] < found[0] - 0.05
    flat = trained(method, **{**options, "nopeek": 1e-9})
    assert flat.strategy.records[-1].extra["dcor"] > found[-1] + 0.05


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("ho_sfl", {"minibatches": 2}),
        ("ho_sfl", {"pipeline": True}),
        ("ho_sfl", {"guide": "public"}),
        ("heron", {"local_steps": 2, "client_optimizer": "adam"}),
    ],
    ids=["ho_sfl", "pipelined", "guided", "heron"],
)
def test_a_stopped_run_goes_on_to_the_same_bits_and_the_same_history(
    method: str, more: dict[str, Any], tmp_path: Path
) -> None:
    def problem() -> Any:
        return tiny.task(public=lambda: tiny.samples(20, 7))

    options = {"nopeek": 2.0, "client_lr": 0.05, "probes": 2, "rounds": 4, **more}
    whole, resumed = tiny.stopped(problem, tmp_path, 2, method, **options)
    assert equal(whole.model, resumed.model)
    parts = [RunDirectory(tmp_path / name).history for name in ("whole", "parts")]
    extras = [[record.extra for record in history] for history in parts]
    assert extras[0] == extras[1] and any("dcor" in extra for extra in extras[0])


def test_secure_sums_sum_it_and_nobodys_own_is_told() -> None:
    options = {"clients": 4, "directions": "shared", "outlier_factor": 0.0, "client_lr": 0.1}
    four = tiny.task(clients=4, each=EACH)
    plain = trained("ho_sfl", four, nopeek=ALPHA, **options)
    masked = trained("ho_sfl", four, nopeek=ALPHA, secure_sums=True, **options)
    for name, value in plain.model.items():
        assert torch.allclose(value, masked.model[name], atol=1e-6)
    assert len(told(plain)) == 4 and not told(masked)


@pytest.mark.parametrize("method", METHODS)
def test_a_reply_without_what_was_asked_is_refused_and_so_is_one_that_nobody_asked(
    method: str,
) -> None:
    for alpha, entry, says in (
        (ALPHA, None, "it has no distance correlation, and one was asked for"),
        (0.0, 0.5, "it has a distance correlation, and none was asked for"),
        (ALPHA, 1.5, r"dcor"),
    ):

        def change(content: Any, entry: float | None = entry) -> Any:
            return changed(content, config={"dcor": entry})

        kind = "probe" if method == "ho_sfl" else "local"
        fault = Fault("change", {0}, {1}, kind, 1, change)
        problem = tiny.task(clients=2, each=EACH)
        trial = train(problem, method, [fault], **{**OPTIONS, "clients": 2, "nopeek": alpha})
        assert trial.total("rejected") == 1
        assert says in trial.notes


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"nopeek": -1.0}, "nopeek"),
        ({"nopeek": 2e6}, "nopeek"),
        ({"nopeek": 1.0, "dp_clip": 1.0}, "dp_clip=1 with nopeek=1: that is of a mini-batch"),
        ({"nopeek": 1.0, "scalars": "channel"}, "scalars=channel with nopeek=1.0"),
    ],
)
def test_what_does_not_go_with_it_is_refused_before_training(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        given = {"method": "ho_sfl", "task": "tiny", **options}
        config, method, settings, _ = read_options(given)
        method.server.check_options(config, settings)


@pytest.mark.parametrize("method", METHODS)
def test_mini_batches_and_clients_that_are_too_small_are_told_of(method: str) -> None:
    options = {**OPTIONS, "nopeek": 1.0, "clients": 2, "rounds": 2}
    problem = tiny.task([tiny.samples(n, n) for n in (2, 3)])
    with pytest.raises(ConfigError, match=r"nopeek=1 with batch_size=2: .* at least 3"):
        begin(problem, method, **{**options, "batch_size": 2})
    notes = train(problem, method, **options).notes
    assert notes.count("Client 0: it holds fewer than 3 samples (2); nopeek does nothing") == 1
    assert "Client 1: " not in notes


@pytest.mark.parametrize("method", METHODS)
def test_tokens_have_no_distances(method: str) -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Embedding(9, 4), nn.Flatten(), nn.Linear(4 * tiny.FEATURES, tiny.CLASSES)
        )

    share = Samples(torch.zeros(8, tiny.FEATURES, dtype=torch.int64), tiny.samples(8).y)
    problem = tiny.task([share], build=build, cut="1", test=lambda: share)
    with pytest.raises(ConfigError, match=r"inputs of torch.int64: token ids have no distances"):
        begin(problem, method, **{**OPTIONS, "nopeek": 1.0})
