"""A memory budget becomes a number of samples, once, before a run begins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfl_flower import simulate
from sfl_flower.errors import ConfigError
from sfl_flower.methods import METHODS, read_options
from sfl_flower.run import run as runs
from sfl_flower.run.micro_batch import client_peak, largest_within
from sfl_flower.run.simulation import _own_state
from tests import tiny

pytestmark = pytest.mark.flower


@given(
    st.integers(1, 300),
    st.lists(st.tuples(st.integers(0, 900), st.integers(1, 90)), min_size=1, max_size=3),
    st.integers(1, 20_000),
)
def test_what_is_found_was_measured_and_fits(
    most: int, lines: list[tuple[int, int]], budget: int
) -> None:
    def peak(n: int) -> int:
        return max(base + slope * n for base, slope in lines)

    found, peaks = largest_within(budget, peak, most)
    fits = [n for n in range(1, most + 1) if peak(n) <= budget]
    assert (found > 0) == bool(fits)
    if found:
        assert peaks[found] == peak(found) <= budget
        # One line: the number itself. More: no less than a quarter of it.
        assert found == fits[-1] if len(set(lines)) == 1 else found >= fits[-1] // 4
    assert len(peaks) <= 8


def peaks_of(method: str, **options: Any) -> Callable[[int], int]:
    config, found, settings, _ = read_options({"method": method, "batch_size": 16, **options})
    problem = tiny.task(each=20)

    def peak(size: int) -> int:
        with _own_state():
            return client_peak(problem, found, config, settings, size)

    return peak


@pytest.mark.parametrize("method", METHODS)
def test_the_peak_grows_with_the_samples_that_run_at_one_time(method: str) -> None:
    peak = peaks_of(method)
    few, most = peak(2), peak(17)
    assert 0 < few <= most
    assert peak(2) == few


def test_probes_of_one_forward_are_measured_as_they_run() -> None:
    options = {"direction": "rank_one", "probes": 6}
    assert peaks_of("ho_sfl", **options, stack=6)(17) > peaks_of("ho_sfl", **options)(17)


@pytest.mark.parametrize(
    ("trained", "builds"), [("all", 1), ("subspace:2", 1), ("subspace:auto:0.5:1", 2)]
)
def test_a_trial_builds_nothing_that_the_task_has(trained: str, builds: int) -> None:
    """The model is built once for each choice of parameters that is looked at."""
    calls: list[str] = []

    def build() -> Any:
        calls.append("model")
        return tiny.model()

    def public() -> Any:
        calls.append("public")
        return tiny.samples(20, 7)

    config, method, settings, _ = read_options({"method": "ho_sfl", "batch_size": 16})
    problem = tiny.task(each=20, build=build, public=public, trained=trained)
    peaks = []
    for size in (2, 17, 2):
        with _own_state():
            peaks.append(client_peak(problem, method, config, settings, size))
    assert 0 < peaks[0] == peaks[2] <= peaks[1]
    assert (calls.count("model"), calls.count("public")) == (builds, int(trained != "all"))


def test_a_run_has_the_number_that_its_budget_allows(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "backend": "inline", "rounds": 2, "clients": 2, "batch_size": 16, "partition": "iid",
    }  # fmt: skip
    problem = tiny.task(each=20)
    peak = peaks_of("splitfed_v2")
    budget = -(-(peak(2) + peak(17)) // 2048)
    place = tmp_path / "run"
    result = simulate(problem, "splitfed_v2", micro_batch=f"{budget}KiB", out=place, **options)
    size = json.loads((place / "config.json").read_text())["measured"]["micro_batch"]
    assert 2 <= size < 16
    assert result.summary.terms["micro_batch"] == size
    assert result.summary.client_peak_bytes is not None
    assert result.summary.client_peak_bytes <= budget * 1024
    given = simulate(problem, "splitfed_v2", micro_batch=size, **options)
    assert tiny.equal(result.model, given.model)


def test_a_run_that_goes_on_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "backend": "inline", "clients": 2, "batch_size": 16, "partition": "iid",
        "micro_batch": "1GiB", "out": tmp_path / "run",
    }  # fmt: skip
    problem = tiny.task(each=20)
    simulate(problem, "cse_fsl", rounds=1, **options)
    monkeypatch.delattr(runs, "samples_in_budget")
    resumed = simulate(problem, "cse_fsl", rounds=2, resume=True, **options)
    assert resumed.summary.terms["micro_batch"] == 0  # whole mini-batches fit


def test_a_budget_of_what_mixes_samples_is_refused_by_its_own_words(tmp_path: Path) -> None:
    says = r"^micro_batch is '64MiB', but 'norm' of the client half needs the whole mini-batch"
    with pytest.raises(ConfigError, match=says):
        simulate(
            tiny.task(build=tiny.with_batch_norm, each=20), "fedavg", backend="inline", rounds=1,
            clients=2, micro_batch="64MiB", out=tmp_path / "run",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_budget_below_one_sample_is_refused_with_one_that_works(tmp_path: Path) -> None:
    options: dict[str, Any] = {"backend": "inline", "rounds": 1, "clients": 2, "batch_size": 16}
    problem = tiny.task(each=20)
    says = r"^micro_batch is '0\.1KiB', but a client of method 'fedavg' allocates .* at least (\d+)"
    with pytest.raises(ConfigError, match=says) as refused:
        simulate(problem, "fedavg", micro_batch="0.1KiB", out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
    least = str(refused.value).partition("at least ")[2].partition("KiB")[0]
    simulate(problem, "fedavg", micro_batch=f"{least}KiB", **options)
