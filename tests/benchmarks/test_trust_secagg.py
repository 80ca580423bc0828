"""What the benchmark of secure sums counts, by hand, for a few clients."""

from __future__ import annotations

import argparse

import pytest

from benchmarks import trust_secagg
from sfl_flower.privacy import secure_server
from sfl_flower.privacy.secure_circle import Circle

WORDS = (
    "--trust-secagg-clients 5 --trust-secagg-neighbours 2 --trust-secagg-probes 2 "
    "--trust-secagg-all 4"
).split()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    trust_secagg.add_arguments(parser)
    return parser.parse_args(WORDS)


@pytest.mark.flower
def test_figures_of_five_clients() -> None:
    """Of 3 holders 2 open, so both neighbours are sent a share of 48 bytes."""
    equal, own, whole, took = trust_secagg.figures(parsed())
    assert (equal.name, equal.value, equal.target) == ("secagg_equal", 1.0, 1.0)
    up, down = 2 * 48 + (2 * 16 + 16) + 8 + 3 * 16, (8 + 2 * 32) + (2 * 48 + 1) + 1
    assert (own.name, own.value) == ("secagg_bytes_per_client", up + down)
    assert whole.value > up + down + 2 * 4
    assert took.name == "secagg_ms_per_client" and took.value > 0


def test_a_sum_that_is_off_by_one_is_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    circle, real = Circle(4, 0, 0.6), secure_server.SecureRound.total
    assert trust_secagg._exact(circle, ([], [1], []))
    monkeypatch.setattr(secure_server.SecureRound, "total", lambda *a: real(*a) + 1)
    assert not trust_secagg._exact(circle, ([], [1], []))
