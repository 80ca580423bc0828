"""A postprocessor on the client: what is sent is what counts, and the server cannot derive it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sfl_flower import simulate
from sfl_flower.errors import ConfigError, TrainingError
from sfl_flower.node.postprocess import NoisyScalars, Postprocess, secret_generator
from sfl_flower.run.client_app import make_client_app
from sfl_flower.wire.fedavg import FullReply
from sfl_flower.wire.ho_sfl import ForwardReply, ProbeReply
from tests import tiny
from tests.local_grid import values
from tests.tiny import Trial, begin, equal, start

SCALARS = np.array([[3.0, 0.0], [0.0, -4.0]], np.float32)  # of norm 5
REPLY = ProbeReply(round=1, samples=8, scalars=SCALARS)


def scalars_of(reply: Any) -> np.ndarray:
    found: np.ndarray = reply.scalars
    return found


def processed(process: Postprocess | None, method: str = "ho_sfl", **options: Any) -> Trial:
    """Return a finished run whose clients all use a postprocessor."""
    shares = [tiny.samples(1)] * 2
    problem = tiny.task(shares)
    given: dict[str, Any] = {"clients": 2, "rounds": 3, "probes": 2, **options}
    trial = begin(problem, method, **given)
    trial.grid._app = make_client_app(lambda context: problem, postprocess=process)
    return start(trial)


def sent(trial: Trial, client: int) -> list[np.ndarray]:
    return [
        values(content["arrays"]["scalars"])
        for _, number, content in trial.grid.replies
        if number == client and "scalars" in content.array_records.get("arrays", {})
    ]


def test_scalars_are_clipped_as_one_vector_then_noised() -> None:
    clipped = scalars_of(NoisyScalars(clip=2.5)(REPLY))
    assert clipped.tolist() == [[1.5, 0.0], [0.0, -2.0]] and clipped.dtype == np.float32
    assert scalars_of(NoisyScalars(clip=6.0)(REPLY)).tolist() == SCALARS.tolist()
    generator = np.random.default_rng(0)
    noised = scalars_of(NoisyScalars(0.5, 2.5, lambda: generator)(REPLY))
    expected = SCALARS / 2 + 0.5 * np.random.default_rng(0).standard_normal((2, 2))
    assert np.allclose(noised, expected, rtol=1e-6) and noised.dtype == np.float32


def test_smashed_data_pass_and_weights_are_not_sent_as_if_they_were_noised() -> None:
    process = NoisyScalars(noise=1.0)
    z, y = np.ones((2, 3), np.float32), np.zeros(2, np.int64)
    forward = ForwardReply(1, 0, z, y, np.array([2]))
    assert process(forward) is forward
    with pytest.raises(ConfigError, match=r"this method sends weights; use .* uplink=scalars"):
        process(FullReply(1, 2, 0.5, {"float32": np.ones(3, np.float32)}))
    with pytest.raises(TrainingError, match="NoisyScalars leaves weights as they are"):
        processed(process, "heron", uplink="weights", rounds=1)


@pytest.mark.parametrize("options", [{"noise": -1.0}, {"noise": float("nan")}, {"clip": 0.0}])
def test_amounts_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(options))} is .*; it must be"):
        NoisyScalars(**options)


def test_no_two_generators_draw_the_same() -> None:
    draws = {secret_generator().integers(2**63) for _ in range(50)}
    assert len(draws) == 50


def test_clients_with_the_same_data_and_seed_noise_differently_and_anew_each_time() -> None:
    options: dict[str, Any] = {"directions": "shared", "client_lr": 0.0}
    plain = processed(None, **options)
    assert np.array_equal(sent(plain, 0)[0], sent(plain, 1)[0])  # one sample, one direction
    process = NoisyScalars(noise=1e-3)
    first, again = processed(process, **options), processed(process, **options)
    drawn = [sent(trial, client)[0] for trial in (first, again) for client in (0, 1)]
    assert len({values.tobytes() for values in drawn}) == 4
    assert all(np.abs(values - sent(plain, 0)[0]).max() < 1e-2 for values in drawn)


def test_the_journal_holds_what_was_sent_and_replays_to_the_same_bits() -> None:
    trial = processed(NoisyScalars(noise=1e-2, clip=1e-1), directions="own", mu=1e-2)
    mirror = trial.strategy.mirror
    for index, entry in enumerate(mirror.journal.entries):
        both = np.stack([sent(trial, client)[index] for client in (0, 1)]).astype(np.float64)
        assert np.array_equal(entry.coefficients, (both / (2 * 2 * 1e-2)).astype(np.float32))
    replica = begin(tiny.task([tiny.samples(1)] * 2), clients=2).strategy.mirror.replica
    for version, entry in enumerate(mirror.journal.entries):
        if version == 2:  # where clients stood in the last round
            assert all(trial.theta(c).tobytes() == replica.theta.numpy().tobytes() for c in (0, 1))
        replica.apply(entry)
    assert torch.equal(replica.theta, mirror.vector.anchor)
    assert trial.total("rejected") == trial.total("failures") == 0


def test_heron_averages_what_the_noised_scalars_lead_to() -> None:
    """The same draws give the same run, none another: the server rebuilds from what was sent."""

    def injected(noise: float) -> Trial:
        draws: Iterator[int] = iter(range(100))
        process = NoisyScalars(noise, generator=lambda: np.random.default_rng(next(draws)))
        return processed(process, "heron", uplink="scalars", local_steps=2)

    once, twice, none = injected(1e-3), injected(1e-3), processed(None, "heron", local_steps=2)
    assert once.total("rejected") == once.total("failures") == 0
    assert equal(once.model, twice.model) and not equal(once.model, none.model)
    quiet = injected(0.0)
    assert equal(quiet.model, none.model)


def test_simulate_takes_a_postprocessor_for_every_client() -> None:
    class Still:
        """Sends scalars of 0, so that nothing moves the client half."""

        seen = 0

        def __call__(self, reply: Any) -> Any:
            if getattr(reply, "scalars", None) is None:
                return reply
            self.seen += 1
            return replace(reply, scalars=np.zeros_like(reply.scalars))

    options: dict[str, Any] = {"clients": 2, "rounds": 2, "batch_size": 4, "partition": "iid"}
    process = Still()
    still = simulate(tiny.task(clients=2), backend="inline", postprocess=process, **options)
    stands = simulate(tiny.task(clients=2), backend="inline", client_lr=0.0, **options)
    assert process.seen == 4 and equal(still.model, stands.model)
