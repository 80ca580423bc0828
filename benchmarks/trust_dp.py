"""Differential privacy of scalars: the noise and the ε as stated, and what ε costs on SST-2.

On the sentences of `benchmarks.features` the last block of MiniLM is moved in a few directions,
with ε from clipping alone (infinite) down, beside the frozen client.  ε covers the scalars alone;
smashed data and labels are sent in the clear.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks import features
from benchmarks.figure import Figure
from benchmarks.grid import Job, run_jobs
from benchmarks.learn_beds import BEDS, FORWARDS
from benchmarks.trial import train
from sfl_flower.privacy.accounting import epsilon_of
from sfl_flower.run.run import Plan
from sfl_flower.tasks import load_task
from sfl_flower.zo import Probing

__all__ = ["add_arguments", "figures"]

DELTA = 1e-5
CASES = ((1.0, 1), (4.0, 16), (5.0, 200), (20.0, 1000))
"""σ and T."""
SMALL: Mapping[str, Any] = {
    "method": "ho_sfl",
    "task": "digits",
    "clients": 8,
    "batch_size": 16,
    "probes": 64,
    "minibatches": 4,
    "clip_norm": 0.0,
    "client_lr": 0.0,
    "dp_clip": 0.1,
}
ROW: Mapping[str, Any] = {
    **FORWARDS,
    "task.behind": "block:3",
    "task.trained": "subspace:2:*layer.2.*",
    "probes": 4,
    "batch_size": 64,
    "server_lr": 0.003,
    "dp_clip": 0.02,
}
RATES: Mapping[str, float] = {"inf": 0.2, "6": 0.1, "2": 0.05}
"""Client rate by ε: steps of noise must be shorter."""
CONTROL: Mapping[str, Any] = {"task.behind": "block:3", "batch_size": 64, "server_lr": 0.003}


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this part."""
    parser.add_argument(
        "--trust-dp-rounds", type=int, default=48, help="rounds on SST-2; 0 leaves it out"
    )
    parser.add_argument("--trust-dp-seeds", type=int, default=3, help="seeds 0, 1, … of SST-2")
    parser.add_argument("--trust-dp-workers", type=int, default=2, help="runs side by side")
    parser.add_argument(
        "--trust-dp-out", type=Path, help="file of results: runs in it are not run again"
    )


def figures(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the noise that reaches the journal, ε beside the accountant's, accuracies by ε."""
    yield _variance()
    yield _epsilon()
    if args.trust_dp_rounds:
        yield from _accuracies(args)


def journal(**options: Any) -> np.ndarray:
    """Return the coefficients of a short run whose clients stand, [rounds, clients, steps, P]."""
    plan = Plan.read({**SMALL, "rounds": 4, "eval_every": 4, **options})
    strategy = train(load_task("digits"), plan, 4)
    assert strategy.journal is not None
    return np.stack([entry.coefficients.astype(np.float64) for entry in strategy.journal.entries])


def _variance() -> Figure:
    """Return the variance of what noise adds to the journal, over that which is stated."""
    noise, probes = 3.0, int(SMALL["probes"])
    probing = Probing(probes, clip=float(SMALL["dp_clip"]))
    added = journal(dp_noise=noise) - journal()
    share = 1 / (int(SMALL["clients"]) * int(SMALL["minibatches"]) * probes * probing.unit)
    stated = noise * probing.sensitivity(int(SMALL["batch_size"])) * share
    found, count = float(added.var()) / stated**2, added.size
    return Figure(
        "dp_noise_variance",
        found,
        "ratio",
        None,
        f"variance over (sigma C sqrt(P) mu / B)^2 of a coefficient's noise, {count} draws by "
        f"clients from the operating system: within {abs(found - 1) * (count / 2) ** 0.5:.1f} "
        "standard errors of 1; to 1e-4 of each draw in tests/server/test_private.py",
    )


def _epsilon() -> Figure:
    """Return the largest ratio of ε to the accountant's, by privacy loss distributions."""
    import dp_accounting

    ratios = []
    for noise, times in CASES:
        event = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(noise), times)
        accountant = dp_accounting.pld.PLDAccountant().compose(event)
        ratios.append(epsilon_of(noise, times, DELTA) / accountant.get_epsilon(DELTA))
    worst = max(ratios, key=lambda ratio: abs(ratio - 1))
    return Figure(
        "dp_epsilon_vs_accountant",
        worst,
        "ratio",
        None,
        "epsilon of a run over that of dp-accounting's PLDAccountant, the farthest from 1 of "
        + ", ".join(f"sigma {noise:g} in {times} mini-batches" for noise, times in CASES),
    )


def job(epsilon: str, rounds: int, seed: int) -> Job:
    """Return a run at an ε, of clipping alone for ``inf``, or of the ``frozen`` client."""
    common = {**BEDS["minilm"].shared, "rounds": rounds, "eval_every": rounds, "seed": seed}
    if epsilon == "frozen":
        return Job(features.SENTENCES, "frozen", {**common, **CONTROL})
    budget = {} if epsilon == "inf" else {"dp_epsilon": float(epsilon), "dp_delta": DELTA}
    own = {**ROW, "client_lr": RATES[epsilon], **budget}
    return Job(features.SENTENCES, "ho_sfl", {**common, **own})


def _accuracies(args: argparse.Namespace) -> Iterator[Figure]:
    labels, rounds = (*RATES, "frozen"), args.trust_dp_rounds
    asked = {
        label: [job(label, rounds, seed) for seed in range(args.trust_dp_seeds)] for label in labels
    }
    runs = [each for jobs in asked.values() for each in jobs]
    done = run_jobs(runs, args.trust_dp_workers, args.trust_dp_out)
    for label, jobs in asked.items():
        found = [done[each.key()]["accuracy"] for each in jobs]
        what = "the frozen client" if label == "frozen" else f"epsilon = {label} at delta = {DELTA}"
        yield Figure(
            f"dp_accuracy_minilm_{label}",
            mean(found),
            "share",
            None,
            f"SST-2 on MiniLM, {what}, {rounds} rounds, seeds "
            f"{', '.join(f'{value:.4f}' for value in found)}; epsilon covers the scalars alone, "
            f"smashed data and labels are sent in the clear",
        )
